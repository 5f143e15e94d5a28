//! Client certificates: verified in the handshake, required by routes, revoked.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use tokio::io::AsyncReadExt;

use super::machines::{Machine, Machines};
use crate::support::{
    Backend, ClientStream, Gateway, PLAIN, Request, Session, Setup, TLS, client_config, command,
    send_request, within,
};

const MACHINES: &str = "[auth.machines]\nkind = \"client-certificate\"\n";
const AUTH: &str = "auth = \"machines\"";

/// A route `desk` that requires a certificate, and `open` that does not. A certificate is optional on the TLS listener.
fn optional(backend: &Backend, machines: &Machines, method: &str) -> Setup {
    Setup::new()
        .route_with("desk", "/desk", backend, AUTH)
        .route("open", backend)
        .listener(TLS, &machines.lines("optional"))
        .tables(&format!("{MACHINES}{method}"))
        .admin()
}

async fn open(gateway: &Gateway, machine: &Machine, target: &str) -> Session {
    gateway.open(machine.connect(gateway, TLS).await, &gateway.upgrade(TLS, target)).await
}

/// Sends a request on a connection that the handshake has accepted. Returns the status, and the detail in the log.
async fn refused(gateway: &Gateway, mut connection: ClientStream, request: &Request) -> (u16, String) {
    let response = send_request(&mut connection, request).await;
    let peer = connection.peer();
    drop(connection);
    let line = gateway.access_log_line(peer).await;
    assert!(!line.is_session(), "{line:?}");
    (response.status, line.text("detail").unwrap_or_default().to_owned())
}

/// The handshake fails with TLS 1.2 and 1.3, and the log has these words on it.
async fn handshake_fails(gateway: &Gateway, machine: &Machine, words: &str) {
    for version in [&TLS12, &TLS13] {
        let (peer, connected) = machine.try_connect(gateway, TLS, version).await;
        if let Ok(mut stream) = connected {
            let read = within("the alert", stream.read(&mut [0; 100])).await;
            assert!(read.is_err(), "{version:?}: {read:?}");
        }
        let line = gateway.access_log_line(peer).await;
        assert_eq!(line.reason(), "tls_failed", "{version:?}: {line:?}");
        let detail = line.text("detail").unwrap_or_default();
        assert!(detail.contains(words), "{version:?}: {detail:?} has no {words:?}");
    }
}

async fn closed_as_expired(gateway: &Gateway, session: &mut Session) {
    let (_, code, words) = session.closed().await;
    assert_eq!((code, words.as_str()), (Some(1008), "your login has expired"));
    gateway.ended(session.peer, "credential_expired", Some(1008)).await;
}

#[tokio::test]
async fn a_certificate_names_the_user_and_only_some_routes_require_it() {
    let (backend, machines) = (Backend::echo().await, Machines::new());
    let names =
        "names = [\"*.probes.example.org\", \"spiffe://example.org/ns/*\", \"*@example.org\", \"Probe 7\"]\n";
    let gateway = optional(&backend, &machines, names).start().await;
    for (names, user) in [
        (&["CN=other", "a.probes.example.org"][..], "a.probes.example.org"),
        (&["b.example.org", "spiffe://example.org/ns/prod/sa/web"], "spiffe://example.org/ns/prod/sa/web"),
        (&["ann@example.org"], "ann@example.org"),
        (&["CN=Probe 7"], "Probe 7"),
    ] {
        let mut session = open(&gateway, &machines.machine(names), "/desk").await;
        session.echo(b"hello").await;
        let list = gateway.wait_for_sessions("route=desk", 1).await;
        assert_eq!(list[0]["user"], user);
        session.close(1000).await;
        let line = gateway.ended(session.peer, "client_closed", Some(1000)).await;
        assert_eq!(line.text("user"), Some(user));
        drop(session);
        gateway.wait_for_sessions("route=desk", 0).await;
    }
    let of = |names: &[&str]| machines.machine(names);
    let desk = gateway.upgrade(TLS, "/desk");
    for (names, first) in [
        (&["CN=Probe 7", "a.example.org"][..], ", \"a.example.org\""),
        (&["CN=Probe 8"], ", \"Probe 8\""),
        (&["spiffe://example.com/ns/web"], ", \"spiffe://example.com/ns/web\""),
        (&[], ""),
    ] {
        let seen = refused(&gateway, of(names).connect(&gateway, TLS).await, &desk).await;
        assert_eq!(seen, (403, format!("names list no name of the client certificate{first}")));
    }
    let seen = refused(&gateway, gateway.connect(TLS).await, &desk).await;
    assert_eq!(seen, (401, "there is no client certificate".to_owned()));
    let seen = refused(&gateway, gateway.connect(PLAIN).await, &gateway.upgrade(PLAIN, "/desk")).await;
    assert_eq!(seen.0, 401);
    let mut without = gateway.session("/open").await;
    without.close(1000).await;
    let mut with = open(&gateway, &of(&["nobody.example"]), "/open").await;
    with.close(1000).await;
    let line = gateway.ended(with.peer, "client_closed", Some(1000)).await;
    assert_eq!(line.text("user"), None);
    drop((without, with));
    gateway.finish().await;
}

