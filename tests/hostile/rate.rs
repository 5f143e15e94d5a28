//! Rows 28 to 32: rate limits, penalties and the address of a client.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use crate::support::{
    Backend, Gateway, PLAIN, Request, Response, Session, Setup, TIMEOUT, TLS, eventually, read_to_end,
    send_request,
};

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
/// No limits of an address but penalties.
const ONLY_PENALTIES: &str = "rate = 1000\nburst = 1000";
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));

const fn attacker(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 3, 0, last))
}

async fn session_from(gateway: &Gateway, source: IpAddr) -> Session {
    let connection = gateway.connect_from(Some(source), TLS).await;
    let mut session = gateway.open(connection, &gateway.upgrade(TLS, "/echo")).await;
    session.echo(b"hello").await;
    session
}

/// Connects and disconnects without TLS. Returns what is left of the penalty of this address, if it has one.
async fn attempt(gateway: &Gateway, source: IpAddr) -> Option<Duration> {
    let mut socket = gateway.tcp_from(Some(source), TLS).await;
    let peer = socket.local_addr().expect("a connected socket");
    // A penalised connection may be closed already.
    let _ = socket.shutdown().await;
    let line = gateway.access_log_line(peer).await;
    match line.reason() {
        "tls_failed" => None,
        "rate_limited" => Some(penalty_in(line.text("detail").expect("a detail"))),
        other => panic!("ended as {other}: {line:?}"),
    }
}

/// The duration at the end of the detail.
fn penalty_in(detail: &str) -> Duration {
    let left = detail.strip_prefix("was refused too often; the next connection is permitted in ");
    let left = left.unwrap_or_else(|| panic!("another limit: {detail}"));
    let unit = left.find(|c: char| !(c.is_ascii_digit() || c == '.')).expect("a unit");
    let (number, unit) = left.split_at(unit);
    let number: f64 = number.parse().expect("a number");
    Duration::from_secs_f64(match unit {
        "s" => number,
        "ms" => number / 1e3,
        "µs" => number / 1e6,
        "ns" => number / 1e9,
        other => panic!("the unit {other}"),
    })
}

/// Attempts until the address has a penalty. Returns the penalty and how many attempts were tolerated.
async fn until_penalty(gateway: &Gateway, source: IpAddr) -> (Duration, u32) {
    for tolerated in 0..100 {
        if let Some(penalty) = attempt(gateway, source).await {
            return (penalty, tolerated);
        }
    }
    panic!("no penalty after 100 refusals");
}

#[tokio::test]
async fn row_28_penalties_grow_and_decay_and_other_addresses_are_served() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .per_ip(ONLY_PENALTIES)
        .tables("[limits.penalties]\nrate = 1\nburst = 5\nmin = \"1s\"\nmax = \"3s\"")
        .admin()
        .start()
        .await;
    let mut open = session_from(&gateway, attacker(1)).await;

    let (first, tolerated) = until_penalty(&gateway, attacker(1)).await;
    let began = Instant::now();
    assert!(first <= SECOND, "the first penalty: {first:?}");
    assert!(tolerated >= 5, "a penalty after {tolerated} refusals");
    // Neighbours in the same /24 are served, and so is the open session.
    let mut neighbour = session_from(&gateway, attacker(2)).await;
    open.echo(b"still here").await;
    neighbour.echo(b"still here").await;

    // The first attempt that is admitted is one refusal too many again.
    while attempt(&gateway, attacker(1)).await.is_some() {
        assert!(began.elapsed() < TIMEOUT, "the first penalty has not ended");
    }
    assert!(began.elapsed() + Duration::from_millis(50) >= first, "it ended after {:?}", began.elapsed());
    let (second, _) = until_penalty(&gateway, attacker(1)).await;
    let began = Instant::now();
    assert!(second > first && second <= 2 * SECOND, "{first:?}, then {second:?}");

    // A penalty that lasts and as much time without one.
    tokio::time::sleep((2 * second).saturating_sub(began.elapsed())).await;
    let (third, tolerated) = until_penalty(&gateway, attacker(1)).await;
    assert!(third <= SECOND, "after a quiet time: {third:?}");
    assert!(tolerated >= 2, "the bucket is not refilled: {tolerated} were tolerated");
    assert_eq!(gateway.metric("portcullis_penalties_total").await, Some(3.0));

    // A reload ends every penalty.
    gateway.reload_again().await.expect("the same configuration");
    drop(session_from(&gateway, attacker(1)).await);
    drop((open, neighbour));
    gateway.finish().await;
}

