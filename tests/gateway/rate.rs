//! Rate limits and concurrency limits per address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Backend, ClientStream, Gateway, PLAIN, Request, Response, Setup, TIMEOUT, TLS, eventually, read_to_end,
    send_request, within,
};

const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));

const fn loopback(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

/// Sends a request through the proxy for the client that the headers name.
async fn by_proxy(gateway: &Gateway, client: &str, headers: &[(&str, &str)]) -> (ClientStream, Response) {
    let mut connection = gateway.connect_by_proxy(PROXY, client, PLAIN).await;
    let mut request = gateway.upgrade(PLAIN, "/echo");
    for (name, value) in headers {
        request = request.add(name, value);
    }
    let response = send_request(&mut connection, &request).await;
    (connection, response)
}

#[track_caller]
fn assert_too_many(response: &Response) {
    assert_eq!(response.status, 429, "{response:?}");
    let seconds: u64 = response.header("Retry-After").expect("Retry-After").parse().expect("whole seconds");
    assert!((1..=60).contains(&seconds), "{seconds} s");
}

#[tokio::test]
async fn a_client_over_its_rate_limit_is_closed_before_tls_and_others_are_served() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).per_ip("rate = 1\nburst = 3").start().await;
    let greedy = loopback(2);
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(gateway.session_from(greedy).await);
    }
    gateway.refused_before_tls(greedy, "rate_limited").await;
    let other = gateway.session_from(loopback(3)).await;
    assert_eq!(backend.connections().await, 4);

    // Its open sessions continue, and soon its new ones are accepted again.
    for session in &mut sessions {
        session.echo(b"still here").await;
    }
    let start = Instant::now();
    loop {
        let mut socket = gateway.tcp_from(Some(greedy), TLS).await;
        let mut byte = [0];
        // A short silence means that the connection is accepted: refused ones are closed at once.
        match tokio::time::timeout(Duration::from_millis(300), socket.read(&mut byte)).await {
            Err(_) => break,
            Ok(ended) => assert!(!matches!(ended, Ok(1..)), "TLS had not begun"),
        }
        assert!(start.elapsed() < TIMEOUT, "not accepted again after a second");
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    drop((sessions, other));
    gateway.finish().await;
}

#[tokio::test]
async fn a_flood_from_one_address_is_accepted_at_its_rate_limit() {
    let gateway = Setup::new().per_ip("rate = 5\nburst = 10").start().await;
    let start = Instant::now();
    let mut sockets = Vec::new();
    for _ in 0..200 {
        sockets.push(gateway.tcp_from(Some(loopback(2)), TLS).await);
    }
    for socket in &mut sockets {
        socket.shutdown().await.ok();
    }
    let count =
        |reason: &str| gateway.lines(|line| (line.get("reason")?.as_str()? == reason).then_some(())).len();
    eventually("each connection has a log line", TIMEOUT, || {
        let (in_time, late) = (count("tls_failed"), count("rate_limited"));
        (in_time + late == 200).then_some(()).ok_or_else(|| format!("{in_time} accepted, {late} refused"))
    })
    .await;
    let most = 10 + (start.elapsed().as_secs_f64() * 5.0).ceil() as usize;
    let let_in = count("tls_failed");
    assert!((10..=most).contains(&let_in), "{let_in} were accepted, not 10 to {most}");
    drop(sockets);
    gateway.finish().await;
}

#[tokio::test]
async fn sessions_per_address_are_limited() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).per_ip("rate = 1000\nburst = 1000\nsessions = 3").start().await;
    let crowd = loopback(2);
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(gateway.session_from(crowd).await);
    }
    gateway.refused_before_tls(crowd, "too_many_sessions").await;
    gateway.refused_before_tls(crowd, "too_many_sessions").await;
    let other = gateway.session_from(loopback(3)).await;

    // When one ends, another may begin, however the connection ends.
    let mut leaving = sessions.pop().unwrap();
    let peer = leaving.peer;
    leaving.close(1000).await;
    drop(leaving);
    gateway.ended(peer, "client_closed", Some(1000)).await;
    let mut connection = gateway.connect_from(Some(crowd), TLS).await;
    assert_eq!(send_request(&mut connection, &gateway.upgrade(TLS, "/nothing")).await.status, 404);
    let peer = connection.peer();
    drop(connection);
    gateway.refused(peer, "unknown_route").await;
    let silent = gateway.connect_from(Some(crowd), TLS).await;
    gateway.refused_before_tls(crowd, "too_many_sessions").await;
    let peer = silent.peer();
    drop(silent);
    assert!(!gateway.access_log_line(peer).await.is_session());
    sessions.push(gateway.session_from(crowd).await);
    gateway.refused_before_tls(crowd, "too_many_sessions").await;
    drop((sessions, other));
    gateway.finish().await;
}

