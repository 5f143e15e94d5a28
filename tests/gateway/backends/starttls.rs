//! `starttls+xmpp://`: the gateway negotiates STARTTLS, and the backend sees only the client's stream after it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::authority::{Authority, Server, echo};
use super::unreached;
use crate::support::{BINARY, Gateway, Setup, TLS, assert_took, frame, within};

const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' from='chat.example' id='1' \
                      xmlns:stream='http://etherx.jabber.org/streams' version='1.0' xml:lang='en'>";
const OFFER: &str = "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>\
                     </stream:features>";
const NO_OFFER: &str = "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
                        <mechanism>PLAIN</mechanism></mechanisms></stream:features>";
const PROCEED: &str = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
const FAILURE: &str = "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:stream>";
const UNKNOWN: &str = "<stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>\
                       </stream:stream>";

/// What a client sends first; the gateway sends its own stream header before TLS.
const CLIENT: &[u8] = b"<stream:stream to='chat.example' version='1.0' xmlns='jabber:client' \
                        xmlns:stream='http://etherx.jabber.org/streams' from='juliet@chat.example'>";

/// Reads up to `end` and nothing beyond it. Empty if the gateway has closed the connection.
async fn read_until(socket: &mut TcpStream, end: &str) -> String {
    let mut received = String::new();
    while !received.ends_with(end) {
        match socket.read_u8().await {
            Ok(byte) => received.push(char::from(byte)),
            Err(_) => return String::new(),
        }
    }
    received
}

