//! What a page or a client gets that has a credential of another: a stolen cookie, a ticket that is being revoked.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::{Backend, Gateway, PLAIN, Session, Setup, TLS, read_response, send_request, within};

fn setup(backend: &Backend, from: &str) -> Setup {
    Setup::new()
        .route_with("desk", "/desk", backend, "auth = \"links\"")
        .tables(&format!("[auth.links]\nkind = \"ticket\"\nfrom = [\"{from}\"]"))
        .admin()
}

async fn issue(gateway: &Gateway) -> Value {
    let body = json!({"route": "desk", "user": "ann"}).to_string();
    let answer = gateway.request("POST", "/api/tickets", &body).await;
    serde_json::from_slice(&answer.body).expect("JSON")
}

fn field<'a>(ticket: &'a Value, name: &str) -> &'a str {
    ticket[name].as_str().unwrap_or_else(|| panic!("no {name} in {ticket}"))
}

/// How often the credential of a request was checked, whatever was found.
async fn checks(gateway: &Gateway) -> usize {
    let metrics = gateway.request("GET", "/metrics", "").await;
    metrics.text().lines().filter(|line| line.starts_with("portcullis_authentications_total{")).count()
}

#[tokio::test]
async fn a_foreign_page_with_a_valid_cookie_is_refused_before_the_cookie_is_looked_at() {
    let backend = Backend::echo().await;
    let gateway = setup(&backend, "cookie:session").start().await;
    let ticket = issue(&gateway).await;
    let cookie = format!("session={}", field(&ticket, "ticket"));
    let own = gateway.upgrade(TLS, "/desk").add("Cookie", &cookie);
    for origin in ["https://evil.example", "null", "https://localhost.evil.example"] {
        let mut connection = gateway.connect(TLS).await;
        let peer = connection.peer();
        let response = send_request(&mut connection, &own.clone().with("Origin", origin)).await;
        assert_eq!(response.status, 403, "{origin}");
        drop(connection);
        let line = gateway.refused(peer, "origin_refused").await;
        assert_eq!(line.text("user"), None, "{line:?}");
    }
    assert_eq!((checks(&gateway).await, backend.connections().await), (0, 0));
    let state = gateway.get_json(&format!("/api/tickets/{}", field(&ticket, "id"))).await;
    assert_eq!(state["uses_left"], 1, "a foreign page has used the ticket");
    // The same cookie from the right page is good.
    let mut session = gateway.open(gateway.connect(TLS).await, &own).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    drop(session);
    assert_eq!(checks(&gateway).await, 1);
    gateway.finish().await;
}

#[tokio::test]
async fn a_password_of_a_megabyte_is_refused_with_the_head() {
    let backend = Backend::echo().await;
    let gateway = setup(&backend, "header").start().await;
    let head =
        gateway.upgrade(PLAIN, "/desk").add("Authorization", &format!("Basic {}", "QUJD".repeat(1 << 18)));
    let connection = gateway.connect(PLAIN).await;
    let peer = connection.peer();
    let (mut reader, mut writer) = tokio::io::split(connection);
    // The gateway may close before it has read everything.
    let sending = async { writer.write_all(&head.bytes()).await.is_ok() };
    let (_, response) =
        within("a response", async { tokio::join!(sending, read_response(&mut reader, true)) }).await;
    assert_eq!(response.status, 431);
    drop((reader, writer));
    gateway.refused(peer, "head_too_large").await;
    assert_eq!((checks(&gateway).await, backend.connections().await), (0, 0));
    gateway.finish().await;
}

/// A ticket is revoked at the moment of its use: the client is refused, or its session ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_at_the_moment_of_the_use_leaves_no_session_open() {
    let backend = Backend::echo().await;
    let gateway = setup(&backend, "query:ticket").start().await;
    let (mut refused, mut ended) = (0, 0);
    for round in 0..60_u32 {
        let ticket = issue(&gateway).await;
        let request = gateway.upgrade(PLAIN, field(&ticket, "url"));
        let mut connection = gateway.connect(PLAIN).await;
        let peer = connection.peer();
        // Earlier in one round, later in the next.
        let (first, second) = (round % 6, 5 - round % 6);
        let use_ticket = async {
            for _ in 0..first {
                tokio::task::yield_now().await;
            }
            send_request(&mut connection, &request).await
        };
        let target = format!("/api/tickets/{}", field(&ticket, "id"));
        let revoke = async {
            for _ in 0..second {
                tokio::task::yield_now().await;
            }
            gateway.request("DELETE", &target, "").await
        };
        let (response, revoked) = tokio::join!(use_ticket, revoke);
        assert_eq!(revoked.status, 200, "{}", revoked.text());
        match response.status {
            101 => {
                let mut session = Session::new(connection, peer, &response.rest);
                assert_eq!(session.closed().await.1, Some(1008));
                drop(session);
                gateway.ended(peer, "credential_expired", Some(1008)).await;
                ended += 1;
            }
            401 => {
                drop(connection);
                refused += 1;
            }
            status => panic!("{status} in round {round}"),
        }
    }
    eprintln!("{refused} were refused, {ended} sessions were ended");
    gateway.wait_for_sessions("", 0).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_cookie_is_not_in_what_the_gateway_logs_of_a_foreign_page() {
    let backend = Backend::echo().await;
    let gateway = setup(&backend, "cookie:session").level("trace").start().await;
    let ticket = issue(&gateway).await;
    let (_, secret) = field(&ticket, "ticket").split_once('.').expect("an id and a secret");
    let cookie = format!("session={}", field(&ticket, "ticket"));
    let request = gateway.upgrade(TLS, "/desk").add("Cookie", &cookie).with("Origin", "https://evil.example");
    let mut connection = gateway.connect(TLS).await;
    assert_eq!(send_request(&mut connection, &request).await.status, 403);
    drop(connection);
    assert!(!gateway.raw_log().contains(secret), "a cookie is in the log");
    gateway.finish().await;
}
