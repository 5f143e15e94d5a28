//! `kind = "forward"`: whom the authority admits, and what happens if it decides nothing.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::version::TLS13;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::authority::{DecidingServer, Reply};
use super::{opens_session, raw_refusal, refusal};
use crate::backends::authority::{Authority, Server};
use crate::support::{Backend, Gateway, PLAIN, Request, Setup, TLS, eventually};

const SECRET: &str = "session=s3cr3t-of-ann";

fn table(url: &str, lines: &str) -> String {
    format!("[auth.portal]\nkind = \"forward\"\nurl = {url:?}\n{lines}\n")
}

/// A gateway with a route `/desk` that asks the authority.
async fn gateway(backend: &Backend, url: &str, lines: &str) -> Gateway {
    let setup = Setup::new().route_with("desk", "/desk", backend, "auth = \"portal\"");
    setup.tables(&table(url, lines)).start().await
}

fn ann(gateway: &Gateway) -> Request {
    gateway.upgrade(TLS, "/desk?a=b").add("Cookie", SECRET)
}

/// Admits those with the cookie.
fn knows_ann(head: &str) -> Reply {
    match head.contains(SECRET) {
        true => Reply::new("204 No Content", &[("Remote-User", "ann")]),
        false => Reply::new("401 Unauthorized", &[("WWW-Authenticate", "Basic realm=\"portal\"")]),
    }
}

/// The fields of a request head with these names.
fn fields<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

