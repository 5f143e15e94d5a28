//! Keys from a server that behaves, and from servers that do not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use jsonwebtoken::Algorithm::ES256;
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    auth::{
        Authenticators,
        jwt::{
            Keys,
            endpoint::{Endpoint, MAX_BODY},
        },
    },
    config::{AuthKind, AuthMethod},
    http_client::HttpClient,
};

/// Longer than anything takes, because the machine may be busy.
const LIMIT: Duration = Duration::from_secs(30);

/// A server that answers every request in the same way, until that is changed.
struct KeyServer {
    url: String,
    requests: Arc<AtomicUsize>,
    /// The whole answer; without one it is silent.
    answer: Arc<Mutex<Option<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl KeyServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let (requests, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None::<Vec<u8>>)));
        let (count, current) = (Arc::clone(&requests), Arc::clone(&answer));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                let (count, current) = (Arc::clone(&count), Arc::clone(&current));
                connections.spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = socket.read_u8().await else { return };
                        head.push(byte);
                    }
                    assert!(
                        head.starts_with(b"GET /keys HTTP/1.1\r\n"),
                        "{}",
                        String::from_utf8_lossy(&head)
                    );
                    count.fetch_add(1, Ordering::SeqCst);
                    let answer = current.lock().clone();
                    match answer {
                        Some(answer) => drop(socket.write_all(&answer).await),
                        None => std::future::pending().await,
                    }
                });
            }
        });
        Self { url, requests, answer, task }
    }

    fn answer(&self, status: &str, body: &str) {
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        *self.answer.lock() = Some([head.as_bytes(), body.as_bytes()].concat());
    }

    /// Serves these keys, with the ids "0", "1" and so on.
    fn serve(&self, signers: &[&Signer]) {
        let keys: Vec<Value> = signers
            .iter()
            .enumerate()
            .map(|(id, signer)| signer.jwk(json!({ "kid": id.to_string() })))
            .collect();
        self.answer("200 OK", &set(&keys));
    }

    fn silence(&self) {
        *self.answer.lock() = None;
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// A method with the keys of this server, and a short time for each fetch.
    fn method(&self) -> JwtMethod {
        let client = HttpClient::new("ca", None, Duration::from_millis(500), MAX_BODY).unwrap();
        let url = self.url.parse().unwrap();
        let endpoint = Endpoint::new("site", client, &url, &[ES256], None);
        JwtMethod {
            config: config(&[ES256], JwtKeys::SetUrl { url, ca: None }),
            keys: Keys::Endpoint(Box::new(endpoint)),
        }
    }
}

fn token(signer: &Signer, id: &str) -> String {
    signer.token(&json!({ "alg": "ES256", "kid": id }), &claims())
}

