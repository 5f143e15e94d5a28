//! `kind = "jwt"`: which tokens open a session, what the others get, and when a session ends.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PublicKeyData};
use rustls::version::TLS13;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::backends::authority::{Authority, Server};
use crate::support::{Backend, Gateway, Request, Session, Setup, TLS, read_to_end, send_request, within};

/// Signs tokens with ES256.
struct Signer {
    pair: KeyPair,
    id: Option<&'static str>,
}

impl Signer {
    fn new() -> Self {
        Self { pair: KeyPair::generate().expect("a key"), id: None }
    }

    fn named(id: &'static str) -> Self {
        Self { id: Some(id), ..Self::new() }
    }

    fn token(&self, claims: &Value) -> String {
        let key = EncodingKey::from_ec_der(self.pair.serialized_der());
        let header = Header { kid: self.id.map(str::to_owned), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &key).expect("a token")
    }

    /// The public key as a JSON Web Key.
    fn jwk(&self) -> Value {
        let point = &self.pair.der_bytes()[1..];
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id,
            "x": base64(&point[..32]), "y": base64(&point[32..]),
        })
    }
}

/// As in tokens and keys (RFC 7515 §2).
fn base64(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("a time after 1970").as_secs()
}

/// Claims of a user that are valid for a minute.
fn claims() -> Value {
    json!({ "sub": "ann", "iss": "https://id.example", "aud": "portcullis", "exp": now() + 60 })
}

fn with(changes: Value) -> Value {
    let mut claims = claims();
    for (claim, value) in changes.as_object().expect("claims") {
        claims[claim] = value.clone();
    }
    claims
}

/// `[auth.NAME]` with the key of `signer`, written to `directory`.
fn table(name: &str, signer: &Signer, directory: &TempDir, lines: &str) -> String {
    let path = directory.path().join("site.pem");
    std::fs::write(&path, signer.pair.public_key_pem()).expect("a file");
    format!(
        "[auth.{name}]\nkind = \"jwt\"\nalgorithms = [\"ES256\"]\nkey = {path:?}\nleeway = \"0s\"\nissuer = \"https://id.example\"\naudience = \"portcullis\"\nfrom = [\"header\", \"cookie:session\", \"query:token\", \"subprotocol:bearer.\"]\n{lines}\n"
    )
}

async fn opened(gateway: &Gateway, request: &Request, backend: &Backend) {
    let mut session = gateway.open(gateway.connect(TLS).await, request).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
    assert_eq!(end.text("user"), Some("ann"), "{end:?}");
    assert_eq!(end.text("backend"), Some(format!("tcp://{}", backend.address).as_str()));
}

