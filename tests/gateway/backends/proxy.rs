//! `proxy_protocol`: listeners that receive the client's address in a PROXY header.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    BINARY, Backend, ClientStream, Gateway, PLAIN, Request, Session, Setup, TLS, assert_took, frame,
    read_to_end, send_request, within,
};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const CLIENT: &str = "192.0.2.7:54321";
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 54321 443\r\n";
const FOUR: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0xd4, 0x31, 0x01, 0xbb];

fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).expect("a short block").to_be_bytes();
    [SIGNATURE, &[command, family], &length, block].concat()
}

/// The second listener requires a header, and has a certificate too.
fn setup(backend: &Backend, trusted: &str) -> Setup {
    Setup::echo(backend).listener(
        PLAIN,
        &format!(
            "certificate = \"localhost.crt\"\nprivate_key = \"localhost.key\"\nproxy_protocol = true\n\
             trusted_proxies = [\"{trusted}\"]\n"
        ),
    )
}

async fn gateway(backend: &Backend) -> Gateway {
    setup(backend, "127.0.0.0/8").start().await
}

/// A connection of a proxy that sends `header`; the log names `client`, or else the proxy itself.
async fn announced(gateway: &Gateway, header: &[u8], client: Option<&str>) -> (TcpStream, SocketAddr) {
    let mut socket = gateway.untracked_socket(None, PLAIN, |_| {}).await;
    let own = socket.local_addr().expect("a connected socket");
    let client = client.map_or(own, |client| client.parse().expect("the address of a client"));
    gateway.expect_log_line(client);
    // The gateway may refuse it before all of it is sent.
    let _ = socket.write_all(header).await;
    (socket, client)
}

async fn session(gateway: &Gateway, socket: TcpStream, client: SocketAddr) -> Session {
    session_of(gateway, socket, client, &upgrade(gateway)).await
}

fn upgrade(gateway: &Gateway) -> Request {
    gateway.upgrade(TLS, "/echo").with("Host", "a").with("Origin", "https://a")
}

/// The session that a request opens.
async fn session_of(gateway: &Gateway, socket: TcpStream, client: SocketAddr, request: &Request) -> Session {
    let mut connection = gateway.secure(socket).await;
    let response = send_request(&mut connection, request).await;
    assert_eq!(response.status, 101, "{response:?}");
    Session::new(connection, client, &response.rest)
}

/// Closes a session in good order.
async fn close(gateway: &Gateway, mut session: Session) {
    session.close(1000).await;
    let peer = session.peer;
    drop(session);
    gateway.ended(peer, "client_closed", Some(1000)).await;
}

async fn works(gateway: &Gateway, socket: TcpStream, client: SocketAddr) {
    let mut session = session(gateway, socket, client).await;
    session.echo(b"hello").await;
    close(gateway, session).await;
}

/// Expects that a connection without a valid header receives nothing, and is closed within two seconds.
async fn closed(gateway: &Gateway, mut socket: TcpStream, peer: SocketAddr, what: &str) -> String {
    let start = Instant::now();
    let (reply, _) = read_to_end(&mut socket).await;
    assert!(reply.is_empty(), "{what}: {:?}", String::from_utf8_lossy(&reply));
    assert!(start.elapsed() < Duration::from_secs(3), "{what}: {:?}", start.elapsed());
    let end = gateway.refused(peer, "proxy_header_invalid").await;
    end.text("detail").unwrap_or_default().to_owned()
}

