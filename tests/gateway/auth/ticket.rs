//! Tickets: issued over the admin API, used by clients, revoked.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use nix::sys::signal::Signal::SIGTERM;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};

use crate::support::{
    Backend, Gateway, PLAIN, Request, Response, Session, Setup, TLS, command, eventually, request_on,
    send_request,
};

const LINKS: &str = "[auth.links]\nkind = \"ticket\"\n";
const AUTH: &str = "auth = \"links\"";

/// A route `desk` that requires a ticket.
fn desk(backend: &Backend) -> Setup {
    Setup::new().route_with("desk", "/desk", backend, AUTH).tables(LINKS).admin()
}

async fn post(gateway: &Gateway, body: &Value) -> Response {
    gateway.request("POST", "/api/tickets", &body.to_string()).await
}

/// A new ticket: the response, as JSON.
async fn issue(gateway: &Gateway, body: Value) -> Value {
    let answer = post(gateway, &body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    serde_json::from_slice(&answer.body).expect("JSON")
}

fn field<'a>(ticket: &'a Value, name: &str) -> &'a str {
    ticket[name].as_str().unwrap_or_else(|| panic!("no {name} in {ticket}"))
}

/// The state of a ticket, by its id.
async fn state(gateway: &Gateway, ticket: &Value) -> Value {
    gateway.get_json(&format!("/api/tickets/{}", field(ticket, "id"))).await
}

async fn revoke(gateway: &Gateway, ticket: &Value) -> Response {
    gateway.request("DELETE", &format!("/api/tickets/{}", field(ticket, "id")), "").await
}

/// Presents a ticket on a new connection. Returns the status, and what the access log says of a refusal.
async fn refused(gateway: &Gateway, request: &Request) -> (u16, String, Response) {
    let mut connection = gateway.connect(TLS).await;
    let response = send_request(&mut connection, request).await;
    let peer = connection.peer();
    drop(connection);
    let line = gateway.access_log_line(peer).await;
    assert!(!line.is_session(), "{line:?}");
    (response.status, line.text("detail").unwrap_or_default().to_owned(), response)
}

async fn closed_as_expired(gateway: &Gateway, session: &mut Session) {
    let (_, code, words) = session.closed().await;
    assert_eq!((code, words.as_str()), (Some(1008), "your login has expired"));
    gateway.ended(session.peer, "credential_expired", Some(1008)).await;
}

/// Nothing of a ticket is in the log, in the list of sessions or in its own state.
async fn assert_secret(gateway: &Gateway, ticket: &Value) {
    let (_, secret) = field(ticket, "ticket").split_once('.').expect("an id and a secret");
    let sessions = gateway.get_json("/api/sessions").await;
    let state = gateway.request("GET", &format!("/api/tickets/{}", field(ticket, "id")), "").await;
    let shown = format!("{}{sessions}{}", gateway.raw_log(), state.text());
    assert!(!shown.contains(secret), "a ticket is shown");
}

#[tokio::test]
async fn a_ticket_opens_one_session_of_its_user() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend).start().await;
    let ticket =
        issue(&gateway, json!({"route": "desk", "user": "ann", "valid_for": "5m", "session_for": "8h"}))
            .await;
    let url = field(&ticket, "url");
    assert_eq!(url, format!("/desk?ticket={}", field(&ticket, "ticket")));
    assert_eq!(state(&gateway, &ticket).await["state"], "valid");
    let mut session = gateway.session(url).await;
    session.echo(b"hello").await;
    let list = gateway.wait_for_sessions("user=ann", 1).await;
    assert_eq!(list[0]["user"], "ann");
    gateway.wait_for_sessions("user=bob", 0).await;
    let seen = state(&gateway, &ticket).await;
    assert_eq!(
        (&seen["state"], &seen["uses_left"], &seen["user"]),
        (&json!("used_up"), &json!(0), &json!("ann"))
    );

    let again = refused(&gateway, &gateway.upgrade(TLS, url)).await;
    assert_eq!((again.0, again.1.as_str()), (401, "the ticket is used up"));
    assert_secret(&gateway, &ticket).await;

    let killed = gateway.command(&["kill", "--user", "ann"]).await;
    assert_eq!(String::from_utf8_lossy(&killed.stdout), "closing 1 session(s)\n", "{killed:?}");
    let (_, code, _) = session.closed().await;
    assert_eq!(code, Some(1008));
    let line = gateway.ended(session.peer, "killed", Some(1008)).await;
    assert_eq!(line.text("user"), Some("ann"));
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_ticket_among_the_subprotocols_is_no_subprotocol() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend).start().await;
    let ticket = issue(&gateway, json!({"route": "desk", "uses": 2})).await;
    let offer = format!("ticket.{}", field(&ticket, "ticket"));
    let mut connection = gateway.connect(TLS).await;
    let request = gateway.upgrade(TLS, "/desk").add("Sec-WebSocket-Protocol", &offer);
    let response = send_request(&mut connection, &request).await;
    assert_eq!((response.status, response.header("Sec-WebSocket-Protocol")), (101, None));
    drop(connection);
    let offer = format!("{offer}, binary");
    let mut connection = gateway.connect(TLS).await;
    let request = gateway.upgrade(TLS, "/desk").add("Sec-WebSocket-Protocol", &offer);
    let response = send_request(&mut connection, &request).await;
    assert_eq!((response.status, response.header("Sec-WebSocket-Protocol")), (101, Some("binary")));
    let peer = connection.peer();
    let mut session = Session::new(connection, peer, &response.rest);
    session.echo(b"hello").await;
    session.close(1000).await;
    drop(session);
    assert_secret(&gateway, &ticket).await;
    gateway.finish().await;
}

