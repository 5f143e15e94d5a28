//! `send_proxy`: the PROXY header that a backend receives, byte by byte.

use std::net::{IpAddr, SocketAddr};

use rustls::version::TLS13;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::authority::{Authority, Server, echo};
use crate::auth::machines::Machines;
use crate::support::{Backend, Gateway, ListenerIndex, PLAIN, Session, Setup, TLS, within};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2, parsed by hand.
#[derive(Debug, PartialEq, Eq)]
struct V2 {
    command: u8,
    family: u8,
    addresses: Vec<u8>,
    tlvs: Vec<(u8, Vec<u8>)>,
}

async fn exactly<S: AsyncRead + Unpin>(stream: &mut S, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    within("bytes of a header", stream.read_exact(&mut bytes)).await.expect("enough bytes");
    bytes
}

async fn v2<S: AsyncRead + Unpin>(stream: &mut S) -> V2 {
    let fixed = exactly(stream, 16).await;
    assert_eq!(&fixed[..12], SIGNATURE);
    let block = exactly(stream, usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))).await;
    let size = match fixed[13] {
        0x11 => 12,
        0x21 => 36,
        _ => 0,
    };
    let (addresses, tlvs) = block.split_at(size);
    V2 { command: fixed[12], family: fixed[13], addresses: addresses.to_vec(), tlvs: parts(tlvs) }
}

fn parts(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut parts = Vec::new();
    while let [kind, high, low, rest @ ..] = bytes {
        let (value, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        parts.push((*kind, value.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "half a TLV: {bytes:?}");
    parts
}

fn ipv4(client: SocketAddr, called: SocketAddr) -> Vec<u8> {
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => panic!("{v6}"),
    };
    let ports = [client.port().to_be_bytes(), called.port().to_be_bytes()].concat();
    [octets(client).as_slice(), &octets(called), &ports].concat()
}

/// Checks the header of a session at `listener`, except for its unique id, which is returned.
fn check(header: &V2, client: SocketAddr, gateway: &Gateway, listener: ListenerIndex) -> String {
    assert_eq!((header.command, header.family), (0x21, 0x11), "PROXY, TCP over IPv4");
    assert_eq!(header.addresses, ipv4(client, gateway.address(listener)));
    let of =
        |kind: u8| header.tlvs.iter().find(|(known, _)| *known == kind).map(|(_, value)| value.as_slice());
    match of(0x20) {
        Some([client, verify @ ..]) if listener == TLS => {
            let (verify, inner) = (&verify[..4], parts(&verify[4..]));
            assert_eq!(*client, 1, "TLS, and no certificate");
            assert_ne!(verify, [0; 4], "nothing was verified");
            assert_eq!(inner, [(0x21, b"TLSv1.3".to_vec())]);
        }
        ssl => assert!(ssl.is_none() && listener == PLAIN, "{header:?}"),
    }
    String::from_utf8(of(0x05).expect("a unique id").to_vec()).expect("a name")
}

/// Closes a session whose backend is the test itself, and compares its request id.
async fn end(gateway: &Gateway, mut session: Session, name: Option<String>) {
    session.close(1000).await;
    let peer = session.peer;
    drop(session);
    let end = gateway.ended(peer, "client_closed", Some(1000)).await;
    if let Some(name) = name {
        assert_eq!(end.text("request_id"), Some(name.as_str()), "the unique id");
    }
}

#[tokio::test]
async fn version_1_is_one_line_before_the_clients_data() {
    let backend = Backend::scripted().await;
    let gateway =
        Setup::new().route_with("backend", "/backend", &backend, "send_proxy = \"v1\"").start().await;
    for listener in [TLS, PLAIN] {
        let session = gateway.session_by(listener, "/backend").await;
        let mut socket = backend.accept().await;
        let (client, called) = (session.peer, gateway.address(listener));
        let line =
            format!("PROXY TCP4 {} {} {} {}\r\n", client.ip(), called.ip(), client.port(), called.port());
        let read = exactly(&mut socket, line.len()).await;
        assert_eq!(String::from_utf8_lossy(&read), line);
        let server = tokio::spawn(echo(socket));
        let mut session = session;
        session.echo(b"and then the client").await;
        end(&gateway, session, None).await;
        within("the server's end", server).await.unwrap();
    }
    gateway.finish().await;
}

#[tokio::test]
async fn version_2_carries_the_client_tls_and_session_id() {
    let backend = Backend::scripted().await;
    let gateway =
        Setup::new().route_with("backend", "/backend", &backend, "send_proxy = \"v2\"").start().await;
    for listener in [TLS, PLAIN] {
        let mut session = gateway.session_by(listener, "/backend").await;
        let mut socket = backend.accept().await;
        let name = check(&v2(&mut socket).await, session.peer, &gateway, listener);
        let server = tokio::spawn(echo(socket));
        session.echo(b"and then the client").await;
        end(&gateway, session, Some(name)).await;
        within("the server's end", server).await.unwrap();
    }
    gateway.finish().await;
}

#[tokio::test]
async fn version_2_carries_the_user_and_the_verified_certificate() {
    let (backend, machines) = (Backend::scripted().await, Machines::new());
    let lines = |auth: &str| format!("send_proxy = \"v2\"\nauth = \"{auth}\"");
    let gateway = Setup::new()
        .route_with("machines", "/machines", &backend, &lines("machines"))
        .route_with("links", "/links", &backend, &lines("links"))
        .route_with("open", "/open", &backend, "send_proxy = \"v2\"")
        .listener(TLS, &machines.lines("optional"))
        .tables("[auth.machines]\nkind = \"client-certificate\"\n[auth.links]\nkind = \"ticket\"")
        .admin()
        .start()
        .await;
    let ticket = serde_json::json!({"route": "links", "user": "änne", "uses": 2}).to_string();
    let answer = gateway.request("POST", "/api/tickets", &ticket).await;
    let ticket: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    let link = ticket["url"].as_str().expect("a URL");
    let machine = machines.machine(&["CN=Probe 7", "probe.example.org"]);
    for (certificate, target, user) in [
        (true, "/machines", Some("probe.example.org")),
        (true, "/open", None),
        (true, link, Some("änne")),
        (false, link, Some("änne")),
        (false, "/open", None),
    ] {
        let connection = match certificate {
            true => machine.connect(&gateway, TLS).await,
            false => gateway.connect(TLS).await,
        };
        let request = gateway.upgrade(TLS, target);
        let (session, mut socket) = tokio::join!(gateway.open(connection, &request), backend.accept());
        let header = v2(&mut socket).await;
        let of =
            |kind: u8| header.tlvs.iter().find(|(known, _)| *known == kind).map(|(_, value)| value.clone());
        assert_eq!(of(0xE0), user.map(|user| user.as_bytes().to_vec()), "{target}");
        let ssl = of(0x20).expect("the TLS field");
        let (flags, inner) = (&ssl[..5], parts(&ssl[5..]));
        let version = (0x21, b"TLSv1.3".to_vec());
        match certificate {
            true => {
                assert_eq!(flags, [7, 0, 0, 0, 0], "TLS, a certificate, verified");
                assert_eq!(inner, [version, (0x22, b"Probe 7".to_vec())]);
            }
            false => {
                assert_eq!((flags[0], flags[1..] == [0; 4]), (1, false), "TLS, nothing verified");
                assert_eq!(inner, [version]);
            }
        }
        let secret = ticket["ticket"].as_str().expect("a ticket").as_bytes();
        let shown =
            header.tlvs.iter().any(|(_, value)| value.windows(secret.len()).any(|part| part == secret));
        assert!(!shown, "{header:?}");
        let server = tokio::spawn(echo(socket));
        end(&gateway, session, None).await;
        within("the server's end", server).await.unwrap();
    }
    gateway.finish().await;
}

#[tokio::test]
async fn the_header_names_the_client_behind_a_trusted_proxy() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new()
        .route_with("backend", "/backend", &backend, "send_proxy = \"v1\"")
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.9/32\"]\n")
        .start()
        .await;
    let connection = gateway.connect_by_proxy("127.0.0.9".parse().unwrap(), "192.0.2.7:4711", PLAIN).await;
    let request = gateway.upgrade(PLAIN, "/backend").add("X-Forwarded-For", "10.9.8.7, 192.0.2.7:4711");
    let mut session = gateway.open(connection, &request).await;
    let mut socket = backend.accept().await;
    let line = format!("PROXY TCP4 192.0.2.7 127.0.0.1 4711 {}\r\n", gateway.address(PLAIN).port());
    let read = exactly(&mut socket, line.len()).await;
    assert_eq!(String::from_utf8_lossy(&read), line);
    let server = tokio::spawn(echo(socket));
    session.echo(b"hello").await;
    session.close(1000).await;
    drop(session);
    gateway.ended("192.0.2.7:4711".parse().unwrap(), "client_closed", Some(1000)).await;
    within("the server's end", server).await.unwrap();
    gateway.finish().await;
}

