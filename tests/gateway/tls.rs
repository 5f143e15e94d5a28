//! Connections before the first byte of HTTP: TLS handshakes and their deadline.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustls::{AlertDescription, ClientConnection, NamedGroup};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::support::{
    Backend, Gateway, Session, Setup, SmallWrites, TLS, assert_took, client_config, pattern, read_response,
    read_to_end,
};

const DEADLINE: Duration = Duration::from_millis(600);

async fn with_short_timeouts() -> Gateway {
    Setup::new().timeouts("tls = \"600ms\"").start().await
}

fn client_hello() -> Vec<u8> {
    let config = client_config(rustls::ALL_VERSIONS, &["http/1.1"]);
    let mut client =
        ClientConnection::new(config, "localhost".try_into().expect("a name")).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("a hello");
    hello
}

/// A hello of SSL 3, TLS 1.0 or 1.1: the version in the hello and no extension that offers more.
fn old_hello(minor: u8, extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, minor];
    body.extend_from_slice(&[0x5a; 32]);
    body.push(0);
    body.extend_from_slice(&[0, 6, 0xc0, 0x13, 0xc0, 0x09, 0x00, 0x2f]);
    body.extend_from_slice(&[1, 0]);
    body.extend_from_slice(extensions);
    let mut bytes = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    bytes.extend(body);
    bytes
}

/// The description of the one fatal alert in `bytes`.
#[track_caller]
fn alert(bytes: &[u8]) -> AlertDescription {
    match bytes {
        [21, 3, _, 0, 2, 2, description] => (*description).into(),
        _ => panic!("expected one fatal alert, not {bytes:02x?}"),
    }
}