#[tokio::test]
async fn every_ticket_that_is_not_valid_gets_the_same_response() {
    let backend = Backend::echo().await;
    let pages = "auth = \"links\"\norigins = [\"https://one.example\", \"https://two.example\"]";
    let gateway = Setup::new()
        .route_with("desk", "/desk", &backend, pages)
        .route_with("chat", "/chat", &backend, pages)
        .tables(LINKS)
        .admin()
        .start()
        .await;
    let request = |target: &str| gateway.upgrade(TLS, target).with("Origin", "https://one.example");
    let of = |ticket: &Value| request(field(ticket, "url"));
    let expired = issue(&gateway, json!({"route": "desk", "valid_for": "1s"})).await;
    let used = issue(&gateway, json!({"route": "desk", "session_for": "1h"})).await;
    let revoked = issue(&gateway, json!({"route": "desk"})).await;
    assert_eq!(revoke(&gateway, &revoked).await.text(), "{\"ended\":0}");
    let chat = issue(&gateway, json!({"route": "chat"})).await;
    let other_page = issue(&gateway, json!({"route": "desk", "origin": "https://two.example"})).await;
    let other_address = issue(&gateway, json!({"route": "desk", "address": "192.0.2.0/24"})).await;
    let mut session = gateway.open(gateway.connect(TLS).await, &of(&used)).await;
    session.echo(b"hello").await;
    let start = Instant::now();
    while state(&gateway, &expired).await["state"] != "expired" {
        assert!(start.elapsed() < Duration::from_secs(20), "the ticket does not expire");
    }
    let secret = field(&chat, "ticket");
    let last = if secret.ends_with('0') { '1' } else { '0' };
    let mut responses = Vec::new();
    for (detail, request) in [
        ("there is no ticket", request("/desk")),
        ("the ticket is unknown", request("/desk?ticket=")),
        ("the ticket is unknown", request(&format!("/chat?ticket={}{last}", &secret[..secret.len() - 1]))),
        (
            "there are several credentials in the same place",
            request(&format!("{0}&ticket={0}", field(&chat, "url"))),
        ),
        ("the ticket has expired", of(&expired)),
        ("the ticket is used up", of(&used)),
        ("the ticket was revoked", of(&revoked)),
        ("the ticket is for another route", request(&format!("/desk?ticket={secret}"))),
        ("the ticket is for another Origin", of(&other_page)),
        ("the ticket is for another address", of(&other_address)),
    ] {
        let (status, seen, response) = refused(&gateway, &request).await;
        assert_eq!((status, seen.as_str()), (401, detail), "{response:?}");
        let date = response.header("Date").unwrap_or_default().to_owned();
        responses.push(format!("{response:?}").replace(&date, "now"));
    }
    assert!(responses.iter().all(|response| *response == responses[0]), "{responses:#?}");
    for ticket in [&expired, &used, &revoked, &chat, &other_page, &other_address] {
        assert_secret(&gateway, ticket).await;
    }
    // None of these attempts has used a ticket.
    let page = of(&other_page).with("Origin", "https://two.example");
    for request in [of(&chat), page] {
        let mut session = gateway.open(gateway.connect(TLS).await, &request).await;
        session.close(1000).await;
    }
    session.close(1000).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn ten_thousand_parallel_uses_open_one_session() {
    const USES: usize = 10_000;
    const AT_A_TIME: usize = 64;
    let backend = Backend::echo().await;
    // The session is not read while the other attempts are made, which can take longer than a Ping is waited for.
    let gateway = desk(&backend).timeouts("ping = \"0s\"").start().await;
    let ticket = issue(&gateway, json!({"route": "desk", "valid_for": "1h"})).await;
    let request = gateway.upgrade(PLAIN, field(&ticket, "url"));
    let attempts = stream::iter(0..USES).map(|number| {
        let (gateway, request) = (&gateway, &request);
        // From several addresses, so that there are ports enough.
        let source = [127, 0, 1, u8::try_from(number % 8).expect("small")];
        async move {
            let mut connection = gateway.connect_from(Some(source.into()), PLAIN).await;
            let response = send_request(&mut connection, request).await;
            (response.status, (response.status == 101).then_some((connection, response)))
        }
    });
    let done: Vec<_> = attempts.buffer_unordered(AT_A_TIME).collect().await;
    let count = |status| done.iter().filter(|(seen, _)| *seen == status).count();
    assert_eq!((count(101), count(401)), (1, USES - 1));
    assert_eq!(backend.connections().await, 1);
    let (connection, response) = done.into_iter().find_map(|(_, session)| session).expect("one session");
    let peer = connection.peer();
    let mut session = Session::new(connection, peer, &response.rest);
    session.echo(b"hello").await;
    session.close(1000).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_revocation_ends_the_sessions_of_the_ticket() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend).route("open", &backend).start().await;
    let ticket = issue(&gateway, json!({"route": "desk", "uses": 3, "user": "ann"})).await;
    let other = issue(&gateway, json!({"route": "desk", "user": "ann"})).await;
    let url = field(&ticket, "url");
    let (mut first, mut second) = (gateway.session(url).await, gateway.session(url).await);
    let (mut kept, mut open) = (gateway.session(field(&other, "url")).await, gateway.session("/open").await);
    let start = Instant::now();
    assert_eq!(revoke(&gateway, &ticket).await.text(), "{\"ended\":2}");
    closed_as_expired(&gateway, &mut first).await;
    closed_as_expired(&gateway, &mut second).await;
    // A moment: the rest is for a busy machine.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let late = refused(&gateway, &gateway.upgrade(TLS, url)).await;
    assert_eq!((late.0, late.1.as_str()), (401, "the ticket was revoked"));
    let seen = state(&gateway, &ticket).await;
    assert_eq!((&seen["state"], &seen["uses_left"]), (&json!("revoked"), &json!(1)));
    for session in [&mut kept, &mut open] {
        session.echo(b"still here").await;
        session.close(1000).await;
    }
    let unknown = gateway.request("DELETE", "/api/tickets/0123456789abcdef0123456789abcdef", "").await;
    assert_eq!((unknown.status, unknown.text().contains("no such ticket")), (404, true));
    // The ticket itself is no id, and is not repeated.
    let whole = gateway.request("DELETE", &format!("/api/tickets/{}", field(&ticket, "ticket")), "").await;
    assert_eq!((whole.status, whole.text()), (404, unknown.text()));
    assert_secret(&gateway, &ticket).await;
    drop((first, second, kept, open));
    gateway.finish().await;
}

