//! Rows 64, 65 and 72: more connections than there are handshake permits, from clients that mean no harm and from attackers
//! that hold theirs, and the quotas of one network.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::support::{
    Backend, ClientStream, Gateway, PLAIN, Request, Session, Setup, TIMEOUT, TLS, client_config, eventually,
    read_response, send_request, within,
};

/// A web root: its `main.rs` ends with a line that tells the end of the response.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gateway");

fn address(third: u8, last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 1, third, last))
}

/// Connects again and again from `source`, as fast as its rate limit allows, and holds each connection as long as it can.
async fn hold(gateway: &Gateway, source: IpAddr, keep_alive: bool, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        let socket = gateway.tcp_from(Some(source), if keep_alive { PLAIN } else { TLS }).await;
        let held = if keep_alive { request_files(gateway, socket).await } else { Some(socket) };
        if let Some(mut socket) = held {
            let _ = stop.run_until_cancelled(socket.read(&mut [0])).await;
        }
        // An attacker that is refused tries again 20 times per second.
        let _ = stop.run_until_cancelled(tokio::time::sleep(Duration::from_millis(50))).await;
    }
}

/// Requests a file and stays connected. `None` if the gateway has closed the connection.
async fn request_files(gateway: &Gateway, mut socket: TcpStream) -> Option<TcpStream> {
    let request = Request::new("GET /main.rs HTTP/1.1").add("Host", &gateway.host(PLAIN));
    socket.write_all(&request.bytes()).await.ok()?;
    let mut seen = Vec::new();
    while !seen.ends_with(b"mod tls;\n") {
        if within("a file", socket.read_buf(&mut seen)).await.ok()? == 0 {
            return None;
        }
    }
    Some(socket)
}

/// While the addresses hold every permit, 100 good clients connect, and 95 of them have a session within a second.
async fn held_by(keep_alive: bool) {
    const PERMITS: u8 = 60;
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .web(Path::new(ROOT))
        .limits(&format!("max_handshakes = {PERMITS}"))
        .per_ip("rate = 20")
        .admin()
        .start()
        .await;
    let stop = CancellationToken::new();
    let attack = join_all((0..PERMITS).map(|n| hold(&gateway, address(0, 2 + n % 6), keep_alive, &stop)));
    let good = async {
        gateway.wait_for_handshakes(PERMITS.into()).await;
        // The attack lasts: its handshakes are not all new.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let mut took = Vec::new();
        for n in 0..100 {
            took.push(gateway.time_to_session(address(1 + n / 50, 1 + n % 50)).await);
        }
        stop.cancel();
        took
    };
    let (_, mut took) = tokio::join!(attack, good);
    took.sort_unstable();
    assert!(took[94] <= Duration::from_secs(1), "95 of 100 within {:?}, all: {took:?}", took[94]);
    gateway.finish().await;
}

#[tokio::test]
async fn row_64_six_addresses_with_keep_alive_do_not_shut_good_clients_out() {
    held_by(true).await;
}

#[tokio::test]
async fn row_64_six_addresses_with_late_tls_do_not_shut_good_clients_out() {
    held_by(false).await;
}

#[tokio::test]
async fn row_64_the_requests_of_a_connection_and_its_time_are_bounded() {
    let request = Request::new("GET /main.rs HTTP/1.1").add("Host", "localhost");
    for (limits, timeouts, most) in [("max_requests = 3", "", 3), ("", "keep_alive = \"1ms\"", 500)] {
        let gateway = Setup::new().web(Path::new(ROOT)).limits(limits).timeouts(timeouts).start().await;
        let mut connection = gateway.connect(PLAIN).await;
        let peer = connection.peer();
        let mut count = 0;
        loop {
            let response = send_request(&mut connection, &request).await;
            assert_eq!(response.status, 200, "{response:?}");
            count += 1;
            if response.header("Connection") == Some("close") {
                break;
            }
            assert!(count < most, "{count} responses and no end");
        }
        assert!(limits.is_empty() || count == most, "{count} responses, not {most}");
        assert!(matches!(within("the end", connection.read(&mut [0])).await, Ok(0)));
        gateway.refused(peer, "served").await;
        gateway.finish().await;
    }
}

