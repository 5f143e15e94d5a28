//! Backends that a client selects by a token.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::authority::quoted;
use crate::support::{Backend, Gateway, PLAIN, Setup, send_request};

/// How soon a token that was added to the file works.
const SOON: Duration = Duration::from_secs(3);

async fn gateway(tokens: &Path) -> Gateway {
    let targets = format!(
        "allowed_networks = [\"127.0.0.0/8\"]\ntargets = {{ from = \"file\", path = {} }}",
        quoted(tokens)
    );
    Setup::new()
        .tables(&format!("[[route]]\nname = \"desk\"\npath = \"/desk/*\"\n{targets}"))
        .tables(&format!("[[route]]\nname = \"one\"\npath = \"/websockify\"\n{targets}"))
        .level("trace")
        .start()
        .await
}

/// The backend of a session at `target`; `None` for a 404.
async fn backend_of(gateway: &Gateway, target: &str) -> Option<String> {
    let mut connection = gateway.connect(PLAIN).await;
    let request = gateway.upgrade(PLAIN, target);
    let response = send_request(&mut connection, &request).await;
    let peer = connection.peer();
    if response.status == 404 {
        assert_eq!(response.text().trim_end(), "not found", "tokens are mentioned");
        drop(connection);
        gateway.refused(peer, "unknown_route").await;
        return None;
    }
    assert_eq!(response.status, 101, "{response:?}");
    let mut session = crate::support::Session::new(connection, peer, &response.rest);
    session.echo(b"hello").await;
    session.close(1000).await;
    drop(session);
    let end = gateway.ended(peer, "client_closed", Some(1000)).await;
    Some(end.text("backend").expect("a backend").to_owned())
}