#[tokio::test]
async fn a_session_ends_when_its_time_is_over() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend).start().await;
    for times in [json!({"valid_for": "5m", "session_for": "2s"}), json!({"valid_for": "2s"})] {
        let mut body = times.clone();
        body["route"] = "desk".into();
        let start = Instant::now();
        let ticket = issue(&gateway, body).await;
        let mut session = gateway.session(field(&ticket, "url")).await;
        session.echo(b"hello").await;
        closed_as_expired(&gateway, &mut session).await;
        let took = start.elapsed();
        assert!((Duration::from_millis(1900)..Duration::from_secs(7)).contains(&took), "{times}: {took:?}");
        drop(session);
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_longer_session_than_the_ticket_is_valid() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend).start().await;
    let ticket = issue(&gateway, json!({"route": "desk", "valid_for": "2s", "session_for": "1h"})).await;
    let mut session = gateway.session(field(&ticket, "url")).await;
    let start = Instant::now();
    while state(&gateway, &ticket).await["state"] != "expired" {
        assert!(start.elapsed() < Duration::from_secs(20), "the ticket does not expire");
    }
    session.echo(b"still here").await;
    // It can be revoked after it has expired.
    assert_eq!(revoke(&gateway, &ticket).await.text(), "{\"ended\":1}");
    closed_as_expired(&gateway, &mut session).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn only_a_dial_uses_a_ticket() {
    let echo = Backend::echo().await;
    let gone = Backend::sink().await.address;
    let strict = "auth = \"links\"\nsubprotocols = [\"binary\"]";
    let gateway = Setup::new()
        .route_with("desk", "/desk", &echo, strict)
        .route_with("open", "/open", &echo, "")
        .route_to("gone", "/gone", &format!("tcp://{gone}"), "auth = \"links\"\nbackend_failure = \"status\"")
        .tables(LINKS)
        .admin()
        .limits("max_sessions = 1")
        .start()
        .await;
    let ticket = issue(&gateway, json!({"route": "desk"})).await;
    let request = gateway.upgrade(TLS, field(&ticket, "url"));
    let right = request.clone().add("Sec-WebSocket-Protocol", "binary");
    let foreign = refused(&gateway, &right.clone().with("Origin", "https://evil.example")).await;
    assert_eq!(foreign.0, 403);
    let other = refused(&gateway, &request.clone().add("Sec-WebSocket-Protocol", "chat")).await;
    assert_eq!(other.0, 400);
    // Accepted while there was a place for another session.
    let mut waiting = gateway.connect(TLS).await;
    let mut session = gateway.session("/open").await;
    let full = send_request(&mut waiting, &right).await;
    assert_eq!(full.status, 503, "{full:?}");
    drop(waiting);
    session.close(1000).await;
    drop(session);
    gateway.wait_for_sessions("", 0).await;
    assert_eq!(state(&gateway, &ticket).await["uses_left"], 1);
    let mut session = gateway.open(gateway.connect(TLS).await, &right).await;
    session.close(1000).await;
    drop(session);
    gateway.wait_for_sessions("", 0).await;

    let ticket = issue(&gateway, json!({"route": "gone"})).await;
    let request = gateway.upgrade(TLS, field(&ticket, "url"));
    let mut connection = gateway.connect(TLS).await;
    let failed = send_request(&mut connection, &request).await;
    assert_eq!(failed.status, 502, "{failed:?}");
    drop(connection);
    assert_eq!(state(&gateway, &ticket).await["state"], "used_up");
    gateway.finish().await;
}

