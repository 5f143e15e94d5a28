//! `[web] auth`: files that only some clients may read.

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use super::authority::{DecidingServer, Reply};
use super::{HASH, opens_session, password_of};
use crate::support::{Backend, Gateway, Request, Response, Setup, TLS, read_response};

const PAGE: &str = "<!doctype html><title>viewer</title>";

/// A root with a page, and files beside it.
fn site() -> TempDir {
    let directory = TempDir::new().expect("a directory");
    let root = directory.path().join("web");
    std::fs::create_dir_all(root.join(".well-known")).expect("a directory");
    std::fs::write(root.join("index.html"), PAGE).expect("a file");
    std::fs::write(root.join(".well-known/security.txt"), "Contact").expect("a file");
    std::fs::write(directory.path().join("team.htpasswd"), format!("ann:{HASH}\n")).expect("a file");
    std::fs::write(directory.path().join("secret"), "a secret of exactly 32 bytes....").expect("a file");
    directory
}

fn web(directory: &TempDir, auth: &str) -> String {
    format!("[web]\nroot = {:?}\nauth = {auth}\n", directory.path().join("web"))
}

fn team(directory: &TempDir) -> String {
    format!("[auth.team]\nkind = \"basic\"\nfile = {:?}\n", directory.path().join("team.htpasswd"))
}

fn get(gateway: &Gateway, line: &str) -> Request {
    Request::new(&format!("{line} HTTP/1.1")).add("Host", &gateway.host(TLS))
}

/// The response to one request on a connection of its own, and the user in the log.
async fn response(gateway: &Gateway, request: &Request, reason: &str) -> (Response, Option<String>) {
    let mut connection = gateway.connect(TLS).await;
    let peer = connection.peer();
    connection.write_all(&request.bytes()).await.expect("the request is sent");
    connection.flush().await.expect("the request is sent");
    let is_head = request.bytes().starts_with(b"HEAD");
    let response = read_response(&mut connection, !is_head).await;
    drop(connection);
    let end = gateway.refused(peer, reason).await;
    (response, end.text("user").map(str::to_owned))
}

#[tokio::test]
async fn files_behind_a_password_are_for_its_users() {
    let (backend, directory) = (Backend::echo().await, site());
    let gateway = Setup::new()
        .route("open", &backend)
        .route_with("desk", "/desk", &backend, "auth = \"team\"")
        .tables(&format!("{}{}", team(&directory), web(&directory, "\"team\"")))
        .start()
        .await;
    let right = password_of("ann", "secret");
    for line in ["GET /", "GET /index.html", "HEAD /index.html", "GET /.well-known/security.txt"] {
        let request = get(&gateway, line);
        let (refused, _) = response(&gateway, &request, "unauthorized").await;
        assert_eq!(refused.status, 401, "{line}");
        assert_eq!(
            refused.header("WWW-Authenticate"),
            Some("Basic realm=\"portcullis\", charset=\"UTF-8\""),
            "{line}"
        );
        assert!(!String::from_utf8_lossy(&refused.body).contains("viewer"), "{line}");
        let (wrong, _) =
            response(&gateway, &request.add("Authorization", &password_of("ann", "x")), "unauthorized").await;
        assert_eq!(wrong.status, 401, "{line}");
        let request = get(&gateway, line).add("Authorization", &right);
        let (served, user) = response(&gateway, &request, "served").await;
        assert_eq!((served.status, user.as_deref()), (200, Some("ann")), "{line}: {served:?}");
        assert_eq!(served.header("Cache-Control"), Some("private, no-cache"), "{line}");
    }
    let (page, _) = response(&gateway, &get(&gateway, "GET /").add("Authorization", &right), "served").await;
    assert_eq!(page.text(), PAGE);
    // Whether a file exists is for users, too.
    for line in ["GET /nothing", "GET /team.htpasswd", "POST /"] {
        assert_eq!(response(&gateway, &get(&gateway, line), "unauthorized").await.0.status, 401, "{line}");
    }
    let nothing = get(&gateway, "GET /nothing").add("Authorization", &right);
    assert_eq!(response(&gateway, &nothing, "unknown_route").await.0.status, 404);
    // Routes have their own rules.
    opens_session(&gateway, &gateway.upgrade(TLS, "/open"), None).await;
    opens_session(&gateway, &gateway.upgrade(TLS, "/desk").add("Authorization", &right), Some("ann")).await;
    assert!(!gateway.raw_log().contains(&right["Basic ".len()..]), "a password is in the log");
    gateway.finish().await;
}

