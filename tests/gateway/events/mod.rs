//! Events: what a receiver gets, and what happens while it accepts nothing.

mod receiver;

use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use nix::sys::signal::Signal::SIGTERM;
use serde_json::{Value, json};

use self::receiver::{Post, Receiver, SECRET};
use crate::support::{Backend, Gateway, PLAIN, Setup, TLS, command, send_request};

/// Opens a session, uses it and closes it.
async fn session(gateway: &Gateway) {
    let mut session = gateway.session_by(PLAIN, "/echo").await;
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
}

fn text<'a>(event: &'a Value, key: &str) -> &'a str {
    event[key].as_str().unwrap_or_else(|| panic!("no {key} in {event}"))
}

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| text(event, "type")).collect()
}

async fn counted(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("portcullis_events_total{{result=\"{result}\"}}")).await.expect("a counter")
}

/// Waits until this many events are counted as delivered: the gateway counts when it has read the answer.
async fn until_delivered(gateway: &Gateway, count: u32) {
    let start = Instant::now();
    loop {
        let seen = (counted(gateway, "delivered").await, counted(gateway, "dropped").await);
        if seen == (f64::from(count), 0.0) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "delivered and dropped are {seen:?}");
    }
}

/// How often the log has this message.
fn logged(gateway: &Gateway, message: &str) -> usize {
    gateway.lines(|line| (line["message"] == message).then_some(())).len()
}

async fn until_logged(gateway: &Gateway, message: &str) {
    gateway.until(message, |lines| lines.iter().any(|line| line["message"] == message).then_some(())).await;
}

#[tokio::test]
async fn a_session_is_reported_when_it_opens_and_when_it_ends() {
    let (receiver, backend) = (Receiver::new(), Backend::echo().await);
    let gateway = Setup::new()
        .route_with("desk", "/desk", &backend, "auth = \"links\"")
        .route_to("dead", "/dead", "tcp://127.0.0.1:1", "")
        .tables("[auth.links]\nkind = \"ticket\"")
        .tables(&receiver.table(""))
        .admin()
        .start()
        .await;
    // A refusal and a failed dial are not reported.
    let mut connection = gateway.connect(TLS).await;
    let response = send_request(&mut connection, &gateway.upgrade(TLS, "/desk")).await;
    assert_eq!(response.status, 401);
    drop(connection);
    let mut dead = gateway.session("/dead").await;
    assert_eq!(dead.closed().await.1, Some(1011));
    drop(dead);

    let body = json!({"route": "desk", "user": "ann"}).to_string();
    let ticket = gateway.request("POST", "/api/tickets", &body).await;
    let ticket: Value = serde_json::from_slice(&ticket.body).expect("a ticket");
    let mut session = gateway.session(text(&ticket, "url")).await;
    session.echo(b"hello").await;
    let connect = receiver.until_accepted(1).await.remove(0);
    session.close(1000).await;
    let line = gateway.ended(session.peer, "client_closed", Some(1000)).await;
    drop(session);
    let events = receiver.until_accepted(2).await;
    assert_eq!(types(&events), ["connect", "disconnect"], "{events:#?}");
    for event in &events {
        for key in ["request_id", "peer", "route", "user", "backend"] {
            assert_eq!(Some(text(event, key)), line.text(key), "{key}: {event:#}");
        }
        assert_eq!(event["session"].as_u64(), line.number("session"));
        assert_eq!(text(event, "id"), format!("{}-{}", text(event, "request_id"), text(event, "type")));
        assert!(text(event, "time").ends_with('Z'), "{event:#}");
    }
    assert_eq!(connect.get("reason"), None);
    assert_eq!(text(&events[1], "reason"), "client_closed");
    for (key, value) in [("close_code", 1000), ("bytes_in", 5), ("bytes_out", 5)] {
        assert_eq!(events[1][key], value, "{key}");
    }
    assert_eq!(events[1]["duration_ms"].as_u64(), line.number("duration_ms"));

    let secret = text(&ticket, "ticket").split_once('.').expect("an id and a secret").1;
    for post in receiver.posts() {
        assert!(post.is_signed_with(SECRET) && !post.is_signed_with(&SECRET.replace('0', "1")), "{post:?}");
        assert!(post.head.starts_with("POST /events?key=hidden HTTP/1.1\r\n"), "{post:?}");
        assert!(post.head.contains("content-type: application/json\r\n"), "{post:?}");
        assert!(!String::from_utf8_lossy(&post.body).contains(secret), "{post:?}");
    }
    let log = gateway.raw_log();
    assert!(!log.contains("hidden") && !log.contains(SECRET), "the log has a secret");
    until_delivered(&gateway, 2).await;
    drop(receiver);
    gateway.finish().await;
}