#[tokio::test]
async fn a_reload_keeps_tickets_and_sets_their_limit() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend).limits("max_tickets = 2").start().await;
    let first = issue(&gateway, json!({"route": "desk", "uses": 2, "user": "ann"})).await;
    issue(&gateway, json!({"route": "desk"})).await;
    let full = post(&gateway, &json!({"route": "desk"})).await;
    assert_eq!(full.status, 503);
    assert!(full.text().contains("limits.max_tickets"), "{}", full.text());
    let mut session = gateway.session(field(&first, "url")).await;

    let text = gateway.configuration().replace("max_tickets = 2", "max_tickets = 3");
    gateway.reload(&text).await.expect("a good file");
    issue(&gateway, json!({"route": "desk"})).await;
    let mut later = gateway.session(field(&first, "url")).await;
    later.echo(b"hello").await;
    assert_eq!(revoke(&gateway, &first).await.text(), "{\"ended\":2}");
    closed_as_expired(&gateway, &mut session).await;
    closed_as_expired(&gateway, &mut later).await;
    drop((session, later));
    gateway.finish().await;
}

#[tokio::test]
async fn a_ticket_selects_a_target() {
    let (one, two) = (Backend::echo().await, Backend::echo().await);
    let gateway = Setup::new()
        .route_to("desk", "/desk/*", &format!("tcp://{}", one.address), AUTH)
        .tables(LINKS)
        .admin();
    let both = format!("backend = [\"tcp://{}\", \"tcp://{}\"]", one.address, two.address);
    let gateway = gateway.start().await;
    let text = gateway.configuration().replace(&format!("backend = \"tcp://{}\"", one.address), &both);
    gateway.reload(&text).await.expect("a good file");
    for (target, connections) in [(&two, (0, 1)), (&two, (0, 2)), (&one, (1, 2))] {
        let target = format!("tcp://{}", target.address);
        let ticket = issue(&gateway, json!({"route": "desk", "target": target})).await;
        assert!(field(&ticket, "url").starts_with("/desk/?ticket="), "{ticket}");
        let mut session = gateway.session(field(&ticket, "url")).await;
        session.echo(b"hello").await;
        session.close(1000).await;
        drop(session);
        assert_eq!((one.connections().await, two.connections().await), connections);
    }
    let unknown = post(&gateway, &json!({"route": "desk", "target": "t0k3n"})).await;
    assert_eq!((unknown.status, unknown.text().contains("t0k3n")), (400, false), "{}", unknown.text());
    gateway.finish().await;
}