#[tokio::test]
async fn exempt_networks_are_not_counted() {
    let backend = Backend::echo().await;
    let limits = "rate = 1\nburst = 1\nsessions = 100\nexempt = [\"127.0.0.64/26\"]";
    let gateway = Setup::echo(&backend).per_ip(limits).start().await;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        sessions.push(gateway.session_from(loopback(65)).await);
    }
    sessions.push(gateway.session_from(loopback(63)).await);
    gateway.refused_before_tls(loopback(63), "rate_limited").await;
    drop(sessions);
    gateway.finish().await;
}

#[tokio::test]
async fn behind_a_trusted_proxy_a_limited_client_receives_retry_after() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.9/32\"]\n")
        .per_ip("rate = 1\nburst = 2")
        .start()
        .await;
    let (client, peer): (_, SocketAddr) = ("203.0.113.7:0", "203.0.113.7:0".parse().unwrap());
    let header = [("X-Forwarded-For", "203.0.113.7")];
    let mut open = Vec::new();
    for _ in 0..2 {
        let (connection, response) = by_proxy(&gateway, client, &header).await;
        assert_eq!(response.status, 101, "{response:?}");
        open.push(connection);
    }
    let (mut connection, response) = by_proxy(&gateway, client, &header).await;
    assert_too_many(&response);
    assert!(read_to_end(&mut connection).await.0.is_empty());
    gateway.refused(peer, "rate_limited").await;

    // The proxy itself is not counted: many clients connect through it.
    for last in 8..20 {
        let address = format!("203.0.113.{last}");
        let (connection, response) =
            by_proxy(&gateway, &format!("{address}:0"), &[("X-Forwarded-For", &address)]).await;
        assert_eq!(response.status, 101, "{response:?}");
        open.push(connection);
    }
    assert_eq!(backend.connections().await, 14);
    drop((open, connection));
    gateway.finish().await;
}

#[tokio::test]
async fn behind_a_trusted_proxy_sessions_are_counted_by_client() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.9/32\"]\n")
        .per_ip("rate = 1000\nburst = 1000\nsessions = 1")
        .start()
        .await;
    let peer = "203.0.113.7:0".parse().unwrap();
    let header = [("X-Forwarded-For", "203.0.113.7")];
    let (first, response) = by_proxy(&gateway, "203.0.113.7:0", &header).await;
    assert_eq!(response.status, 101);
    let (second, response) = by_proxy(&gateway, "203.0.113.7:0", &header).await;
    assert_too_many(&response);
    drop(second);
    gateway.refused(peer, "too_many_sessions").await;
    drop(first);
    gateway.ended(peer, "client_gone", None).await;
    let (third, response) = by_proxy(&gateway, "203.0.113.7:0", &header).await;
    assert_eq!(response.status, 101, "the permit is not released");
    drop(third);
    gateway.finish().await;
}

