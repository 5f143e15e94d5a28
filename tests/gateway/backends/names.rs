//! Clients cannot choose a backend, and names that do not resolve or resolve to forbidden addresses are reported.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::{unreached, works};
use crate::support::{Backend, PLAIN, Setup, TLS, assert_took, isolated, send_request};

#[tokio::test]
async fn a_name_that_resolves_outside_the_allowed_networks() {
    let backend = Backend::echo().await;
    let url = format!("tcp://localhost:{}", backend.address.port());
    let gateway = Setup::new()
        .route_to("inside", "/inside", &url, "allowed_networks = [\"127.0.0.0/8\", \"::1/128\"]")
        .route_to("outside", "/outside", &url, "allowed_networks = [\"10.0.0.0/8\"]")
        .start()
        .await;
    let end = unreached(&gateway, "/outside", "backend_refused").await;
    let detail = end.text("detail").unwrap_or_default();
    assert!(detail.contains("allowed_networks"), "{end:?}");
    assert!(detail.contains("127.0.0.1") || detail.contains("::1"), "the address is not named: {end:?}");
    assert_eq!(backend.connections().await, 0, "the backend was dialled");
    works(&gateway, TLS, "/inside").await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_client_cannot_choose_the_backends_address() {
    let (meant, other) = (Backend::echo().await, Backend::echo().await);
    let gateway = Setup::new().route("echo", &meant).route_with("wide", "/wide/*", &meant, "").start().await;
    let (host, port) = (other.address.ip().to_string(), other.address.port());
    let plain = gateway.upgrade(PLAIN, "/echo");
    let requests = [
        gateway.upgrade(PLAIN, &format!("/echo?host={host}&port={port}")),
        gateway.upgrade(PLAIN, &format!("/echo?token={host}:{port}")),
        gateway.upgrade(PLAIN, &format!("/wide/{host}:{port}")),
        gateway.upgrade(PLAIN, &format!("/wide/tcp:{host}:{port}")),
        plain.clone().add("X-Forwarded-Host", &other.address.to_string()),
        plain.clone().add("X-Backend", &other.address.to_string()),
        plain.add("Sec-WebSocket-Protocol", &format!("{host}.{port}")),
    ];
    for request in requests {
        let mut session = gateway.open(gateway.connect(PLAIN).await, &request).await;
        session.echo(b"hello").await;
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    assert_eq!(other.connections().await, 0);
    gateway.finish().await;
}

/// The name server of a machine that the test has to itself.
struct NameServer {
    questions: Arc<AtomicUsize>,
    task: JoinHandle<()>,
    _file: TempDir,
}

/// The answer to a query for a name's IPv4 address.
enum Answer {
    Nothing,
    NoSuchName,
    Address(Ipv4Addr),
}

impl NameServer {
    /// From now on all programs of this machine query this server only.
    async fn new(answer: impl Fn(&str) -> Answer + Send + 'static) -> Self {
        // Port 53 of other addresses may be in use; nothing uses this address.
        let socket = UdpSocket::bind(("127.0.0.53", 53)).await.expect("the port of a name server");
        let file = TempDir::new().expect("a directory");
        let path = file.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 127.0.0.53\n").expect("a file");
        let mounted = Command::new("mount").arg("--bind").arg(&path).arg("/etc/resolv.conf").status();
        assert!(mounted.expect("mount").success(), "/etc/resolv.conf is not replaced");

        let questions = Arc::new(AtomicUsize::new(0));
        let counter = questions.clone();
        let task = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                counter.fetch_add(1, Ordering::SeqCst);
                if let Some(reply) = respond(&buffer[..length], &answer) {
                    socket.send_to(&reply, peer).await.expect("an answer is sent");
                }
            }
        });
        Self { questions, task, _file: file }
    }

    fn questions(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The answer to a query (RFC 1035, section 4), unless the server is silent.
fn respond(query: &[u8], answer: &impl Fn(&str) -> Answer) -> Option<Vec<u8>> {
    const A: [u8; 2] = [0, 1];
    let (head, rest) = query.split_at(12);
    let (mut name, mut at) = (String::new(), 0);
    while rest[at] != 0 {
        let label = &rest[at + 1..][..usize::from(rest[at])];
        name += std::str::from_utf8(label).expect("a name in ASCII");
        name.push('.');
        at += 1 + label.len();
    }
    let question = &rest[..at + 5];
    let is_for_ipv4 = question[at + 1..at + 3] == A;
    let (code, record) = match answer(&name) {
        Answer::Nothing => return None,
        Answer::NoSuchName => (3, None),
        Answer::Address(address) => (0, is_for_ipv4.then_some(address)),
    };
    // A response, recursion desired and available; one question, and one record or none.
    let mut reply =
        [&head[..2], &[0x81, 0x80 | code, 0, 1, 0, u8::from(record.is_some()), 0, 0, 0, 0]].concat();
    reply.extend(question);
    if let Some(address) = record {
        // The name of the question, A, IN, a TTL of one minute, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

const CONNECT: Duration = Duration::from_millis(900);

fn named(name: &str, backend: SocketAddr) -> String {
    format!("tcp://{name}:{}", backend.port())
}

#[tokio::test]
async fn a_name_server_that_does_not_answer() {
    if !isolated("backends::names::a_name_server_that_does_not_answer") {
        return;
    }
    let silent = NameServer::new(|_| Answer::Nothing).await;
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .route_to("named", "/named", &named("desk.example.com", backend.address), "")
        .route_to(
            "status",
            "/status",
            &named("desk.example.net", backend.address),
            "backend_failure = \"status\"",
        )
        .timeouts("connect = \"900ms\"")
        .start()
        .await;
    let start = Instant::now();
    let waits = async {
        let end = unreached(&gateway, "/named", "backend_unresolved").await;
        assert_took(start, CONNECT);
        end
    };
    let others_do_not = async {
        let mut session = gateway.session("/echo").await;
        session.echo(b"hello").await;
        session.close(1000).await;
        assert!(start.elapsed() < CONNECT, "delayed by the name server: {:?}", start.elapsed());
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    };
    let (end, ()) = tokio::join!(waits, others_do_not);
    assert_eq!(end.text("backend"), Some(named("desk.example.com", backend.address).as_str()));
    let detail = end.text("detail").unwrap_or_default();
    assert!(detail.contains("no name server answered in time"), "{end:?}");
    let asked = silent.questions();
    assert!(asked > 0, "the name server received no query");

    let start = Instant::now();
    let mut connection = gateway.connect(PLAIN).await;
    let response = send_request(&mut connection, &gateway.upgrade(PLAIN, "/status")).await;
    assert_took(start, CONNECT);
    assert_eq!(response.status, 502, "{response:?}");
    let peer = connection.peer();
    drop(connection);
    assert_eq!(gateway.access_log_line(peer).await.reason(), "backend_unresolved");
    assert!(silent.questions() > asked, "no query for the other name");
    assert_eq!(backend.connections().await, 1);
    gateway.finish().await;
}

#[tokio::test]
async fn answers_of_a_name_server() {
    if !isolated("backends::names::answers_of_a_name_server") {
        return;
    }
    let server = NameServer::new(|name| match name {
        "desk.example.com." | "local.example.com." => Answer::Address(Ipv4Addr::LOCALHOST),
        "rebound.example.com." => Answer::Address(Ipv4Addr::new(169, 254, 169, 254)),
        _ => Answer::NoSuchName,
    })
    .await;
    let backend = Backend::echo().await;
    let gateway = Setup::new()
        .route_to(
            "known",
            "/known",
            &named("desk.example.com", backend.address),
            "allowed_networks = [\"127.0.0.0/8\"]",
        )
        .route_to("local", "/local", &named("local.example.com", backend.address), "")
        .route_to("unknown", "/unknown", &named("nowhere.example.com", backend.address), "")
        .route_to("rebound", "/rebound", &named("rebound.example.com", backend.address), "")
        .timeouts("connect = \"10s\"")
        .start()
        .await;
    works(&gateway, TLS, "/known").await;

    let start = Instant::now();
    let end = unreached(&gateway, "/unknown", "backend_unresolved").await;
    let detail = end.text("detail").unwrap_or_default();
    assert!(detail.contains("the name does not exist"), "{end:?}");
    let end = unreached(&gateway, "/rebound", "backend_refused").await;
    let detail = end.text("detail").unwrap_or_default();
    assert!(detail.contains("169.254.169.254 may not be dialled"), "{end:?}");
    let end = unreached(&gateway, "/local", "backend_refused").await;
    let detail = end.text("detail").unwrap_or_default();
    assert!(detail.contains("may not resolve to a loopback address"), "{end:?}");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "the answers were there at once: {:?}",
        start.elapsed()
    );
    assert_eq!(backend.connections().await, 1);
    assert!(server.questions() >= 3, "{} questions", server.questions());
    gateway.finish().await;
}
