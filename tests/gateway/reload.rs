//! Configuration reload while sessions are open.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{SIGCONT, SIGHUP, SIGSTOP, SIGTERM};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{
    Backend, ClientStream, Identity, PLAIN, Request, Setup, TLS, assert_took, eventually, read_response,
    read_to_end, send_request, within,
};

/// A listener on a port that the system chooses.
const ANOTHER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n\n";

#[tokio::test]
async fn new_connections_use_the_new_configuration_and_sessions_continue() {
    let (old, new) = (Backend::echo().await, Backend::echo().await);
    let gateway = Setup::echo(&old).route("gone", &old).start().await;
    let mut session = gateway.session("/echo").await;
    session.echo(b"before").await;
    // It is connected and has sent no request: the snapshot that accepted it applies to it.
    let waiting = gateway.connect(TLS).await;

    let text = gateway.configuration();
    let moved = text.replace(&old.address.to_string(), &new.address.to_string());
    let done = gateway.reload(&moved.replace("\"/gone\"", "\"/come\"")).await.expect("a good file");
    assert_eq!(done, "reloaded: 2 listener(s), 3 route(s)");

    session.echo(b"after").await;
    for listener in [TLS, PLAIN] {
        for target in ["/echo", "/come"] {
            let mut newer = gateway.session_by(listener, target).await;
            newer.echo(b"hello").await;
            newer.close(1000).await;
        }
        let mut late = gateway.connect(listener).await;
        assert_eq!(send_request(&mut late, &gateway.upgrade(listener, "/gone")).await.status, 404);
    }
    assert_eq!((old.connections().await, new.connections().await), (1, 4));
    let mut waiting = gateway.open(waiting, &gateway.upgrade(TLS, "/gone")).await;
    waiting.echo(b"hello").await;
    assert_eq!((old.connections().await, new.connections().await), (2, 4));
    waiting.close(1000).await;
    session.close(1000).await;
    drop((waiting, session));
    gateway.finish().await;
}

