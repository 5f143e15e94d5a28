//! What a user may have: `limits.per_user`, and how authentications are counted.

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::support::{Backend, Gateway, PLAIN, Session, Setup, send_request};

/// A route `desk` that requires a ticket.
fn desk(backend: &Backend, lines: &str) -> Setup {
    Setup::new()
        .route_with("desk", "/desk", backend, "auth = \"links\"")
        .tables(&format!("[auth.links]\nkind = \"ticket\"\n{lines}"))
        .admin()
}

/// The path of a ticket for many sessions.
async fn ticket(gateway: &Gateway, user: Option<&str>) -> (String, String) {
    let mut body = json!({"route": "desk", "uses": 1000});
    if let Some(user) = user {
        body["user"] = user.into();
    }
    let answer = gateway.request("POST", "/api/tickets", &body.to_string()).await;
    let ticket: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let field = |name: &str| ticket[name].as_str().expect("a field of a ticket").to_owned();
    (field("url"), field("id"))
}

/// Requests a session: the session, or the status of the refusal.
async fn login(gateway: &Gateway, target: &str) -> Result<Session, u16> {
    let mut connection = gateway.connect(PLAIN).await;
    let peer = connection.peer();
    let response = send_request(&mut connection, &gateway.upgrade(PLAIN, target)).await;
    if response.status == 101 {
        return Ok(Session::new(connection, peer, &response.rest));
    }
    drop(connection);
    if response.status == 429 {
        assert_eq!(response.header("Retry-After"), Some("1"));
        assert_eq!(response.text().trim_end(), "you have too many sessions already; end one of them first");
        let line = gateway.refused(peer, "too_many_sessions").await;
        let detail = "the user has as many sessions as limits.per_user allows";
        assert_eq!(line.text("detail"), Some(detail));
    }
    Err(response.status)
}

async fn counted(gateway: &Gateway, result: &str) -> Option<f64> {
    gateway.metric(&format!("portcullis_authentications_total{{route=\"desk\",result=\"{result}\"}}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_logins_of_one_user_at_once_open_as_many_sessions_as_the_limit_allows() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend, "[limits.per_user]\nsessions = 5").start().await;
    let (url, id) = ticket(&gateway, Some("ann")).await;
    let logins = stream::iter(0..100).map(|_| login(&gateway, &url)).buffer_unordered(100);
    let (mut sessions, mut refused) = (Vec::new(), Vec::new());
    for result in logins.collect::<Vec<_>>().await {
        match result {
            Ok(session) => sessions.push(session),
            Err(status) => refused.push(status),
        }
    }
    assert_eq!((sessions.len(), refused), (5, vec![429; 95]));
    assert_eq!(backend.connections().await, 5, "a backend hears of a user who has too many sessions");
    // What was refused has not used the ticket.
    let state = gateway.get_json(&format!("/api/tickets/{id}")).await;
    assert_eq!(state["uses_left"], 995);

    // Others, and clients whose ticket names no user, are not affected.
    let (other, nameless) = (ticket(&gateway, Some("bob")).await.0, ticket(&gateway, None).await.0);
    sessions.push(login(&gateway, &other).await.expect("a session"));
    for _ in 0..6 {
        sessions.push(login(&gateway, &nameless).await.expect("a session"));
    }
    assert_eq!(login(&gateway, &url).await.err(), Some(429));

    // When a session ends, another one may open.
    let mut first = sessions.swap_remove(0);
    first.close(1000).await;
    gateway.ended(first.peer, "client_closed", Some(1000)).await;
    sessions.push(login(&gateway, &url).await.expect("a session"));
    assert_eq!(login(&gateway, &url).await.err(), Some(429));
    for session in &mut sessions {
        session.close(1000).await;
    }
    drop((first, sessions));
    gateway.finish().await;
}

#[tokio::test]
async fn a_limit_that_a_reload_sets_counts_the_sessions_that_are_open() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend, "").start().await;
    let url = ticket(&gateway, Some("ann")).await.0;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(login(&gateway, &url).await.expect("a session"));
    }
    let without = gateway.configuration();
    gateway.reload(&format!("{without}\n[limits.per_user]\nsessions = 3\n")).await.expect("a good file");
    assert_eq!(login(&gateway, &url).await.err(), Some(429));
    for session in &mut sessions {
        session.echo(b"still here").await;
    }
    gateway.reload(&without).await.expect("a good file");
    sessions.push(login(&gateway, &url).await.expect("a session"));
    for session in &mut sessions {
        session.close(1000).await;
    }
    drop(sessions);
    gateway.finish().await;
}

#[tokio::test]
async fn authentications_are_counted_by_their_result() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend, "").start().await;
    let url = ticket(&gateway, Some("ann")).await.0;
    for result in ["granted", "missing", "unauthorized"] {
        assert_eq!(counted(&gateway, result).await, None);
    }
    let mut session = login(&gateway, &url).await.expect("a session");
    session.close(1000).await;
    drop(session);
    for (target, times) in [("/desk", 1), ("/desk?ticket=wrong", 2)] {
        for _ in 0..times {
            assert_eq!(login(&gateway, target).await.err(), Some(401));
        }
    }
    for (result, times) in [("granted", 1.0), ("missing", 1.0), ("unauthorized", 2.0)] {
        assert_eq!(counted(&gateway, result).await, Some(times), "{result}");
    }
    let metrics = gateway.request("GET", "/metrics", "").await;
    assert!(!metrics.text().contains("ann"), "a user is in the metrics");
    gateway.finish().await;
}