/// A request by the proxy for a client, with an Origin.
async fn by_proxy(gateway: &Gateway, client: &str, origin: Option<&str>) -> Response {
    let mut connection = gateway.connect_by_proxy(PROXY, &format!("{client}:0"), PLAIN).await;
    let mut request = gateway.upgrade(PLAIN, "/echo").add("X-Forwarded-For", client);
    if let Some(origin) = origin {
        request = request.with("Origin", origin);
    }
    send_request(&mut connection, &request).await
}

#[tokio::test]
async fn row_28_behind_a_trusted_proxy_the_client_has_the_penalty_and_not_the_proxy() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.9/32\"]\n")
        .per_ip(ONLY_PENALTIES)
        .tables("[limits.penalties]\nrate = 1\nburst = 3\nmin = \"1m\"")
        .start()
        .await;
    let (hostile, healthy) = ("203.0.113.7", "203.0.113.8");
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(by_proxy(&gateway, hostile, Some("https://evil.example")).await.status);
    }
    assert!(statuses.starts_with(&[403; 3]) && statuses.ends_with(&[429; 10]), "{statuses:?}");
    let refused = by_proxy(&gateway, hostile, None).await;
    assert_eq!(refused.status, 429, "{refused:?}");
    let seconds: u64 = refused.header("Retry-After").expect("Retry-After").parse().expect("seconds");
    assert!((1..=60).contains(&seconds), "{seconds} s");
    assert_eq!(by_proxy(&gateway, healthy, None).await.status, 101);

    // Connections of the proxy that name no client are its own, and it may send any number of bad ones.
    for _ in 0..20 {
        let mut connection = gateway.connect_from(Some(PROXY), PLAIN).await;
        let request = Request::new("GET /echo HTTP/1.1").add("Host", "a").add("Host", "b");
        assert_eq!(send_request(&mut connection, &request).await.status, 400);
    }
    assert_eq!(by_proxy(&gateway, healthy, None).await.status, 101);
    gateway.finish().await;
}

#[tokio::test]
async fn row_28_a_proxy_header_names_who_has_the_penalty() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .listener(PLAIN, "proxy_protocol = true\ntrusted_proxies = [\"127.0.0.9/32\"]\n")
        .per_ip(ONLY_PENALTIES)
        .tables("[limits.penalties]\nrate = 1\nburst = 3\nmin = \"1m\"")
        .start()
        .await;
    let mut reasons = Vec::new();
    for _ in 0..20 {
        let mut socket = gateway.connect_by_proxy(PROXY, "203.0.113.7:1000", PLAIN).await;
        let header = b"PROXY TCP4 203.0.113.7 127.0.0.1 1000 80\r\nnot HTTP\r\n\r\n";
        socket.write_all(header).await.unwrap();
        read_to_end(&mut socket).await.1.ok();
        drop(socket);
        let line = gateway.access_log_line("203.0.113.7:1000".parse().unwrap()).await;
        reasons.push(line.reason().to_owned());
    }
    assert!(reasons[..3].iter().all(|reason| reason == "bad_request"), "{reasons:?}");
    assert!(reasons[10..].iter().all(|reason| reason == "rate_limited"), "{reasons:?}");
    let mut healthy = gateway.connect_by_proxy(PROXY, "203.0.113.8:1000", PLAIN).await;
    healthy.write_all(b"PROXY TCP4 203.0.113.8 127.0.0.1 1000 80\r\n").await.unwrap();
    let response = send_request(&mut healthy, &gateway.upgrade(PLAIN, "/echo")).await;
    assert_eq!(response.status, 101, "{response:?}");
    drop(healthy);
    gateway.finish().await;
}

#[tokio::test]
async fn row_28_exempt_addresses_have_no_penalty_and_nobody_has_one_if_they_are_disabled() {
    let backend = Backend::echo().await;
    let penalties = "[limits.penalties]\nrate = 1\nburst = 1\nmin = \"1m\"\n";
    for (per_ip, lines) in [("exempt = [\"127.3.0.0/31\"]", ""), ("", "enabled = false")] {
        let gateway = Setup::echo(&backend)
            .per_ip(&format!("{ONLY_PENALTIES}\n{per_ip}"))
            .tables(&format!("{penalties}{lines}"))
            .start()
            .await;
        for n in 0..20 {
            assert_eq!(attempt(&gateway, attacker(1)).await, None, "refusal {n}, {per_ip} {lines}");
        }
        drop(session_from(&gateway, attacker(1)).await);
        if lines.is_empty() {
            let (_, tolerated) = until_penalty(&gateway, attacker(2)).await;
            assert!(tolerated <= 5, "{tolerated} refusals were tolerated");
        }
        gateway.finish().await;
    }
}