#[tokio::test]
async fn a_required_certificate_is_required_of_every_client_of_its_listener() {
    let (backend, machines) = (Backend::echo().await, Machines::new());
    let pair = "certificate = \"localhost.crt\"\nprivate_key = \"localhost.key\"\n";
    let ca = format!("client_ca = {:?}\n", machines.path("ca.pem"));
    let gateway = Setup::echo(&backend).listener(PLAIN, &format!("{pair}{ca}")).start().await;
    let socket = gateway.tcp(PLAIN).await;
    let peer = socket.local_addr().unwrap();
    let mut stream = gateway.secure(socket).await;
    let read = within("the alert", stream.read(&mut [0; 100])).await.unwrap_err().to_string();
    assert!(read.contains("CertificateRequired"), "{read}");
    let line = gateway.access_log_line(peer).await;
    assert_eq!((line.reason(), line.text("detail")), ("tls_failed", Some("peer sent no certificates")));
    let connection = machines.machine(&[]).connect(&gateway, PLAIN).await;
    let request = Request::upgrade("/echo", "https", &gateway.host(PLAIN));
    let mut session = gateway.open(connection, &request).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_fails_the_handshake() {
    let (backend, machines, others) = (Backend::echo().await, Machines::new(), Machines::new());
    machines.write("revoked.crl", &machines.list(&[7]));
    let crl = format!("crl = {:?}\n", machines.path("revoked.crl"));
    let gateway = optional(&backend, &machines, "").listener(TLS, &crl).start().await;
    let year = rcgen::date_time_ymd;
    let name = &["a.example.org"];
    for (machine, detail) in [
        (others.machine(name), "BadSignature"),
        (machines.machine_with(name, |params| params.not_after = year(2020, 1, 1)), "expired"),
        (machines.machine_with(name, |params| params.not_before = year(2999, 1, 1)), "not valid yet"),
        (machines.machine_with(name, |params| params.serial_number = Some(7.into())), "Revoked"),
        (
            machines.machine_with(name, |params| {
                params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
            }),
            "extended key usage",
        ),
    ] {
        handshake_fails(&gateway, &machine, detail).await;
    }
    let mut session = open(&gateway, &machines.machine(name), "/desk").await;
    session.close(1000).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_new_list_ends_the_sessions_of_the_certificates_that_it_revokes() {
    let (backend, machines) = (Backend::echo().await, Machines::new());
    machines.write("revoked.crl", &machines.list(&[]));
    let crl = format!("crl = [{:?}]\n", machines.path("revoked.crl"));
    let gateway = optional(&backend, &machines, "").listener(TLS, &crl).start().await;
    let numbered = |serial: u64| {
        machines.machine_with(&["a.example.org"], |params| params.serial_number = Some(serial.into()))
    };
    let (good, bad) = (numbered(6), numbered(7));
    let mut kept = open(&gateway, &good, "/desk").await;
    let mut ended = open(&gateway, &bad, "/desk").await;
    let mut elsewhere = open(&gateway, &bad, "/open").await;
    ended.echo(b"hello").await;
    // Files that cannot be used change nothing.
    let list = machines.list(&[7]);
    for broken in [&list[..list.len() / 2], ""] {
        machines.write("revoked.crl", broken);
        let count = gateway.lines(rejection).len();
        gateway
            .until("a warning", |lines| (lines.iter().filter_map(rejection).count() > count).then_some(()))
            .await;
        ended.echo(b"still here").await;
    }
    let start = Instant::now();
    machines.write("revoked.crl", &list);
    closed_as_expired(&gateway, &mut ended).await;
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    handshake_fails(&gateway, &bad, "Revoked").await;
    // A route without auth asks for no certificate, so none is taken from its sessions.
    elsewhere.echo(b"hello").await;
    kept.echo(b"hello").await;
    let mut another = open(&gateway, &good, "/desk").await;
    // A list that was to be replaced refuses all of its authority, which is reported once.
    let due = SystemTime::now() + Duration::from_secs(5);
    machines.write("revoked.crl", &machines.list_until(due, &[7]));
    gateway.until("a warning", |lines| lines.iter().find_map(outdated)).await;
    handshake_fails(&gateway, &good, "expired").await;
    for session in [&mut kept, &mut another, &mut elsewhere] {
        session.echo(b"hello").await;
        session.close(1000).await;
    }
    assert_eq!(gateway.lines(outdated).len(), 1);
    drop((kept, another, elsewhere, ended));
    gateway.finish().await;
}

fn outdated(line: &serde_json::Value) -> Option<()> {
    let message = line["message"].as_str().unwrap_or_default();
    (message.contains("a list was to be replaced by ") && line["level"] == "WARN").then_some(())
}

fn rejection(line: &serde_json::Value) -> Option<()> {
    let words = "revocation lists not reloaded: the previous ones stay in use";
    (line["message"] == words && line["level"] == "WARN").then_some(())
}

#[tokio::test]
async fn a_reload_that_adds_a_list_ends_sessions_too_and_a_bad_one_is_refused() {
    let (backend, machines) = (Backend::echo().await, Machines::new());
    let gateway = optional(&backend, &machines, "").start().await;
    let bad = machines.machine_with(&["a.example.org"], |params| params.serial_number = Some(7.into()));
    let mut session = open(&gateway, &bad, "/desk").await;
    let text = gateway.configuration();
    let with_list = text.replace("client_certificate =", "crl = \"revoked.crl\"\nclient_certificate =");
    for (content, words) in [
        ("", "revoked.crl holds no revocation list in PEM form"),
        (AUTH, "revoked.crl holds no revocation list in PEM form"),
        ("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n", "revoked.crl cannot be used"),
    ] {
        std::fs::write(gateway.path("revoked.crl"), content).unwrap();
        let failed = gateway.reload(&with_list).await.expect_err(words);
        assert!(failed.contains(words) && failed.contains("listener 1: crl"), "{failed}");
        session.echo(b"still here").await;
    }
    std::fs::write(gateway.path("revoked.crl"), machines.list(&[7])).unwrap();
    gateway.reload(&with_list).await.expect("a good list");
    closed_as_expired(&gateway, &mut session).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_session_ends_with_the_certificate() {
    let (backend, machines) = (Backend::echo().await, Machines::new());
    let gateway = optional(&backend, &machines, "").start().await;
    let end = SystemTime::now() + Duration::from_secs(4);
    let brief = machines.machine_with(&["a.example.org"], |params| params.not_after = end.into());
    let mut session = open(&gateway, &brief, "/desk").await;
    session.echo(b"hello").await;
    closed_as_expired(&gateway, &mut session).await;
    let late = SystemTime::now().duration_since(end).unwrap_or_default();
    assert!(late < Duration::from_secs(5), "{late:?} late");
    // The dates of a certificate are in whole seconds.
    assert!(SystemTime::now() + Duration::from_secs(1) >= end, "too early");
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn only_listed_fingerprints_enter() {
    let (backend, machines) = (Backend::echo().await, Machines::new());
    let (one, other) = (machines.machine(&["a.example.org"]), machines.machine(&["a.example.org"]));
    let pins = format!("fingerprints = [\"sha256:{}\"]\nnames = [\"a.example.org\"]\n", one.fingerprint());
    let gateway = optional(&backend, &machines, &pins).start().await;
    let mut session = open(&gateway, &one, "/desk").await;
    session.close(1000).await;
    let connection = other.connect(&gateway, TLS).await;
    let seen = refused(&gateway, connection, &gateway.upgrade(TLS, "/desk")).await;
    assert_eq!(seen, (403, "fingerprints do not list the client certificate, \"a.example.org\"".to_owned()));
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn no_header_stands_for_a_certificate() {
    let (backend, machines) = (Backend::echo().await, Machines::new());
    let gateway = optional(&backend, &machines, "")
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.9/32\"]\n")
        .start()
        .await;
    for name in [
        "X-SSL-Client-CN",
        "x-ssl-client-cn",
        "X-SSL-CLIENT-CERT",
        "X-Forwarded-Client-Cert",
        "x-forwarded-CLIENT-cert",
        "Client-Cert",
        "X-Client-Verify",
        "X-Remote-User",
    ] {
        for listener in [TLS, PLAIN] {
            let request = gateway.upgrade(listener, "/desk").add(name, "CN=a.example.org");
            let seen = refused(&gateway, gateway.connect(listener).await, &request).await;
            assert_eq!(seen, (401, "there is no client certificate".to_owned()), "{name}");
        }
        let client = "192.0.2.7:4711";
        let mut connection = gateway.connect_by_proxy("127.0.0.9".parse().unwrap(), client, PLAIN).await;
        let request =
            gateway.upgrade(PLAIN, "/desk").add("X-Forwarded-For", client).add(name, "CN=a.example.org");
        assert_eq!(send_request(&mut connection, &request).await.status, 401, "{name}");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn one_of_several_methods_may_be_a_certificate() {
    let (backend, machines) = (Backend::echo().await, Machines::new());
    let either = "[auth.links]\nkind = \"ticket\"\n[auth.either]\nany = [\"machines\", \"links\"]\n";
    let gateway = optional(&backend, &machines, either)
        .route_with("both", "/both", &backend, "auth = [\"links\", \"machines\"]")
        .route_with("either", "/either", &backend, "auth = \"either\"")
        .start()
        .await;
    let machine = machines.machine(&["a.example.org"]);
    let ticket = async |route: &str, user: &str| {
        let body = serde_json::json!({"route": route, "user": user}).to_string();
        let answer = gateway.request("POST", "/api/tickets", &body).await;
        let ticket: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        ticket["url"].as_str().expect("a URL").to_owned()
    };
    let mut sessions = vec![
        open(&gateway, &machine, "/either").await,
        gateway.session(&ticket("either", "ann").await).await,
        open(&gateway, &machine, &ticket("both", "a.example.org").await).await,
    ];
    let of_both = ticket("both", "a.example.org").await;
    let seen = refused(&gateway, gateway.connect(TLS).await, &gateway.upgrade(TLS, &of_both)).await;
    assert_eq!(seen, (401, "there is no client certificate".to_owned()));
    let of_ann = gateway.upgrade(TLS, &ticket("both", "ann").await);
    let seen = refused(&gateway, machine.connect(&gateway, TLS).await, &of_ann).await;
    assert_eq!(seen, (403, "two credentials are for different users".to_owned()));
    for session in &mut sessions {
        session.close(1000).await;
    }
    drop(sessions);
    gateway.finish().await;
}

#[tokio::test]
async fn no_session_is_resumed_where_clients_present_certificates() {
    let (backend, machines) = (Backend::echo().await, Machines::new());
    let gateway = Setup::echo(&backend).start().await;
    let with_ca = gateway.configuration().replacen(
        "private_key =",
        &format!("{}private_key =", machines.lines("optional")),
        1,
    );
    let configs = [&TLS12, &TLS13].map(|version| client_config(&[version], &["http/1.1"]));
    let handshake = async |config: &Arc<rustls::ClientConfig>| {
        let socket = gateway.tcp(TLS).await;
        let mut stream = gateway.try_secure(socket, Arc::clone(config)).await.expect("a handshake");
        let kind = stream.get_ref().1.handshake_kind();
        // The ticket of TLS 1.3 follows the handshake.
        let request = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, request).await.expect("a request");
        let _ = stream.read(&mut [0; 100]).await;
        kind
    };
    for config in &configs {
        assert_eq!(handshake(config).await, Some(HandshakeKind::Full));
        assert_eq!(handshake(config).await, Some(HandshakeKind::Resumed));
    }
    // With a ticket of the time before, a client could enter without a certificate.
    gateway.reload(&with_ca).await.expect("a good file");
    for config in &configs {
        for _ in 0..2 {
            assert_eq!(handshake(config).await, Some(HandshakeKind::Full));
        }
    }
    gateway.finish().await;
}

/// The block of docs/authentication.md in this language that contains these words.
fn recipe(language: &str, words: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/authentication.md");
    let text = std::fs::read_to_string(file).expect("the page");
    let blocks: Vec<&str> = text
        .split(&format!("```{language}\n"))
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .filter(|block| block.contains(words))
        .collect();
    assert_eq!(blocks.len(), 1, "one {language} block with {words:?}");
    blocks[0].to_owned()
}

#[tokio::test]
async fn the_recipe_for_machines_works() {
    if Command::new("openssl").arg("version").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "openssl is not installed");
        eprintln!("skipped: openssl is not installed");
        return;
    }
    let backend = Backend::echo().await;
    let directory = tempfile::tempdir().unwrap();
    let sh = async |script: String| {
        let at = directory.path().to_owned();
        let ran = tokio::task::spawn_blocking(move || {
            Command::new("sh").args(["-ec", &script]).current_dir(at).output()
        });
        let done = ran.await.expect("no panic").expect("a shell");
        assert!(done.status.success(), "{done:?}");
    };
    sh(recipe("sh", "openssl req -x509")).await;
    let text =
        |name: &str| std::fs::read_to_string(directory.path().join(name)).expect("a file of the recipe");
    let machine = Machine::new(&text("probe.crt"), &text("probe.key"));
    let page = recipe("toml", "kind = \"client-certificate\"");
    let lines = |keys: &[&str]| -> String {
        let is_one = |line: &&str| keys.iter().any(|key| line.starts_with(&format!("{key} = ")));
        page.lines().filter(is_one).map(|line| format!("{line}\n")).collect()
    };
    let at =
        |lines: String| lines.replace("\"machines.", &format!("\"{}/machines.", directory.path().display()));
    let method = page.split("[auth.machines]").nth(1).expect("the method");
    let gateway = Setup::new()
        .route_with("probes", "/probes", &backend, &lines(&["auth", "missing_origin"]))
        .listener(
            TLS,
            &at(lines(&["client_ca", "crl", "client_certificate"])).replace("\"required\"", "\"optional\""),
        )
        .tables(&format!("[auth.machines]{method}"))
        .admin()
        .start()
        .await;
    let mut session = open(&gateway, &machine, "/probes").await;
    session.echo(b"hello").await;
    assert_eq!(gateway.wait_for_sessions("route=probes", 1).await[0]["user"], "probe1.example.org");
    sh(recipe("sh", "-revoke probe.crt")).await;
    closed_as_expired(&gateway, &mut session).await;
    handshake_fails(&gateway, &machine, "Revoked").await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_wrong_configuration_is_refused() {
    let machines = Machines::new();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let identity = crate::support::Identity::shared();
    write("localhost.crt", &identity.certificate);
    write("localhost.key", &identity.private_key);
    write("ca.pem", &std::fs::read_to_string(machines.path("ca.pem")).unwrap());
    write("empty.pem", "");
    write("der.crl", "\u{30}\u{0}");
    let tls = "certificate = \"localhost.crt\"\nprivate_key = \"localhost.key\"";
    let check = async |listener: &str, rest: &str| {
        let file = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n{listener}\n[[route]]\nname = \"desk\"\npath = \"/desk\"\n\
             backend = \"tcp://127.0.0.1:5900\"\n{rest}\n"
        );
        write("gateway.toml", &file);
        let arguments = ["check", "--config", "gateway.toml"].map(str::to_owned).to_vec();
        let output = command(directory.path().to_owned(), arguments).await;
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let with_ca = format!("{tls}\nclient_ca = \"ca.pem\"");
    let method = |lines: &str| format!("auth = \"machines\"\n{MACHINES}{lines}");
    for (listener, rest, words) in [
        (tls.to_owned(), method(""), "no [[listener]] has client_ca"),
        ("client_ca = \"ca.pem\"".to_owned(), method(""), "only over TLS"),
        (format!("{tls}\ncrl = \"der.crl\""), String::new(), "client_ca is missing"),
        (format!("{tls}\nclient_certificate = \"optional\""), String::new(), "client_ca is missing"),
        (format!("{with_ca}\nclient_certificate = \"option\""), String::new(), "did you mean \"optional\"?"),
        (format!("{with_ca}\ncrl = []"), String::new(), "an empty list revokes nothing"),
        (format!("{with_ca}\ncrl = \"der.crl\""), String::new(), "holds no revocation list in PEM form"),
        (format!("{with_ca}\ncrl = \"nowhere.crl\""), String::new(), "cannot read crl"),
        (format!("{tls}\nclient_ca = \"nowhere.pem\""), String::new(), "cannot read client_ca"),
        (format!("{tls}\nclient_ca = \"empty.pem\""), String::new(), "holds no certificate in PEM form"),
        (with_ca.clone(), method("names = []"), "no client could be admitted"),
        (with_ca.clone(), method("names = [\"*\"]"), "a \"*\" stands for"),
        (with_ca.clone(), method("names = [\"\"]"), "the name is empty"),
        (with_ca.clone(), method("fingerprints = []"), "no client could be admitted"),
        (with_ca.clone(), method("fingerprints = [\"sha1:00\"]"), "write \"sha256:\""),
        (with_ca.clone(), method("from = [\"header\"]"), "does not belong to this kind"),
        (
            with_ca.clone(),
            "[auth.links]\nkind = \"ticket\"\nnames = [\"a\"]".to_owned(),
            "does not belong to this kind",
        ),
    ] {
        let (code, errors) = check(&listener, &rest).await;
        assert_eq!(code, Some(78), "{words}: {errors}");
        assert!(errors.contains(words), "{words}: {errors}");
    }
    let (code, warnings) = check(&format!("{with_ca}\nclient_certificate = \"optional\""), "").await;
    assert_eq!(code, Some(0), "{warnings}");
    assert!(
        warnings.contains("gateway.toml:6:22: listener 1: client_certificate \"optional\" admits every"),
        "{warnings}"
    );
    write("old.crl", &machines.list_until(SystemTime::UNIX_EPOCH + Duration::from_secs(1_609_459_200), &[]));
    let (code, warnings) = check(&format!("{with_ca}\ncrl = \"old.crl\""), &method("")).await;
    assert_eq!(code, Some(0), "{warnings}");
    assert!(warnings.contains("was to be replaced by 2021-01-01T00:00:00Z"), "{warnings}");
    assert_eq!(check(&with_ca, &method("")).await.0, Some(0));
}
