//! The answers this room gives: refusals, the page of a route, the 101.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, SEC_WEBSOCKET_VERSION,
        UPGRADE,
    },
};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tungstenite::handshake::server::write_response;

use crate::outcome::Reason;

/// The body of any answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// An answer that ends the connection: a status, a line of plain text, and the fields the status asks for.
#[derive(Debug, Clone)]
pub struct Refusal {
    reason: Reason,
    words: String,
    page: Option<String>,
    detail: Option<String>,
    retry_after: Option<u64>,
}

impl Refusal {
    /// A refusal in the usual words.
    pub fn new(reason: Reason) -> Self {
        Self::because(reason, reason.explanation())
    }

    /// A refusal that says more.
    pub fn because(reason: Reason, words: impl Into<String>) -> Self {
        Self { reason, words: words.into(), page: None, detail: None, retry_after: None }
    }

    /// The same refusal with a hint when to come back (RFC 9110 §10.2.3).
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The same refusal with what only an operator should read.
    pub fn because_of(mut self, detail: String) -> Self {
        self.detail = Some(detail);
        self
    }

    /// What only an operator should read.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// The end this leads to.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The same refusal as a page, for a person in front of a browser.
    pub fn page(mut self, html: String) -> Self {
        self.page = Some(html);
        self
    }

    /// The answer. `Connection: close`: whatever the client sends next is not a request to us.
    pub(super) fn into_response(self) -> Response<Body> {
        let (content_type, body) = match self.page {
            Some(page) => ("text/html; charset=utf-8", page),
            None => ("text/plain; charset=utf-8", format!("{}\n", self.words)),
        };
        let mut response = Response::new(whole(body));
        *response.status_mut() = self.reason.status().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        match self.reason {
            Reason::MethodNotAllowed => {
                headers.insert(ALLOW, HeaderValue::from_static("GET"));
            }
            Reason::UpgradeRequired => {
                // RFC 9110 §15.5.22 and RFC 6455 §4.4: which protocol, and which version of it. An Upgrade field is
                // named by Connection (RFC 9110 §7.8).
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
            }
            _ => {}
        }
        response
    }

    /// The whole answer as it travels, for a client that never finished its request.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let body = format!("{}\n", self.words);
        let mut response = self.into_response();
        response.headers_mut().insert(CONTENT_LENGTH, body.len().into());
        let mut bytes = Vec::new();
        // Writing to memory does not fail, and every field above is visible ASCII.
        let _ = write_response(&mut bytes, &response);
        bytes.extend_from_slice(body.as_bytes());
        bytes
    }
}

fn whole(body: String) -> Body {
    Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync()
}

/// What a person sees who opens a route's address in a browser.
pub(super) fn route_page(path: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>A WebSocket address</title>\n\
         <style>body{{font:1.1rem/1.6 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1.5rem;\
         color-scheme:light dark}}</style>\n\
         <h1>This address speaks WebSocket</h1>\n\
         <p><code>{}</code> is not a page. It is where a web page or a program connects with\n\
         <code>new WebSocket(\"wss://…\")</code> to reach a server behind this gateway: a desktop, a chat, a message\n\
         broker.</p>\n\
         <p>If you were given this address to look at something, ask for the address of the page that uses it.</p>\n",
        escape(path)
    )
}

/// What a stranger sent, fit for a log: control characters and bidirectional marks escaped, cut at 256 characters.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().take(256).collect();
    format!("{text:?}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_closes_and_says_one_line() {
        for &reason in Reason::ALL.iter().filter(|reason| reason.status().is_some()) {
            let text = String::from_utf8(Refusal::new(reason).into_bytes()).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {}", reason.status().unwrap().as_u16())), "{head}");
            assert!(head.contains("connection: close"), "{head}");
            assert_eq!(body.lines().count(), 1, "{body:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_would_be_accepted() {
        let field =
            |refusal: Refusal, name| refusal.into_response().headers()[name].to_str().unwrap().to_owned();
        assert_eq!(field(Refusal::new(Reason::MethodNotAllowed), "allow"), "GET");
        assert_eq!(field(Refusal::new(Reason::UpgradeRequired), "upgrade"), "websocket");
        assert_eq!(field(Refusal::new(Reason::UpgradeRequired), "sec-websocket-version"), "13");
        assert_eq!(field(Refusal::new(Reason::RateLimited).retry_after(3), "retry-after"), "3");
    }

    #[test]
    fn the_page_of_a_route_shows_its_path_as_text() {
        assert!(route_page("/<b>\"&").contains("<code>/&lt;b&gt;&quot;&amp;</code>"));
    }
}