#[tokio::test]
async fn a_reload_applies_new_origins_limits_and_timeouts() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let text = gateway.configuration();
    let mut session = gateway.session("/echo").await;

    let strict = text.replace("path = \"/echo\"", "path = \"/echo\"\norigins = [\"https://desk.example\"]");
    gateway.reload(&strict).await.expect("a good file");
    let mut connection = gateway.connect(TLS).await;
    assert_eq!(send_request(&mut connection, &gateway.upgrade(TLS, "/echo")).await.status, 403);
    drop(connection);

    // As many sessions as there are already, and one more for `finish`.
    gateway.reload(&text.replace("[limits]", "[limits]\nmax_sessions = 1")).await.expect("a good file");
    let mut connection = gateway.tcp(PLAIN).await;
    let peer = connection.local_addr().unwrap();
    let _ = read_to_end(&mut connection).await;
    gateway.refused(peer, "overloaded").await;

    let counted = text.replace("exempt = [\"127.0.0.0/8\", \"::1/128\"]", "sessions = 1");
    assert_ne!(counted, text);
    gateway.reload(&counted).await.expect("a good file");
    let held = gateway.session_by(PLAIN, "/echo").await;
    let mut connection = gateway.tcp(PLAIN).await;
    let peer = connection.local_addr().unwrap();
    let _ = read_to_end(&mut connection).await;
    gateway.refused(peer, "too_many_sessions").await;
    drop(held);

    gateway.reload(&format!("{text}\n[timeouts]\nrequest = \"400ms\"\n")).await.expect("a good file");
    let start = Instant::now();
    let mut connection = gateway.tcp(PLAIN).await;
    let peer = connection.local_addr().unwrap();
    let _ = read_to_end(&mut connection).await;
    assert_took(start, Duration::from_millis(400));
    gateway.refused(peer, "request_timeout").await;

    gateway.reload(&text).await.expect("a good file");
    session.echo(b"all the time").await;
    session.close(1000).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn an_invalid_configuration_changes_nothing() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let text = gateway.configuration();
    let mut session = gateway.session("/echo").await;
    let descriptors = gateway.open_descriptors();

    let occupied = TcpStream::connect(gateway.address(PLAIN)).await.unwrap();
    gateway.expect_log_line(occupied.local_addr().unwrap());
    let foreign = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = format!("address = \"{}\"", foreign.local_addr().unwrap());
    let (certificate, key) = Identity::shared().renewed(|_| {});
    let (expired, its_key) =
        Identity::shared().renewed(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    for (name, content) in [
        ("other.crt", certificate.as_str()),
        ("other.key", key.as_str()),
        ("half.key", &key[..key.len() / 2]),
        ("expired.crt", &expired),
        ("expired.key", &its_key),
        ("bad.tokens", "alice: nowhere\n"),
    ] {
        fs::write(gateway.path(name), content).unwrap();
        fs::set_permissions(gateway.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let another = |lines: &str| format!("{text}\n[[listener]]\n{lines}\n");
    let route = |lines: &str| format!("{text}\n[[route]]\nname = \"new\"\npath = \"/new\"\n{lines}\n");
    let bad = [
        // Each with the text that the error must contain.
        ("[[listener]\n".to_owned(), "gateway.toml:1:"),
        (String::new(), "listener"),
        (text.replace("[limits]", "[limits]\nmax_session = 5"), "did you mean \"max_sessions\"?"),
        (text.replace("max_sessions", "x") + "[timeouts]\ntls = \"5\"\n", "the unit is missing"),
        (text.replace("\"localhost.crt\"", "\"nowhere.crt\""), "cannot read certificate"),
        (text.replace("\"localhost.crt\"", "\"other.crt\""), "do not belong together"),
        (text.replace("\"localhost.key\"", "\"other.key\""), "do not belong together"),
        (text.replace("\"localhost.key\"", "\"half.key\""), "holds no private key in PEM form"),
        (
            text.replace("\"localhost.crt\"", "\"expired.crt\"")
                .replace("\"localhost.key\"", "\"expired.key\""),
            "expired on 2020-01-01T00:00:00Z; renew it",
        ),
        (text.replace("[limits]", "[web]\nroot = \"nowhere\"\n[limits]"), "nowhere"),
        (another(&taken), "stop the program that uses it, or set another port"),
        // One that could be opened, and one that could not: the first is closed again.
        (another("address = \"127.0.0.1:0\"\n[[listener]]\naddress = \"192.0.2.1:4433\""), "192.0.2.1:4433"),
        (route("targets = { from = \"file\", path = \"bad.tokens\" }"), "bad.tokens:1"),
        (route("targets = { from = \"file\", path = \"nowhere\" }"), "create the file"),
        (route("backend = \"tls://localhost:1\"\ntls = { ca = \"nowhere.pem\" }"), "cannot read tls.ca"),
        (
            text.replace("[log]", "[log]\nsessions = \"nowhere/sessions.log\""),
            "log.sessions: cannot append to",
        ),
    ];
    for (file, words) in &bad {
        let failed = gateway.reload(file).await.expect_err(words);
        assert!(failed.contains(words), "{words:?} is not in {failed:?}");
        assert!(failed.contains("gateway.toml"), "no file name: {failed:?}");
        session.echo(b"still here").await;
    }
    fs::remove_file(gateway.path("gateway.toml")).unwrap();
    let failed = gateway.reload_again().await.expect_err("there is no file");
    assert!(failed.contains("gateway.toml"), "{failed}");

    eventually("the descriptors of the attempts are released", Duration::from_secs(1), || {
        // `occupied` is one more.
        let open = gateway.open_descriptors();
        (open <= descriptors + 1).then_some(()).ok_or_else(|| format!("{open}, not {descriptors} and one"))
    })
    .await;
    for listener in [TLS, PLAIN] {
        let mut newer = gateway.session_by(listener, "/echo").await;
        newer.echo(b"hello").await;
        newer.close(1000).await;
    }
    assert_eq!(gateway.lines(|line| (line["message"] == "listening").then_some(())).len(), 2);
    let certificates = gateway.lines(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("certificate ").then(|| message.to_owned())
    });
    assert_eq!(certificates, [""; 0], "the served certificate has changed");
    gateway.reload(&text).await.expect("the file that it was started with");
    session.close(1000).await;
    drop((session, occupied));
    gateway.finish().await;
}

#[tokio::test]
async fn a_reload_adds_and_removes_listeners_and_keeps_the_others_open() {
    let backend = Backend::echo().await;
    let mut gateway = Setup::echo(&backend).start().await;
    let text = gateway.configuration();
    gateway.reload(&format!("{text}\n{ANOTHER}")).await.expect("a good file");
    let new = gateway.another_listener().await;
    let mut there = gateway.session_by(new, "/echo").await;
    there.echo(b"hello").await;

    // The plain listener gets a certificate, and the one with a certificate loses it.
    let pair = "certificate = \"localhost.crt\"\nprivate_key = \"localhost.key\"\n";
    let plain = "address = \"127.0.0.1:0\"\n";
    let swapped = text.replace(pair, "").replacen(
        &format!("{plain}\n[[listener]]\n{plain}"),
        &format!("{plain}\n[[listener]]\n{plain}{pair}"),
        1,
    );
    assert_ne!(swapped, text);
    gateway.reload(&swapped).await.expect("a good file");
    let socket = gateway.tcp(TLS).await;
    let mut session = gateway
        .open(ClientStream::Plain(socket), &Request::upgrade("/echo", "http", &gateway.host(TLS)))
        .await;
    session.echo(b"plain").await;
    session.close(1000).await;
    drop(session);
    let connection = gateway.secure(gateway.tcp(PLAIN).await).await;
    let mut session =
        gateway.open(connection, &Request::upgrade("/echo", "https", &gateway.host(PLAIN))).await;
    session.echo(b"TLS").await;
    session.close(1000).await;
    drop(session);
    gateway.reload(&text).await.expect("a good file");

    let refused = within("an answer", TcpStream::connect(gateway.address(new))).await;
    assert!(refused.is_err(), "it still listens there");
    there.echo(b"still here").await;
    there.close(1000).await;
    drop(there);
    // The two that remain have not moved.
    assert_eq!(gateway.lines(|line| (line["message"] == "listening").then_some(())).len(), 3);
    gateway.finish().await;
}

#[tokio::test]
async fn connections_queued_at_a_removed_listener_are_accepted() {
    const MANY: usize = 50;
    let backend = Backend::echo().await;
    let mut gateway = Setup::echo(&backend).start().await;
    let text = gateway.configuration();
    gateway.reload(&format!("{text}\n{ANOTHER}")).await.expect("a good file");
    let listener = gateway.another_listener().await;
    gateway.signal(SIGSTOP);
    let mut wires = Vec::new();
    for _ in 0..MANY {
        let mut connection = gateway.tcp(listener).await;
        connection.write_all(&gateway.upgrade(listener, "/echo").bytes()).await.unwrap();
        wires.push(connection);
    }
    fs::write(gateway.path("gateway.toml"), &text).unwrap();
    gateway.signal(SIGHUP);
    gateway.signal(SIGCONT);
    for connection in &mut wires {
        assert_eq!(read_response(connection, true).await.status, 101);
    }
    gateway
        .until("the listener to close", |lines| {
            lines.iter().any(|line| line["message"] == "no longer listening").then_some(())
        })
        .await;
    drop(wires);
    gateway.finish().await;
}

#[tokio::test]
async fn max_sessions_of_a_backend_holds_across_reloads() {
    let (one, two) = (Backend::echo().await, Backend::echo().await);
    let gateway = Setup::new().route_with("echo", "/echo", &one, "max_sessions = 1").start().await;
    let text = gateway.configuration();
    let mut session = gateway.session("/echo").await;
    let full = async || {
        let mut refused = gateway.session("/echo").await;
        let (_, code, reason) = refused.closed().await;
        assert_eq!(code, Some(1011), "{reason}");
        drop(refused);
    };
    full().await;
    gateway.reload_again().await.expect("the same file");
    full().await;
    // Other pool settings, another backend, and then the first one again.
    gateway
        .reload(&text.replace("max_sessions = 1", "max_sessions = 1\nbalance = \"first\""))
        .await
        .expect("good");
    full().await;
    let moved = text.replace(&one.address.to_string(), &two.address.to_string());
    gateway.reload(&moved).await.expect("a good file");
    let mut other = gateway.session("/echo").await;
    full().await;
    gateway.reload(&text).await.expect("the file of the beginning");
    full().await;
    gateway.reload(&text.replace("max_sessions = 1", "max_sessions = 2")).await.expect("a good file");
    let mut second = gateway.session("/echo").await;
    full().await;
    for session in [&mut session, &mut other, &mut second] {
        session.echo(b"hello").await;
        session.close(1000).await;
    }
    drop((session, other, second));
    assert_eq!((one.connections().await, two.connections().await), (2, 1));
    gateway.finish().await;
}

#[tokio::test]
async fn a_reload_applies_the_new_log_level() {
    let gateway = Setup::new().level("info").start().await;
    let text = gateway.configuration();
    gateway.reload(&text.replace("level = \"info\"", "level = \"debug\"")).await.expect("a good file");
    let mut connection = gateway.connect(PLAIN).await;
    assert_eq!(send_request(&mut connection, &gateway.upgrade(PLAIN, "/nothing")).await.status, 404);
    let peer = connection.peer();
    drop(connection);
    // At level info there is no such line.
    gateway.refused(peer, "unknown_route").await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_world_readable_key_causes_a_warning_at_start_and_at_reload() {
    let gateway = Setup::new().start().await;
    let warnings = || {
        let found = gateway.lines(|line| {
            let message = line["message"].as_str().unwrap_or_default().to_owned();
            message.contains("chmod").then_some((line["level"].clone(), message))
        });
        found
            .into_iter()
            .map(|(level, message)| {
                assert_eq!(level, "WARN");
                message
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(warnings(), [""; 0]);
    let key = gateway.path("localhost.key");
    for (mode, warned) in [(0o640, 0), (0o644, 1), (0o604, 2), (0o600, 2)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let done = gateway.reload_again().await.expect("the same file");
        // The warning is logged before the result.
        assert_eq!(warnings().len(), warned, "{mode:o}: {done}");
    }
    let words =
        format!("private_key {0} is open to every user of this machine; run: chmod o-rwx {0}", key.display());
    assert_eq!(warnings(), [words.clone(), words]);
    gateway.finish().await;
}

#[tokio::test]
async fn no_reload_during_a_drain() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).timeouts("drain = \"6s\"").start().await;
    let mut session = gateway.session("/echo").await;
    gateway.signal(SIGTERM);
    gateway
        .until("the drain", |lines| lines.iter().any(|line| line["message"] == "draining").then_some(()))
        .await;
    let failed = gateway.reload_again().await.expect_err("it goes away");
    assert!(failed.contains("draining"), "{failed}");
    assert_eq!(session.closed().await.1, Some(1001));
    drop(session);
    assert_eq!(gateway.exit().await.code(), Some(0));
}