#[tokio::test]
async fn row_28_what_healthy_clients_do_counts_for_no_penalty() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .per_ip(ONLY_PENALTIES)
        .timeouts("request = \"50ms\"")
        .tables("[limits.penalties]\nrate = 1\nburst = 1\nmin = \"1m\"")
        .start()
        .await;
    let source = attacker(1);
    for _ in 0..5 {
        // An icon that does not exist, and a connection that is never used.
        let mut connection = gateway.connect_from(Some(source), TLS).await;
        let request = Request::new("GET /favicon.ico HTTP/1.1").add("Host", "localhost");
        assert_eq!(send_request(&mut connection, &request).await.status, 404);
        let peer = connection.peer();
        drop(connection);
        gateway.refused(peer, "unknown_route").await;
        let mut unused = gateway.connect_from(Some(source), TLS).await;
        let peer = unused.peer();
        assert_eq!(read_to_end(&mut unused).await.0, b"");
        drop(unused);
        gateway.refused(peer, "request_timeout").await;
        // A client that does not trust the certificate.
        let socket = gateway.tcp_from(Some(source), TLS).await;
        let peer = socket.local_addr().unwrap();
        assert!(gateway.try_secure(socket, untrusting()).await.is_err(), "the certificate is trusted");
        gateway.refused(peer, "tls_failed").await;
    }
    drop(session_from(&gateway, source).await);
    let (_, tolerated) = until_penalty(&gateway, source).await;
    assert!(tolerated <= 5, "{tolerated} refusals were tolerated");
    gateway.finish().await;
}

/// A client that trusts no authority.
fn untrusting() -> std::sync::Arc<rustls::ClientConfig> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    std::sync::Arc::new(config)
}

#[tokio::test]
async fn row_72_the_limits_of_networks_can_be_turned_off() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .per_ip("sessions = 1")
        .tables("[limits.per_network]\nenabled = false\nsessions = 1")
        .start()
        .await;
    let mut sessions = Vec::new();
    for last in 1..=12 {
        sessions.push(session_from(&gateway, attacker(last)).await);
    }
    drop(sessions);
    gateway.finish().await;
}

#[tokio::test]
async fn row_30_more_sources_than_the_table_holds_cost_no_more_memory() {
    // More than the 65,536 rows of the table. A million are a test of the table itself.
    const SOURCES: u32 = 80_000;
    /// Successive sources are in different networks of 256 addresses, as those of a botnet are.
    const STRIDE: u32 = 199;
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .per_ip("rate = 10\nburst = 20\nsessions = 1\nexempt = [\"127.0.0.0/24\"]")
        .level("info")
        .admin()
        .start()
        .await;
    let holder = IpAddr::V4(Ipv4Addr::new(127, 1, 2, 3));
    let connection = gateway.connect_from(Some(holder), TLS).await;
    let mut session: Session = gateway.open(connection, &gateway.upgrade(TLS, "/echo")).await;
    session.echo(b"hello").await;

    let before = gateway.memory();
    for n in 0..SOURCES {
        let [_, a, b, c] = (n * STRIDE).to_be_bytes();
        let source = IpAddr::V4(Ipv4Addr::new(127, 128 | a, b, c));
        let socket = gateway.untracked_socket(Some(source), PLAIN, |_| {}).await;
        socket.set_zero_linger().unwrap();
    }
    let idle = gateway.open_descriptors();
    eventually("the flood is over", Duration::from_secs(30), || {
        let open = gateway.open_descriptors();
        (open <= idle.min(64)).then_some(()).ok_or_else(|| format!("{open} descriptors are open"))
    })
    .await;
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown <= 16 * MIB, "{grown} bytes for {SOURCES} sources");

    // The source with a session is still counted.
    session.echo(b"still here").await;
    let mut second = gateway.untracked_socket(Some(holder), TLS, |_| {}).await;
    assert_eq!(read_to_end(&mut second).await.0, b"", "a second session of one source");
    drop(second);
    session.close(1000).await;
    let peer = session.peer;
    drop(session);
    gateway.ended(peer, "client_closed", Some(1000)).await;
    gateway.finish().await;
}
