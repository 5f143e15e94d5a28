//! Graceful shutdown.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{SIGINT, SIGTERM};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{
    Backend, Gateway, PLAIN, Session, Setup, TIMEOUT, TLS, assert_took, eventually, frame, pattern,
    read_to_end, within,
};

async fn many(gateway: &Gateway, count: usize) -> Vec<Session> {
    let mut sessions = Vec::new();
    for number in 0..count {
        sessions.push(gateway.session_by(number % 2, "/echo").await);
    }
    sessions
}

/// Waits until the gateway has closed its listeners.
async fn until_closed(gateway: &Gateway) {
    eventually("no listener is open", TIMEOUT, || {
        let listening = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
        for listener in [TLS, PLAIN] {
            // Local address, remote address, state: 0A is LISTEN.
            let listener = format!(":{:04X} 00000000:0000 0A", gateway.address(listener).port());
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
async fn every_session_is_closed_and_the_gateway_exits_after_the_last() {
    for signal in [SIGTERM, SIGINT] {
        let backend = Backend::echo().await;
        let gateway = Setup::echo(&backend).timeouts("drain = \"4s\"").start().await;
        let mut sessions = many(&gateway, 200).await;
        for session in &mut sessions {
            session.echo(b"hello").await;
        }
        let start = Instant::now();
        gateway.signal(signal);
        let closed = sessions.into_iter().map(|mut session| async move {
            let (data, code, _) = session.closed().await;
            assert_eq!((data.len(), code), (0, Some(1001)));
            (session.peer, start.elapsed())
        });
        let closed = within("a Close for every session", futures_util::future::join_all(closed)).await;
        let last = closed.iter().map(|(_, at)| *at).max().unwrap();
        // Spread over the first half of the drain time.
        assert!(last < Duration::from_secs(3), "the last Close came after {last:?}");
        let status = gateway.exit().await;
        assert_eq!(status.code(), Some(0), "{signal}");
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        for (peer, _) in closed {
            gateway.ended(peer, "draining", Some(1001)).await;
        }
        eventually("the backend's session ends", Duration::from_secs(1), || match backend.open() {
            0 => Ok(()),
            open => Err(format!("{open} sessions are open")),
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closes_are_spread_over_the_first_half_of_the_drain() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).timeouts("drain = \"6s\"").start().await;
    let sessions = many(&gateway, 200).await;
    let start = Instant::now();
    gateway.signal(SIGTERM);
    let closed = futures_util::future::join_all(sessions.into_iter().map(|mut session| async move {
        assert_eq!(session.closed().await.1, Some(1001));
        start.elapsed()
    }));
    let mut closed = within("a Close for every session", closed).await;
    closed.sort();
    assert!(closed[199] < Duration::from_secs(4), "the last Close came after {:?}", closed[199]);
    let spread = closed[180] - closed[20];
    assert!(spread > Duration::from_millis(400), "all Close frames came within {spread:?}");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_gateway_without_sessions_exits_at_once() {
    let gateway = Setup::new().start().await;
    let start = Instant::now();
    gateway.signal(SIGTERM);
    assert_eq!(gateway.exit().await.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn no_client_is_accepted_during_a_drain_but_sessions_continue() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).timeouts("drain = \"8s\"").start().await;
    let mut sessions = many(&gateway, 200).await;
    let mut newest = sessions.pop().unwrap();
    gateway.signal(SIGTERM);
    // The oldest sessions are closed first, and there are many of them.
    let closed = sessions[0].frames.next().await.expect("a Close").close();
    assert_eq!(closed.0, Some(1001));
    newest.echo(b"still here").await;
    until_closed(&gateway).await;
    for mut session in sessions.into_iter().skip(1).chain([newest]) {
        let (data, code, _) = session.closed().await;
        assert_eq!((data.len(), code), (0, Some(1001)));
    }
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn clients_that_never_answer_do_not_prolong_the_drain() {
    let backend = Backend::echo().await;
    let timeouts = "drain = \"2s\"\nclose = \"60s\"\ntls = \"60s\"\nrequest = \"60s\"";
    let gateway = Setup::echo(&backend).timeouts(timeouts).start().await;
    let mut sessions = many(&gateway, 20).await;
    // Others are in the middle of their handshakes.
    let silent = gateway.tcp(TLS).await;
    let mut half = gateway.connect(TLS).await;
    half.write_all(b"GET /echo HTTP/1.1\r\n").await.unwrap();
    half.flush().await.unwrap();
    // And one does not even read.
    let deaf = gateway.connect_with_small_buffers(TLS).await;
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
        let end = gateway.access_log_line(session.peer).await;
        assert_eq!((end.is_session(), end.reason()), (true, "draining"), "{end:?}");
    }
    for peer in [silent.local_addr().unwrap(), half.peer()] {
        assert!(!gateway.access_log_line(peer).await.is_session());
    }
    gateway.access_log_line(deaf.peer).await;
}

#[tokio::test]
async fn a_second_signal_stops_the_gateway_at_once() {
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
async fn a_connection_from_before_the_drain_may_open_a_session() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).timeouts("drain = \"4s\"").start().await;
    let wires = [gateway.connect(TLS).await, gateway.connect(PLAIN).await];
    gateway.signal(SIGTERM);
    until_closed(&gateway).await;
    // Both send their requests at once: they have one second.
    let [tls, plain] = wires;
    let (tls_request, plain_request) = (gateway.upgrade(TLS, "/echo"), gateway.upgrade(PLAIN, "/echo"));
    let (tls, plain) = tokio::join!(gateway.open(tls, &tls_request), gateway.open(plain, &plain_request));
    for mut late in [tls, plain] {
        let (data, code, _) = late.closed().await;
        assert_eq!((data.len(), code), (0, Some(1001)));
        gateway.ended(late.peer, "draining", Some(1001)).await;
    }
    assert_eq!(backend.connections().await, 2);
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_after_a_second_of_drain() {
    let timeouts = "drain = \"20s\"\nrequest = \"60s\"\ntls = \"60s\"";
    let gateway = Setup::new().timeouts(timeouts).start().await;
    let mut silent = gateway.connect(TLS).await;
    let mut half = gateway.connect(PLAIN).await;
    half.write_all(b"GET /echo HTTP/1.1\r\n").await.unwrap();
    let mut nothing = gateway.connect(PLAIN).await;
    let mut no_hello = gateway.tcp(TLS).await;
    let start = Instant::now();
    gateway.signal(SIGTERM);
    let (bytes, _) = read_to_end(&mut silent).await;
    assert!(bytes.is_empty(), "{bytes:?}");
    let (bytes, _) = read_to_end(&mut half).await;
    assert!(bytes.is_empty(), "{bytes:?}");
    let _ = read_to_end(&mut nothing).await;
    let _ = read_to_end(&mut no_hello).await;
    assert_took(start, Duration::from_secs(1));
    for peer in [silent.peer(), half.peer(), nothing.peer(), no_hello.local_addr().unwrap()] {
        let end = gateway.access_log_line(peer).await;
        assert_eq!((end.is_session(), end.reason()), (false, "draining"), "{end:?}");
    }
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_sessions_are_closed_though_a_tenth_never_answers() {
    const MANY: usize = 2000;
    const DRAIN: Duration = Duration::from_secs(10);
    // A client's socket, a backend's, and the descriptors of other tests.
    rlimit::increase_nofile_limit(u64::MAX).expect("descriptors");
    let backend = Backend::echo().await;
    let setup = Setup::echo(&backend).timeouts("drain = \"10s\"\nclose = \"60s\"").level("info");
    let gateway = Arc::new(setup.start().await);
    let (mut opening, mut sessions) = (JoinSet::new(), Vec::with_capacity(MANY));
    for number in 0..MANY {
        let gateway = Arc::clone(&gateway);
        opening.spawn(async move { gateway.session_by(number % 2, "/echo").await });
        if opening.len() == 50 || number == MANY - 1 {
            while let Some(session) = opening.join_next().await {
                sessions.push(session.expect("a session"));
            }
        }
    }
    let start = Instant::now();
    gateway.signal(SIGTERM);
    let closed = sessions.into_iter().enumerate().map(|(number, mut session)| async move {
        if number % 10 == 0 {
            let (_, code, _) = session.frames.until_close().await;
            assert_eq!(code, Some(1001));
            // It receives the Close, and keeps its connection open without an answer until the gateway closes it.
            let at = start.elapsed();
            return (at, Some(session));
        }
        assert_eq!(session.closed().await.1, Some(1001));
        (start.elapsed(), None)
    });
    let closed = within("a Close for every session", futures_util::future::join_all(closed)).await;
    assert_eq!(closed.iter().filter(|(_, silent)| silent.is_some()).count(), MANY / 10);
    let last = closed.iter().map(|(at, _)| *at).max().unwrap();
    assert!(last < DRAIN / 2 + Duration::from_secs(2), "the last Close came after {last:?}");
    let status = gateway.exit().await;
    assert_eq!(status.code(), Some(0));
    let took = start.elapsed();
    assert!(took < DRAIN + Duration::from_millis(1500), "{took:?}");
    println!("{MANY} sessions: the last Close came after {last:?}, the end came after {took:?}");
    let ends = gateway.lines(|line| (line["message"] == "session ended").then(|| line["reason"].clone()));
    assert!(ends.len() == MANY && ends.iter().all(|reason| reason == "draining"), "{} ends", ends.len());
}