#[tokio::test]
async fn a_silent_connection_is_closed_at_the_tls_deadline() {
    let gateway = with_short_timeouts().await;
    let start = Instant::now();
    let mut socket = gateway.tcp(TLS).await;
    let (reply, _) = read_to_end(&mut socket).await;
    assert_took(start, DEADLINE);
    assert!(reply.is_empty() || reply[0] == 21, "nothing or an alert: {reply:?}");
    gateway.refused(socket.local_addr().unwrap(), "tls_timeout").await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_hello_byte_by_byte_does_not_move_the_deadline() {
    let gateway = with_short_timeouts().await;
    let start = Instant::now();
    let socket = gateway.tcp(TLS).await;
    let peer = socket.local_addr().unwrap();
    let (mut reader, mut writer) = socket.into_split();
    let hello = client_hello();
    let drip = async {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        for byte in hello {
            tick.tick().await;
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = read_to_end(&mut reader) => {}
        () = drip => {}
    }
    assert_took(start, DEADLINE);
    drop((reader, writer));
    gateway.refused(peer, "tls_timeout").await;
    gateway.finish().await;
}

#[tokio::test]
async fn many_silent_connections_do_not_block_a_valid_client() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).per_ip("").timeouts("tls = \"3s\"").start().await;
    let crowd = std::net::IpAddr::from([127, 0, 0, 2]);
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(gateway.tcp_from(Some(crowd), TLS).await);
    }
    let start = Instant::now();
    let mut session = gateway.session("/echo").await;
    assert!(start.elapsed() < Duration::from_secs(1), "a session took {:?}", start.elapsed());
    session.echo(b"hello").await;
    session.close(1000).await;
    drop(session);
    let held = gateway.open_descriptors();
    assert!(held < 400, "{held} descriptors for one address");
    gateway.finish().await;
    drop(silent);
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_answered_with_the_reason() {
    let gateway = Setup::new().start().await;
    for request in ["GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "POST /echo HTTP/1.1\r\n\r\n", "hello\r\n"] {
        let mut socket = gateway.tcp(TLS).await;
        socket.write_all(request.as_bytes()).await.unwrap();
        let (reply, _) = read_to_end(&mut socket).await;
        let text = String::from_utf8_lossy(&reply);
        let explained = text.starts_with("HTTP/1.1 400 ") && text.contains("this port speaks TLS");
        assert!(explained || reply.first() == Some(&21), "{request:?} was answered with {text:?}");
        let peer = socket.local_addr().unwrap();
        drop(socket);
        gateway.refused(peer, "not_tls").await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn tls_before_1_2_gets_a_protocol_version_alert() {
    let gateway = Setup::new().start().await;
    for minor in [0, 1, 2] {
        // A hello with signature algorithms is refused for its version; one without may be refused for that.
        let signatures: &[u8] = &[0, 8, 0, 13, 0, 4, 0, 2, 4, 3];
        for (extensions, alerts) in [
            (signatures, &[AlertDescription::ProtocolVersion][..]),
            (&[], &[AlertDescription::ProtocolVersion, AlertDescription::HandshakeFailure]),
        ] {
            let mut socket = gateway.tcp(TLS).await;
            socket.write_all(&old_hello(minor, extensions)).await.unwrap();
            let (reply, _) = read_to_end(&mut socket).await;
            let reply = alert(&reply);
            assert!(alerts.contains(&reply), "version 3.{minor}: {reply:?}");
            gateway.refused(socket.local_addr().unwrap(), "tls_failed").await;
        }
    }
    gateway.finish().await;
}

#[tokio::test]
async fn tls_1_2_works_unless_the_listener_wants_1_3() {
    let backend = Backend::echo().await;
    let old = || client_config(&[&rustls::version::TLS12], &["http/1.1"]);

    let gateway = Setup::echo(&backend).start().await;
    let socket = gateway.tcp(TLS).await;
    let peer = socket.local_addr().unwrap();
    let stream = gateway.try_secure(socket, old()).await.expect("TLS 1.2");
    assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_2));
    let connection = crate::support::ClientStream::Tls(Box::new(stream));
    let mut session = gateway.open(connection, &gateway.upgrade(TLS, "/echo")).await;
    session.echo(b"over TLS 1.2").await;
    session.close(1000).await;
    gateway.ended(peer, "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;

    let gateway = Setup::echo(&backend).listener(TLS, "min_tls = \"1.3\"\n").start().await;
    let socket = gateway.tcp(TLS).await;
    let peer = socket.local_addr().unwrap();
    let error = gateway.try_secure(socket, old()).await.expect_err("TLS 1.2 is too old here");
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    gateway.refused(peer, "tls_failed").await;
    gateway.finish().await;
}

#[tokio::test]
async fn only_http_1_1_is_negotiated() {
    let gateway = Setup::new().start().await;
    for (offered, chosen) in
        [(&[][..], None), (&["http/1.1"][..], Some("http/1.1")), (&["h2", "http/1.1"][..], Some("http/1.1"))]
    {
        let socket = gateway.tcp(TLS).await;
        let peer = socket.local_addr().unwrap();
        let mut stream =
            gateway.try_secure(socket, client_config(rustls::ALL_VERSIONS, offered)).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen.map(str::as_bytes), "{offered:?}");
        stream.write_all(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert_eq!(read_response(&mut stream, true).await.status, 404, "{offered:?}");
        drop(stream);
        gateway.refused(peer, "unknown_route").await;
    }
    for offered in [&["h2"][..], &["h3", "imap"][..]] {
        let socket = gateway.tcp(TLS).await;
        let peer = socket.local_addr().unwrap();
        let config = client_config(rustls::ALL_VERSIONS, offered);
        let error = gateway.try_secure(socket, config).await.expect_err("no common protocol");
        assert!(error.to_string().contains("NoApplicationProtocol"), "{offered:?}: {error}");
        gateway.refused(peer, "tls_failed").await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_post_quantum_key_exchange_is_negotiated() {
    let gateway = Setup::new().start().await;
    let socket = gateway.tcp(TLS).await;
    let peer = socket.local_addr().unwrap();
    let config = client_config(&[&rustls::version::TLS13], &["http/1.1"]);
    let mut stream = gateway.try_secure(socket, config).await.unwrap();
    let group = stream.get_ref().1.negotiated_key_exchange_group().map(|group| group.name());
    assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
    stream.write_all(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    read_response(&mut stream, true).await;
    drop(stream);
    gateway.refused(peer, "unknown_route").await;
    gateway.finish().await;
}

/// Splits the first TLS record that is written, which is the client's hello, into records of a few bytes.
struct TinyRecords {
    socket: TcpStream,
    size: usize,
    waiting: Vec<u8>,
    split: bool,
}

impl TinyRecords {
    fn send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.waiting))?;
            self.waiting.drain(..sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for TinyRecords {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for TinyRecords {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.send(cx))?;
        if self.split {
            return Pin::new(&mut self.socket).poll_write(cx, buf);
        }
        self.split = true;
        let length = usize::from(u16::from_be_bytes([buf[3], buf[4]]));
        assert_eq!((buf[0], buf.len()), (22, length + 5), "the hello is one record");
        for part in buf[5..].chunks(self.size) {
            self.waiting.extend_from_slice(&buf[..3]);
            self.waiting.extend_from_slice(&(part.len() as u16).to_be_bytes());
            self.waiting.extend_from_slice(part);
        }
        let _ = self.send(cx)?;
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_hello_in_tiny_records_works_or_fails_without_a_busy_loop() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    for size in [1, 2, 7, 100] {
        let socket = gateway.tcp(TLS).await;
        let peer = socket.local_addr().unwrap();
        let records = TinyRecords { socket, size, waiting: Vec::new(), split: false };
        match gateway.try_secure(records, client_config(rustls::ALL_VERSIONS, &["http/1.1"])).await {
            Ok(mut stream) => {
                stream.write_all(&gateway.upgrade(TLS, "/echo").bytes()).await.unwrap();
                stream.flush().await.unwrap();
                let response = read_response(&mut stream, true).await;
                assert_eq!(response.status, 101, "{response:?}");
                let mut session = Session::new(stream, peer, &response.rest);
                session.echo(b"in spite of everything").await;
                session.close(1000).await;
                gateway.ended(peer, "client_closed", Some(1000)).await;
            }
            Err(_) => {
                gateway.refused(peer, "tls_failed").await;
            }
        }
    }
    assert!(gateway.processor_time() < Duration::from_secs(2), "{:?}", gateway.processor_time());
    gateway.finish().await;
}

#[tokio::test]
async fn a_handshake_in_segments_of_one_byte_works() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let socket = gateway.tcp(TLS).await;
    let peer = socket.local_addr().unwrap();
    let config = client_config(rustls::ALL_VERSIONS, &["http/1.1"]);
    let mut stream = gateway.try_secure(SmallWrites::new(socket, vec![1]), config).await.unwrap();
    stream.write_all(&gateway.upgrade(TLS, "/echo").bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let response = read_response(&mut stream, true).await;
    let mut session = Session::new(stream, peer, &response.rest);
    session.echo(&pattern(0, 300)).await;
    session.close(1000).await;
    gateway.ended(peer, "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_disconnect_inside_the_tls_handshake_is_handled_at_once() {
    let gateway = Setup::new().timeouts("tls = \"30s\"").start().await;
    let hello = client_hello();
    let half = hello[..hello.len() / 2].to_vec();
    let close_notify = vec![21, 3, 3, 0, 2, 1, 0];
    let whole_then_close = [&hello[..], &close_notify[..]].concat();
    let whole_then_noise = [&hello[..], &[0xff; 600][..]].concat();
    for bytes in [Vec::new(), half, close_notify, whole_then_close, whole_then_noise] {
        let start = Instant::now();
        let mut socket = gateway.tcp(TLS).await;
        socket.write_all(&bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        read_to_end(&mut socket).await.1.ok();
        let end = gateway.access_log_line(socket.local_addr().unwrap()).await;
        // Only a handshake record begins TLS.
        let reason = if bytes.first() == Some(&21) { "not_tls" } else { "tls_failed" };
        assert_eq!((end.is_session(), end.reason()), (false, reason));
        assert!(start.elapsed() < Duration::from_secs(5), "{end:?} took {:?}", start.elapsed());
    }
    gateway.finish().await;
}

#[tokio::test]
async fn early_data_is_not_accepted_on_resumption() {
    let gateway = Setup::new().start().await;
    let mut config = (*client_config(&[&rustls::version::TLS13], &["http/1.1"])).clone();
    config.enable_early_data = true;
    let config = std::sync::Arc::new(config);
    for _ in 0..2 {
        let socket = gateway.tcp(TLS).await;
        let peer = socket.local_addr().unwrap();
        let mut stream = gateway.try_secure(socket, config.clone()).await.unwrap();
        assert!(!stream.get_ref().1.is_early_data_accepted(), "0-RTT can be replayed");
        stream.write_all(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        // Reading the answer also receives the session ticket.
        assert_eq!(read_response(&mut stream, true).await.status, 404);
        drop(stream);
        gateway.refused(peer, "unknown_route").await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_fin_without_close_notify_closes_the_session_and_the_backend() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let socket = gateway.tcp(TLS).await;
    let peer = socket.local_addr().unwrap();
    let connection = gateway.secure(socket).await;
    let mut session = gateway.open(connection, &gateway.upgrade(TLS, "/echo")).await;
    let mut served = backend.accept().await;
    session.send(&crate::support::frame(true, crate::support::BINARY, b"last words")).await;
    let crate::support::ClientStream::Tls(mut stream) = session.into_stream() else {
        unreachable!("it is TLS")
    };
    // Only the socket is shut down: TLS sends no close_notify.
    stream.get_mut().0.shutdown().await.unwrap();
    let mut received = Vec::new();
    crate::support::within("the backend to be closed", served.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received, b"last words");
    drop((stream, served));
    let end = gateway.ended(peer, "client_gone", None).await;
    assert_eq!(end.number("bytes_in"), Some(10));
    gateway.finish().await;
}