#[tokio::test]
async fn the_authority_sees_the_request_and_decides() {
    let (backend, authority) = (Backend::echo().await, DecidingServer::start(knows_ann).await);
    let gateway = gateway(&backend, &authority.url(), "user_header = \"Remote-User\"").await;
    for _ in 0..5 {
        opens_session(&gateway, &ann(&gateway), Some("ann")).await;
    }
    assert_eq!((authority.heads().len(), authority.connections()), (5, 1), "a connection is used again");
    let head = authority.heads().remove(0);
    assert!(head.starts_with("GET /check HTTP/1.1\r\n"), "{head}");
    let host = gateway.host(TLS);
    let url = format!("https://{host}/desk?a=b");
    for (name, value) in [
        ("Cookie", SECRET),
        ("Origin", &format!("https://{host}")),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Host", &host),
        ("X-Forwarded-Method", "GET"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Uri", "/desk?a=b"),
        ("X-Original-Method", "GET"),
        ("X-Original-URI", "/desk?a=b"),
        ("X-Original-URL", &url),
        ("Host", &authority.address.to_string()),
    ] {
        assert_eq!(fields(&head, name), [value], "{name} in {head}");
    }
    assert_eq!((fields(&head, "Upgrade").len(), fields(&head, "Sec-WebSocket-Key").len()), (0, 0), "{head}");
    let (response, detail) = refusal(&gateway, &gateway.upgrade(TLS, "/desk"), "unauthorized").await;
    assert_eq!((response.status, detail.as_str()), (401, "the authority answered 401 Unauthorized"));
    assert_eq!(response.header("WWW-Authenticate"), Some("Basic realm=\"portal\""));
    // A foreign page does not get as far as the authority.
    let asked = authority.heads().len();
    refusal(&gateway, &ann(&gateway).with("Origin", "https://evil.example"), "origin_refused").await;
    assert_eq!(authority.heads().len(), asked);
    assert_eq!(backend.connections().await, 5);
    assert!(!gateway.raw_log().contains("s3cr3t"), "a cookie is in the log");
    drop(authority);
    gateway.finish().await;
}

#[tokio::test]
async fn an_identity_that_the_client_claims_is_never_the_authoritys() {
    let backend = Backend::echo().await;
    // It does what a careless authority would: it returns the user that it was sent.
    let authority = DecidingServer::start(|head| match fields(head, "Remote-User").as_slice() {
        [] if head.contains(SECRET) => Reply::new("200 OK", &[("REMOTE-USER", "ann")]),
        [] => Reply::new("200 OK", &[]),
        [user, ..] => Reply::new("200 OK", &[("Remote-User", user)]),
    })
    .await;
    let gateway = gateway(&backend, &authority.url(), "user_header = \"remote-user\"").await;
    for name in ["Remote-User", "remote-user", "REMOTE-USER", "rEmOtE-uSeR"] {
        opens_session(&gateway, &ann(&gateway).add(name, "root"), Some("ann")).await;
        let claimed = gateway.upgrade(TLS, "/desk").add(name, "root").add("X-Forwarded-User", "root");
        let (response, detail) = refusal(&gateway, &claimed, "auth_unavailable").await;
        assert_eq!(response.status, 503);
        assert_eq!(detail, "the authority: its answer has no remote-user");
    }
    // Nor are the address and the host that an untrusted client claims.
    let forged = ann(&gateway)
        .add("X-Forwarded-For", "10.0.0.1")
        .add("x-forwarded-host", "admin.example")
        .add("X-ORIGINAL-URL", "https://admin.example/public")
        .add("Forwarded", "for=10.0.0.1");
    opens_session(&gateway, &forged, Some("ann")).await;
    let head = authority.heads().pop().expect("a request");
    assert_eq!(fields(&head, "X-Forwarded-For"), ["127.0.0.1"], "{head}");
    assert!(!head.contains("admin.example") && !head.contains("10.0.0.1"), "{head}");
    drop(authority);
    gateway.finish().await;
}

/// Answers that decide nothing, with what the log says of them.
fn no_decisions() -> Vec<(&'static str, Reply, &'static str)> {
    let ok = |rest: &str| Reply::raw(format!("HTTP/1.1 200 OK\r\nX-User: ann\r\n{rest}"));
    let (late, big) = ("no answer within 700ms", "x".repeat(8000));
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    vec![
        ("silence", Reply::raw("").and_hold(), late),
        ("half a head", ok("").and_hold(), late),
        ("half a body", ok("Content-Length: 9\r\n\r\nx").and_hold(), late),
        ("no answer", Reply::raw("").and_close(), ""),
        ("a body that ends early", ok("Content-Length: 9\r\n\r\nx").and_close(), ""),
        ("another protocol", Reply::raw("SSH-2.0-OpenSSH_9.2\r\n\r\n").and_close(), ""),
        ("1 MB of fields", Reply::new("200 OK", &vec![("X-Big", big.as_str()); 131]), ""),
        ("endless fields", ok("").and_repeat("X-Big: x\r\n"), ""),
        ("an endless line", Reply::raw("HTTP/1.1 200 OK").and_repeat("OK"), ""),
        (
            "an endless body",
            ok("Transfer-Encoding: chunked\r\n\r\n").and_repeat(chunk),
            "longer than 1048576",
        ),
        ("an endless old body", ok("\r\n").and_repeat(big.as_str()), "longer than 1048576"),
        (
            "a long body",
            ok("Content-Length: 9999999\r\n\r\n").and_repeat(big.as_str()),
            "longer than 1048576",
        ),
        (
            "an upgrade",
            Reply::raw("HTTP/1.1 101 A\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n"),
            "it answered 101",
        ),
        (
            "only an early hint",
            Reply::raw("HTTP/1.1 103 Early Hints\r\nX-User: ann\r\n\r\n").and_hold(),
            late,
        ),
        ("404", Reply::new("404 Not Found", &[("X-User", "ann")]), "it answered 404 Not Found"),
        ("500", Reply::new("500 Internal Server Error", &[("X-User", "ann")]), "it answered 500"),
        ("a redirection to nowhere", Reply::new("302 Found", &[]), "302 Found without one Location"),
        (
            "a redirection to two places",
            Reply::new("302 Found", &[("Location", "/a"), ("Location", "/b")]),
            "one Location",
        ),
        (
            "many cookies",
            Reply::new("401 Unauthorized", &[("Set-Cookie", "a=b"); 50]),
            "more fields than are passed on",
        ),
        ("no user", Reply::new("200 OK", &[]), "its answer has no x-user"),
        ("an empty user", Reply::new("200 OK", &[("X-User", "")]), "the user's name in x-user is empty"),
        ("two users", Reply::new("200 OK", &[("X-User", "ann"), ("x-user", "root")]), "several x-user"),
        (
            "another charset",
            Reply::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-User: \xc4nne\r\n\r\n".to_vec()),
            "is not UTF-8",
        ),
    ]
}

#[tokio::test]
async fn an_authority_that_decides_nothing_admits_no_client() {
    let backend = Backend::echo().await;
    let lines = "user_header = \"X-User\"\ntimeout = \"700ms\"";
    let absent = DecidingServer::start(knows_ann).await;
    let mut setup = Setup::new()
        .route_with("absent", "/absent", &backend, "auth = \"absent\"")
        .tables(&table(&absent.url(), lines).replace("portal", "absent"));
    drop(absent);
    let (mut authorities, mut expected) = (Vec::new(), vec![("no server", "/absent".to_owned(), "")]);
    for (index, (what, reply, detail)) in no_decisions().into_iter().enumerate() {
        let authority = DecidingServer::start(move |_| reply.clone()).await;
        let (name, path) = (format!("a{index}"), format!("/{index}"));
        setup = setup
            .route_with(&name, &path, &backend, &format!("auth = \"{name}\""))
            .tables(&table(&authority.url(), lines).replace("portal", &name));
        authorities.push(authority);
        expected.push((what, path, detail));
    }
    let gateway = setup.start().await;
    for (what, path, expected) in expected {
        let start = Instant::now();
        let request = gateway.upgrade(TLS, &path).add("Cookie", SECRET);
        let (response, detail) = refusal(&gateway, &request, "auth_unavailable").await;
        assert_eq!(response.status, 503, "{what}: {detail}");
        assert_eq!(response.header("Retry-After"), Some("1"), "{what}");
        assert!(detail.starts_with("the authority: ") && detail.contains(expected), "{what}: {detail}");
        assert!(detail.len() < 200 && !detail.contains("s3cr3t"), "{what}: {detail}");
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: {:?}", start.elapsed());
    }
    assert_eq!(backend.connections().await, 0, "the backend hears nothing of them");
    // The log says so once for each of them, and a client cannot make it say so more often.
    let warnings = || gateway.lines(|line| (line["level"] == "WARN").then(|| line["method"].clone()));
    let before = warnings().len();
    refusal(&gateway, &gateway.upgrade(TLS, "/absent"), "auth_unavailable").await;
    assert_eq!((warnings().len(), before), (before, authorities.len() + 1), "{:?}", warnings());
    drop(authorities);
    gateway.finish().await;
}

#[tokio::test]
async fn an_authority_that_speaks_http_1_0_or_says_more_than_it_must_decides() {
    let backend = Backend::echo().await;
    let mut setup = Setup::new();
    let mut authorities = Vec::new();
    let big = "x".repeat(40_000);
    for (index, reply) in [
        Reply::raw("HTTP/1.0 200 OK\r\n\r\n").and_close(),
        Reply::raw("HTTP/1.0 200 OK\r\n\r\nwelcome").and_close(),
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nwelcome"),
        Reply::raw("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        Reply::new("299 Other", &[("X-Big", big.as_str())]),
    ]
    .into_iter()
    .enumerate()
    {
        let authority = DecidingServer::start(move |_| reply.clone()).await;
        let name = format!("a{index}");
        setup = setup
            .route_with(&name, &format!("/{index}"), &backend, &format!("auth = \"{name}\""))
            .tables(&table(&authority.url(), "").replace("portal", &name));
        authorities.push(authority);
    }
    let gateway = setup.start().await;
    for index in 0..authorities.len() {
        opens_session(&gateway, &gateway.upgrade(TLS, &format!("/{index}")), None).await;
    }
    drop(authorities);
    gateway.finish().await;
}

#[tokio::test]
async fn challenges_and_redirections_are_passed_on_and_not_followed() {
    let backend = Backend::echo().await;
    let login = DecidingServer::start(|_| Reply::new("200 OK", &[])).await;
    let location = format!("http://{}/login?rd=https%3A%2F%2Fdesk", login.address);
    let target = location.clone();
    let authority = DecidingServer::start(move |head| {
        let answer = fields(head, "Cookie").first().copied().unwrap_or_default().trim_start_matches("answer=").to_owned();
        let body = "Content-Length: 9\r\nContent-Type: text/html\r\nX-Secret: inner\r\nSet-Cookie: csrf=1\r\nSet-Cookie: b=2";
        let location = &target;
        Reply::raw(format!("HTTP/1.1 {answer} X\r\nLocation: {location}\r\nWWW-Authenticate: Negotiate\r\n{body}\r\n\r\n<b>in</b>\n"))
    })
    .await;
    let gateway = gateway(&backend, &authority.url(), "").await;
    for (status, reason) in [
        ("301", "unauthorized"),
        ("302", "unauthorized"),
        ("303", "unauthorized"),
        ("307", "unauthorized"),
        ("308", "unauthorized"),
        ("401", "unauthorized"),
        ("403", "forbidden"),
    ] {
        let request = gateway.upgrade(TLS, "/desk").add("Cookie", &format!("answer={status}"));
        let (response, detail) = raw_refusal(&gateway, &request, reason).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
        assert!(detail.starts_with(&format!("the authority answered {status}")), "{detail}");
        let is_redirection = status.starts_with('3');
        let sent = fields(&response, "location");
        assert_eq!(sent, if is_redirection { vec![location.as_str()] } else { vec![] }, "{response}");
        let sent = fields(&response, "www-authenticate");
        assert_eq!(sent, if is_redirection { vec![] } else { vec!["Negotiate"] }, "{response}");
        assert_eq!(fields(&response, "set-cookie"), ["csrf=1", "b=2"], "{response}");
        assert_eq!(fields(&response, "cache-control"), ["no-store"], "{response}");
        assert!(!response.contains("inner") && !response.contains("<b>"), "{response}");
    }
    assert_eq!((login.connections(), backend.connections().await), (0, 0));
    drop(authority);
    gateway.finish().await;
}

#[tokio::test]
async fn no_more_requests_than_configured_are_with_the_authority_at_the_same_time() {
    let (backend, authority) = (Backend::echo().await, DecidingServer::behind(0, knows_ann).await);
    let gateway = Arc::new(gateway(&backend, &authority.url(), "max_in_flight = 2\ntimeout = \"1m\"").await);
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let gateway = Arc::clone(&gateway);
        clients.spawn(async move { opens_session(&gateway, &ann(&gateway), None).await });
    }
    for answered in 0..8 {
        let waiting = (answered + 2).min(8);
        eventually("the next request", Duration::from_secs(30), || match authority.heads().len() {
            heads if heads >= waiting => Ok(()),
            heads => Err(format!("{heads} of {waiting}")),
        })
        .await;
        authority.gate.add_permits(1);
    }
    clients.join_all().await;
    assert_eq!(authority.most_in_flight(), 2);
    drop(authority);
    Arc::into_inner(gateway).expect("no client").finish().await;
}

#[tokio::test]
async fn a_client_waits_for_its_turn_no_longer_than_for_an_answer() {
    let (backend, authority) = (Backend::echo().await, DecidingServer::behind(0, knows_ann).await);
    let gateway = Arc::new(gateway(&backend, &authority.url(), "max_in_flight = 1\ntimeout = \"3s\"").await);
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        let gateway = Arc::clone(&gateway);
        clients.spawn(async move {
            let start = Instant::now();
            let (_, detail) = refusal(&gateway, &ann(&gateway), "auth_unavailable").await;
            assert_eq!(detail, "the authority: no answer within 3s");
            start.elapsed()
        });
    }
    for took in clients.join_all().await {
        assert!(took >= Duration::from_millis(2950) && took < Duration::from_secs(9), "{took:?}");
    }
    drop(authority);
    Arc::into_inner(gateway).expect("no client").finish().await;
}