#[tokio::test]
async fn what_happens_while_the_receiver_is_down_is_delivered_when_it_is_back() {
    let (mut receiver, backend) = (Receiver::down(), Backend::echo().await);
    let gateway = Setup::echo(&backend).tables(&receiver.table("")).admin().start().await;
    session(&gateway).await;
    until_logged(&gateway, "events not delivered").await;
    for _ in 0..3 {
        session(&gateway).await;
    }
    assert_eq!(gateway.metric("portcullis_events_queued").await, Some(8.0));
    receiver.answer(Some(200));
    receiver.listen();
    let events = receiver.until_accepted(8).await;
    assert_eq!(types(&events), ["connect", "disconnect"].repeat(4));
    let sessions: Vec<u64> = events.iter().filter_map(|event| event["session"].as_u64()).collect();
    assert!(sessions.is_sorted(), "{events:#?}");
    until_logged(&gateway, "events delivered again").await;
    assert_eq!(logged(&gateway, "events not delivered"), 1);
    until_delivered(&gateway, 8).await;
    let failed = gateway.metric("portcullis_event_requests_total{result=\"failed\"}").await;
    assert!(failed >= Some(1.0), "{failed:?}");
    drop(receiver);
    gateway.finish().await;
}

#[tokio::test]
async fn an_event_is_sent_again_until_it_is_accepted() {
    let (receiver, backend) = (Receiver::new(), Backend::echo().await);
    let gateway = Setup::echo(&backend).tables(&receiver.table("timeout = \"300ms\"")).admin().start().await;
    for answer in [None, Some(500), Some(302)] {
        let before = receiver.posts().len();
        receiver.answer(answer);
        session(&gateway).await;
        receiver
            .until(&format!("a request that is answered {answer:?}"), |receiver| {
                receiver.posts()[before..].iter().any(|post| post.status == answer).then_some(())
            })
            .await;
    }
    receiver.answer(Some(200));
    let events = receiver.until_accepted(6).await;
    assert_eq!(types(&events), ["connect", "disconnect"].repeat(3));
    let first = |post: &Post| text(&post.events()[0], "id").to_owned();
    let posts = receiver.posts();
    let refused = posts.iter().filter(|post| post.status != Some(200));
    assert!(
        refused.map(first).all(|id| id == text(&events[0], "id")),
        "another event is sent before the first"
    );
    assert!(posts.iter().all(|post| post.is_signed_with(SECRET)));
    // The log says why.
    let detail = gateway.lines(|line| {
        (line["message"] == "events not delivered").then(|| line["detail"].as_str().map(str::to_owned))
    });
    assert_eq!(detail, [Some("no answer within 300ms".to_owned())]);
    drop(receiver);
    gateway.finish().await;
}

