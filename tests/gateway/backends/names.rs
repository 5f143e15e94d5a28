//! Who chooses where a session leads: the configuration, and nobody else.

use super::unreached;
use crate::support::{Backend, PLAIN, Setup};

#[tokio::test]
async fn a_name_that_leads_out_of_the_allowed_networks() {
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
    assert!(detail.contains("127.0.0.1") || detail.contains("::1"), "the address that was meant: {end:?}");
    assert_eq!(backend.calls().await, 0, "it was dialled");
    let mut session = gateway.session("/inside").await;
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn no_client_names_a_server() {
    let (meant, other) = (Backend::echo().await, Backend::echo().await);
    let gateway = Setup::new().route("echo", &meant).route_with("wide", "/wide/*", &meant, "").start().await;
    let (host, port) = (other.address.ip().to_string(), other.address.port());
    let plain = gateway.upgrade(PLAIN, "/echo");
    let requests = [
        gateway.upgrade(PLAIN, &format!("/echo?host={host}&port={port}")),
        gateway.upgrade(PLAIN, &format!("/echo?token={host}:{port}")),
        gateway.upgrade(PLAIN, &format!("/wide/{host}:{port}")),
        gateway.upgrade(PLAIN, &format!("/wide/tcp://{host}:{port}")),
        plain.clone().add("X-Forwarded-Host", &other.address.to_string()),
        plain.clone().add("X-Backend", &other.address.to_string()),
        plain.add("Sec-WebSocket-Protocol", &format!("{host}.{port}")),
    ];
    for request in requests {
        let mut session = gateway.open(gateway.wire(PLAIN).await, &request).await;
        session.echo(b"hello").await;
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    assert_eq!(other.calls().await, 0);
    gateway.finish().await;
}