#[tokio::test]
async fn nonsense_is_refused_with_words() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend).route("open", &backend).start().await;
    for (body, words) in [
        (json!({"route": "desks"}), "there is no route \\\"desks\\\""),
        (json!({"route": "open"}), "accepts no tickets"),
        (json!({"route": "desk", "usage": 1}), "unknown field `usage`"),
        (json!({"route": "desk", "uses": 0}), "uses: must be"),
        (json!({"route": "desk", "valid_for": 60}), "invalid JSON body"),
        (json!({"route": "desk", "valid_for": "forever"}), "valid_for"),
        (json!({"user": "ann"}), "missing field `route`"),
        (json!([]), "invalid JSON body"),
    ] {
        let answer = post(&gateway, &body).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        assert!(answer.text().contains(words), "{body}: {}", answer.text());
    }
    let whole = json!({"route": "desk", "base": "wss://desk.example.com"});
    let ticket = issue(&gateway, whole).await;
    assert!(field(&ticket, "url").starts_with("wss://desk.example.com/desk?ticket="), "{ticket}");
    for (method, target) in [("GET", "/api/tickets"), ("POST", "/api/tickets/1"), ("PUT", "/api/tickets/1")] {
        assert_eq!(gateway.request(method, target, "").await.status, 405, "{method} {target}");
    }
    // A page of another site cannot request a ticket.
    let fields = [("Host", "localhost"), ("Origin", "https://evil.example"), ("Content-Type", "text/plain")];
    let foreign = gateway.request_with("POST", "/api/tickets", &fields, "{\"route\": \"desk\"}").await;
    assert_eq!(foreign.status, 403);
    gateway.finish().await;
}

#[tokio::test]
async fn the_deny_list_answers() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend).start().await;
    let deny = async |body: &str| {
        let answer = gateway.request("POST", "/api/denied", body).await;
        (answer.status, answer.text().to_owned())
    };
    let accepted = deny("{\"jti\": \"4711\", \"until\": \"2040-01-01T00:00:00Z\"}").await;
    assert_eq!(accepted, (200, "{\"ended\":0}".to_owned()));
    for (body, words) in [
        ("{\"jti\": \"\", \"until\": \"2040-01-01T00:00:00Z\"}", "jti: must have"),
        ("{\"jti\": \"4711\", \"until\": \"soon\"}", "until"),
        ("{\"jti\": \"4711\"}", "missing field"),
        ("{\"jti\": \"4711\", \"until\": \"2040-01-01T00:00:00Z\", \"why\": 1}", "unknown field"),
    ] {
        let (status, text) = deny(body).await;
        assert!(status == 400 && text.contains(words), "{body}: {status} {text}");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn the_command_prints_the_link_and_revokes() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend).start().await;
    let run = async |arguments: &[&str]| {
        let output = gateway.command(arguments).await;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let host = format!("wss://{}", gateway.host(TLS));
    let (code, url, errors) = run(&[
        "ticket",
        "--route",
        "desk",
        "--user",
        "ann",
        "--uses",
        "2",
        "--valid-for",
        "5m",
        "--session-for",
        "1h",
        "--address",
        "127.0.0.0/8",
        "--base",
        &host,
    ])
    .await;
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let target = url.trim_end().strip_prefix(&host).unwrap_or_else(|| panic!("{url}"));
    let mut session = gateway.session(target).await;
    assert_eq!(gateway.wait_for_sessions("user=ann", 1).await.len(), 1);

    let (_, json, _) = run(&["ticket", "--route", "desk", "--json"]).await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert!(field(&json, "expires").ends_with('Z'), "{json}");
    let id = target.split_once("ticket=").and_then(|(_, ticket)| ticket.split_once('.')).expect("a ticket").0;
    let revoked = run(&["ticket", "--revoke", id]).await;
    assert_eq!(revoked, (Some(0), "revoked, closing 1 session(s)\n".to_owned(), String::new()));
    closed_as_expired(&gateway, &mut session).await;
    drop(session);
    let revoked = run(&["ticket", "--revoke", field(&json, "id")]).await;
    assert_eq!(revoked.1, "revoked, closing 0 session(s)\n");

    for (arguments, code, words) in [
        (&["ticket", "--route", "desks"][..], 1, "there is no route"),
        (&["ticket", "--revoke", "../sessions"], 1, "no such ticket"),
        (&["ticket"], 64, "--route"),
        (&["ticket", "--revoke", id, "--route", "desk"], 64, "cannot be used with"),
    ] {
        let (seen, _, errors) = run(arguments).await;
        assert!(seen == Some(code) && errors.contains(words), "{arguments:?}: {seen:?} {errors}");
    }
    gateway.finish().await;
}

