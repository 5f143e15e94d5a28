//! `unix:`: backends on Unix sockets.

use std::time::Duration;

use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

use super::authority::echo;
use super::unreached;
use crate::support::{CLOSE, Check, Setup, close_body, eventually, frame, pattern, within};

#[tokio::test]
async fn a_unix_socket_works_like_a_port() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("server.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(echo(socket));
        }
    });
    let backend = format!("unix:{}", path.display());
    let gateway = Setup::new().route_to("local", "/local", &backend, "").start().await;
    let mut session = gateway.session("/local").await;
    session.echo(b"hello").await;
    session.echo(&pattern(0, 1 << 20)).await;
    session.close(1000).await;
    let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
    assert_eq!(end.text("backend"), Some(backend.as_str()));
    assert_eq!(end.number("bytes_out"), Some((1 << 20) + 5));
    drop(session);
    gateway.finish().await;
    server.abort();
}

#[tokio::test]
async fn all_data_arrives_before_the_close_on_both_sides() {
    const LENGTH: usize = 3 << 20;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("server.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let backend = format!("unix:{}", path.display());
    let gateway = Setup::new().route_to("local", "/local", &backend, "").start().await;
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut received = Vec::new();
        socket.read_to_end(&mut received).await.unwrap();
        received
    });
    let mut session = gateway.session("/local").await;
    session.send(&frame(true, 2, &pattern(0, LENGTH))).await;
    session.send(&frame(true, CLOSE, &close_body(1000, b""))).await;
    session.frames.until_close().await;
    session.end().await;
    let received = within("the server to receive everything", server).await.unwrap();
    assert_eq!(received.len(), LENGTH);
    Check::default().feed(&received);
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_missing_socket_or_one_without_a_listener() {
    let directory = TempDir::new().unwrap();
    let (missing, dead) = (directory.path().join("missing.sock"), directory.path().join("dead.sock"));
    drop(UnixListener::bind(&dead).unwrap());
    let gateway = Setup::new()
        .route_to("missing", "/missing", &format!("unix:{}", missing.display()), "")
        .route_to("dead", "/dead", &format!("unix:{}", dead.display()), "")
        .start()
        .await;
    for target in ["/missing", "/dead"] {
        unreached(&gateway, target, "backend_refused").await;
    }
    // A server that starts later is found.
    let listener = UnixListener::bind(&missing).unwrap();
    let mut session = gateway.session("/missing").await;
    let (socket, _) = within("the gateway to dial", listener.accept()).await.unwrap();
    let server = tokio::spawn(echo(socket));
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    drop(session);
    eventually("the server's session ends", Duration::from_secs(5), || {
        server.is_finished().then_some(()).ok_or_else(|| "it has not".to_owned())
    })
    .await;
    gateway.finish().await;
}
