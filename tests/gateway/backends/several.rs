//! Routes that lead to more than one server.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, JoinSet};

use super::authority::echo;
use super::{list, unreached};
use crate::backend::{BlackHole, Nobody};
use crate::support::{Backend, Gateway, PLAIN, Session, Setup, within};

fn url(address: SocketAddr) -> String {
    format!("tcp://{address}")
}

/// A gateway whose route `/pool` leads to all of them.
async fn pool(backends: &[SocketAddr], lines: &str) -> Gateway {
    let backends = list(backends.iter().copied().map(url));
    Setup::new()
        .tables(&format!("[[route]]\nname = \"pool\"\npath = \"/pool\"\nbackend = {backends}\n{lines}"))
        .timeouts("connect = \"2s\"\nclose = \"500ms\"")
        .start()
        .await
}

/// Opens a session, uses it and closes it: which server it was.
async fn visit(gateway: &Gateway, source: IpAddr) -> String {
    let wire = gateway.wire_from(Some(source), PLAIN).await;
    let mut session = gateway.open(wire, &gateway.upgrade(PLAIN, "/pool")).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    let peer = session.peer;
    drop(session);
    let end = gateway.ended(peer, "client_closed", Some(1000)).await;
    end.text("backend").expect("a backend").to_owned()
}

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[tokio::test]
async fn one_that_refuses_keeps_nobody_from_the_next() {
    let nobody = Nobody::new();
    let good = Backend::echo().await;
    let gateway = pool(&[nobody.address, good.address], "balance = \"first\"").await;
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(visit(&gateway, HERE).await, url(good.address));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    let news = gateway.lines(|line| (line["backend"] == *url(nobody.address)).then(|| line.clone()));
    assert!(!news.is_empty(), "the log does not say that one is away");
    gateway.finish().await;
}

#[tokio::test]
async fn one_that_does_not_answer_leaves_time_for_the_next() {
    let hole = BlackHole::new().await;
    let good = Backend::echo().await;
    let gateway = pool(&[hole.address, good.address], "balance = \"first\"").await;
    let start = Instant::now();
    assert_eq!(visit(&gateway, HERE).await, url(good.address));
    assert!(start.elapsed() < Duration::from_secs(2), "not within the deadline: {:?}", start.elapsed());
    // Now it is known.
    let start = Instant::now();
    assert_eq!(visit(&gateway, HERE).await, url(good.address));
    assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
    gateway.finish().await;
}