#[tokio::test]
async fn the_client_of_the_header_is_the_peer() {
    let backend = Backend::echo().await;
    let gateway = gateway(&backend).await;
    let six: Vec<u8> = ["2001:db8::7", "2001:db8::1"]
        .iter()
        .flat_map(|address| address.parse::<std::net::Ipv6Addr>().unwrap().octets())
        .chain([0xd4, 0x31, 0x01, 0xbb])
        .collect();
    let with_tlvs = [FOUR, &[0x05, 0, 2, b'4', b'2', 0x04, 0, 3, 0, 0, 0]].concat();
    for (header, client) in [
        (V1.to_vec(), CLIENT),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 54321 443\r\n".to_vec(), "[2001:db8::7]:54321"),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 54321 443\r\n".to_vec(), CLIENT),
        (v2(0x21, 0x11, FOUR), CLIENT),
        (v2(0x21, 0x11, &with_tlvs), CLIENT),
        (v2(0x21, 0x21, &six), "[2001:db8::7]:54321"),
    ] {
        let (socket, client) = announced(&gateway, &header, Some(client)).await;
        works(&gateway, socket, client).await;
    }
    // No client is named: the connection is the proxy's own.
    for header in [
        v2(0x20, 0x00, b""),
        v2(0x20, 0x11, FOUR),
        v2(0x21, 0x00, b""),
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(),
    ] {
        let (socket, own) = announced(&gateway, &header, None).await;
        works(&gateway, socket, own).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn the_destination_of_the_header_is_that_of_the_header_for_the_backend() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new()
        .listener(PLAIN, "proxy_protocol = true\ntrusted_proxies = [\"127.0.0.0/8\"]\n")
        .route_with("echo", "/echo", &backend, "send_proxy = \"v1\"")
        .start()
        .await;
    let header = String::from_utf8_lossy(V1).into_owned();
    let (mut socket, client) = announced(&gateway, V1, Some(CLIENT)).await;
    let request = gateway.upgrade(PLAIN, "/echo");
    socket.write_all(&request.bytes()).await.expect("a request");
    let mut served = backend.accept().await;
    let mut received = vec![0; header.len()];
    within("a header", served.read_exact(&mut received)).await.expect("a header");
    assert_eq!(String::from_utf8_lossy(&received), header);
    drop((socket, served));
    gateway.access_log_line(client).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_header_without_a_client_tells_whose_forwarding_headers_are_trusted() {
    let backend = Backend::echo().await;
    let gateway = gateway(&backend).await;
    const FORWARDED: &str = "203.0.113.9";
    // LOCAL: the proxy made the connection, so that what it forwards is its own word. UNKNOWN and UNSPEC: the connection is
    // that of a client, who may have written the field.
    for (header, is_trusted) in
        [(v2(0x20, 0x00, b""), true), (v2(0x21, 0x00, b""), false), (b"PROXY UNKNOWN\r\n".to_vec(), false)]
    {
        for field in ["X-Forwarded-For: 203.0.113.9", "Forwarded: for=203.0.113.9"] {
            let mut socket = gateway.untracked_socket(None, PLAIN, |_| {}).await;
            let own = socket.local_addr().expect("a connected socket");
            let client = if is_trusted { (FORWARDED.parse::<IpAddr>().unwrap(), 0).into() } else { own };
            gateway.expect_log_line(client);
            socket.write_all(&header).await.unwrap();
            let (name, value) = field.split_once(": ").unwrap();
            let request = upgrade(&gateway).add(name, value);
            close(&gateway, session_of(&gateway, socket, client, &request).await).await;
        }
    }
    gateway.finish().await;
}

#[tokio::test]
async fn header_and_hello_may_share_a_packet_or_arrive_byte_by_byte() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .listener(PLAIN, "proxy_protocol = true\ntrusted_proxies = [\"127.0.0.0/8\"]\n")
        .start()
        .await;
    for header in [V1.to_vec(), v2(0x21, 0x11, FOUR)] {
        let request = gateway.upgrade(PLAIN, "/echo").then(&frame(true, BINARY, b"at once")).bytes();
        for size in [1, 7, 100_000] {
            let mut socket = gateway.untracked_socket(None, PLAIN, |_| {}).await;
            let client: SocketAddr = CLIENT.parse().unwrap();
            gateway.expect_log_line(client);
            for piece in [header.clone(), request.clone()].concat().chunks(size) {
                socket.write_all(piece).await.unwrap();
                // Each byte in a packet of its own, as far as the kernel allows.
                tokio::task::yield_now().await;
            }
            let mut connection = ClientStream::Plain(socket);
            let response = crate::support::read_response(&mut connection, true).await;
            assert_eq!(response.status, 101);
            let mut session = Session::new(connection, client, &response.rest);
            assert_eq!(session.frames.payload(7).await, b"at once");
            close(&gateway, session).await;
        }
    }
    gateway.finish().await;
}

