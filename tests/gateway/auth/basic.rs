//! `kind = "basic"`: which passwords open a session, and what the others get.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use super::{HASH, opens_session, password_of, raw_refusal, refusal};
use crate::support::{Backend, ClientStream, Gateway, PLAIN, Request, Setup, TLS, read_response, run};

/// "secret", hashed by bcrypt with a cost that takes as long as in use.
const SLOW_HASH: &str = "$2y$10$VJCd.rnXWN87bmC/zbFDS.yrWZWRgaNjRfR58E3rqnGsOwAkeQxFa";
/// 72 times "p", hashed by bcrypt.
const LONG_HASH: &str = "$2y$04$1sSOw9qZJaGFtSOuvhXyD.mSbi61hVOZQgOQDDpT6.3VlP3DR7QGq";
/// "secret", hashed by argon2id.
const ARGON2: &str =
    "$argon2id$v=19$m=64,t=1,p=1$bzJFS20wZzNVL2MuSDJjeA$dn/UX0k6oDtn4pzkX69Pcc5K+PPPnzOvfNQ/dyEQFDM";
const CHALLENGE: &str = "Basic realm=\"portcullis\", charset=\"UTF-8\"";

fn write(directory: &TempDir, text: &str) -> std::path::PathBuf {
    let path = directory.path().join("team.htpasswd");
    std::fs::write(&path, text).expect("a file");
    path
}

fn table(path: &Path) -> String {
    format!("[auth.team]\nkind = \"basic\"\nfile = {path:?}\n")
}

/// A gateway with a route `/desk` for the users of this file.
async fn gateway(backend: &Backend, path: &Path) -> Gateway {
    let setup = Setup::new().route_with("desk", "/desk", backend, "auth = \"team\"");
    setup.tables(&table(path)).start().await
}

fn login(gateway: &Gateway, user: &str, password: &str) -> Request {
    gateway.upgrade(TLS, "/desk").add("Authorization", &password_of(user, password))
}

