//! nginx as the server of a key set over TLS: the issuer changes its key while clients connect.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::authority::Authority;
use crate::server::{Server, find, free_port};
use crate::support::{Backend, Gateway, Setup, TLS, send_request};

/// The clients that connect at the same time, and the sessions that each opens in each part of the rotation.
const CLIENTS: usize = 6;
const SESSIONS: usize = 8;

/// A key of the issuer.
struct Signer {
    pair: KeyPair,
    id: &'static str,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        Self { pair: KeyPair::generate().expect("a key"), id }
    }

    /// A token that is valid for a minute.
    fn token(&self) -> String {
        let key = EncodingKey::from_ec_der(self.pair.serialized_der());
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("a time after 1970").as_secs();
        encode(&header, &json!({ "sub": "ann", "aud": "portcullis", "exp": now + 60 }), &key)
            .expect("a token")
    }

    fn jwk(&self) -> Value {
        let point = &self.pair.der_bytes()[1..];
        let [x, y] = [&point[..32], &point[32..]].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
        json!({ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id, "x": x, "y": y })
    }
}

/// Replaces the key set that nginx serves, at once.
fn publish(directory: &TempDir, signers: &[&Signer]) {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    let (new, current) = (directory.path().join("keys.new"), directory.path().join("web/keys.json"));
    std::fs::write(&new, json!({ "keys": keys }).to_string()).expect("a file");
    std::fs::rename(new, current).expect("a file");
}

/// What nginx has answered: the protocol, the status and the path of each request.
fn answered(directory: &TempDir) -> Vec<String> {
    let log = std::fs::read_to_string(directory.path().join("access.log")).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

fn start(program: &Path, directory: &TempDir, authority: &Authority, port: u16) -> Server {
    let here = directory.path().display();
    let (certificate, key) = authority.write("id", &authority.leaf("localhost"));
    let text = format!(
        "daemon off;\nmaster_process off;\npid {here}/nginx.pid;\nerror_log stderr info;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n  log_format fetch '$ssl_protocol $status $request_uri';\n  access_log {here}/access.log fetch;\n  \
         client_body_temp_path {here}/a;\n  proxy_temp_path {here}/b;\n  \
         fastcgi_temp_path {here}/c;\n  uwsgi_temp_path {here}/d;\n  scgi_temp_path {here}/e;\n  \
         server {{\n    listen 127.0.0.1:{port} ssl;\n    ssl_protocols TLSv1.3;\n    \
         ssl_certificate {};\n    ssl_certificate_key {};\n    root {here}/web;\n  }}\n}}\n",
        certificate.display(),
        key.display()
    );
    let config = directory.path().join("nginx.conf");
    std::fs::write(&config, text).expect("a file");
    let text = |path: &Path| path.to_str().expect("a path of text").to_owned();
    let (prefix, config) = (text(directory.path()), text(&config));
    let arguments = ["-e", "stderr", "-p", &prefix, "-c", &config];
    Server::start(program, &arguments, directory, &[port])
}

/// Opens sessions one after the other, each with a token of its own, by the signers in turn.
async fn connect(gateway: &Gateway, signers: &[&Signer], opened: &AtomicUsize) {
    for signer in signers.iter().cycle().take(SESSIONS) {
        let bearer = format!("Bearer {}", signer.token());
        let request = gateway.upgrade(TLS, "/desk").add("Authorization", &bearer);
        let mut session = gateway.open(gateway.connect(TLS).await, &request).await;
        session.echo(b"hello").await;
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
        opened.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
#[ignore = "needs nginx: tests/run --only servers"]
async fn a_key_set_at_nginx_is_rotated_under_load_and_no_valid_token_is_refused() {
    let Some(program) = find("nginx") else { return };
    let (directory, authority, backend) = (TempDir::new().unwrap(), Authority::new(), Backend::echo().await);
    std::fs::create_dir(directory.path().join("web")).unwrap();
    let [old, new] = ["old", "new"].map(Signer::new);
    publish(&directory, &[&old]);
    let port = free_port();
    let nginx = start(&program, &directory, &authority, port);
    let ca = authority.path();
    let gateway = Setup::new()
        .route_with("desk", "/desk", &backend, "auth = \"site\"")
        .tables(&format!(
            "[auth.site]\nkind = \"jwt\"\nalgorithms = [\"ES256\"]\naudience = \"portcullis\"\n\
             jwks = \"https://localhost:{port}/keys.json\"\nca = {ca:?}\n"
        ))
        .start()
        .await;
    let is_fetched = |line: &Value| line["message"] == "key set fetched";
    gateway.until("the key set", |lines| lines.iter().any(is_fetched).then_some(())).await;

    let shared = Arc::new((gateway, directory, old, new, AtomicUsize::new(0), Barrier::new(CLIENTS)));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let shared = Arc::clone(&shared);
        clients.spawn(async move {
            let (gateway, directory, old, new, opened, together) = &*shared;
            connect(gateway, &[old], opened).await;
            if client == 0 {
                // The others connect meanwhile. Nobody has a token of the new key yet.
                publish(directory, &[old, new]);
            }
            together.wait().await;
            // All have their first token of the new key at the same time; those of the old one are still valid.
            connect(gateway, &[new, old], opened).await;
            if together.wait().await.is_leader() {
                // The last token of the old key has expired.
                publish(directory, &[new]);
            }
            connect(gateway, &[new], opened).await;
        });
    }
    clients.join_all().await;

    let (gateway, directory, _, new, opened, _) = Arc::into_inner(shared).expect("no client");
    assert_eq!(opened.into_inner(), 3 * CLIENTS * SESSIONS);
    // At the start, and once for all clients that had the first tokens of the new key.
    assert_eq!(answered(&directory), vec!["TLSv1.3 200 /keys.json"; 2]);
    // Without nginx the last set stays valid; a token of a key that it never had is refused.
    drop(nginx);
    connect(&gateway, &[&new], &AtomicUsize::new(0)).await;
    let bearer = format!("Bearer {}", Signer::new("other").token());
    let request = gateway.upgrade(TLS, "/desk").add("Authorization", &bearer);
    let mut connection = gateway.connect(TLS).await;
    let peer = connection.peer();
    assert_eq!(send_request(&mut connection, &request).await.status, 401);
    drop(connection);
    gateway.refused(peer, "unauthorized").await;
    gateway.finish().await;
}