fn with_door(setup: Setup, path: &Path, lines: &str) -> Setup {
    setup.tables(&format!("[admin.tickets]\naddress = \"unix:{}\"\n{lines}", path.display()))
}

async fn on_socket(path: &Path, method: &str, target: &str, host: &str, body: &str) -> Response {
    let stream = UnixStream::connect(path).await.expect("the socket");
    request_on(stream, method, target, &[("Host", host)], body).await
}

#[tokio::test]
async fn the_address_for_tickets_does_nothing_else() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tickets.sock");
    let backend = Backend::echo().await;
    let gateway = with_door(desk(&backend), &path, "mode = \"0620\"").start().await;
    gateway
        .until("the line about the address", |lines| {
            lines.iter().find(|line| line["message"] == "listening on the address for tickets").map(|_| ())
        })
        .await;
    let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o620);
    let answer = on_socket(&path, "POST", "/api/tickets", "localhost", "{\"route\": \"desk\"}").await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let ticket: Value = serde_json::from_slice(&answer.body).unwrap();
    let mut session = gateway.session(field(&ticket, "url")).await;
    let one = format!("/api/tickets/{}", field(&ticket, "id"));
    assert_eq!(on_socket(&path, "GET", &one, "localhost", "").await.status, 200);
    for (method, target) in [
        ("GET", "/"),
        ("GET", "/script.js"),
        ("GET", "/healthz"),
        ("GET", "/metrics"),
        ("GET", "/api/status"),
        ("GET", "/api/sessions"),
        ("DELETE", "/api/sessions/1"),
        ("POST", "/api/sessions/kill"),
        ("POST", "/api/reload"),
        ("POST", "/api/drain"),
        ("POST", "/api/log-level"),
        ("POST", "/api/denied"),
    ] {
        assert_eq!(on_socket(&path, method, target, "localhost", "").await.status, 404, "{method} {target}");
        // The other address has each of them.
        assert_ne!(gateway.request("OPTIONS", target, "").await.status, 404, "{target}");
    }
    assert_eq!(on_socket(&path, "POST", "/api/tickets", "evil.example", "{}").await.status, 403);
    session.echo(b"still here").await;
    let revoked = on_socket(&path, "DELETE", &one, "localhost", "").await;
    assert_eq!(revoked.text(), "{\"ended\":1}");
    closed_as_expired(&gateway, &mut session).await;
    drop(session);
    gateway.signal(SIGTERM);
    assert_eq!(gateway.exit().await.code(), Some(0));
    assert!(!path.exists(), "the socket is left behind");
}

#[tokio::test]
async fn the_address_for_tickets_may_be_a_port_to_which_no_route_leads() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend).tables("[admin.tickets]\naddress = \"127.0.0.1:0\"").start().await;
    let address = gateway
        .until("the address for tickets", |lines| {
            let line = lines.iter().find(|line| line["message"] == "listening on the address for tickets")?;
            Some(line["address"].as_str()?.to_owned())
        })
        .await;
    let stream = TcpStream::connect(&address).await.unwrap();
    let fields = [("Host", "localhost")];
    let answer = request_on(stream, "POST", "/api/tickets", &fields, "{\"route\": \"desk\"}").await;
    assert_eq!(answer.status, 201);
    let to_itself = format!(
        "{}\n[[route]]\nname = \"own\"\npath = \"/own\"\nbackend = \"tcp://localhost:{}\"\n",
        gateway.configuration(),
        address.rsplit_once(':').expect("a port").1
    );
    gateway.reload(&to_itself).await.expect("a good file");
    let mut own = gateway.session("/own").await;
    let (_, code, _) = own.closed().await;
    assert_eq!(code, Some(1011));
    drop(own);
    gateway.finish().await;
}