#[tokio::test]
async fn an_event_that_the_receiver_rejects_does_not_hold_up_the_others() {
    let (receiver, backend) = (Receiver::new(), Backend::echo().await);
    let gateway = Setup::echo(&backend).tables(&receiver.table("")).admin().start().await;
    receiver.answer(Some(422));
    let mut open = gateway.session_by(PLAIN, "/echo").await;
    receiver.until("a rejected event", |receiver| receiver.posts().first().map(|_| ())).await;
    let start = Instant::now();
    while counted(&gateway, "dropped").await != 1.0 {
        assert!(start.elapsed() < Duration::from_secs(10), "the event is not dropped");
    }
    receiver.answer(Some(200));
    open.close(1000).await;
    drop(open);
    let events = receiver.until_accepted(1).await;
    assert_eq!(
        (types(&events), receiver.posts().last().map(|post| post.json()["dropped"].clone())),
        (vec!["disconnect"], Some(json!(1)))
    );
    drop(receiver);
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_events_for_a_dead_receiver_use_no_more_than_the_queue() {
    const SESSIONS: usize = 5_000;
    let (mut receiver, backend) = (Receiver::down(), Backend::echo().await);
    let gateway =
        Setup::echo(&backend).tables(&receiver.table("queue = 500")).level("info").admin().start().await;
    let many = |count| {
        let gateway = &gateway;
        stream::iter(0..count).for_each_concurrent(32, move |_| async move {
            let mut session = gateway.session_by(PLAIN, "/echo").await;
            session.echo(b"hello").await;
            session.close(1000).await;
        })
    };
    many(1_000).await;
    let before = gateway.memory();
    many(SESSIONS - 1_000).await;
    let start = Instant::now();
    loop {
        let queued = gateway.metric("portcullis_events_queued").await;
        let seen = (counted(&gateway, "dropped").await, queued);
        if seen == (2.0 * SESSIONS as f64 - 500.0, Some(500.0)) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "dropped and queued are {seen:?}");
    }
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 2 << 20, "the memory has grown by {grown} bytes");
    receiver.answer(Some(200));
    receiver.listen();
    let events = receiver.until_accepted(500).await;
    // A disconnect can be understood alone, so connects are dropped first.
    assert!(types(&events).iter().all(|kind| *kind == "disconnect"), "{events:#?}");
    assert_eq!(receiver.posts().last().map(|post| post.json()["dropped"].clone()), Some(json!(9_500)));
    drop(receiver);
    gateway.finish().await;
}

#[tokio::test]
async fn a_reload_changes_the_receiver_and_keeps_what_waits() {
    let (first, second, backend) = (Receiver::down(), Receiver::new(), Backend::echo().await);
    let gateway = Setup::echo(&backend).tables(&first.table("")).admin().start().await;
    session(&gateway).await;
    until_logged(&gateway, "events not delivered").await;
    second.write_secret(&SECRET.replace('0', "z"));
    let replaced = gateway.configuration().replace(&first.table(""), &second.table(""));
    gateway.reload(&replaced).await.expect("a good configuration");
    let events = second.until_accepted(2).await;
    assert_eq!(types(&events), ["connect", "disconnect"]);
    assert!(second.posts().iter().all(|post| post.is_signed_with(&SECRET.replace('0', "z"))));

    // A reload that fails changes nothing.
    std::fs::write(second.secret_file(), "short").expect("a file of the test");
    let error = gateway.reload_again().await.expect_err("a short secret");
    assert!(error.contains("events.secret_file") && error.contains("openssl rand -hex 32"), "{error}");
    session(&gateway).await;
    second.until_accepted(4).await;

    // Without the table, nothing is sent, not even of a session that was reported before.
    second.write_secret(SECRET);
    let mut open = gateway.session_by(PLAIN, "/echo").await;
    second.until_accepted(5).await;
    let removed = replaced.replace(&second.table(""), "");
    gateway.reload(&removed).await.expect("a good configuration");
    open.close(1000).await;
    gateway.ended(open.peer, "client_closed", Some(1000)).await;
    session(&gateway).await;
    gateway.reload(&replaced).await.expect("a good configuration");
    session(&gateway).await;
    let events = second.until_accepted(7).await;
    assert_eq!(events.len(), 7, "{events:#?}");
    assert_eq!(types(&events[4..]), ["connect", "connect", "disconnect"], "{events:#?}");
    drop((first, second));
    gateway.finish().await;
}

#[tokio::test]
async fn a_graceful_shutdown_delivers_what_waits() {
    let (receiver, backend) = (Receiver::new(), Backend::echo().await);
    let gateway = Setup::echo(&backend).tables(&receiver.table("")).start().await;
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(gateway.session_by(PLAIN, "/echo").await);
    }
    receiver.until_accepted(5).await;
    gateway.signal(SIGTERM);
    for session in &mut open {
        assert_eq!(session.closed().await.1, Some(1001));
    }
    drop(open);
    assert!(gateway.exit().await.success());
    let events = receiver.accepted();
    assert_eq!(types(&events[5..]), ["disconnect"; 5]);
    assert!(events[5..].iter().all(|event| text(event, "reason") == "draining"), "{events:#?}");
}

