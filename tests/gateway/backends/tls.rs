//! `tls://`: a verified TLS connection to the backend, or a reason for the failure.

use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::authority::{Authority, Server, echo, quoted};
use super::{unreached, works};
use crate::support::{
    BINARY, Backend, CLOSE, Check, Gateway, PLAIN, Setup, TLS, assert_took, close_body, eventually, frame,
    pattern, send_request, within,
};

const DEADLINE: Duration = Duration::from_millis(1200);

/// A gateway whose route `/kind` connects over TLS to a port of this machine, by name.
async fn gateway(port: u16, lines: &str) -> Gateway {
    let backend = format!("tls://localhost:{port}");
    Setup::new()
        .route_to("kind", "/kind", &backend, lines)
        .route_to("plain", "/plain", &backend, &format!("{lines}\nbackend_failure = \"status\""))
        .timeouts("connect = \"1200ms\"")
        .start()
        .await
}

#[tokio::test]
async fn data_that_the_client_sends_first_arrives_with_every_tls_version() {
    for version in [&TLS12, &TLS13] {
        let authority = Authority::new();
        let server = Server::over_tls(authority.leaf("localhost").server(&[version]), echo).await;
        let gateway = gateway(server.port(), &authority.trusted()).await;
        // The second time, TLS is resumed.
        for _ in 0..3 {
            let mut session = gateway.session("/kind").await;
            session.echo(b"hello").await;
            session.echo(&pattern(0, 100_000)).await;
            session.close(1000).await;
            let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
            let backend = format!("tls://localhost:{}", server.port());
            assert_eq!(end.text("backend"), Some(backend.as_str()));
            assert_eq!((end.number("bytes_in"), end.number("bytes_out")), (Some(100_005), Some(100_005)));
        }
        // Data sent together with the request is part of the stream.
        let request = gateway.upgrade(TLS, "/kind").then(&frame(true, BINARY, b"at once"));
        let mut session = gateway.open(gateway.connect(TLS).await, &request).await;
        assert_eq!(session.frames.payload(7).await, b"at once");
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
        drop(session);
        gateway.finish().await;
    }
}

#[tokio::test]
async fn data_that_the_server_sends_first_arrives() {
    const GREETING: &[u8] = b"RFB 003.008\n";
    for version in [&TLS12, &TLS13] {
        let authority = Authority::new();
        let server =
            Server::over_tls(authority.leaf("localhost").server(&[version]), |mut stream| async move {
                stream.write_all(GREETING).await.unwrap();
                stream.flush().await.unwrap();
                echo(stream).await;
            });
        let server = server.await;
        let gateway = gateway(server.port(), &authority.trusted()).await;
        let mut session = gateway.session("/kind").await;
        assert_eq!(session.frames.payload(GREETING.len()).await, GREETING);
        session.echo(b"hello").await;
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
        drop(session);
        gateway.finish().await;
    }
}