#[tokio::test]
async fn explain_says_how_a_ticket_and_a_user_fare_and_uses_nothing() {
    let backend = Backend::echo().await;
    let gateway = desk(&backend).start().await;
    let ticket = issue(
        &gateway,
        json!({"route": "desk", "user": "ann", "address": "192.0.2.0/24", "valid_for": "5m", "session_for": "8h"}),
    )
    .await;
    let secret = field(&ticket, "ticket");
    // As the gateway's own file, with a port that can be asked about.
    let file = gateway.path("asked.toml");
    std::fs::write(&file, gateway.configuration().replacen("127.0.0.1:0", "127.0.0.1:8443", 1)).unwrap();
    let file = file.to_str().expect("a path of text");
    let origin = "https://localhost:8443";
    let explain = async |more: &[&str]| {
        let mut words = vec!["explain", "wss://localhost:8443/desk", "--origin", origin, "--config", file];
        words.extend(more);
        let output = gateway.command(&words).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!format!("{output:?}").contains(secret), "{output:?}");
        (output.status.code(), text, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let has = |text: &str, lines: &[&str]| {
        for line in lines {
            assert!(text.lines().any(|seen| seen == *line), "no {line:?} in {text}");
        }
    };
    let (code, text, errors) = explain(&["--ticket", secret]).await;
    assert_eq!(code, Some(0), "{text}{errors}");
    has(
        &text,
        &[
            &format!("ticket        valid: user \"ann\", 1 use(s) left until {}", field(&ticket, "expires")),
            &format!("              its id is {}", field(&ticket, "id")),
            "              a session may be open for 8h",
            "              only from 192.0.2.0/24 (see --from)",
            "would be accepted",
        ],
    );
    assert_eq!(state(&gateway, &ticket).await["uses_left"], 1, "it was used");
    let (code, text, _) = explain(&["--ticket", secret, "--from", "198.51.100.7"]).await;
    assert_eq!(code, Some(1), "{text}");
    has(
        &text,
        &[
            "ticket        refused as unauthorized: the ticket is for another address",
            "would be refused: unauthorized (HTTP 401)",
        ],
    );
    revoke(&gateway, &ticket).await;
    let (_, text, _) = explain(&["--ticket", secret]).await;
    has(&text, &["ticket        refused as unauthorized: the ticket was revoked"]);

    let other = issue(&gateway, json!({"route": "desk", "user": "ann"})).await;
    let mut session = gateway.session(field(&other, "url")).await;
    gateway.wait_for_sessions("user=ann", 1).await;
    let (code, text, _) = explain(&["--user", "ann"]).await;
    assert_eq!(code, Some(0), "{text}");
    has(
        &text,
        &[
            "user          links: needs a ticket that is issued for this user",
            "sessions      1 of this user are open",
        ],
    );
    session.close(1000).await;
    drop(session);
    let check = |body: Value| {
        let gateway = &gateway;
        async move { gateway.request("POST", "/api/tickets/check", &body.to_string()).await }
    };
    let answer = check(json!({"ticket": "x", "route": "desk"})).await;
    assert_eq!((answer.status, answer.text()), (200, "{\"refused\":\"the ticket is unknown\"}"));
    assert_eq!(check(json!({"ticket": "x"})).await.status, 400);
    for method in ["GET", "DELETE"] {
        assert_eq!(gateway.request(method, "/api/tickets/check", "").await.status, 405);
    }
    assert!(!gateway.raw_log().contains(secret));
    gateway.finish().await;
}

/// The block of docs/authentication.md in this language that issues a ticket.
fn recipe(language: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/authentication.md");
    let text = std::fs::read_to_string(file).expect("the page");
    let opening = format!("```{language}\n");
    let blocks: Vec<&str> = text
        .split(&opening)
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .filter(|block| block.contains("/api/tickets"))
        .collect();
    assert_eq!(blocks.len(), 1, "one {language} recipe");
    blocks[0].to_owned()
}

/// Runs the recipe of a language against a gateway, and opens a session with its link.
async fn recipe_works(program: &str, language: &str, call: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tickets.sock");
    if Command::new(program).arg("--version").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{program} is not installed");
        eprintln!("skipped: {program} is not installed");
        return;
    }
    let backend = Backend::echo().await;
    let gateway = with_door(desk(&backend), &path, "").start().await;
    eventually("the socket", Duration::from_secs(10), || {
        path.exists().then_some(()).ok_or_else(|| "it is missing".to_owned())
    })
    .await;
    let recipe = recipe(language);
    let place = "/run/portcullis/tickets.sock";
    assert_eq!(recipe.matches(place).count(), 1, "{recipe}");
    let script = directory.path().join("recipe");
    let text = recipe.replace(place, path.to_str().expect("a path of text")) + call;
    std::fs::write(&script, text).expect("a script of the test");
    let run = |call: &str| {
        let (program, script, call) = (program.to_owned(), script.clone(), call.to_owned());
        tokio::task::spawn_blocking(move || Command::new(program).arg(script).arg(call).output())
    };
    let done = run("ann").await.expect("no panic").expect("the interpreter");
    let url = String::from_utf8_lossy(&done.stdout).trim().to_owned();
    assert!(url.starts_with("/desk?ticket="), "{done:?}");
    let mut session = gateway.session(&url).await;
    gateway.wait_for_sessions("user=ann", 1).await;
    session.close(1000).await;
    drop(session);
    // What the gateway says of a wrong request reaches the site's own log.
    let failed = run("").await.expect("no panic").expect("the interpreter");
    let errors =
        String::from_utf8_lossy(&failed.stderr).into_owned() + &String::from_utf8_lossy(&failed.stdout);
    assert!(!failed.status.success() && errors.contains("user: must be"), "{failed:?}");
    gateway.finish().await;
}