#[tokio::test]
async fn the_client_is_the_rightmost_hop_that_is_not_trusted() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.9/32\", \"10.0.0.0/8\"]\n")
        .start()
        .await;
    for (client, headers) in [
        ("203.0.113.7:0", &[("X-Forwarded-For", "203.0.113.7")][..]),
        ("203.0.113.7:0", &[("X-Forwarded-For", "198.51.100.1, 203.0.113.7")]),
        ("203.0.113.7:0", &[("X-Forwarded-For", "198.51.100.1, 203.0.113.7, 10.1.2.3")]),
        ("203.0.113.7:0", &[("X-Forwarded-For", "198.51.100.1"), ("x-forwarded-for", "203.0.113.7")]),
        ("203.0.113.7:0", &[("X-Forwarded-For", "::ffff:203.0.113.7")]),
        ("[2001:db8::7]:0", &[("X-Forwarded-For", "2001:db8::7")]),
        ("203.0.113.7:0", &[("Forwarded", "for=203.0.113.7;proto=http;by=10.1.2.3")]),
        ("203.0.113.7:4711", &[("Forwarded", "for=198.51.100.1, For=\"203.0.113.7:4711\"")]),
        ("[2001:db8::7]:4711", &[("Forwarded", "for=\"[2001:db8::7]:4711\", for=10.1.2.3")]),
    ] {
        let (connection, response) = by_proxy(&gateway, client, headers).await;
        assert_eq!(response.status, 101, "{headers:?} got {response:?}");
        drop(connection);
        gateway.ended(client.parse().unwrap(), "client_gone", None).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_proxy_may_reuse_one_connection_for_several_clients() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.9/32\"]\n")
        .web(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gateway")))
        .start()
        .await;
    let first =
        Request::new("GET /main.rs HTTP/1.1").add("Host", "a.example").add("X-Forwarded-For", "203.0.113.7");
    let second = gateway
        .upgrade(PLAIN, "/echo")
        .with("Origin", "https://desk.example")
        .add("X-Forwarded-For", "203.0.113.8")
        .add("X-Forwarded-Host", "desk.example")
        .add("X-Forwarded-Proto", "https");
    let mut connection = gateway.connect_by_proxy(PROXY, "203.0.113.8:0", PLAIN).await;
    assert_eq!(send_request(&mut connection, &first).await.status, 200);
    let mut session = gateway.open(connection, &second).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended("203.0.113.8:0".parse().unwrap(), "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn forwarding_headers_of_an_untrusted_client_have_no_effect() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .listener(TLS, "trusted_proxies = [\"127.0.0.9/32\"]\n")
        .per_ip("rate = 1\nburst = 2")
        .start()
        .await;
    let mut open = Vec::new();
    for last in 0..2 {
        let address = format!("203.0.113.{last}");
        let request = gateway
            .upgrade(TLS, "/echo")
            .add("X-Forwarded-For", &address)
            .add("Forwarded", &format!("for={address}"))
            .add("X-Real-IP", &address);
        let session = gateway.open(gateway.connect_from(Some(loopback(2)), TLS).await, &request).await;
        open.push(session);
    }
    gateway.refused_before_tls(loopback(2), "rate_limited").await;
    drop(open);
    gateway.finish().await;
}

#[tokio::test]
async fn addresses_inside_one_ipv6_network_are_one_source() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.9/32\"]\n")
        .per_ip("rate = 1\nburst = 3")
        .start()
        .await;
    let mut open = Vec::new();
    for number in 1..=3 {
        let address = format!("2001:db8:0:1:{number:x}:{number:x}::1");
        let peer = format!("[{}]:0", address.parse::<Ipv6Addr>().unwrap());
        let (connection, response) = by_proxy(&gateway, &peer, &[("X-Forwarded-For", &address)]).await;
        assert_eq!(response.status, 101, "{response:?}");
        open.push(connection);
    }
    let (refused, response) =
        by_proxy(&gateway, "[2001:db8:0:1:ffff::9]:0", &[("X-Forwarded-For", "2001:db8:0:1:ffff::9")]).await;
    assert_too_many(&response);
    drop(refused);
    gateway.refused("[2001:db8:0:1:ffff::9]:0".parse().unwrap(), "rate_limited").await;
    let (connection, response) =
        by_proxy(&gateway, "[2001:db8:0:2::1]:0", &[("X-Forwarded-For", "2001:db8:0:2::1")]).await;
    assert_eq!(response.status, 101, "another network is another source");
    open.push(connection);
    drop(open);
    gateway.finish().await;
}

#[tokio::test]
async fn an_ipv4_mapped_address_counts_as_the_ipv4_address() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.9/32\"]\n")
        .per_ip("rate = 1\nburst = 2")
        .start()
        .await;
    let peer = "203.0.113.7:0";
    let mut open = Vec::new();
    for address in ["203.0.113.7", "::ffff:203.0.113.7"] {
        let (connection, response) = by_proxy(&gateway, peer, &[("X-Forwarded-For", address)]).await;
        assert_eq!(response.status, 101, "{response:?}");
        open.push(connection);
    }
    for address in ["::FFFF:203.0.113.7", "::ffff:cb00:7107", "203.0.113.7"] {
        let (connection, response) = by_proxy(&gateway, peer, &[("X-Forwarded-For", address)]).await;
        assert_too_many(&response);
        drop(connection);
        gateway.refused(peer.parse().unwrap(), "rate_limited").await;
    }
    drop(open);
    gateway.finish().await;
}