/// The whole response to a request that is refused, without its date, and the detail in the log.
async fn refused(gateway: &Gateway, request: &Request, reason: &str) -> (String, String) {
    let mut connection = gateway.connect(TLS).await;
    let peer = connection.peer();
    within("the gateway to take the head", connection.write_all(&request.bytes())).await.expect("a request");
    connection.flush().await.expect("a request");
    let (reply, _) = read_to_end(&mut connection).await;
    let reply = String::from_utf8(reply).expect("text");
    let end = gateway.refused(peer, reason).await;
    let lines = reply.split_inclusive("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("date:"));
    (lines.collect(), end.text("detail").unwrap_or_default().to_owned())
}

/// No part of these tokens is in the log.
#[track_caller]
fn assert_not_logged(gateway: &Gateway, tokens: &[String]) {
    let log = gateway.raw_log();
    for token in tokens {
        for part in token.split('.').filter(|part| part.len() > 8) {
            assert!(!log.contains(part), "{part} of {token} is in the log");
        }
    }
}

#[tokio::test]
async fn a_token_in_any_configured_place_opens_a_session() {
    let (backend, signer, directory) =
        (Backend::echo().await, Signer::new(), TempDir::new().expect("a directory"));
    let setup = Setup::new().route_with("desk", "/desk", &backend, "auth = \"site\"");
    let gateway = setup.tables(&table("site", &signer, &directory, "")).start().await;
    let token = signer.token(&claims());
    let upgrade = |target: &str| gateway.upgrade(TLS, target);
    for request in [
        upgrade("/desk").add("Authorization", &format!("Bearer {token}")),
        upgrade("/desk").add("Cookie", &format!("theme=dark; session={token}")),
        upgrade(&format!("/desk?a=1&token={token}")),
        upgrade("/desk").add("Sec-WebSocket-Protocol", &format!("bearer.{token}")),
    ] {
        opened(&gateway, &request, &backend).await;
    }
    // The agreed subprotocol is one that was offered beside the token, and never the token.
    for (offers, agreed) in [
        (format!("bearer.{token}, binary"), Some("binary")),
        (format!("chat, bearer.{token}"), Some("chat")),
        (format!("bearer.{token}"), None),
    ] {
        let mut connection = gateway.connect(TLS).await;
        let peer = connection.peer();
        let response =
            send_request(&mut connection, &upgrade("/desk").add("Sec-WebSocket-Protocol", &offers)).await;
        assert_eq!((response.status, response.header("Sec-WebSocket-Protocol")), (101, agreed));
        Session::new(connection, peer, &response.rest).close(1000).await;
        gateway.ended(peer, "client_closed", Some(1000)).await;
    }
    // A valid token does not replace the Origin.
    let stolen =
        upgrade("/desk").with("Origin", "https://evil.example").add("Cookie", &format!("session={token}"));
    refused(&gateway, &stolen, "origin_refused").await;
    assert_not_logged(&gateway, &[token]);
    gateway.finish().await;
}

#[tokio::test]
async fn every_invalid_token_gets_the_same_401() {
    let (backend, signer, directory) =
        (Backend::echo().await, Signer::new(), TempDir::new().expect("a directory"));
    let setup = Setup::new().route_with("desk", "/desk", &backend, "auth = \"site\"");
    let gateway = setup.tables(&table("site", &signer, &directory, "")).start().await;
    let good = signer.token(&claims());
    let unsigned =
        |header: &str| format!("{}.{}.", base64(header.as_bytes()), base64(claims().to_string().as_bytes()));
    let public = signer.pair.public_key_pem();
    let confused =
        encode(&Header::new(Algorithm::HS256), &claims(), &EncodingKey::from_secret(public.as_bytes()));
    let mut without_expiry = claims();
    without_expiry.as_object_mut().expect("claims").remove("exp");
    let tokens = [
        unsigned("{\"alg\":\"none\"}"),
        unsigned("{\"alg\":\"ES256\"}"),
        confused.expect("a token"),
        Signer::new().token(&claims()),
        Signer::named("../../etc/passwd").token(&claims()),
        Signer::named("http://127.0.0.1:1/keys").token(&claims()),
        signer.token(&without_expiry),
        signer.token(&with(json!({ "exp": (now() + 60).to_string() }))),
        signer.token(&with(json!({ "exp": now() - 1 }))),
        signer.token(&with(json!({ "nbf": now() + 3600 }))),
        signer.token(&with(json!({ "iss": "https://evil.example" }))),
        signer.token(&with(json!({ "aud": "another" }))),
        signer.token(&with(json!({ "sub": 7 }))),
        format!("{good}x"),
        "x".repeat(8193),
        "nonsense".to_owned(),
    ];
    let mut responses = BTreeSet::new();
    let mut details = BTreeSet::new();
    for token in &tokens {
        let request = gateway.upgrade(TLS, "/desk").add("Authorization", &format!("Bearer {token}"));
        let (response, detail) = refused(&gateway, &request, "unauthorized").await;
        responses.insert(response);
        details.insert(detail);
    }
    let upgrade = || gateway.upgrade(TLS, "/desk");
    for request in [
        upgrade(),
        upgrade().add("Cookie", &format!("session={good}; session={good}")),
        upgrade().line(&format!("GET /desk?token={good}&token={good} HTTP/1.1")),
        upgrade().add("Authorization", &format!("Basic {good}")),
        upgrade().add("X-User", "root").add("sUb", "root"),
    ] {
        let (response, detail) = refused(&gateway, &request, "unauthorized").await;
        responses.insert(response);
        details.insert(detail);
    }
    assert_eq!(responses.len(), 1, "{responses:#?}");
    assert!(responses.iter().all(|response| response.starts_with("HTTP/1.1 401 ")), "{responses:#?}");
    assert!(details.len() > 8, "the log tells them apart: {details:#?}");
    assert_eq!(backend.connections().await, 0, "the backend hears nothing of them");
    assert_not_logged(&gateway, &tokens[..15]);
    gateway.finish().await;
}

#[tokio::test]
async fn a_known_user_may_enter_only_where_the_token_says() {
    let (one, other) = (Backend::echo().await, Backend::echo().await);
    let (signer, directory) = (Signer::new(), TempDir::new().expect("a directory"));
    let url = |backend: &Backend| format!("tcp://{}", backend.address);
    let tables = [
        table("staff", &signer, &directory, "required_claims = { role = [\"staff\", \"admin\"] }"),
        table("places", &signer, &directory, "routes_claim = \"routes\""),
        table("targets", &signer, &directory, "target_claim = \"desk\""),
    ];
    let many = format!("name = \"many\"\npath = \"/many\"\nbackend = [{:?}, {:?}]", url(&one), url(&other));
    let gateway = Setup::new()
        .route_with("staff", "/staff", &one, "auth = \"staff\"")
        .route_with("places", "/places", &one, "auth = \"places\"")
        .tables(&format!("[[route]]\n{many}\nauth = \"targets\"\n{}", tables.concat()))
        .start()
        .await;
    let request = |path: &str, changes: Value| {
        let token = signer.token(&with(changes));
        gateway.upgrade(TLS, path).add("Authorization", &format!("Bearer {token}"))
    };
    opened(&gateway, &request("/staff", json!({ "role": ["user", "admin"] })), &one).await;
    opened(&gateway, &request("/places", json!({ "routes": ["staff", "places"] })), &one).await;
    for backend in [&one, &other, &one, &other] {
        opened(&gateway, &request("/many", json!({ "desk": url(backend) })), backend).await;
    }
    for (path, changes, expected) in [
        ("/staff", json!({}), "the claim \"role\" has none of the required values"),
        ("/staff", json!({ "role": "user" }), "the claim \"role\" has none of the required values"),
        ("/places", json!({ "routes": ["staff"] }), "the credential is not for this route"),
        ("/places", json!({ "routes": [] }), "the credential is not for this route"),
        ("/many", json!({ "desk": "tcp://127.0.0.1:1" }), "a target that the route does not have"),
    ] {
        let (response, detail) = refused(&gateway, &request(path, changes), "forbidden").await;
        assert!(response.starts_with("HTTP/1.1 403 ") && detail.contains(expected), "{detail}\n{response}");
    }
    // Without the claim that limits it, a token is not valid.
    for path in ["/places", "/many"] {
        refused(&gateway, &request(path, json!({})), "unauthorized").await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_session_ends_when_its_token_expires() {
    let (backend, signer, directory) =
        (Backend::echo().await, Signer::new(), TempDir::new().expect("a directory"));
    let gateway = Setup::new()
        .route_with("desk", "/desk", &backend, "auth = \"site\"")
        .route_with("short", "/short", &backend, "auth = \"limited\"")
        .tables(&table("site", &signer, &directory, ""))
        .tables(&table("limited", &signer, &directory, "max_session_claim = \"max\""))
        .start()
        .await;
    for (path, changes) in [("/desk", json!({ "exp": now() + 3 })), ("/short", json!({ "max": 2 }))] {
        let start = Instant::now();
        let token = signer.token(&with(changes));
        let request = gateway.upgrade(TLS, path).add("Cookie", &format!("session={token}"));
        let mut session = gateway.open(gateway.connect(TLS).await, &request).await;
        session.echo(b"hello").await;
        let (data, code, reason) = session.closed().await;
        let took = start.elapsed();
        assert_eq!((data.len(), code), (0, Some(1008)), "{reason}");
        assert!(reason.contains("expired"), "{reason}");
        assert!(took > Duration::from_secs(1) && took < Duration::from_secs(3 + 5), "{path} after {took:?}");
        let end = gateway.ended(session.peer, "credential_expired", Some(1008)).await;
        assert_eq!(end.text("user"), Some("ann"));
        assert_not_logged(&gateway, &[token]);
    }
    gateway.finish().await;
}

/// What a server of keys answers at the moment.
type KeySet = Arc<Mutex<String>>;

/// Answers requests on one connection with the current keys.
async fn serve_keys<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, keys: KeySet) {
    let mut head = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        head.push(byte);
        if head.ends_with(b"\r\n\r\n") {
            let keys = keys.lock().expect("no panic").clone();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{keys}", keys.len());
            if stream.write_all(answer.as_bytes()).await.is_err() || stream.flush().await.is_err() {
                return;
            }
            head.clear();
        }
    }
}

fn key_set(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() }).to_string()
}