#[tokio::test]
async fn each_file_on_a_connection_is_checked() {
    let (backend, directory) = (Backend::echo().await, site());
    let gateway = Setup::echo(&backend)
        .tables(&format!("{}{}", team(&directory), web(&directory, "[\"team\"]")))
        .start()
        .await;
    let mut connection = gateway.connect(TLS).await;
    let peer = connection.peer();
    let right = get(&gateway, "GET /").add("Authorization", &password_of("ann", "secret"));
    for (request, status) in [(&right, 200), (&right, 200), (&get(&gateway, "GET /"), 401)] {
        connection.write_all(&request.bytes()).await.expect("the request is sent");
        connection.flush().await.expect("the request is sent");
        assert_eq!(read_response(&mut connection, true).await.status, status);
    }
    let end = gateway.refused(peer, "unauthorized").await;
    assert_eq!(end.text("user"), None, "the last request was nobody's");
    gateway.finish().await;
}

#[tokio::test]
async fn an_authority_redirects_to_its_login_page() {
    let (backend, directory) = (Backend::echo().await, site());
    let authority = DecidingServer::start(|head| match head.contains("session=ann") {
        true => Reply::new("200 OK", &[("Remote-User", "ann")]),
        false => Reply::new("302 Found", &[("Location", "https://login.example/"), ("Set-Cookie", "csrf=1")]),
    })
    .await;
    let portal = format!(
        "[auth.portal]\nkind = \"forward\"\nurl = {:?}\nuser_header = \"Remote-User\"\n",
        authority.url()
    );
    let gateway =
        Setup::echo(&backend).tables(&format!("{portal}{}", web(&directory, "\"portal\""))).start().await;
    let request = get(&gateway, "GET /index.html?a=b").add("Accept", "text/html");
    let (redirected, _) = response(&gateway, &request, "unauthorized").await;
    assert_eq!((redirected.status, redirected.header("Location")), (302, Some("https://login.example/")));
    assert_eq!(redirected.header("Set-Cookie"), Some("csrf=1"));
    let (served, user) = response(&gateway, &request.add("Cookie", "session=ann"), "served").await;
    assert_eq!((served.status, served.text(), user.as_deref()), (200, PAGE, Some("ann")));
    let (head, _) = response(&gateway, &get(&gateway, "HEAD /").add("Cookie", "session=ann"), "served").await;
    assert_eq!(head.status, 200);
    let heads = authority.heads();
    let first = heads[0].to_ascii_lowercase();
    assert!(first.contains("x-forwarded-uri: /index.html?a=b\r\n"), "{first}");
    assert!(
        first.contains("accept: text/html\r\n") && first.contains("x-forwarded-method: get\r\n"),
        "{first}"
    );
    assert!(
        heads[2].starts_with("GET ") && heads[2].to_ascii_lowercase().contains("method: head"),
        "{heads:?}"
    );
    drop(authority);
    gateway.finish().await;
}

#[tokio::test]
async fn a_token_for_routes_only_or_one_that_is_denied_reads_no_file() {
    let (backend, directory) = (Backend::echo().await, site());
    let secret = directory.path().join("secret");
    let kind = format!("kind = \"jwt\"\nalgorithms = [\"HS256\"]\nsecret_file = {secret:?}\n");
    let tables = format!(
        "[auth.site]\n{kind}[auth.places]\n{kind}routes_claim = \"routes\"\nfrom = [\"cookie:places\"]\n[auth.either]\nany = [\"places\", \"site\"]\n"
    );
    let gateway = Setup::echo(&backend)
        .admin()
        .tables(&format!("{tables}{}", web(&directory, "\"either\"")))
        .start()
        .await;
    let token = |jti: &str| {
        let claims = json!({ "sub": "ann", "exp": 4_000_000_000_u64, "jti": jti, "routes": ["echo"] });
        let key = EncodingKey::from_secret(b"a secret of exactly 32 bytes....");
        encode(&Header::default(), &claims, &key).expect("a token")
    };
    let bearer = |jti: &str| get(&gateway, "GET /").add("Authorization", &format!("Bearer {}", token(jti)));
    let (served, user) = response(&gateway, &bearer("1"), "served").await;
    assert_eq!((served.status, user.as_deref()), (200, Some("ann")));
    let places = get(&gateway, "GET /").add("Cookie", &format!("places={}", token("1")));
    assert_eq!(response(&gateway, &places, "forbidden").await.0.status, 403);
    let denied =
        gateway.request("POST", "/api/denied", "{\"jti\": \"1\", \"until\": \"2030-01-01T00:00:00Z\"}").await;
    assert!(matches!(denied.status, 200..=299), "{denied:?}");
    assert_eq!(response(&gateway, &bearer("1"), "unauthorized").await.0.status, 401);
    assert_eq!(response(&gateway, &bearer("2"), "served").await.0.status, 200);
    gateway.finish().await;
}