#[tokio::test]
async fn an_answer_counts_again_only_if_that_is_configured() {
    let (backend, authority) = (Backend::echo().await, DecidingServer::start(knows_ann).await);
    let gateway = Setup::new()
        .route_with("desk", "/desk", &backend, "auth = \"portal\"")
        .route_with("kept", "/kept", &backend, "auth = \"kept\"")
        .tables(&table(&authority.url(), ""))
        .tables(
            &table(&authority.url(), "cache = \"1m\"\nuser_header = \"Remote-User\"")
                .replace("portal", "kept"),
        )
        .start()
        .await;
    for _ in 0..3 {
        opens_session(&gateway, &ann(&gateway), None).await;
    }
    assert_eq!(authority.heads().len(), 3);
    let kept = |cookie: &str| gateway.upgrade(TLS, "/kept").add("Cookie", cookie);
    for _ in 0..3 {
        opens_session(&gateway, &kept(SECRET), Some("ann")).await;
    }
    assert_eq!(authority.heads().len(), 4, "the second and the third time it counts again");
    // A refusal never does, and neither does an answer to another request.
    for _ in 0..2 {
        refusal(&gateway, &kept("session=other"), "unauthorized").await;
    }
    assert_eq!(authority.heads().len(), 6);
    opens_session(&gateway, &kept(&format!("{SECRET}; a=b")), Some("ann")).await;
    assert_eq!(authority.heads().len(), 7);
    // A reload keeps what is unchanged, and a change begins anew.
    gateway.reload_again().await.expect("a reload");
    opens_session(&gateway, &kept(SECRET), Some("ann")).await;
    assert_eq!(authority.heads().len(), 7);
    let changed = gateway.configuration().replace("\"1m\"", "\"2m\"");
    gateway.reload(&changed).await.expect("a reload");
    opens_session(&gateway, &kept(SECRET), Some("ann")).await;
    assert_eq!(authority.heads().len(), 8);
    drop(authority);
    gateway.finish().await;
}