fn from_url(url: &str, lines: &str) -> String {
    format!(
        "[auth.site]\nkind = \"jwt\"\nalgorithms = [\"ES256\"]\njwks = {url:?}\naudience = \"portcullis\"\n{lines}\n"
    )
}

async fn until_fetched(gateway: &Gateway) {
    let is_fetched = |line: &Value| line["message"] == "key set fetched";
    gateway.until("the key set", |lines| lines.iter().any(is_fetched).then_some(())).await;
}

#[tokio::test]
async fn keys_are_rotated_under_load_and_no_valid_token_is_refused() {
    let (backend, authority) = (Backend::echo().await, Authority::new());
    let (old, new) = (Arc::new(Signer::named("old")), Arc::new(Signer::named("new")));
    let keys: KeySet = Arc::new(Mutex::new(key_set(&[&old])));
    let current = Arc::clone(&keys);
    let server = Server::over_tls(authority.leaf("localhost").server(&[&TLS13]), move |stream| {
        serve_keys(stream, Arc::clone(&current))
    })
    .await;
    let url = format!("https://localhost:{}/keys.json", server.port());
    let ca = format!("ca = {:?}", authority.path());
    let setup = Setup::new().route_with("desk", "/desk", &backend, "auth = \"site\"");
    let gateway = setup.tables(&from_url(&url, &ca)).start().await;
    until_fetched(&gateway).await;
    let gateway = Arc::new(gateway);
    let mut clients = JoinSet::new();
    for client in 0..4 {
        let (gateway, old, new, keys) =
            (Arc::clone(&gateway), Arc::clone(&old), Arc::clone(&new), Arc::clone(&keys));
        clients.spawn(async move {
            for round in 0..8 {
                if client == 0 && round == 3 {
                    *keys.lock().expect("no panic") = key_set(&[&old, &new]);
                }
                let is_rotated = keys.lock().expect("no panic").contains("\"new\"");
                let signer = if is_rotated && round % 2 == 0 { &new } else { &old };
                let bearer = format!("Bearer {}", signer.token(&claims()));
                let request = gateway.upgrade(TLS, "/desk").add("Authorization", &bearer);
                let mut session = gateway.open(gateway.connect(TLS).await, &request).await;
                session.echo(b"hello").await;
                session.close(1000).await;
                gateway.ended(session.peer, "client_closed", Some(1000)).await;
            }
        });
    }
    for client in clients.join_all().await {
        let () = client;
    }
    // The old key is gone, and the server too: a reload keeps what was fetched for the same table.
    drop(server);
    let bearer = format!("Bearer {}", new.token(&claims()));
    let request = gateway.upgrade(TLS, "/desk").add("Authorization", &bearer);
    gateway.reload_again().await.expect("a reload");
    opened(&gateway, &request, &backend).await;
    Arc::into_inner(gateway).expect("no client").finish().await;
}

