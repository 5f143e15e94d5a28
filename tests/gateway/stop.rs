//! The end of the process.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{SIGINT, SIGTERM};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{
    Backend, CLOSE, Gateway, PLAIN, Session, Setup, TLS, close_body, eventually, frame, pattern, read_to_end,
    within,
};

async fn many(gateway: &Gateway, count: usize) -> Vec<Session> {
    let mut sessions = Vec::new();
    for number in 0..count {
        sessions.push(gateway.session_by(number % 2, "/echo").await);
    }
    sessions
}

/// Waits until the gateway accepts nobody any more.
async fn until_closed(gateway: &Gateway) {
    eventually("nobody listens", Duration::from_secs(1), || {
        let listening = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
        for door in [TLS, PLAIN] {
            // Local address, remote address, state: 0A is LISTEN.
            let listener = format!(":{:04X} 00000000:0000 0A", gateway.address(door).port());
            if listening.contains(&listener) {
                return Err("it still accepts".to_owned());
            }
        }
        Ok(())
    })
    .await;
    let refused = within("a connection to be refused", TcpStream::connect(gateway.address(TLS))).await;
    assert!(refused.is_err(), "it still accepts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_session_is_told_and_the_gateway_ends_when_all_have_gone() {
    for signal in [SIGTERM, SIGINT] {
        let backend = Backend::echo().await;
        let gateway = Setup::echo(&backend).timeouts("drain = \"4s\"").start().await;
        let mut sessions = many(&gateway, 200).await;
        for session in &mut sessions {
            session.echo(b"hello").await;
        }
        let start = Instant::now();
        gateway.signal(signal);
        let told = sessions.into_iter().map(|mut session| async move {
            let (data, code, _) = session.closed().await;
            assert_eq!((data.len(), code), (0, Some(1001)));
            (session.peer, start.elapsed())
        });
        let told = within("everybody to be told", futures_util::future::join_all(told)).await;
        let last = told.iter().map(|(_, at)| *at).max().unwrap();
        // Over the first half of the drain time, and not all in one moment.
        assert!(last < Duration::from_secs(3), "the last was told after {last:?}");
        let status = gateway.exit().await;
        assert_eq!(status.code(), Some(0), "{signal}");
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        for (peer, _) in told {
            gateway.ended(peer, "draining", Some(1001)).await;
        }
        eventually("the backend is left", Duration::from_secs(1), || match backend.open() {
            0 => Ok(()),
            open => Err(format!("{open} sessions are open")),
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_goodbyes_are_spread_over_the_first_half_of_the_drain() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).timeouts("drain = \"6s\"").start().await;
    let sessions = many(&gateway, 200).await;
    let start = Instant::now();
    gateway.signal(SIGTERM);
    let told = futures_util::future::join_all(sessions.into_iter().map(|mut session| async move {
        assert_eq!(session.closed().await.1, Some(1001));
        start.elapsed()
    }));
    let mut told = within("everybody to be told", told).await;
    told.sort();
    assert!(told[199] < Duration::from_secs(4), "the last was told after {:?}", told[199]);
    let spread = told[180] - told[20];
    assert!(spread > Duration::from_millis(400), "the goodbyes came within {spread:?}");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_gateway_without_sessions_ends_at_once() {
    let gateway = Setup::new().start().await;
    let start = Instant::now();
    gateway.signal(SIGTERM);
    assert_eq!(gateway.exit().await.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn nobody_is_accepted_while_it_drains_but_sessions_go_on() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).timeouts("drain = \"8s\"").start().await;
    let mut sessions = many(&gateway, 200).await;
    let mut newest = sessions.pop().unwrap();
    gateway.signal(SIGTERM);
    // The oldest are told first, and there are many of them.
    let told = sessions[0].frames.next().await.expect("a Close").close();
    assert_eq!(told.0, Some(1001));
    newest.echo(b"still here").await;
    until_closed(&gateway).await;
    for mut session in sessions.into_iter().skip(1).chain([newest]) {
        let (data, code, _) = session.closed().await;
        assert_eq!((data.len(), code), (0, Some(1001)));
    }
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn clients_that_never_answer_do_not_keep_it_alive() {
    let backend = Backend::echo().await;
    let timeouts = "drain = \"2s\"\nclose = \"60s\"\ntls = \"60s\"\nrequest = \"60s\"";
    let gateway = Setup::echo(&backend).timeouts(timeouts).start().await;
    let mut sessions = many(&gateway, 20).await;
    // Others are in the middle of their handshakes.
    let silent = gateway.tcp(TLS).await;
    let mut half = gateway.wire(TLS).await;
    half.write_all(b"GET /echo HTTP/1.1\r\n").await.unwrap();
    half.flush().await.unwrap();
    // And one does not even read.
    let deaf = gateway.narrow_wire(TLS).await;
    let mut deaf = gateway.open(deaf, &gateway.upgrade(TLS, "/echo")).await;
    deaf.send(&frame(true, 2, &pattern(0, 100_000))).await;
    let start = Instant::now();
    gateway.signal(SIGTERM);
    for session in &mut sessions {
        let (_, code, _) = session.frames.until_close().await;
        assert_eq!(code, Some(1001));
    }
    let status = gateway.exit().await;
    assert_eq!(status.code(), Some(0));
    assert!(start.elapsed() < Duration::from_millis(3_500), "{:?}", start.elapsed());
    for session in &sessions {
        let end = gateway.end(session.peer).await;
        assert_eq!((end.is_session(), end.reason()), (true, "draining"), "{end:?}");
    }
    for peer in [silent.local_addr().unwrap(), half.peer()] {
        assert!(!gateway.end(peer).await.is_session());
    }
    gateway.end(deaf.peer).await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for (first, second) in [(SIGTERM, SIGTERM), (SIGINT, SIGINT), (SIGTERM, SIGINT)] {
        let backend = Backend::echo().await;
        let timeouts = "drain = \"60s\"\nclose = \"60s\"";
        let gateway = Setup::echo(&backend).timeouts(timeouts).start().await;
        let sessions = many(&gateway, 10).await;
        gateway.signal(first);
        until_closed(&gateway).await;
        let start = Instant::now();
        gateway.signal(second);
        gateway.exit_at_once().await;
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        drop(sessions);
    }
}

#[tokio::test]
async fn a_request_that_comes_while_it_drains_is_sent_away() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).timeouts("drain = \"3s\"").start().await;
    let session = gateway.session("/echo").await;
    let mut early = gateway.wire(TLS).await;
    gateway.signal(SIGTERM);
    until_closed(&gateway).await;
    let _ = early.write_all(&gateway.upgrade(TLS, "/echo").bytes()).await;
    let _ = early.flush().await;
    let (said, _) = read_to_end(&mut early).await;
    let text = String::from_utf8_lossy(&said);
    assert!(said.is_empty() || text.starts_with("HTTP/1.1 503 "), "{text}");
    let end = gateway.end(early.peer()).await;
    assert_eq!((end.is_session(), end.reason()), (false, "draining"), "{end:?}");
    assert_eq!(backend.calls().await, 1);
    let mut session = session;
    session.send(&frame(true, CLOSE, &close_body(1000, b""))).await;
    drop(session);
    assert_eq!(gateway.exit().await.code(), Some(0));
}
