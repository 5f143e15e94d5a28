//! The methods of authentication with the real binary.

mod authority;
mod basic;
mod client_certificate;
mod forward;
mod jwt;
pub(crate) mod machines;
mod stolen;
mod ticket;
mod users;
mod web;

use base64::prelude::{BASE64_STANDARD, Engine};
use tokio::io::AsyncWriteExt;

use crate::support::{Gateway, ListenerIndex, Request, Response, TLS, read_to_end, within};

/// "secret", hashed by bcrypt with the least cost.
const HASH: &str = "$2y$04$Wra2LL5Zh0hx5Uyte5BQOOop1MrHlP1Bp9nrp5SO9JbKmV49lEM96";

/// The value of `Authorization` for a user and a password.
fn password_of(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// The response to a request that opens no session, and the detail in the log.
async fn refusal(gateway: &Gateway, request: &Request, reason: &str) -> (Response, String) {
    let (bytes, detail) = refusal_by(gateway, TLS, request, reason).await;
    (Response::parse(&bytes, true).expect("a whole response"), detail)
}

/// The same as it was sent, without its date.
async fn raw_refusal(gateway: &Gateway, request: &Request, reason: &str) -> (String, String) {
    let (bytes, detail) = refusal_by(gateway, TLS, request, reason).await;
    let text = String::from_utf8(bytes).expect("text");
    let lines = text.split_inclusive("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("date:"));
    (lines.collect(), detail)
}

async fn refusal_by(
    gateway: &Gateway,
    listener: ListenerIndex,
    request: &Request,
    reason: &str,
) -> (Vec<u8>, String) {
    let mut connection = gateway.connect(listener).await;
    let peer = connection.peer();
    within("the gateway to take the head", connection.write_all(&request.bytes())).await.expect("a request");
    connection.flush().await.expect("a request");
    let (bytes, _) = read_to_end(&mut connection).await;
    let end = gateway.refused(peer, reason).await;
    (bytes, end.text("detail").unwrap_or_default().to_owned())
}

/// A session works, and its user is in the log.
async fn opens_session(gateway: &Gateway, request: &Request, user: Option<&str>) {
    let mut session = gateway.open(gateway.connect(TLS).await, request).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
    assert_eq!(end.text("user"), user, "{end:?}");
}