#[tokio::test]
async fn a_receiver_that_never_answers_does_not_hold_up_a_shutdown() {
    let (receiver, backend) = (Receiver::new(), Backend::echo().await);
    receiver.answer(None);
    let gateway = Setup::echo(&backend)
        .tables(&receiver.table("timeout = \"1m\""))
        .timeouts("drain = \"2s\"")
        .start()
        .await;
    session(&gateway).await;
    receiver.until("a request", |receiver| receiver.posts().first().map(|_| ())).await;
    let start = Instant::now();
    gateway.signal(SIGTERM);
    assert!(gateway.exit().await.success());
    let took = start.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_secs(4)).contains(&took), "{took:?}");
    assert_eq!(logged(&gateway, "events dropped: the receiver has not accepted them in time"), 1);
}

/// The recipe of docs/events.md, as it stands there.
fn recipe() -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/events.md");
    let text = std::fs::read_to_string(file).expect("the page");
    let blocks: Vec<&str> =
        text.split("```python\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 1, "one recipe");
    blocks[0].to_owned()
}

#[tokio::test]
async fn the_recipe_checks_the_signature() {
    if Command::new("python3").arg("--version").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "python3 is not installed");
        eprintln!("skipped: python3 is not installed");
        return;
    }
    let (receiver, backend) = (Receiver::new(), Backend::echo().await);
    let gateway = Setup::echo(&backend).tables(&receiver.table("")).start().await;
    session(&gateway).await;
    receiver.until_accepted(2).await;
    let post = receiver.posts().remove(0);
    let script = receiver.directory().join("recipe.py");
    let call = "\nimport sys\nprint(is_genuine(sys.argv[1], open(sys.argv[2], 'rb').read(), sys.argv[3].encode()))\n";
    std::fs::write(&script, recipe() + call).expect("a script of the test");
    let is_genuine = async |header: &str, body: &[u8], secret: &str| {
        let file = receiver.directory().join("body");
        std::fs::write(&file, body).expect("a file of the test");
        let (script, header, secret) = (script.clone(), header.to_owned(), secret.to_owned());
        let run = move || Command::new("python3").arg(script).arg(header).arg(file).arg(secret).output();
        let output = tokio::task::spawn_blocking(run).await.expect("no panic").expect("the interpreter");
        match &output.stdout[..] {
            b"True\n" => true,
            b"False\n" => false,
            _ => panic!("{output:?}"),
        }
    };
    let header = post.signature();
    assert!(is_genuine(header, &post.body, SECRET).await);
    assert!(!is_genuine(header, &post.body, &SECRET.replace('0', "1")).await);
    assert!(!is_genuine(header, &[&post.body[..], b" "].concat(), SECRET).await);
    let time = header.split([',', '=']).nth(1).expect("a time");
    let later = (time.parse::<u64>().expect("a number") + 1).to_string();
    assert!(!is_genuine(&header.replace(time, &later), &post.body, SECRET).await);
    drop(receiver);
    gateway.finish().await;
}

#[tokio::test]
async fn check_reports_a_secret_that_cannot_be_used() {
    let receiver = Receiver::down();
    let file = receiver.directory().join("gateway.toml");
    let rest = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"a\"\npath = \"/a\"\nbackend = \"tcp://127.0.0.1:5900\"\n";
    std::fs::write(&file, format!("{rest}{}", receiver.table(""))).expect("a file of the test");
    let check = async || {
        let arguments = ["check", "--config", "gateway.toml"].map(str::to_owned).to_vec();
        let output = command(receiver.directory().to_owned(), arguments).await;
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, errors) = check().await;
    assert_eq!((code, errors.contains("chmod")), (Some(0), false), "{errors}");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(receiver.secret_file(), open).expect("a file of the test");
    let (code, errors) = check().await;
    assert!(code == Some(0) && errors.contains("run: chmod o-rwx"), "{errors}");
    receiver.write_secret("short");
    let (code, errors) = check().await;
    assert!(code == Some(78) && errors.contains("has 5 bytes, and a secret has 32 to 4096"), "{errors}");
    std::fs::remove_file(receiver.secret_file()).expect("a file of the test");
    let (code, errors) = check().await;
    assert!(code == Some(78) && errors.contains("events.secret_file: cannot read"), "{errors}");
}