#[tokio::test]
async fn without_keys_it_cannot_be_found_out_whether_a_token_is_valid() {
    let (backend, signer) = (Backend::echo().await, Signer::named("a"));
    let keys: KeySet = Arc::new(Mutex::new("not yet".to_owned()));
    let current = Arc::clone(&keys);
    let server = Server::start(move |stream| serve_keys(stream, Arc::clone(&current))).await;
    let url = format!("http://{}/keys.json", server.address);
    let setup = Setup::new().route_with("desk", "/desk", &backend, "auth = \"site\"");
    let gateway = setup.tables(&from_url(&url, "")).start().await;
    let failed = |line: &Value| {
        line["message"]
            .as_str()
            .is_some_and(|message| message.starts_with("key set not fetched"))
            .then(|| line.clone())
    };
    let line = gateway.until("the first failure", |lines| lines.iter().find_map(failed)).await;
    assert_eq!(
        line["detail"],
        "what the server sent cannot be used: it is no JSON Web Key Set; it should begin with {\"keys\":["
    );
    let bearer = format!("Bearer {}", signer.token(&claims()));
    let request = gateway.upgrade(TLS, "/desk").add("Authorization", &bearer);
    let (response, _) = refused(&gateway, &request, "auth_unavailable").await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(response.to_ascii_lowercase().contains("\r\nretry-after: "), "{response}");
    // Without a token there is nothing to find out.
    refused(&gateway, &gateway.upgrade(TLS, "/desk"), "unauthorized").await;
    // It is tried again without a reload.
    *keys.lock().expect("no panic") = key_set(&[&signer]);
    until_fetched(&gateway).await;
    opened(&gateway, &request, &backend).await;
    gateway.finish().await;
}

#[tokio::test]
async fn keys_that_cannot_be_used_stop_the_start_and_change_nothing_at_a_reload() {
    let (backend, signer, directory) =
        (Backend::echo().await, Signer::new(), TempDir::new().expect("a directory"));
    let setup = Setup::new().route_with("desk", "/desk", &backend, "auth = \"site\"");
    let gateway = setup.tables(&table("site", &signer, &directory, "")).start().await;
    let good = gateway.configuration();
    let error = gateway.reload(&good.replace("[\"ES256\"]", "[\"RS256\"]")).await.expect_err("another type");
    assert!(
        error.contains("auth.site: key: ") && error.contains("its key is for ECDSA with P-256, and RS256"),
        "{error}"
    );
    let error = gateway.reload(&good.replace("[\"ES256\"]", "[\"none\"]")).await.expect_err("no signature");
    assert!(error.contains("a token without a signature proves nothing"), "{error}");
    let bearer = format!("Bearer {}", signer.token(&claims()));
    opened(&gateway, &gateway.upgrade(TLS, "/desk").add("Authorization", &bearer), &backend).await;
    gateway.finish().await;
}