#[tokio::test]
async fn no_data_is_lost_when_the_server_reads_slowly() {
    const LENGTH: usize = 6 << 20;
    let authority = Authority::new();
    let (received, mut lengths) = mpsc::unbounded_channel();
    let (go, goes) = tokio::sync::watch::channel(false);
    let config = authority.leaf("localhost").server(&[&TLS13]);
    let server = Server::over_tls(config, move |mut stream| {
        let (received, mut goes) = (received.clone(), goes.clone());
        async move {
            goes.wait_for(|go| *go).await.unwrap();
            let mut check = Check::default();
            let mut buffer = vec![0; 10_000];
            while check.at < LENGTH as u64 {
                let length = stream.read(&mut buffer).await.unwrap();
                assert!(length > 0, "the end after {} bytes", check.at);
                check.feed(&buffer[..length]);
            }
            // Everything has arrived before any close: the gateway flushes by itself.
            received.send(check.at).unwrap();
            // The client's close also ends TLS.
            assert_eq!(stream.read(&mut buffer).await.unwrap(), 0, "close_notify");
            stream.write_all(b"last words").await.unwrap();
            stream.shutdown().await.unwrap();
            received.send(u64::MAX).unwrap();
        }
    });
    let server = server.await;
    let gateway = gateway(server.port(), &authority.trusted()).await;
    let mut session = gateway.session("/kind").await;
    let sent = frame(true, BINARY, &pattern(0, LENGTH));
    let sending = within("the upload", async {
        session.writer.write_all(&sent).await.unwrap();
        session.writer.flush().await.unwrap();
    });
    let going = async {
        // Enough time for all buffers to fill up: not required, only a harder test.
        tokio::time::sleep(Duration::from_millis(300)).await;
        go.send(true).unwrap();
    };
    tokio::join!(sending, going);
    assert_eq!(within("all of it", lengths.recv()).await, Some(LENGTH as u64));
    session.send(&frame(true, CLOSE, &close_body(1000, b""))).await;
    assert_eq!(within("the end of TLS", lengths.recv()).await, Some(u64::MAX));
    session.frames.until_close().await;
    session.end().await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn data_of_the_server_arrives_before_its_close() {
    const LENGTH: usize = 6 << 20;
    let authority = Authority::new();
    let server = Server::over_tls(authority.leaf("localhost").server(&[&TLS13]), |mut stream| async move {
        stream.write_all(&pattern(0, LENGTH)).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read(&mut [0]).await;
    });
    let server = server.await;
    let gateway = gateway(server.port(), &authority.trusted()).await;
    let mut session = gateway.session("/kind").await;
    let (data, code, _) = session.closed().await;
    assert_eq!((data.len(), code), (LENGTH, Some(1000)));
    Check::default().feed(&data);
    gateway.ended(session.peer, "backend_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_truncated_tls_stream_is_not_a_clean_end() {
    let authority = Authority::new();
    let server = Server::over_tls(authority.leaf("localhost").server(&[&TLS13]), |mut stream| async move {
        stream.write_all(b"half a sen").await.unwrap();
        stream.flush().await.unwrap();
        // A FIN without close_notify, as anyone on the path could send it.
        stream.get_mut().0.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let server = server.await;
    let gateway = gateway(server.port(), &authority.trusted()).await;
    let mut session = gateway.session("/kind").await;
    let (data, code, _) = session.closed().await;
    assert_eq!((data.as_slice(), code), (&b"half a sen"[..], Some(1011)));
    gateway.ended(session.peer, "backend_failed", Some(1011)).await;
    drop(session);
    gateway.finish().await;
}

/// Expects a failure at `/kind` and at `/plain`, with details in the log only.
async fn fails(port: u16, lines: &str, words: &[&str]) {
    let gateway = gateway(port, lines).await;
    let end = unreached(&gateway, "/kind", "backend_tls_failed").await;
    let detail = end.text("detail").unwrap_or_default();
    for word in words {
        assert!(detail.contains(word), "{word:?} is not in {detail:?}");
    }
    assert_eq!(end.text("backend"), Some(format!("tls://localhost:{port}").as_str()));

    let mut connection = gateway.connect(PLAIN).await;
    let response = send_request(&mut connection, &gateway.upgrade(PLAIN, "/plain")).await;
    let peer = connection.peer();
    drop(connection);
    assert_eq!(response.status, 502, "{response:?}");
    assert_eq!(gateway.access_log_line(peer).await.reason(), "backend_tls_failed");
    gateway.finish().await;
}

#[tokio::test]
async fn a_certificate_of_another_name() {
    let authority = Authority::new();
    let server = Server::over_tls(authority.leaf("other.example").server(&[&TLS13]), echo).await;
    fails(server.port(), &authority.trusted(), &["not for localhost", "other.example"]).await;

    // Which is accepted if the route says so.
    let gateway = gateway(server.port(), &authority.trusted_with(", server_name = \"other.example\"")).await;
    works(&gateway, TLS, "/kind").await;
    gateway.finish().await;
}

#[tokio::test]
async fn an_expired_certificate() {
    let authority = Authority::new();
    let server = Server::over_tls(authority.expired("localhost").server(&[&TLS13]), echo).await;
    fails(server.port(), &authority.trusted(), &["expired", "2020-01-01"]).await;
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = Server::over_tls(other.leaf("localhost").server(&[&TLS13]), echo).await;
    fails(server.port(), &authority.trusted(), &["authority", "trusted", "tls.ca"]).await;
    // Unless verification is off.
    let gateway = gateway(server.port(), "tls = { insecure_no_verify = true }").await;
    works(&gateway, TLS, "/kind").await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls() {
    let authority = Authority::new();
    let vnc = Server::start(|mut socket| async move {
        let _ = socket.write_all(b"RFB 003.008\n").await;
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    fails(vnc.await.port(), &authority.trusted(), &["does not speak TLS"]).await;
    let http = Server::start(|mut socket| async move {
        let _ = socket.read(&mut [0; 4096]).await;
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    fails(http.await.port(), &authority.trusted(), &["does not speak TLS"]).await;
    // It echoes the gateway's own bytes.
    let server = Backend::echo().await;
    fails(server.address.port(), &authority.trusted(), &["TLS"]).await;
    let closes = Server::start(|mut socket| async move {
        let _ = socket.read(&mut [0; 4096]).await;
    });
    fails(closes.await.port(), &authority.trusted(), &["TLS"]).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_the_handshake() {
    let authority = Authority::new();
    let sink = Backend::sink().await;
    let gateway = gateway(sink.address.port(), &authority.trusted()).await;
    let start = Instant::now();
    let end = unreached(&gateway, "/kind", "backend_tls_failed").await;
    assert_took(start, DEADLINE);
    assert!(end.text("detail").unwrap_or_default().contains("in time"), "{end:?}");
    eventually("the gateway closes the connection", Duration::from_secs(2), || {
        (sink.open() == 0).then_some(()).ok_or_else(|| "it has not".to_owned())
    })
    .await;
    gateway.finish().await;
}

#[tokio::test]
async fn too_old_a_version() {
    let authority = Authority::new();
    let server = Server::over_tls(authority.leaf("localhost").server(&[&TLS12]), echo).await;
    fails(server.port(), &authority.trusted_with(", min_version = \"1.3\""), &["TLS"]).await;
}

#[tokio::test]
async fn a_server_that_demands_a_client_certificate() {
    let authority = Authority::new();
    let server = Server::over_tls(authority.demanding(&authority.leaf("localhost")), echo).await;
    let (certificate, key) = authority.write("client", &authority.leaf("gateway.example"));
    let pair = format!(", client_certificate = {}, client_key = {}", quoted(&certificate), quoted(&key));
    let known = gateway(server.port(), &authority.trusted_with(&pair)).await;
    works(&known, TLS, "/kind").await;
    known.finish().await;

    // With TLS 1.3 a client learns only after the handshake that a certificate is missing.
    let unknown = gateway(server.port(), &authority.trusted()).await;
    let mut session = unknown.session("/kind").await;
    let (data, code, _) = session.closed().await;
    assert_eq!((data.as_slice(), code), (&b""[..], Some(1011)));
    unknown.ended(session.peer, "backend_failed", Some(1011)).await;
    drop(session);
    unknown.finish().await;
}