/// Waits until the backend of `target` is `backend`, or until there is none.
async fn soon(gateway: &Gateway, target: &str, backend: Option<String>) {
    let start = Instant::now();
    loop {
        let seen = backend_of(gateway, target).await;
        if seen == backend {
            return;
        }
        assert!(
            start.elapsed() < SOON,
            "the backend of {target} is {seen:?}, not {backend:?}, after {SOON:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn url(backend: &Backend) -> Option<String> {
    Some(format!("tcp://{}", backend.address))
}

#[tokio::test]
async fn a_token_selects_the_backend_of_its_line_and_nothing_else_selects_one() {
    let (one, other) = (Backend::echo().await, Backend::echo().await);
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("tokens.cfg");
    let text = format!("# desks\n\nsecret-one: {}\nsecret-other:   {}\n", one.address, other.address);
    std::fs::write(&path, text).unwrap();
    let gateway = gateway(&path).await;
    for (target, backend) in [
        ("/websockify?token=secret-one", &one),
        ("/websockify?token=secret-other", &other),
        ("/websockify?x=1&token=secret-one&y=2", &one),
        ("/websockify?token=secret%2Done", &one),
        ("/desk/secret-one", &one),
        ("/desk/secret-other", &other),
        ("/desk/floor/2/secret-other", &other),
        ("/desk/?token=secret-one", &one),
    ] {
        assert_eq!(backend_of(&gateway, target).await, url(backend), "{target}");
    }
    let direct = other.address;
    for target in [
        "/websockify",
        "/websockify?token=",
        "/websockify?token",
        "/websockify?token=secret-on",
        "/websockify?token=secret-one2",
        "/websockify?token=SECRET-ONE",
        "/websockify?token=secret-one&token=secret-one",
        "/websockify?Token=secret-one",
        "/websockify?token=%23",
        "/websockify?token=%00",
        "/websockify?token=%ff",
        "/websockify?token=secret-one:",
        "/desk/",
        "/desk/secret-one/",
        "/desk/secret",
        &format!("/websockify?token={direct}"),
        &format!("/websockify?token=secret-one&host={}&port={}", direct.ip(), direct.port())
            .replace("secret-one", "unknown"),
        &format!("/desk/{direct}"),
    ] {
        assert_eq!(backend_of(&gateway, target).await, None, "{target}");
    }
    let log = gateway.raw_log();
    if let Some(line) = log.lines().find(|line| line.to_lowercase().contains("secret")) {
        panic!("a token is in the log: {line}");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_replaced_token_file_is_read_and_sessions_continue() {
    let (one, other) = (Backend::echo().await, Backend::echo().await);
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("tokens.cfg");
    std::fs::write(&path, format!("secret-old: {}\n", one.address)).unwrap();
    let gateway = gateway(&path).await;
    let mut stays = gateway.session_by(PLAIN, "/desk/secret-old").await;
    stays.echo(b"hello").await;
    assert_eq!(backend_of(&gateway, "/desk/secret-new").await, None);

    // As an editor does it.
    let next = directory.path().join("next");
    std::fs::write(&next, format!("secret-new: {}\n", other.address)).unwrap();
    std::fs::rename(&next, &path).unwrap();
    soon(&gateway, "/desk/secret-new", url(&other)).await;
    assert_eq!(backend_of(&gateway, "/desk/secret-old").await, None, "the token was removed");
    // And as a shell does it.
    std::fs::write(&path, format!("secret-new: {}\nsecret-third: {}\n", one.address, other.address)).unwrap();
    soon(&gateway, "/desk/secret-third", url(&other)).await;
    assert_eq!(
        backend_of(&gateway, "/desk/secret-new").await,
        url(&one),
        "the token has another backend now"
    );

    stays.echo(b"still here").await;
    stays.close(1000).await;
    gateway.ended(stays.peer, "client_closed", Some(1000)).await;
    drop(stays);
    assert!(!gateway.raw_log().contains("secret"), "a token is in the log");
    gateway.finish().await;
}

/// A session closes because its token was removed.
async fn closed_as_removed(gateway: &Gateway, session: &mut crate::support::Session, since: Instant) {
    let (_, code, words) = session.closed().await;
    assert_eq!((code, words.as_str()), (Some(1008), "your login has expired"));
    assert!(since.elapsed() < Duration::from_secs(5), "after {:?}", since.elapsed());
    gateway.ended(session.peer, "credential_expired", Some(1008)).await;
}

#[tokio::test]
async fn with_end_sessions_the_sessions_of_a_removed_line_end_and_the_others_go_on() {
    let backend = Backend::echo().await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("tokens.cfg");
    let line = |token: &str| format!("{token}: {}\n", backend.address);
    let lines = |tokens: &[&str]| tokens.iter().map(|token| line(token)).collect::<String>();
    std::fs::write(&path, lines(&["secret-one", "secret-two", "secret-three"])).unwrap();
    let targets = |end_sessions: bool| {
        format!(
            "allowed_networks = [\"127.0.0.0/8\"]\ntargets = {{ from = \"file\", path = {}, end_sessions = {end_sessions} }}",
            quoted(&path)
        )
    };
    let gateway = Setup::new()
        .tables(&format!("[[route]]\nname = \"desk\"\npath = \"/desk/*\"\n{}", targets(true)))
        .tables(&format!("[[route]]\nname = \"kept\"\npath = \"/kept/*\"\n{}", targets(false)))
        .start()
        .await;
    let mut one = gateway.session_by(PLAIN, "/desk/secret-one").await;
    let mut again = gateway.session_by(PLAIN, "/desk/secret-one").await;
    let mut two = gateway.session_by(PLAIN, "/desk/secret-two").await;
    let mut three = gateway.session_by(PLAIN, "/desk/secret-three").await;
    let mut kept = gateway.session_by(PLAIN, "/kept/secret-one").await;

    let start = Instant::now();
    std::fs::write(&path, lines(&["secret-two", "secret-three"])).unwrap();
    closed_as_removed(&gateway, &mut one, start).await;
    closed_as_removed(&gateway, &mut again, start).await;
    assert_eq!(backend_of(&gateway, "/desk/secret-one").await, None);

    // A line that is changed is not removed, and neither is one whose file cannot be read for a moment.
    std::fs::write(&path, format!("{}secret-three: 127.0.0.1:1\n", line("secret-two"))).unwrap();
    let start = Instant::now();
    soon(&gateway, "/desk/secret-two", url(&backend)).await;
    std::fs::remove_file(&path).unwrap();
    complaints(&gateway, 2).await;
    for session in [&mut two, &mut three, &mut kept] {
        session.echo(b"still here").await;
    }
    assert!(start.elapsed() > Duration::from_secs(1), "the file was not checked again");

    // A reload of the configuration finds what was removed, too.
    std::fs::write(&path, lines(&["secret-two"])).unwrap();
    let start = Instant::now();
    gateway.reload_again().await.expect("a good configuration");
    closed_as_removed(&gateway, &mut three, start).await;
    for session in [&mut two, &mut kept] {
        session.echo(b"still here").await;
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    drop((one, again, two, three, kept));
    assert!(!gateway.raw_log().contains("secret"), "a token is in the log");
    gateway.finish().await;
}

/// The lines that report that the tokens were not read, once there are `count`.
async fn complaints(gateway: &Gateway, count: usize) -> Vec<String> {
    let complain = |lines: &[Value]| {
        let message = |line: &Value| line["message"].as_str().unwrap_or_default().to_owned();
        let complaints = lines.iter().filter(|line| message(line).starts_with("tokens not reloaded"));
        let complaints: Vec<String> = complaints.map(Value::to_string).collect();
        (complaints.len() >= count).then_some(complaints)
    };
    gateway.until("a line about the token file", complain).await
}

#[tokio::test]
async fn a_partly_written_file_changes_nothing() {
    let (one, other) = (Backend::echo().await, Backend::echo().await);
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("tokens.cfg");
    std::fs::write(&path, format!("secret-old: {}\n", one.address)).unwrap();
    let gateway = gateway(&path).await;
    std::fs::write(&path, format!("secret-new: {}\nsecret-nex", other.address)).unwrap();
    // Two routes use it.
    let logged = complaints(&gateway, 2).await;
    assert_eq!(backend_of(&gateway, "/desk/secret-old").await, url(&one), "the old table stays");
    assert_eq!(backend_of(&gateway, "/desk/secret-new").await, None);
    assert!(logged.iter().all(|line| line.contains("tokens.cfg:2")), "file and line: {logged:?}");
    assert_eq!(complaints(&gateway, 2).await.len(), 2, "logged once per route");

    std::fs::write(&path, format!("secret-new: {}\nsecret-next: {}\n", other.address, other.address))
        .unwrap();
    soon(&gateway, "/desk/secret-next", url(&other)).await;
    assert_eq!(backend_of(&gateway, "/desk/secret-old").await, None);
    // A file that is missing for a moment does not invalidate the tokens.
    std::fs::remove_file(&path).unwrap();
    complaints(&gateway, 4).await;
    assert_eq!(backend_of(&gateway, "/desk/secret-next").await, url(&other));
    assert!(!gateway.raw_log().contains("secret"), "a token is in the log");
    gateway.finish().await;
}

#[tokio::test]
async fn a_directory_of_token_files() {
    let (one, other) = (Backend::echo().await, Backend::echo().await);
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("a"), format!("secret-a: {}\n", one.address)).unwrap();
    let gateway = gateway(directory.path()).await;
    assert_eq!(backend_of(&gateway, "/desk/secret-a").await, url(&one));
    std::fs::write(directory.path().join("b"), format!("secret-b: {}\n", other.address)).unwrap();
    soon(&gateway, "/desk/secret-b", url(&other)).await;
    assert_eq!(backend_of(&gateway, "/desk/secret-a").await, url(&one));
    std::fs::remove_file(directory.path().join("a")).unwrap();
    soon(&gateway, "/desk/secret-a", None).await;
    gateway.finish().await;
}