#[tokio::test]
async fn a_listener_for_both_families_names_ipv4_peers_as_such() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .address(PLAIN, "[::ffff:127.0.0.1]:0")
        .per_ip("rate = 1\nburst = 1\nexempt = [\"127.0.0.64/26\"]")
        .start()
        .await;
    let port = gateway.address(PLAIN).port();
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // From exempt addresses, which are exempt only if they are recognised as IPv4.
    for _ in 0..3 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((loopback(66), 0).into()).unwrap();
        let socket = within("a connection", socket.connect(to)).await.unwrap();
        let peer = socket.local_addr().unwrap();
        gateway.expect_log_line(peer);
        let mut session = gateway.open(ClientStream::Plain(socket), &gateway.upgrade(PLAIN, "/echo")).await;
        session.echo(b"hello").await;
        session.close(1000).await;
        gateway.ended(peer, "client_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_full_gateway_closes_new_connections_before_tls_and_keeps_its_sessions() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).limits("max_sessions = 4").start().await;
    let mut sessions = Vec::new();
    for last in 0..4 {
        sessions.push(gateway.session_from(loopback(10 + last)).await);
    }
    gateway.refused_before_tls(loopback(20), "overloaded").await;
    for session in &mut sessions {
        session.echo(b"still here").await;
    }
    let mut leaving = sessions.pop().unwrap();
    let peer = leaving.peer;
    leaving.close(1000).await;
    drop(leaving);
    gateway.ended(peer, "client_closed", Some(1000)).await;
    sessions.push(gateway.session_from(loopback(21)).await);
    drop(sessions);
    gateway.finish().await;
}

#[tokio::test]
async fn a_connection_beyond_max_handshakes_waits_for_a_permit_and_sessions_do_not_count() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .limits("max_handshakes = 4")
        .timeouts("tls = \"60s\"\nrequest = \"60s\"")
        .start()
        .await;
    let mut sessions = Vec::new();
    for last in 0..10 {
        sessions.push(gateway.session_from(loopback(10 + last)).await);
    }
    let mut slow = Vec::new();
    for last in 0..4 {
        slow.push(gateway.connect_from(Some(loopback(30 + last)), TLS).await);
    }
    let mut newcomer = Box::pin(gateway.session_from(loopback(40)));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut newcomer).await;
    assert!(early.is_err(), "it has a session while others hold every permit");
    for session in &mut sessions {
        session.echo(b"still here").await;
    }
    let leaving = slow.pop().unwrap();
    let peer = leaving.peer();
    drop(leaving);
    assert!(!gateway.access_log_line(peer).await.is_session());
    sessions.push(newcomer.await);
    drop((sessions, slow));
    gateway.finish().await;
}

#[tokio::test]
async fn without_descriptors_sessions_continue_and_accepting_pauses() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .limits("max_sessions = 1000\nmax_handshakes = 1000")
        .timeouts("tls = \"60s\"")
        .descriptors(64)
        .start()
        .await;
    let mut session = gateway.session("/echo").await;
    session.echo(b"hello").await;
    // More than it can hold: what it cannot accept waits in the kernel's queue and has no log line.
    let mut silent = Vec::new();
    for _ in 0..150 {
        silent.push(gateway.untracked_socket(None, TLS, |_| {}).await);
    }
    let before = (gateway.processor_time(), Instant::now());
    // Processor time is measured over this interval.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = gateway.processor_time() - before.0;
    assert!(used < before.1.elapsed() / 20, "{used:?} of processor time in {:?}", before.1.elapsed());
    session.echo(b"still here").await;
    for socket in &silent {
        gateway.expect_log_line(socket.local_addr().unwrap());
    }
    drop(silent);
    let start = Instant::now();
    let mut late = gateway.session("/echo").await;
    assert!(start.elapsed() < Duration::from_secs(1), "accepting paused for {:?}", start.elapsed());
    late.echo(b"hello").await;
    late.close(1000).await;
    drop((session, late));
    gateway.finish().await;
}

#[tokio::test]
async fn the_pauses_after_failed_accepts_begin_anew_after_a_success() {
    const ERRORS: &str = "portcullis_accept_errors_total";
    let gateway = Setup::new()
        .limits("max_sessions = 1000\nmax_handshakes = 1000")
        .timeouts("tls = \"60s\"")
        .descriptors(64)
        .admin()
        .start()
        .await;
    for round in 0..2 {
        let before = gateway.metric(ERRORS).await.expect("a counter");
        let mut silent = Vec::new();
        for _ in 0..150 {
            silent.push(gateway.untracked_socket(None, TLS, |_| {}).await);
        }
        let start = Instant::now();
        // Failed accepts are counted over this interval.
        tokio::time::sleep(Duration::from_secs(2)).await;
        for socket in silent {
            gateway.expect_log_line(socket.local_addr().unwrap());
        }
        let errors = gateway.metric(ERRORS).await.expect("a counter") - before;
        // 10, 20, 40, … 640 ms: seven within 630 ms, and then one every 640 ms.
        assert!((7.0..20.0).contains(&errors), "round {round}: {errors} within {:?}", start.elapsed());
        let late = gateway.connect(TLS).await;
        drop(late);
    }
    gateway.finish().await;
}