#[tokio::test]
async fn the_python_recipe_works() {
    recipe_works("python3", "python", "\nimport sys\nprint(desk_link(sys.argv[1]))\n").await;
}

#[tokio::test]
async fn the_php_recipe_works() {
    recipe_works("php", "php", "\necho desk_link($argv[1]);\n").await;
}

#[tokio::test]
async fn the_node_recipe_works() {
    recipe_works("node", "js", "\ndeskLink(process.argv[2]).then(console.log);\n").await;
}

#[tokio::test]
async fn a_wrong_configuration_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.toml");
    let rest = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"desk\"\npath = \"/desk\"\n\
                backend = \"tcp://127.0.0.1:5900\"\nauth = \"links\"\n";
    for (lines, words) in [
        ("[auth.links]\nkind = \"tickets\"", "did you mean \"ticket\"?"),
        ("[auth.links]\nkind = \"ticket\"\nfrom = []", "no request could present a ticket"),
        ("[auth.links]\nkind = \"ticket\"\nfrom = [\"body\"]", "write \"header\""),
        ("[auth.links]\nkind = \"ticket\"\nfrom = [\"header\", \"header\"]", "listed twice"),
        ("[auth.links]\nkind = \"ticket\"\nbase = \"/desk\"", "write a scheme and a host"),
        (
            "[auth.links]\nkind = \"ticket\"\n[auth.both]\nany = [\"links\"]\nbase = \"wss://a\"",
            "does not belong",
        ),
        ("[auth.links]\nkind = \"ticket\"\n[limits]\nmax_tickets = 0", "limits.max_tickets"),
        (
            "[auth.links]\nkind = \"ticket\"\n[admin.tickets]\naddress = \"unix:t.sock\"",
            "admin.address is missing",
        ),
        (
            "[auth.links]\nkind = \"ticket\"\n[admin]\naddress = \"unix:a.sock\"\n[admin.tickets]\naddress = \"unix:a.sock\"",
            "admin.address is the same",
        ),
        (
            "[auth.links]\nkind = \"ticket\"\n[admin]\naddress = \"unix:a.sock\"\n[admin.tickets]\naddress = \"0.0.0.0:1\"",
            "not a loopback address",
        ),
        (
            "[auth.links]\nkind = \"ticket\"\n[admin]\naddress = \"unix:a.sock\"\n[admin.tickets]\naddress = \"127.0.0.1:1\"\nmode = \"0660\"",
            "only a unix: address has it",
        ),
        (
            "[auth.links]\nkind = \"ticket\"\n[admin]\naddress = \"unix:a.sock\"\n[admin.tickets]\nmode = \"0660\"",
            "admin.tickets.address is missing",
        ),
        (
            "[auth.links]\nkind = \"ticket\"\n[admin]\naddress = \"unix:a.sock\"\n[admin.tickets]\naddress = \"unix:t.sock\"\ngruop = \"a\"",
            "unknown key \"gruop\" in [admin.tickets]",
        ),
    ] {
        std::fs::write(&file, format!("{rest}{lines}\n")).unwrap();
        let arguments = ["check", "--config", "gateway.toml"].map(str::to_owned).to_vec();
        let output = command(directory.path().to_owned(), arguments).await;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{lines}: {errors}");
        assert!(errors.contains(words), "{lines}: {errors}");
    }
}
