//! Exhausted resources of the gateway when it dials: descriptors and local ports.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use tokio::net::TcpStream;

use super::{list, works};
use crate::support::{
    Backend, CLOSE, Gateway, PLAIN, Session, Setup, TLS, close_body, frame, isolated, send_request, within,
};

/// The address of clients that only occupy descriptors, so that no other connection has their name in the log.
const OTHER_CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 40));

/// The system's errors for exhausted resources.
const NO_DESCRIPTOR: &str = "os error 24";
const NO_PORT: &str = "os error 99";

/// Expects a session to end because of a shortage that is not its backend's fault. It stays open on this side, and keeps
/// its descriptor.
async fn overloaded(session: &mut Session) {
    let (data, code, close_reason) = within("a Close", session.frames.until_close()).await;
    assert_eq!((data.as_slice(), code), (&b""[..], Some(1013)), "{close_reason}");
    assert!(
        !close_reason.is_empty() && !close_reason.contains("127.0.0.1"),
        "a short readable reason: {close_reason:?}"
    );
}

/// Closes the client's side, and checks the log line.
async fn leave(gateway: &Gateway, mut session: Session, route: &str, why: &str) {
    session.try_send(&frame(true, CLOSE, &close_body(1013, b""))).await;
    session.end().await;
    let peer = session.peer;
    drop(session);
    let end = gateway.ended(peer, "overloaded", Some(1013)).await;
    assert_eq!(end.text("route"), Some(route));
    assert!(end.text("detail").is_some_and(|detail| detail.contains(why)), "{end:?}");
}

/// Asserts that no backend is marked as failing because of the gateway's shortage.
fn assert_no_backend_marked_failing(gateway: &Gateway) {
    let blamed = gateway.lines(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("backend does not answer").then(|| line.clone())
    });
    assert!(blamed.is_empty(), "{blamed:?}");
}

#[tokio::test]
async fn no_descriptor_for_the_dial() {
    /// More than the gateway's limit, so that the last of them wait in its queue.
    const SILENT: usize = 128;
    let (backend, other) = (Backend::echo().await, Backend::echo().await);
    let directory = tempfile::TempDir::new().expect("a directory");
    let path = directory.path().join("socket");
    let _unix = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let url = |scheme: &str| format!("{scheme}://localhost:{}", backend.address.port());
    let both = list([format!("tcp://{}", backend.address), format!("tcp://{}", other.address)]);
    let gateway = Setup::echo(&backend)
        .route_to("name", "/name", &url("tcp"), "")
        .route_to("tls", "/tls", &url("tls"), "tls = { insecure_no_verify = true }")
        .route_to("unix", "/unix", &format!("unix:{}", path.display()), "")
        .tables(&format!("[[route]]\nname = \"pool\"\npath = \"/pool\"\nbackend = {both}"))
        .route_with("status", "/status", &backend, "backend_failure = \"status\"")
        .timeouts("tls = \"60s\"\nrequest = \"60s\"\nclose = \"10s\"")
        .descriptors(64)
        .start()
        .await;
    let mut before = gateway.session("/echo").await;
    before.echo(b"hello").await;

    // These are accepted while there are descriptors, and send their requests when there are none.
    let routes = ["echo", "name", "tls", "unix", "pool"];
    let mut wires = Vec::new();
    for _ in routes {
        wires.push(gateway.connect(TLS).await);
    }
    let mut asks_for_a_status = gateway.connect(TLS).await;
    let mut silent: Vec<TcpStream> = Vec::new();
    for _ in 0..SILENT {
        silent.push(gateway.tcp_from(Some(OTHER_CLIENT), TLS).await);
    }
    gateway
        .until("the gateway to have no descriptor left", |lines| {
            let is_full = |line: &serde_json::Value| {
                let text = |key: &str| line[key].as_str().unwrap_or_default();
                text("message").starts_with("cannot accept connections")
                    && text("error").contains(NO_DESCRIPTOR)
            };
            lines.iter().any(is_full).then_some(())
        })
        .await;

    let mut sessions = Vec::new();
    for (route, connection) in routes.into_iter().zip(wires) {
        let mut session = gateway.open(connection, &gateway.upgrade(TLS, &format!("/{route}"))).await;
        overloaded(&mut session).await;
        sessions.push((route, session));
    }
    let response = send_request(&mut asks_for_a_status, &gateway.upgrade(TLS, "/status")).await;
    assert_eq!(response.status, 503, "{response:?}");
    assert_eq!((backend.connections().await, other.connections().await), (1, 0), "a backend was dialled");
    before.echo(b"all the time").await;

    // Once descriptors are free, it serves again.
    drop(silent);
    let peer = asks_for_a_status.peer();
    drop(asks_for_a_status);
    assert_eq!(gateway.access_log_line(peer).await.reason(), "overloaded");
    for (route, session) in sessions {
        leave(&gateway, session, route, NO_DESCRIPTOR).await;
    }
    assert_eq!(works(&gateway, PLAIN, "/echo").await, format!("tcp://{}", backend.address));
    works(&gateway, PLAIN, "/name").await;
    assert_ne!(
        works(&gateway, PLAIN, "/pool").await,
        works(&gateway, PLAIN, "/pool").await,
        "one of them was ejected"
    );
    assert_no_backend_marked_failing(&gateway);
    before.echo(b"and after").await;
    before.close(1000).await;
    gateway.ended(before.peer, "client_closed", Some(1000)).await;
    drop(before);
    gateway.finish().await;
}