#[tokio::test]
async fn the_authority_chooses_the_target_and_the_end_of_the_session() {
    let (one, other) = (Backend::echo().await, Backend::echo().await);
    let [first, second] = [&one, &other].map(|backend| format!("tcp://{}", backend.address));
    let target = second.clone();
    let authority = DecidingServer::start(move |head| {
        let desk = if head.contains("elsewhere") { "tcp://127.0.0.1:1" } else { &target };
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("a time after 1970").as_secs();
        let end = if head.contains("late") { now } else { now + 3 };
        Reply::new("200 OK", &[("X-Desk", desk), ("X-End", &end.to_string())])
    })
    .await;
    let route =
        format!("name = \"desk\"\npath = \"/desk\"\nbackend = [{first:?}, {second:?}]\nauth = \"portal\"");
    let gateway = Setup::new()
        .tables(&format!("[[route]]\n{route}"))
        .tables(&table(&authority.url(), "target_header = \"X-Desk\"\nexpires_header = \"X-End\""))
        .start()
        .await;
    let start = Instant::now();
    let mut session = gateway.session("/desk").await;
    session.echo(b"hello").await;
    let (_, code, reason) = session.closed().await;
    assert_eq!(code, Some(1008), "{reason}");
    assert!(start.elapsed() > Duration::from_secs(1) && start.elapsed() < Duration::from_secs(8));
    let end = gateway.ended(session.peer, "credential_expired", Some(1008)).await;
    assert_eq!(end.text("backend"), Some(second.as_str()));
    assert_eq!(one.connections().await, 0);
    let request = |cookie: &str| gateway.upgrade(TLS, "/desk").add("Cookie", cookie);
    let (response, _) = refusal(&gateway, &request("to=elsewhere"), "forbidden").await;
    assert_eq!(response.status, 403);
    let (response, detail) = refusal(&gateway, &request("too=late"), "unauthorized").await;
    assert_eq!((response.status, detail.contains("has ended already")), (401, true), "{detail}");
    drop(authority);
    gateway.finish().await;
}