/// A header of version 1 with this many bytes.
fn long(length: usize) -> Vec<u8> {
    let mut line = b"PROXY UNKNOWN ".to_vec();
    line.resize(length - 2, b'x');
    [line.as_slice(), b"\r\n"].concat()
}

#[tokio::test]
async fn version_1_has_107_bytes_and_no_more() {
    let backend = Backend::echo().await;
    let gateway = gateway(&backend).await;
    let (socket, own) = announced(&gateway, &long(107), None).await;
    works(&gateway, socket, own).await;
    for length in 108..=112 {
        let (socket, own) = announced(&gateway, &long(length), None).await;
        let detail = closed(&gateway, socket, own, &format!("{length} bytes")).await;
        assert!(detail.contains("longer than 107"), "{length} bytes: {detail:?}");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn connections_without_a_valid_header_are_closed() {
    let backend = Backend::echo().await;
    let gateway = gateway(&backend).await;
    let get = b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n";
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a request and no header", get.to_vec(), "does not begin with a PROXY header"),
        ("TLS and no header", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaa".to_vec(), "begin with"),
        ("109 bytes of version 1", long(109), "longer than 107"),
        ("version 1 without an end", [b"PROXY TCP4 ".as_slice(), &[b'1'; 300]].concat(), "longer than 107"),
        ("lower case", b"proxy TCP4 192.0.2.7 198.51.100.1 54321 443\r\n".to_vec(), "begin with"),
        ("only a line feed", b"PROXY TCP4 192.0.2.7 198.51.100.1 54321 443\n\r\n".to_vec(), ""),
        ("no ports", b"PROXY TCP4 192.0.2.7 198.51.100.1\r\n".to_vec(), "malformed"),
        ("a port too large", b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n".to_vec(), "malformed"),
        ("a name", b"PROXY TCP4 localhost 198.51.100.1 54321 443\r\n".to_vec(), "malformed"),
        ("IPv6 as TCP4", b"PROXY TCP4 2001:db8::7 2001:db8::1 54321 443\r\n".to_vec(), "malformed"),
        ("UDP", v2(0x21, 0x12, FOUR), "malformed"),
        ("version 3", v2(0x31, 0x11, FOUR), "malformed"),
        ("an unknown command", v2(0x22, 0x11, FOUR), "malformed"),
        ("too short for its family", v2(0x21, 0x11, &FOUR[..11]), "malformed"),
        ("IPv4 announced as IPv6", v2(0x21, 0x21, FOUR), "malformed"),
        (
            "a TLV longer than the header",
            v2(0x21, 0x11, &[FOUR, &[0x05, 0xff, 0xff, 1]].concat()),
            "malformed",
        ),
    ];
    for (what, header, words) in cases {
        let (socket, own) = announced(&gateway, &header, None).await;
        let detail = closed(&gateway, socket, own, what).await;
        assert!(detail.contains(words), "{what}: {words:?} is not in {detail:?}");
    }
    assert_eq!(backend.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn a_header_that_never_ends_has_two_seconds() {
    let backend = Backend::echo().await;
    let gateway = gateway(&backend).await;
    // A header shorter than its announced length, nothing at all, and one byte at a time.
    let lying = [SIGNATURE, &[0x21, 0x11, 0xff, 0xff], FOUR].concat();
    let cases = [("a lie", lying), ("silence", Vec::new()), ("half", V1[..20].to_vec())];
    let waiting = cases.map(|(what, header)| {
        let gateway = &gateway;
        async move {
            let start = Instant::now();
            let (socket, own) = announced(gateway, &header, None).await;
            let detail = closed(gateway, socket, own, what).await;
            assert_took(start, Duration::from_secs(2));
            assert!(detail.contains("within 2s"), "{what}: {detail:?}");
        }
    });
    let dripping = async {
        let start = Instant::now();
        let (mut socket, own) = announced(&gateway, b"", None).await;
        let mut sent = 0;
        for byte in V1.chunks(1) {
            if socket.write_all(byte).await.is_err() {
                break;
            }
            sent += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(sent > 10, "only {sent} bytes were sent");
        let detail = gateway.refused(own, "proxy_header_invalid").await;
        assert_eq!(detail.number("duration_ms").map(|ms| ms / 1000), Some(2), "{detail:?}");
        assert!(start.elapsed() < Duration::from_secs(8));
    };
    let in_time = async {
        // The same a little faster.
        let (mut socket, client) = announced(&gateway, b"", Some(CLIENT)).await;
        for byte in V1.chunks(1) {
            socket.write_all(byte).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        works(&gateway, socket, client).await;
    };
    within("all of them", async {
        tokio::join!(futures_util::future::join_all(waiting), dripping, in_time);
    })
    .await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_header_from_an_untrusted_peer() {
    let backend = Backend::echo().await;
    let gateway = setup(&backend, "127.0.0.9/32").start().await;
    for header in [V1.to_vec(), v2(0x21, 0x11, FOUR), v2(0x20, 0, b""), Vec::new()] {
        let (socket, own) = announced(&gateway, &header, None).await;
        let detail = closed(&gateway, socket, own, "an untrusted peer").await;
        assert!(detail.contains("trusted_proxies"), "{detail:?}");
    }
    let source: IpAddr = "127.0.0.9".parse().unwrap();
    let mut socket = gateway.untracked_socket(Some(source), PLAIN, |_| {}).await;
    gateway.expect_log_line(CLIENT.parse().unwrap());
    socket.write_all(V1).await.unwrap();
    works(&gateway, socket, CLIENT.parse().unwrap()).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_header_at_a_listener_without_proxy_protocol() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    for listener in [TLS, PLAIN] {
        for header in [V1.to_vec(), v2(0x21, 0x11, FOUR)] {
            let mut socket = gateway.tcp(listener).await;
            let own = socket.local_addr().unwrap();
            socket.write_all(&header).await.unwrap();
            closed(&gateway, socket, own, "an unexpected header").await;
        }
    }
    gateway.finish().await;
}

#[tokio::test]
async fn limits_count_the_client_of_the_header() {
    let backend = Backend::echo().await;
    let gateway = setup(&backend, "127.0.0.0/8")
        .per_ip("rate = 1000\nburst = 1000\nsessions = 2\nexempt = [\"127.0.0.250/32\"]")
        .start()
        .await;
    let mut held = Vec::new();
    for port in [1, 2] {
        let header = format!("PROXY TCP4 192.0.2.7 198.51.100.1 {port} 443\r\n");
        let client = format!("192.0.2.7:{port}");
        let (socket, client) = announced(&gateway, header.as_bytes(), Some(&client)).await;
        let mut session = session(&gateway, socket, client).await;
        session.echo(b"hello").await;
        held.push(session);
    }
    // One session too many: closed before TLS.
    let (mut socket, client) = announced(&gateway, V1, Some(CLIENT)).await;
    let (reply, _) = read_to_end(&mut socket).await;
    assert!(reply.is_empty());
    gateway.refused(client, "too_many_sessions").await;
    // Other clients use the same proxy.
    for last in 8..12 {
        let header = format!("PROXY TCP4 192.0.2.{last} 198.51.100.1 1 443\r\n");
        let (socket, client) =
            announced(&gateway, header.as_bytes(), Some(&format!("192.0.2.{last}:1"))).await;
        works(&gateway, socket, client).await;
    }
    // The client's own forwarding headers are not trusted.
    for session in held {
        close(&gateway, session).await;
    }
    let (socket, client) = announced(&gateway, V1, Some(CLIENT)).await;
    let request = upgrade(&gateway).add("X-Forwarded-For", "203.0.113.9").add("Forwarded", "for=203.0.113.9");
    close(&gateway, session_of(&gateway, socket, client, &request).await).await;
    gateway.finish().await;
}