#[tokio::test]
async fn when_all_refuse_the_last_says_so() {
    let (one, other) = (Nobody::new(), Nobody::new());
    let gateway = pool(&[one.address, other.address], "").await;
    for _ in 0..4 {
        unreached(&gateway, "/pool", "backend_refused").await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn each_in_turn() {
    let backends =
        [Backend::echo().await, Backend::echo().await, Backend::echo().await, Backend::echo().await];
    let gateway = pool(&backends.each_ref().map(|backend| backend.address), "").await;
    for _ in 0..40 {
        visit(&gateway, HERE).await;
    }
    for backend in &backends {
        assert_eq!(backend.calls().await, 10);
    }
    gateway.finish().await;
}

#[tokio::test]
async fn the_one_with_the_fewest_sessions() {
    let (one, other) = (Backend::echo().await, Backend::echo().await);
    let gateway = pool(&[one.address, other.address], "balance = \"least-sessions\"").await;
    let mut held = Vec::new();
    for _ in 0..6 {
        let mut session = gateway.session_by(PLAIN, "/pool").await;
        session.echo(b"hello").await;
        held.push(session);
    }
    assert_eq!((one.open(), other.open()), (3, 3));
    // Two of the first server's leave; in turns from the first, they are the first and the third.
    for index in [2, 0] {
        let mut leaves = held.remove(index);
        leaves.close(1000).await;
        let end = gateway.ended(leaves.peer, "client_closed", Some(1000)).await;
        assert_eq!(end.text("backend"), Some(url(one.address).as_str()));
    }
    // The next two make up for them.
    for _ in 0..2 {
        let mut session = gateway.session_by(PLAIN, "/pool").await;
        session.echo(b"hello").await;
        held.push(session);
    }
    assert_eq!((one.calls().await, other.calls().await), (5, 3));
    for mut session in held {
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_client_stays_with_its_server() {
    let backends = [Backend::echo().await, Backend::echo().await, Backend::echo().await];
    let gateway = pool(&backends.each_ref().map(|b| b.address), "balance = \"source-ip\"").await;
    let mut used = HashSet::new();
    for last in 1..=24 {
        let source = IpAddr::from([127, 0, 7, last]);
        let first = visit(&gateway, source).await;
        for _ in 0..2 {
            assert_eq!(visit(&gateway, source).await, first, "{source}");
        }
        used.insert(first);
    }
    assert_eq!(used.len(), 3, "24 clients on {used:?}");
    gateway.finish().await;
}

#[tokio::test]
async fn nobody_holds_more_sessions_than_it_may() {
    let (one, other) = (Backend::echo().await, Backend::echo().await);
    let gateway = pool(&[one.address, other.address], "max_sessions = 2").await;
    let mut held: Vec<Session> = Vec::new();
    for _ in 0..4 {
        let mut session = gateway.session_by(PLAIN, "/pool").await;
        session.echo(b"hello").await;
        held.push(session);
    }
    assert_eq!((one.open(), other.open()), (2, 2));
    unreached(&gateway, "/pool", "no_healthy_backend").await;
    unreached(&gateway, "/pool", "no_healthy_backend").await;
    assert_eq!((one.calls().await, other.calls().await), (2, 2), "nobody was dialled for these");
    // Whoever leaves makes room.
    for _ in 0..3 {
        let mut leaves = held.remove(0);
        leaves.close(1000).await;
        gateway.ended(leaves.peer, "client_closed", Some(1000)).await;
        let mut comes = gateway.session_by(PLAIN, "/pool").await;
        comes.echo(b"hello").await;
        held.push(comes);
        unreached(&gateway, "/pool", "no_healthy_backend").await;
    }
    for mut session in held {
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_full_pool_is_a_503_where_a_status_is_asked_for() {
    let backend = Backend::echo().await;
    let gateway = pool(&[backend.address], "max_sessions = 1\nbackend_failure = \"status\"").await;
    let mut session = gateway.session_by(PLAIN, "/pool").await;
    session.echo(b"hello").await;
    let mut wire = gateway.wire(PLAIN).await;
    let response = crate::support::ask(&mut wire, &gateway.upgrade(PLAIN, "/pool")).await;
    assert_eq!(response.status, 503, "{response:?}");
    let peer = wire.peer();
    drop(wire);
    assert_eq!(gateway.end(peer).await.reason(), "no_healthy_backend");
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

/// An echo server that can be killed with all its connections, which end in resets, and started again on its port.
struct Mortal {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    /// Bound to the same port, so that nobody else takes it meanwhile.
    spare: Option<TcpSocket>,
    life: Option<JoinHandle<()>>,
}

impl Mortal {
    fn new() -> Self {
        let socket = Self::socket((Ipv4Addr::LOCALHOST, 0).into());
        let address = socket.local_addr().expect("its address");
        let spare = Some(Self::socket(address));
        let mut mortal = Self { address, accepted: Arc::default(), spare, life: None };
        mortal.live(socket.listen(1024).expect("a listener"));
        mortal
    }

    fn socket(address: SocketAddr) -> TcpSocket {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("SO_REUSEADDR");
        socket.bind(address).expect("the port");
        socket
    }

    fn live(&mut self, listener: TcpListener) {
        let accepted = self.accepted.clone();
        self.life = Some(tokio::spawn(async move {
            let mut sessions = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_zero_linger().expect("SO_LINGER");
                accepted.fetch_add(1, Ordering::SeqCst);
                sessions.spawn(echo(socket));
            }
        }));
    }

    async fn kill(&mut self) {
        let life = self.life.take().expect("it lives");
        life.abort();
        let _ = life.await;
    }

    fn revive(&mut self) {
        let socket = self.spare.take().expect("it died once");
        self.live(socket.listen(1024).expect("a listener"));
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn one_of_two_dies_under_200_sessions_and_comes_back() {
    let (mut mortal, other) = (Mortal::new(), Backend::echo().await);
    let gateway = pool(&[mortal.address, other.address], "").await;
    let mut sessions = Vec::new();
    for _ in 0..200 {
        let mut session = gateway.session_by(PLAIN, "/pool").await;
        session.echo(b"hello").await;
        sessions.push(session);
    }
    assert_eq!((mortal.accepted(), other.open()), (100, 100));

    mortal.kill().await;
    let died = Instant::now();
    let mut survivors = Vec::new();
    for (index, mut session) in sessions.into_iter().enumerate() {
        // In turns, from the first.
        if index % 2 == 1 {
            session.echo(b"still here").await;
            survivors.push(session);
            continue;
        }
        let (data, code, said) = session.closed().await;
        assert_eq!((data.as_slice(), code), (&b""[..], Some(1011)), "{said}");
        let end = gateway.ended(session.peer, "backend_failed", Some(1011)).await;
        assert_eq!(end.text("backend"), Some(url(mortal.address).as_str()));
    }
    assert!(died.elapsed() < Duration::from_secs(10), "{:?}", died.elapsed());
    assert_eq!(survivors.len(), 100);
    // Whoever comes now is served, and by the other.
    for _ in 0..30 {
        assert_eq!(visit(&gateway, HERE).await, url(other.address));
    }

    let before = mortal.accepted();
    mortal.revive();
    let back = Instant::now();
    while mortal.accepted() == before {
        visit(&gateway, HERE).await;
        assert!(back.elapsed() < Duration::from_secs(5), "not used again within five seconds");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // From now on it does its share.
    let before = mortal.accepted();
    for _ in 0..10 {
        visit(&gateway, HERE).await;
    }
    assert_eq!(mortal.accepted() - before, 5);

    for mut session in survivors {
        session.echo(b"all the time").await;
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    mortal.kill().await;
    gateway.finish().await;
}

#[tokio::test]
async fn health_checks_find_out_before_a_client_does() {
    let (mut mortal, other) = (Mortal::new(), Backend::echo().await);
    let health = "health = { interval = \"100ms\", timeout = \"500ms\", rise = 2, fall = 2 }";
    let gateway = pool(&[mortal.address, other.address], health).await;
    within("a check", async {
        while mortal.accepted() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    mortal.kill().await;
    wait_for(&gateway, "backend is down", &url(mortal.address)).await;
    for _ in 0..6 {
        assert_eq!(visit(&gateway, HERE).await, url(other.address));
    }
    mortal.revive();
    wait_for(&gateway, "backend is up again", &url(mortal.address)).await;
    let mut used = HashSet::new();
    for _ in 0..2 {
        used.insert(visit(&gateway, HERE).await);
    }
    assert_eq!(used.len(), 2, "only {used:?}");
    mortal.kill().await;
    gateway.finish().await;
}

async fn wait_for(gateway: &Gateway, message: &str, backend: &str) {
    gateway
        .until(message, |lines| {
            let is = |line: &serde_json::Value| {
                line["message"].as_str().unwrap_or_default().starts_with(message)
                    && line["backend"] == *backend
            };
            lines.iter().any(is).then_some(())
        })
        .await;
}