#[tokio::test]
async fn an_authority_with_tls_must_have_a_certificate_that_is_trusted() {
    let (backend, trusted) = (Backend::echo().await, Authority::new());
    let serve = |mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
        let _ = stream.shutdown().await;
    };
    let good = Server::over_tls(trusted.leaf("localhost").server(&[&TLS13]), serve).await;
    let foreign = Server::over_tls(Authority::new().leaf("localhost").server(&[&TLS13]), serve).await;
    let misnamed = Server::over_tls(trusted.leaf("other.example").server(&[&TLS13]), serve).await;
    let mut setup = Setup::new();
    for (name, server) in [("good", &good), ("foreign", &foreign), ("misnamed", &misnamed)] {
        let url = format!("https://localhost:{}/check", server.port());
        let lines = format!("ca = {:?}", trusted.path());
        setup = setup
            .route_with(name, &format!("/{name}"), &backend, &format!("auth = \"{name}\""))
            .tables(&table(&url, &lines).replace("portal", name));
    }
    let gateway = setup.start().await;
    opens_session(&gateway, &gateway.upgrade(TLS, "/good"), None).await;
    for path in ["/foreign", "/misnamed"] {
        let (_, detail) = refusal(&gateway, &gateway.upgrade(TLS, path), "auth_unavailable").await;
        assert!(detail.contains("certificate"), "{path}: {detail}");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn one_of_several_methods_may_be_an_authority() {
    let (backend, authority) = (
        Backend::echo().await,
        DecidingServer::start(|head| match head.contains(SECRET) {
            true => Reply::new("200 OK", &[("Remote-User", "ann")]),
            false => Reply::new("302 Found", &[("Location", "https://login.example/")]),
        })
        .await,
    );
    let links = "[auth.links]\nkind = \"ticket\"\n[auth.either]\nany = [\"links\", \"portal\"]";
    let gateway = Setup::new()
        .route_with("desk", "/desk", &backend, "auth = \"either\"")
        .tables(links)
        .tables(&table(&authority.url(), "user_header = \"Remote-User\""))
        .start()
        .await;
    opens_session(&gateway, &ann(&gateway), Some("ann")).await;
    // Without any credential the client learns where it can log in; a wrong ticket is a wrong ticket.
    let (response, _) = refusal(&gateway, &gateway.upgrade(TLS, "/desk"), "unauthorized").await;
    assert_eq!((response.status, response.header("Location")), (302, Some("https://login.example/")));
    let (response, detail) = refusal(&gateway, &gateway.upgrade(TLS, "/desk?ticket=x"), "unauthorized").await;
    assert_eq!((response.status, response.header("WWW-Authenticate")), (401, Some("Bearer")), "{detail}");
    drop(authority);
    gateway.finish().await;
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client_the_scheme_and_the_host() {
    let (backend, authority) = (Backend::echo().await, DecidingServer::start(knows_ann).await);
    let gateway = Setup::new()
        .route_with("desk", "/desk", &backend, "auth = \"portal\"\norigins = [\"https://desk.example\"]")
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.1\"]\n")
        .tables(&table(&authority.url(), ""))
        .start()
        .await;
    let request = gateway
        .upgrade(PLAIN, "/desk")
        .with("Origin", "https://desk.example")
        .add("Cookie", SECRET)
        .add("X-Forwarded-For", "192.0.2.7")
        .add("X-Forwarded-Proto", "https")
        .add("X-Forwarded-Host", "desk.example");
    let client = "192.0.2.7:0";
    let connection = gateway.connect_by_proxy(Ipv4Addr::LOCALHOST.into(), client, PLAIN).await;
    gateway.open(connection, &request).await.close(1000).await;
    gateway.ended(client.parse().expect("an address"), "client_closed", Some(1000)).await;
    let head = authority.heads().remove(0);
    for (name, value) in [
        ("X-Forwarded-For", "192.0.2.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "desk.example"),
        ("X-Original-URL", "https://desk.example/desk"),
    ] {
        assert_eq!(fields(&head, name), [value], "{name} in {head}");
    }
    drop(authority);
    gateway.finish().await;
}
