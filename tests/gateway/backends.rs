//! Every kind of backend with the real binary: what works, and how each failure is reported.

pub(crate) mod authority;
mod exhaustion;
mod names;
mod proxy;
mod proxy_header;
mod several;
mod starttls;
mod tls;
mod tokens;
mod unix;

use crate::support::{AccessLogLine, Gateway, ListenerIndex, PLAIN, Session};

/// A list of backends in the syntax of the configuration.
fn list(backends: impl IntoIterator<Item = String>) -> String {
    let quoted: Vec<String> = backends.into_iter().map(|backend| format!("\"{backend}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

/// Expects a session that is closed because no backend was reached, and checks what the page receives; its log line.
#[track_caller]
fn unreached<'a>(
    gateway: &'a Gateway,
    target: &'a str,
    reason: &'a str,
) -> impl Future<Output = AccessLogLine> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let mut session = gateway.session_by(PLAIN, target).await;
        let (data, code, close_reason) = session.closed().await;
        assert_eq!((data.as_slice(), code), (&b""[..], Some(1011)), "{caller}: {close_reason}");
        assert!(
            !close_reason.is_empty() && close_reason.len() <= 123,
            "{caller}: a short readable reason: {close_reason:?}"
        );
        for secret in ["127.0.0.1", "localhost", "certificate", "/"] {
            assert!(!close_reason.contains(secret), "{caller}: the client learns {secret}: {close_reason:?}");
        }
        let peer = session.peer;
        drop(session);
        let end = gateway.ended(peer, reason, Some(1011)).await;
        assert!(end.text("detail").is_some_and(|detail| !detail.is_empty()), "{caller}: {end:?}");
        end
    }
}

/// Uses a session and closes it: the URL of its backend.
async fn use_and_close(gateway: &Gateway, mut session: Session) -> String {
    session.echo(b"hello").await;
    session.close(1000).await;
    let peer = session.peer;
    drop(session);
    let end = gateway.ended(peer, "client_closed", Some(1000)).await;
    end.text("backend").expect("a backend").to_owned()
}

/// Opens a session, uses it and closes it: the URL of its backend.
async fn works(gateway: &Gateway, listener: ListenerIndex, target: &str) -> String {
    use_and_close(gateway, gateway.session_by(listener, target).await).await
}