#[tokio::test]
async fn the_header_precedes_tls_and_works_over_a_unix_socket() {
    let authority = Authority::new();
    let acceptor = TlsAcceptor::from(authority.leaf("localhost").server(&[&TLS13]));
    let (headers, mut received_headers) = mpsc::unbounded_channel();
    let server = Server::start({
        let headers = headers.clone();
        move |mut socket| {
            let (acceptor, headers) = (acceptor.clone(), headers.clone());
            async move {
                headers.send(v2(&mut socket).await).unwrap();
                echo(acceptor.accept(socket).await.unwrap()).await;
            }
        }
    })
    .await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("server.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let local = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        headers.send(v2(&mut socket).await).unwrap();
        echo(socket).await;
    });
    let lines = format!("send_proxy = \"v2\"\n{}", authority.trusted());
    let gateway = Setup::new()
        .route_to("secure", "/secure", &format!("tls://localhost:{}", server.port()), &lines)
        .route_to("local", "/local", &format!("unix:{}", path.display()), "send_proxy = \"v2\"")
        .start()
        .await;
    for target in ["/secure", "/local"] {
        let mut session = gateway.session(target).await;
        session.echo(b"hello").await;
        let header = within("a header", received_headers.recv()).await.unwrap();
        let name = check(&header, session.peer, &gateway, TLS);
        end(&gateway, session, Some(name)).await;
    }
    within("the server's end", local).await.unwrap();
    gateway.finish().await;
}

#[tokio::test]
async fn a_health_check_sends_a_local_header() {
    let (one, other) = (Backend::scripted().await, Backend::echo().await);
    let urls = super::list([&one, &other].map(|backend| format!("tcp://{}", backend.address)));
    let health = "health = { interval = \"200ms\", timeout = \"100ms\", rise = 1, fall = 5 }";
    let gateway = Setup::new()
        .tables(&format!(
            "[[route]]\nname = \"backend\"\npath = \"/backend\"\nbackend = {urls}\nsend_proxy = \"v2\"\n{health}"
        ))
        .start()
        .await;
    let mut socket = one.accept().await;
    let header = v2(&mut socket).await;
    assert_eq!((header.command, header.tlvs.len()), (0x20, 0), "LOCAL: {header:?}");
    let mut rest = Vec::new();
    within("the check's end", socket.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty(), "{rest:?}");
    let _ = socket.shutdown().await;
    drop((one, other, socket));
    // The descriptors of a health check come and go.
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(gateway.exit().await.success());
}