#[tokio::test]
async fn the_password_of_a_user_opens_a_session_and_all_else_gets_the_same_401() {
    let (backend, directory) = (Backend::echo().await, TempDir::new().expect("a directory"));
    let text = format!("# the team\nann:{HASH}\nÄnne:{ARGON2}\nlong:{LONG_HASH}\n");
    let gateway = gateway(&backend, &write(&directory, &text)).await;
    for user in ["ann", "Änne", "ann"] {
        opens_session(&gateway, &login(&gateway, user, "secret"), Some(user)).await;
    }
    let long = "p".repeat(72);
    opens_session(&gateway, &login(&gateway, "long", &long), Some("long")).await;
    let upgrade = || gateway.upgrade(TLS, "/desk");
    let encoded = BASE64_STANDARD.encode("ann:secret");
    let requests = [
        upgrade(),
        login(&gateway, "ann", "wrong-password"),
        login(&gateway, "bob", "secret"),
        login(&gateway, "ANN", "secret"),
        login(&gateway, "", ""),
        login(&gateway, "ann", HASH),
        // bcrypt would ignore what is behind 72 bytes.
        login(&gateway, "long", &format!("{long}p")),
        login(&gateway, "long", &"p".repeat(10_000)),
        login(&gateway, "ann", "secret\0"),
        login(&gateway, "ann", "secret").add("Authorization", &password_of("ann", "secret")),
        upgrade().add("Authorization", "Basic"),
        upgrade().add("Authorization", "Basic !!!"),
        upgrade().add("Authorization", &format!("Bearer {encoded}")),
        upgrade().add("Cookie", &format!("Authorization=Basic {encoded}")),
        upgrade().line(&format!("GET /desk?authorization=Basic+{encoded} HTTP/1.1")),
        upgrade().add("X-Remote-User", "ann").add("rEmOtE-uSeR", "ann"),
    ];
    let (mut responses, mut details) = (BTreeSet::new(), BTreeSet::new());
    for request in &requests {
        let (response, detail) = raw_refusal(&gateway, request, "unauthorized").await;
        responses.insert(response);
        details.insert(detail);
    }
    assert_eq!(responses.len(), 1, "{responses:#?}");
    let response = responses.pop_first().expect("a response").to_ascii_lowercase();
    assert!(response.starts_with("http/1.1 401 "), "{response}");
    assert!(
        response.contains(&format!("\r\nwww-authenticate: {CHALLENGE}\r\n").to_ascii_lowercase()),
        "{response}"
    );
    assert_eq!(details.len(), 5, "{details:#?}");
    assert_eq!(backend.connections().await, 4, "the backend hears nothing of them");
    // A right password does not replace the Origin.
    let foreign = login(&gateway, "ann", "secret").with("Origin", "https://evil.example");
    refusal(&gateway, &foreign, "origin_refused").await;
    let log = gateway.raw_log();
    for secret in ["wrong-password", encoded.as_str(), HASH, "ppppp"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_password_of_1_mb_is_too_large_a_head() {
    let (backend, directory) = (Backend::echo().await, TempDir::new().expect("a directory"));
    let gateway = gateway(&backend, &write(&directory, &format!("ann:{HASH}\n"))).await;
    let mut connection = gateway.connect(TLS).await;
    let peer = connection.peer();
    // The gateway may close before it has read all of it.
    let _ = connection.write_all(&login(&gateway, "ann", &"p".repeat(1 << 20)).bytes()).await;
    let _ = connection.flush().await;
    assert_eq!(read_response(&mut connection, true).await.status, 431);
    gateway.refused(peer, "head_too_large").await;
    gateway.finish().await;
}

/// Sends a request on a plain connection.
async fn send(gateway: &Gateway, password: &str) -> ClientStream {
    let request = gateway.upgrade(PLAIN, "/desk").add("Authorization", &password_of("ann", password)).bytes();
    let mut connection = gateway.connect(PLAIN).await;
    connection.write_all(&request).await.expect("the request is sent");
    connection
}

#[tokio::test]
async fn passwords_are_compared_beside_the_sessions_and_not_without_bound() {
    let (backend, directory) = (Backend::echo().await, TempDir::new().expect("a directory"));
    let path = write(&directory, &format!("ann:{SLOW_HASH}\n"));
    let gateway = Setup::new()
        .route_with("desk", "/desk", &backend, "auth = \"team\"")
        .route("open", &backend)
        .tables(&table(&path))
        .start()
        .await;
    let mut session = gateway.session("/open").await;
    let mut connections = Vec::new();
    for number in 0..150 {
        connections.push(send(&gateway, &format!("guess {number}")).await);
    }
    // One hash takes about 50 ms: were they computed by the threads that relay, this would take seconds.
    let mut echoes = Vec::new();
    for _ in 0..51 {
        let start = Instant::now();
        session.echo(b"hello").await;
        echoes.push(start.elapsed());
    }
    echoes.sort();
    let (mut compared, mut refused) = (0, 0);
    for mut connection in connections {
        let peer = connection.peer();
        let response = read_response(&mut connection, true).await;
        match response.status {
            401 => {
                compared += 1;
                gateway.refused(peer, "unauthorized").await;
            }
            503 => {
                refused += 1;
                assert_eq!(response.header("Retry-After"), Some("1"));
                let end = gateway.refused(peer, "auth_unavailable").await;
                assert_eq!(end.text("detail"), Some("too many passwords are being checked"));
            }
            status => panic!("{status}: {response:?}"),
        }
    }
    assert!(refused >= 20 && compared >= 60, "{compared} compared, {refused} refused");
    assert!(echoes[25] < Duration::from_millis(500), "{echoes:?}");
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    // There is place again.
    opens_session(&gateway, &login(&gateway, "ann", "secret"), Some("ann")).await;
    gateway.finish().await;
}

#[tokio::test]
async fn the_file_is_read_again_when_it_changes() {
    let (backend, directory) = (Backend::echo().await, TempDir::new().expect("a directory"));
    let path = write(&directory, &format!("ann:{HASH}\n"));
    let gateway = gateway(&backend, &path).await;
    opens_session(&gateway, &login(&gateway, "ann", "secret"), Some("ann")).await;
    let reloaded = |count: usize| {
        let is_reload = |line: &serde_json::Value| (line["message"] == "passwords reloaded").then_some(());
        let gateway = &gateway;
        async move {
            let seen = |lines: &[serde_json::Value]| {
                (lines.iter().filter_map(is_reload).count() >= count).then_some(())
            };
            gateway.until("the passwords", seen).await;
        }
    };
    write(&directory, &format!("bob:{HASH}\n"));
    reloaded(1).await;
    opens_session(&gateway, &login(&gateway, "bob", "secret"), Some("bob")).await;
    // Ann's password was right a moment ago.
    refusal(&gateway, &login(&gateway, "ann", "secret"), "unauthorized").await;
    // What cannot be used changes nothing.
    write(&directory, &format!("bob:{HASH}\ncora:{{SHA}}0123456789abcdefghijklmnop=\n"));
    let rejected = |line: &serde_json::Value| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("passwords not reloaded").then(|| line.clone())
    };
    let line = gateway.until("the failure", |lines| lines.iter().find_map(rejected)).await;
    let expected = format!(
        "{}:2: this is a SHA-1 hash, which is fast to guess; set the password again with htpasswd -B",
        path.display()
    );
    assert_eq!((line["level"].as_str(), line["detail"].as_str()), (Some("WARN"), Some(expected.as_str())));
    opens_session(&gateway, &login(&gateway, "bob", "secret"), Some("bob")).await;
    let error = gateway.reload_again().await.expect_err("a file that cannot be used");
    assert!(error.contains("auth.team: file: ") && error.contains(&expected), "{error}");
    write(&directory, &format!("ann:{HASH}\nbob:{HASH}\n"));
    reloaded(2).await;
    opens_session(&gateway, &login(&gateway, "ann", "secret"), Some("ann")).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_with_the_line_by_check_and_at_the_start() {
    let directory = TempDir::new().expect("a directory");
    let config = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"desk\"\npath = \"/desk\"\nbackend = \"tcp://127.0.0.1:1\"\nauth = \"team\"\n[auth.team]\nkind = \"basic\"\nfile = \"team.htpasswd\"\n";
    std::fs::write(directory.path().join("gateway.toml"), config).expect("a file");
    for (text, expected) in [
        (None, "team.htpasswd: No such file"),
        (Some(format!("ann:{HASH}\nbob\n")), "team.htpasswd:2: the line is not user:hash"),
        (Some(format!("ann:{}\n", &HASH[..50])), "team.htpasswd:1: the bcrypt hash is cut off"),
        (Some("ann:$apr1$salt$0123456789abcdefghijkl\n".to_owned()), "team.htpasswd:1: this is an MD5 hash"),
        (Some("ann:plain-password\n".to_owned()), "team.htpasswd:1: this is no hash that can be verified"),
        (Some(format!("ann:{HASH}\nann:{HASH}\n")), "team.htpasswd:2: this user has a line already, line 1"),
    ] {
        if let Some(text) = text {
            write(&directory, &text);
        }
        for command in ["check", "run"] {
            let output = run(directory.path(), &[command, "--config", "gateway.toml"]);
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{command}: {error}");
            assert!(error.contains("auth.team: file: ") && error.contains(expected), "{command}: {error}");
            assert!(!error.contains("plain-password"), "{error}");
        }
    }
    write(&directory, &format!("ann:{HASH}\n"));
    let output = run(directory.path(), &["check", "--config", "gateway.toml"]);
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn a_client_learns_all_methods_that_a_route_has() {
    let (backend, directory) = (Backend::echo().await, TempDir::new().expect("a directory"));
    let path = write(&directory, &format!("ann:{HASH}\n"));
    let links = "[auth.links]\nkind = \"ticket\"\n[auth.either]\nany = [\"team\", \"links\"]";
    let gateway = Setup::new()
        .route_with("either", "/either", &backend, "auth = \"either\"")
        .route_with("links", "/links", &backend, "auth = \"links\"")
        .route_with("both", "/both", &backend, "auth = [\"links\", \"team\"]")
        .tables(&format!("{}{links}", table(&path)))
        .start()
        .await;
    for (target, expected) in [
        ("/either", vec![CHALLENGE, "Bearer"]),
        ("/links", vec!["Bearer"]),
        ("/both", vec![CHALLENGE, "Bearer"]),
    ] {
        let mut responses = BTreeSet::new();
        for request in [
            gateway.upgrade(TLS, target),
            gateway.upgrade(TLS, &format!("{target}?ticket=wrong")),
            gateway.upgrade(TLS, target).add("Authorization", &password_of("ann", "wrong")),
        ] {
            responses.insert(raw_refusal(&gateway, &request, "unauthorized").await.0);
        }
        assert_eq!(responses.len(), 1, "{responses:#?}");
        let response = responses.pop_first().expect("a response");
        let sent: Vec<&str> = response
            .lines()
            .filter_map(|line| line.split_once(": "))
            .filter(|(name, _)| name.eq_ignore_ascii_case("www-authenticate"))
            .map(|(_, value)| value)
            .collect();
        assert_eq!(sent, expected, "{response}");
    }
    let ann = gateway.upgrade(TLS, "/either").add("Authorization", &password_of("ann", "secret"));
    opens_session(&gateway, &ann, Some("ann")).await;
    gateway.finish().await;
}