#[tokio::test]
async fn row_64_a_connection_that_waits_for_a_request_gives_way_at_once() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .web(Path::new(ROOT))
        .limits("max_handshakes = 2")
        .timeouts("tls = \"60s\"\nrequest = \"60s\"")
        .start()
        .await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let socket = gateway.tcp(PLAIN).await;
        waiting.push(request_files(&gateway, socket).await.expect("a file"));
    }
    let start = Instant::now();
    let session = gateway.session("/echo").await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    gateway.refused(waiting[0].local_addr().unwrap(), "served").await;
    // The other one is served again.
    let mut other = ClientStream::Plain(waiting.pop().unwrap());
    let request = Request::new("GET /main.rs HTTP/1.1").add("Host", "localhost");
    other.write_all(&request.bytes()).await.unwrap();
    assert_eq!(read_response(&mut other, true).await.status, 200);
    drop((session, waiting, other));
    gateway.finish().await;
}

/// A client of a herd: connects, opens a session and holds it.
async fn one_of_a_herd(
    gateway: &Gateway,
    source: IpAddr,
    config: std::sync::Arc<rustls::ClientConfig>,
) -> Result<Session, String> {
    let socket = gateway.tcp_from(Some(source), TLS).await;
    let peer = socket.local_addr().map_err(|error| error.to_string())?;
    let stream = gateway.try_secure(socket, config).await.map_err(|error| format!("{peer}: TLS: {error}"))?;
    let mut stream = ClientStream::Tls(Box::new(stream));
    let request = gateway.upgrade(TLS, "/echo").bytes();
    stream.write_all(&request).await.map_err(|error| format!("{peer}: {error}"))?;
    stream.flush().await.map_err(|error| format!("{peer}: {error}"))?;
    let response = read_response(&mut stream, true).await;
    match response.status {
        101 => Ok(Session::new(stream, peer, &response.rest)),
        status => Err(format!("{peer}: {status}")),
    }
}

#[tokio::test]
async fn row_65_2000_clients_from_200_addresses_at_the_same_moment_all_get_in() {
    const CLIENTS: u32 = 2_000;
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .limits(&format!("max_sessions = {CLIENTS}\nmax_handshakes = 64"))
        // What is slow here are the clients, which all share one thread.
        .timeouts("tls = \"60s\"\nrequest = \"60s\"\nping = \"0s\"")
        .level("info")
        .start()
        .await;
    let config = client_config(rustls::ALL_VERSIONS, &["http/1.1"]);
    let start = Instant::now();
    let herd: FuturesUnordered<_> = (0..CLIENTS)
        .map(|n| {
            let source = address((n % 20) as u8, (10 + n / 20 % 10) as u8);
            one_of_a_herd(&gateway, source, config.clone())
        })
        .collect();
    let results: Vec<_> = herd.collect().await;
    let errors: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(
        errors.is_empty(),
        "{} of {CLIENTS} did not get in: {:?}",
        errors.len(),
        &errors[..errors.len().min(9)]
    );
    eprintln!("{CLIENTS} clients in {:?}", start.elapsed());
    drop(results);
    eventually("all sessions end", TIMEOUT, || {
        let ended = gateway.lines(|line| line.get("reason").map(drop)).len();
        (ended >= CLIENTS as usize).then_some(()).ok_or_else(|| format!("{ended} have"))
    })
    .await;
    gateway.finish().await;
}

#[tokio::test]
async fn row_72_one_network_is_limited_and_its_neighbours_are_served() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .tables("[limits.per_network]\nsessions = 5")
        .per_ip("sessions = 3")
        .start()
        .await;
    let mut sessions = Vec::new();
    for last in 1..=5 {
        sessions.push(gateway.session_from(address(2, last)).await);
    }
    for last in 1..=9 {
        let line = gateway.refused_before_tls(address(2, last), "too_many_sessions").await;
        assert_eq!(line.text("detail"), Some("its network holds as many connections as it may"));
    }
    for third in [1, 3] {
        sessions.push(gateway.session_from(address(third, 1)).await);
    }
    for session in &mut sessions {
        session.echo(b"still here").await;
    }
    drop(sessions);
    gateway.finish().await;
}

#[tokio::test]
async fn row_72_the_handshakes_of_an_address_and_of_a_network_are_limited() {
    let gateway = Setup::new()
        .tables("[limits.per_network]\nhandshakes = 4")
        .per_ip("handshakes = 2")
        .timeouts("tls = \"60s\"")
        .start()
        .await;
    let mut silent = Vec::new();
    for (last, detail) in [
        (1, None),
        (1, None),
        (1, Some("has as many connections that are not sessions yet as one address may")),
        (2, None),
        (3, None),
        (4, Some("its network has as many connections that are not sessions yet as it may")),
    ] {
        if detail.is_none() {
            silent.push(gateway.tcp_from(Some(address(2, last)), TLS).await);
            continue;
        }
        let line = gateway.refused_before_tls(address(2, last), "too_many_sessions").await;
        assert_eq!(line.text("detail"), detail);
    }
    drop(silent);
    gateway.finish().await;
}
