//! Backends that cannot be reached.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::{
    AccessLogLine, Backend, Gateway, ListenerIndex, Setup, TIMEOUT, TLS, assert_took, send_request, within,
};

/// A port without a listener: bound, so that no other program gets it, and never listened on.
pub(crate) struct ClosedPort {
    pub(crate) address: SocketAddr,
    _socket: TcpSocket,
}

impl ClosedPort {
    pub(crate) fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        Self { address: socket.local_addr().expect("its address"), _socket: socket }
    }
}

/// A listener whose queue is full: the kernel drops every further SYN, as an unreachable network would.
pub(crate) struct BlackHole {
    pub(crate) address: SocketAddr,
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl BlackHole {
    pub(crate) async fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let listener = socket.listen(1).expect("a listener");
        let address = listener.local_addr().expect("its address");
        let mut queue = Vec::new();
        let start = Instant::now();
        // The queue is full if a connection is not established before the kernel retransmits.
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await
        {
            queue.push(connected.expect("a connection in the queue"));
            assert!(start.elapsed() < TIMEOUT, "the queue never fills");
        }
        Self { address, _listener: listener, _queue: queue }
    }
}

const DEADLINE: Duration = Duration::from_millis(900);

async fn gateway(backend: &str) -> Gateway {
    Setup::new()
        .route_to("kind", "/kind", backend, "")
        .route_to("plain", "/plain", backend, "backend_failure = \"status\"")
        .timeouts("connect = \"900ms\"")
        .start()
        .await
}

/// What a page sees, which cannot read an HTTP status: an open session that is closed with a reason to show.
async fn close_of(gateway: &Gateway, listener: ListenerIndex) -> (u16, String, AccessLogLine) {
    let mut session = gateway.session_by(listener, "/kind").await;
    let (data, code, reason) = session.closed().await;
    assert_eq!(data, b"");
    let peer = session.peer;
    drop(session);
    (code.expect("a code"), reason, gateway.access_log_line(peer).await)
}

async fn status_of(gateway: &Gateway) -> (u16, String, AccessLogLine) {
    let mut connection = gateway.connect(TLS).await;
    let response = send_request(&mut connection, &gateway.upgrade(TLS, "/plain")).await;
    let peer = connection.peer();
    drop(connection);
    (response.status, response.text().trim_end().to_owned(), gateway.access_log_line(peer).await)
}

async fn check(backend: &str, reason: &str, status: u16, took: Option<Duration>) {
    let gateway = gateway(backend).await;
    let start = Instant::now();
    let (code, close_reason, end) = close_of(&gateway, TLS).await;
    match took {
        Some(clock) => assert_took(start, clock),
        None => assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed()),
    }
    assert_eq!((code, end.reason(), end.number("close_code")), (1011, reason, Some(1011)), "{end:?}");
    assert!(
        !close_reason.is_empty() && close_reason.len() <= 123,
        "a short readable reason: {close_reason:?}"
    );
    assert!(
        !close_reason.contains(backend.trim_start_matches("tcp://")),
        "the client learns the address: {close_reason:?}"
    );
    assert!(end.is_session(), "{end:?}");
    assert_eq!((end.text("route"), end.text("backend")), (Some("kind"), Some(backend)));

    let start = Instant::now();
    let (seen, close_reason, end) = status_of(&gateway).await;
    match took {
        Some(clock) => assert_took(start, clock),
        None => assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed()),
    }
    assert_eq!((seen, end.reason(), end.number("close_code")), (status, reason, None), "{end:?}");
    assert!(!close_reason.is_empty() && !close_reason.contains('\n'), "one line: {close_reason:?}");
    gateway.finish().await;
}

#[tokio::test]
async fn a_backend_that_refuses() {
    let closed_port = ClosedPort::new();
    check(&format!("tcp://{}", closed_port.address), "backend_refused", 502, None).await;
}

#[tokio::test]
async fn a_backend_that_does_not_answer() {
    let hole = BlackHole::new().await;
    check(&format!("tcp://{}", hole.address), "backend_timeout", 504, Some(DEADLINE)).await;
}

#[tokio::test]
async fn a_backend_whose_name_is_unknown() {
    // A resolver without a network may take long to fail; then the connect deadline applies.
    let gateway = gateway("tcp://nowhere.invalid:5900").await;
    let start = Instant::now();
    let (code, close_reason, end) = close_of(&gateway, TLS).await;
    assert!(start.elapsed() < DEADLINE + Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(code, 1011);
    assert!(!close_reason.is_empty() && !close_reason.contains("nowhere"), "{close_reason:?}");
    assert_eq!(end.reason(), "backend_unresolved", "{end:?}");
    let (status, _, end) = status_of(&gateway).await;
    assert_eq!((status, end.reason()), (502, "backend_unresolved"));
    gateway.finish().await;
}

#[tokio::test]
async fn a_backend_name_is_resolved() {
    let backend = Backend::echo().await;
    let name = format!("tcp://localhost:{}", backend.address.port());
    // The name may also resolve to ::1, where nothing listens: the next address is tried.
    let gateway = gateway(&name).await;
    let mut session = gateway.session("/kind").await;
    session.echo(b"hello").await;
    session.close(1000).await;
    let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
    assert_eq!(end.text("backend"), Some(name.as_str()));
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_disconnect_during_the_dial_is_handled() {
    let hole = BlackHole::new().await;
    let gateway = Setup::new()
        .route_to("slow", "/slow", &format!("tcp://{}", hole.address), "")
        .timeouts("connect = \"3s\"")
        .start()
        .await;
    let mut connection = gateway.connect(TLS).await;
    let peer = connection.peer();
    let request = gateway.upgrade(TLS, "/slow");
    tokio::io::AsyncWriteExt::write_all(&mut connection, &request.bytes()).await.unwrap();
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(200), connection.read(&mut byte)).await;
    assert!(early.is_err(), "an answer before the dial is over");
    drop(connection);
    let end = gateway.access_log_line(peer).await;
    assert!(["backend_timeout", "client_gone"].contains(&end.reason()), "{end:?}");
    gateway.finish().await;
}

#[tokio::test]
async fn a_slow_dial_does_not_delay_other_sessions() {
    let hole = BlackHole::new().await;
    let good = Backend::echo().await;
    let gateway = Setup::echo(&good)
        .route_to("slow", "/slow", &format!("tcp://{}", hole.address), "")
        .timeouts("connect = \"2s\"")
        .start()
        .await;
    let request = gateway.upgrade(TLS, "/slow");
    let waiting = futures_util::future::join_all((0..30).map(|_| async {
        let mut session = gateway.open(gateway.connect(TLS).await, &request).await;
        let closed = session.closed().await;
        assert_eq!(closed.1, Some(1011));
        session.peer
    }));
    let served = async {
        for _ in 0..20 {
            let start = Instant::now();
            let mut session = gateway.session("/echo").await;
            session.echo(b"hello").await;
            session.close(1000).await;
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        }
    };
    let (peers, ()) = within("the dials to end", async { tokio::join!(waiting, served) }).await;
    for peer in peers {
        gateway.ended(peer, "backend_timeout", Some(1011)).await;
    }
    gateway.finish().await;
}