#[track_caller]
fn unavailable(result: Result<Grant, Denied>) -> String {
    match result {
        Err(Denied::Unavailable { detail }) => detail,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn until_the_keys_are_there_nothing_is_known_of_a_token() {
    let (server, signer) = (KeyServer::start().await, Signer::p256());
    let method = server.method();
    let detail = unavailable(method.verify(&token(&signer, "0"), now()).await);
    assert_eq!(detail, "the key set has not been fetched yet");
    // What no key could make valid is refused nevertheless.
    refused(method.verify("x.y.z", now()).await);
    server.serve(&[&signer]);
    fetch(&method).await;
    assert!(method.verify(&token(&signer, "0"), now()).await.is_ok());
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_server_that_fails_changes_nothing() {
    let (server, signer) = (KeyServer::start().await, Signer::p256());
    let elsewhere = KeyServer::start().await;
    elsewhere.serve(&[&Signer::p256()]);
    let method = server.method();
    server.serve(&[&signer]);
    fetch(&method).await;
    let redirect = format!("HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", elsewhere.url);
    let endless = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b' '; MAX_BODY + 1]].concat();
    let headers = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 1 << 20], b"\r\n\r\n".to_vec()].concat();
    for answer in [
        Some(redirect.into_bytes()),
        Some(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_vec()),
        Some(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        Some(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec()),
        Some(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"keys\":[]}".to_vec()),
        Some(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"keys\":[".to_vec()),
        Some(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{\"keys\":[".to_vec()),
        Some(endless),
        Some(headers),
        Some(b"nonsense\r\n\r\n".to_vec()),
        Some(Vec::new()),
        None,
    ] {
        let shown = answer
            .as_ref()
            .map(|answer| String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned());
        *server.answer.lock() = answer;
        timeout(LIMIT, fetch(&method)).await.unwrap_or_else(|_| panic!("{shown:?}: not over"));
        assert!(method.verify(&token(&signer, "0"), now()).await.is_ok(), "{shown:?}");
        let Keys::Endpoint(endpoint) = &method.keys else { unreachable!() };
        assert!(endpoint.is_failing(), "{shown:?}");
    }
    *server.answer.lock() =
        Some(b"HTTP/1.1 301 Moved Permanently\r\nLocation: /\r\nContent-Length: 0\r\n\r\n".to_vec());
    let Keys::Endpoint(endpoint) = &method.keys else { unreachable!() };
    let error = endpoint.update().await.unwrap_err().to_string();
    assert!(error.contains("redirects are not followed, set the URL where the key set is"), "{error}");
    assert_eq!(elsewhere.requests(), 0, "the redirect was not followed");
    server.serve(&[&signer]);
    fetch(&method).await;
    assert!(!endpoint.is_failing());
}

#[tokio::test]
async fn a_new_key_is_fetched_for_the_first_token_that_names_it() {
    let (server, old, new) = (KeyServer::start().await, Signer::p256(), Signer::p256());
    server.serve(&[&old]);
    let method = Arc::new(server.method());
    let stop = CancellationToken::new();
    let task = {
        let (method, stop) = (Arc::clone(&method), stop.clone());
        tokio::spawn(async move { method.watch(stop).await })
    };
    wait_for("the first key set", || method.keys.current().is_some()).await;
    server.serve(&[&old, &new]);
    // A hundred at the same time: all of them are valid, and one fetch is enough.
    let mut checks = JoinSet::new();
    for _ in 0..100 {
        let (method, token) = (Arc::clone(&method), token(&new, "1"));
        checks.spawn(async move { method.verify(&token, now()).await });
    }
    for result in checks.join_all().await {
        result.unwrap();
    }
    assert!(method.verify(&token(&old, "0"), now()).await.is_ok());
    assert_eq!(server.requests(), 2);
    // Then other unknown keys cause no fetch: the set has just been fetched for one.
    let attacker = Signer::p256();
    for id in 0..1000 {
        let detail =
            refused(method.verify(&token(&attacker, &format!("https://x.example/{id}")), now()).await);
        assert_eq!(detail, "the token is signed with a key that is not in the key set");
    }
    assert_eq!(server.requests(), 2);
    stop.cancel();
    timeout(LIMIT, task).await.expect("the task ends").unwrap();
}

#[tokio::test]
async fn an_unknown_key_while_the_server_is_silent_is_neither_valid_nor_invalid() {
    let (server, signer) = (KeyServer::start().await, Signer::p256());
    server.serve(&[&signer]);
    let method = Arc::new(server.method());
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let watched = Arc::clone(&method);
    tokio::spawn(async move { watched.watch(stop).await });
    wait_for("the first key set", || method.keys.current().is_some()).await;
    server.silence();
    let start = Instant::now();
    let detail = unavailable(method.verify(&token(&Signer::p256(), "1"), now()).await);
    assert_eq!(detail, "the key set may be out of date, and cannot be fetched");
    assert!(start.elapsed() < LIMIT);
    // Meanwhile the keys that are known verify without waiting.
    assert!(method.verify(&token(&signer, "0"), now()).await.is_ok());
}

#[tokio::test]
async fn keys_that_change_at_every_fetch_are_fetched_no_more_often() {
    let server = KeyServer::start().await;
    let method = Arc::new(server.method());
    let first = Signer::p256();
    server.serve(&[&first]);
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let watched = Arc::clone(&method);
    tokio::spawn(async move { watched.watch(stop).await });
    wait_for("the first key set", || method.keys.current().is_some()).await;
    for round in 0..20 {
        let signer = Signer::p256();
        server.answer("200 OK", &set(&[signer.jwk(json!({ "kid": format!("new {round}") }))]));
        let is_valid = method.verify(&token(&signer, &format!("new {round}")), now()).await.is_ok();
        assert_eq!(is_valid, round == 0, "only the first change is fetched at once");
    }
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn a_reload_keeps_the_keys_of_a_table_that_is_the_same() {
    let (server, signer) = (KeyServer::start().await, Signer::p256());
    server.serve(&[&signer]);
    let at = |path: &str, ca| {
        let url = format!("{}{path}", server.url).parse().unwrap();
        let jwt = config(&[ES256], JwtKeys::SetUrl { url, ca });
        vec![AuthMethod { name: "site".into(), kind: AuthKind::Jwt(Box::new(jwt)) }]
    };
    let first = Authenticators::load(&at("", None), &[], None, &Arc::default(), None).unwrap();
    let only = |authenticators: &Authenticators| Arc::clone(authenticators.watched().next().unwrap());
    let crate::auth::Method::Jwt(method) = &*only(&first) else { panic!() };
    fetch(method).await;
    let same = Authenticators::load(&at("", None), &[], None, &Arc::default(), Some(&first)).unwrap();
    assert!(Arc::ptr_eq(&only(&first), &only(&same)), "the task goes on");
    let other = Authenticators::load(&at("?other", None), &[], None, &Arc::default(), Some(&first)).unwrap();
    let crate::auth::Method::Jwt(method) = &*only(&other) else { panic!() };
    unavailable(method.verify(&token(&signer, "0"), now()).await);
    // With a file in the table, the file is read again, and the keys are kept.
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    let certificate = rcgen::generate_simple_self_signed(vec!["id.example".into()]).unwrap();
    std::fs::write(&ca, certificate.cert.pem()).unwrap();
    let before = Authenticators::load(&at("", Some(ca.clone())), &[], None, &Arc::default(), None).unwrap();
    let crate::auth::Method::Jwt(method) = &*only(&before) else { panic!() };
    fetch(method).await;
    let after =
        Authenticators::load(&at("", Some(ca.clone())), &[], None, &Arc::default(), Some(&before)).unwrap();
    assert!(!Arc::ptr_eq(&only(&before), &only(&after)));
    let crate::auth::Method::Jwt(method) = &*only(&after) else { panic!() };
    assert!(method.verify(&token(&signer, "0"), now()).await.is_ok());
    std::fs::write(&ca, "nothing").unwrap();
    let error = Authenticators::load(&at("", Some(ca)), &[], None, &Arc::default(), Some(&after))
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("auth.site: ca "), "{error}");
}

async fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
