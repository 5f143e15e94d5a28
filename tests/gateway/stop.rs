//! The end of the process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{SIGINT, SIGTERM};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{
    Backend, Gateway, PATIENCE, PLAIN, Session, Setup, TLS, assert_took, eventually, frame, pattern,
    read_to_end, within,
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
    eventually("nobody listens", PATIENCE, || {
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
async fn who_came_before_the_drain_may_still_ask_and_is_told_like_all_others() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).timeouts("drain = \"4s\"").start().await;
    let wires = [gateway.wire(TLS).await, gateway.wire(PLAIN).await];
    gateway.signal(SIGTERM);
    until_closed(&gateway).await;
    // Both ask at once: they have a second.
    let [tls, plain] = wires;
    let (tls_request, plain_request) = (gateway.upgrade(TLS, "/echo"), gateway.upgrade(PLAIN, "/echo"));
    let (tls, plain) = tokio::join!(gateway.open(tls, &tls_request), gateway.open(plain, &plain_request));
    for mut late in [tls, plain] {
        let (data, code, _) = late.closed().await;
        assert_eq!((data.len(), code), (0, Some(1001)));
        gateway.ended(late.peer, "draining", Some(1001)).await;
    }
    assert_eq!(backend.calls().await, 2);
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn who_came_and_does_not_ask_is_let_go_after_a_second() {
    let timeouts = "drain = \"20s\"\nrequest = \"60s\"\ntls = \"60s\"";
    let gateway = Setup::new().timeouts(timeouts).start().await;
    let mut silent = gateway.wire(TLS).await;
    let mut half = gateway.wire(PLAIN).await;
    half.write_all(b"GET /echo HTTP/1.1\r\n").await.unwrap();
    let mut nothing = gateway.wire(PLAIN).await;
    let mut no_hello = gateway.tcp(TLS).await;
    let start = Instant::now();
    gateway.signal(SIGTERM);
    let (said, _) = read_to_end(&mut silent).await;
    assert!(said.is_empty(), "{said:?}");
    let (said, _) = read_to_end(&mut half).await;
    assert!(said.is_empty(), "{said:?}");
    let _ = read_to_end(&mut nothing).await;
    let _ = read_to_end(&mut no_hello).await;
    assert_took(start, Duration::from_secs(1));
    for peer in [silent.peer(), half.peer(), nothing.peer(), no_hello.local_addr().unwrap()] {
        let end = gateway.end(peer).await;
        assert_eq!((end.is_session(), end.reason()), (false, "draining"), "{end:?}");
    }
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_sessions_are_told_though_a_tenth_never_answers() {
    const MANY: usize = 2000;
    const DRAIN: Duration = Duration::from_secs(10);
    // A client's socket, a backend's, and what other tests hold.
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
    let told = sessions.into_iter().enumerate().map(|(number, mut session)| async move {
        if number % 10 == 0 {
            let (_, code, _) = session.frames.until_close().await;
            assert_eq!(code, Some(1001));
            // It is told, and keeps its connection, without a word, until the other side is gone.
            let at = start.elapsed();
            return (at, Some(session));
        }
        assert_eq!(session.closed().await.1, Some(1001));
        (start.elapsed(), None)
    });
    let told = within("everybody to be told", futures_util::future::join_all(told)).await;
    assert_eq!(told.iter().filter(|(_, silent)| silent.is_some()).count(), MANY / 10);
    let last = told.iter().map(|(at, _)| *at).max().unwrap();
    assert!(last < DRAIN / 2 + Duration::from_secs(2), "the last was told after {last:?}");
    let status = gateway.exit().await;
    assert_eq!(status.code(), Some(0));
    let took = start.elapsed();
    assert!(took < DRAIN + Duration::from_millis(1500), "{took:?}");
    println!("{MANY} sessions: the last was told after {last:?}, the end came after {took:?}");
    let ends = gateway.lines(|line| (line["message"] == "session ended").then(|| line["reason"].clone()));
    assert!(ends.len() == MANY && ends.iter().all(|reason| reason == "draining"), "{} ends", ends.len());
}