/// The kernel's range of local ports, which belongs to a network namespace.
struct Ports {
    usual: String,
}

impl Ports {
    const FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

    /// Leaves sixteen.
    fn few() -> Self {
        let usual = std::fs::read_to_string(Self::FILE).expect("the range of ports");
        std::fs::write(Self::FILE, "20000 20015").expect("another range of ports");
        Self { usual }
    }

    /// Uses all local ports for connections to one server.
    async fn exhaust(backend: &Backend) -> Vec<TcpStream> {
        let mut taken = Vec::new();
        loop {
            match within("a connection", TcpStream::connect(backend.address)).await {
                Ok(stream) => taken.push(stream),
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => return taken,
                Err(error) => panic!("after {} connections: {error}", taken.len()),
            }
        }
    }

    fn restore(self) {
        std::fs::write(Self::FILE, self.usual).expect("the range of ports");
    }
}

#[tokio::test]
async fn no_local_port_for_the_dial() {
    if !isolated("backends::exhaustion::no_local_port_for_the_dial") {
        return;
    }
    let (backend, other) = (Backend::echo().await, Backend::echo().await);
    let both = list([format!("tcp://{}", backend.address), format!("tcp://{}", other.address)]);
    let gateway = Setup::echo(&backend)
        .route("other", &other)
        .tables(&format!(
            "[[route]]\nname = \"pool\"\npath = \"/pool\"\nbackend = {both}\nbalance = \"first\""
        ))
        .route_with("status", "/status", &backend, "backend_failure = \"status\"")
        .start()
        .await;
    let ports = Ports::few();
    let taken = Ports::exhaust(&backend).await;
    assert_eq!(taken.len(), 16);

    let mut session = gateway.session_by(PLAIN, "/echo").await;
    overloaded(&mut session).await;
    leave(&gateway, session, "echo", NO_PORT).await;
    let mut connection = gateway.connect(PLAIN).await;
    let response = send_request(&mut connection, &gateway.upgrade(PLAIN, "/status")).await;
    assert_eq!(response.status, 503, "{response:?}");
    let peer = connection.peer();
    drop(connection);
    assert_eq!(gateway.access_log_line(peer).await.reason(), "overloaded");
    // Ports are counted per destination: there are some left for another server.
    works(&gateway, PLAIN, "/other").await;
    assert_eq!(works(&gateway, PLAIN, "/pool").await, format!("tcp://{}", other.address));

    for stream in taken {
        stream.set_zero_linger().expect("SO_LINGER");
    }
    works(&gateway, PLAIN, "/echo").await;
    assert_eq!(works(&gateway, PLAIN, "/pool").await, format!("tcp://{}", backend.address), "it was ejected");
    assert_no_backend_marked_failing(&gateway);
    ports.restore();
    gateway.finish().await;
}