/// A server that sends these answers in the clear, each after a request, in pieces of `size` bytes.
async fn stub(answers: [&'static str; 2], size: usize, then: Option<Arc<ServerConfig>>) -> Server {
    let then = then.map(TlsAcceptor::from);
    Server::start(move |mut socket| {
        let then = then.clone();
        async move {
            for (asked, answers) in [("<stream:stream", answers[0]), ("<starttls", answers[1])] {
                read_until(&mut socket, asked).await;
                let rest = read_until(&mut socket, ">").await;
                if rest.is_empty() {
                    return;
                }
                assert!(asked == "<starttls" || rest.contains("to='chat.example'"), "{rest}");
                for piece in answers.as_bytes().chunks(size) {
                    if socket.write_all(piece).await.is_err() {
                        return;
                    }
                }
            }
            if let Some(acceptor) = then
                && let Ok(stream) = acceptor.accept(socket).await
            {
                echo(stream).await;
            }
        }
    })
    .await
}

async fn gateway(port: u16, lines: &str) -> Gateway {
    Setup::new()
        .route_to(
            "chat",
            "/chat",
            &format!("starttls+xmpp://127.0.0.1:{port}"),
            &format!("xmpp_domain = \"chat.example\"\n{lines}"),
        )
        .timeouts("connect = \"1200ms\"")
        .start()
        .await
}

#[tokio::test]
async fn the_clients_stream_begins_after_tls_and_is_unchanged() {
    for (version, size) in [(&TLS12, 1), (&TLS12, 4096), (&TLS13, 1), (&TLS13, 4096)] {
        let authority = Authority::new();
        let hello = Box::leak(format!("{HEADER}{OFFER}").into_boxed_str());
        // The certificate must be for the domain, not for the machine (RFC 6120 §13.7.2.1).
        let config = authority.leaf("chat.example").server(&[version]);
        let server = stub([hello, PROCEED], size, Some(config)).await;
        let gateway = gateway(server.port(), &authority.trusted()).await;
        // After TLS the server receives the client's first byte first, and the client receives nothing sent before.
        let mut session = gateway.session("/chat").await;
        session.echo(CLIENT).await;
        session.echo(b"<iq/>").await;
        session.close(1000).await;
        let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
        let length = CLIENT.len() as u64 + 5;
        assert_eq!((end.number("bytes_in"), end.number("bytes_out")), (Some(length), Some(length)));

        let request = gateway.upgrade(TLS, "/chat").then(&frame(true, BINARY, CLIENT));
        let mut session = gateway.open(gateway.connect(TLS).await, &request).await;
        assert_eq!(session.frames.payload(CLIENT.len()).await, CLIENT);
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
        drop(session);
        gateway.finish().await;
    }
}

/// Expects a failure without TLS: the reason is always the same, and the detail is specific.
async fn fails(answers: [&'static str; 2], detail: &str) {
    for size in [1, 4096] {
        let authority = Authority::new();
        let config = authority.leaf("chat.example").server(&[&TLS13]);
        let server = stub(answers, size, Some(config)).await;
        let gateway = gateway(server.port(), &authority.trusted()).await;
        let end = unreached(&gateway, "/chat", "backend_tls_failed").await;
        assert!(end.text("detail").unwrap_or_default().contains(detail), "{detail:?} is not in {end:?}");
        gateway.finish().await;
    }
}

fn joined(pieces: &[&str]) -> &'static str {
    Box::leak(pieces.concat().into_boxed_str())
}

#[tokio::test]
async fn a_server_without_starttls() {
    fails([joined(&[HEADER, NO_OFFER]), PROCEED], "offers no STARTTLS").await;
}

#[tokio::test]
async fn a_server_that_refuses() {
    fails([joined(&[HEADER, OFFER]), FAILURE], "refuses").await;
}

#[tokio::test]
async fn a_server_that_does_not_know_the_domain() {
    fails([joined(&[HEADER, UNKNOWN]), PROCEED], "host-unknown").await;
}

#[tokio::test]
async fn a_server_that_does_not_speak_xmpp() {
    fails(["SSH-2.0-OpenSSH_9.2\r\n", ""], "XMPP").await;
    fails(["HTTP/1.1 400 Bad Request\r\n\r\n", ""], "XMPP").await;
}

#[tokio::test]
async fn bytes_injected_before_tls_begins() {
    // In one piece they are recognised; later ones are not TLS.
    let authority = Authority::new();
    let config = authority.leaf("chat.example").server(&[&TLS13]);
    let answers = [joined(&[HEADER, OFFER]), joined(&[PROCEED, "<message>evil</message>"])];
    for (size, detail) in [(4096, "in the clear"), (1, "")] {
        let server = stub(answers, size, Some(config.clone())).await;
        let gateway = gateway(server.port(), &authority.trusted()).await;
        let end = unreached(&gateway, "/chat", "backend_tls_failed").await;
        assert!(end.text("detail").unwrap_or_default().contains(detail), "{detail:?} is not in {end:?}");
        gateway.finish().await;
    }
}

#[tokio::test]
async fn a_certificate_for_the_host_but_not_for_the_domain() {
    let authority = Authority::new();
    let config = authority.leaf("127.0.0.1").server(&[&TLS13]);
    let server = stub([joined(&[HEADER, OFFER]), PROCEED], 4096, Some(config)).await;
    let gateway = gateway(server.port(), &authority.trusted()).await;
    let end = unreached(&gateway, "/chat", "backend_tls_failed").await;
    let detail = end.text("detail").unwrap_or_default();
    assert!(detail.contains("not for chat.example") && detail.contains("127.0.0.1"), "{end:?}");
    gateway.finish().await;
}

#[tokio::test]
async fn a_server_that_stalls_or_sends_one_byte_at_a_time() {
    let authority = Authority::new();
    let (gone, mut leaves) = mpsc::unbounded_channel();
    let silent = Server::start(move |mut socket| {
        let gone = gone.clone();
        async move {
            // A space every now and then is no progress.
            let _ = socket.write_all(HEADER.as_bytes()).await;
            while socket.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let _ = gone.send(());
        }
    });
    let silent = silent.await;
    let gateway = gateway(silent.port(), &authority.trusted()).await;
    let start = Instant::now();
    let end = unreached(&gateway, "/chat", "backend_tls_failed").await;
    assert_took(start, Duration::from_millis(1200));
    assert!(end.text("detail").unwrap_or_default().contains("in time"), "{end:?}");
    within("the gateway to close the connection", leaves.recv()).await;
    gateway.finish().await;
}
