//! Every kind of backend there is, reached by the real binary: what works, and how each way to fail is named.

mod authority;
mod names;
mod proxy;
mod proxy_header;
mod scarce;
mod several;
mod starttls;
mod tls;
mod tokens;
mod unix;

use crate::support::{Door, End, Gateway, PLAIN, Session};

/// A list of backends as the configuration wants it.
fn list(backends: impl IntoIterator<Item = String>) -> String {
    let quoted: Vec<String> = backends.into_iter().map(|backend| format!("\"{backend}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

/// A session that is closed because no backend was reached: its line, after a look at what the page was told.
#[track_caller]
fn unreached<'a>(gateway: &'a Gateway, target: &'a str, reason: &'a str) -> impl Future<Output = End> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let mut session = gateway.session_by(PLAIN, target).await;
        let (data, code, said) = session.closed().await;
        assert_eq!((data.as_slice(), code), (&b""[..], Some(1011)), "{caller}: {said}");
        assert!(!said.is_empty() && said.len() <= 123, "{caller}: a short reason for people: {said:?}");
        for secret in ["127.0.0.1", "localhost", "certificate", "/"] {
            assert!(!said.contains(secret), "{caller}: a stranger learns of {secret}: {said:?}");
        }
        let peer = session.peer;
        drop(session);
        let end = gateway.ended(peer, reason, Some(1011)).await;
        assert!(end.text("detail").is_some_and(|detail| !detail.is_empty()), "{caller}: {end:?}");
        end
    }
}

/// Uses a session and closes it: which server it was.
async fn use_and_close(gateway: &Gateway, mut session: Session) -> String {
    session.echo(b"hello").await;
    session.close(1000).await;
    let peer = session.peer;
    drop(session);
    let end = gateway.ended(peer, "client_closed", Some(1000)).await;
    end.text("backend").expect("a backend").to_owned()
}

/// Opens a session, uses it and closes it: which server it was.
async fn works(gateway: &Gateway, door: Door, target: &str) -> String {
    use_and_close(gateway, gateway.session_by(door, target).await).await
}
