//! HTTP responses: refusals, and the page that a browser shows for the address of a route.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, SEC_WEBSOCKET_VERSION,
        UPGRADE, WWW_AUTHENTICATE,
    },
};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tungstenite::handshake::server::write_response;

use crate::outcome::Reason;

/// The body of any response.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A response that ends the connection: a status, one line of plain text, and the header fields that the status requires.
#[derive(Debug, Clone)]
pub struct Refusal {
    reason: Reason,
    message: String,
    html: Option<String>,
    detail: Option<String>,
    retry_after: Option<u64>,
    /// The methods that would be accepted, if the method is what is refused.
    allow: &'static str,
    excused: bool,
    /// Boxed, because few refusals have any.
    additions: Option<Box<Additions>>,
}

/// What a response has beside what its reason requires.
#[derive(Debug, Clone, Default)]
struct Additions {
    /// The status, if it is not that of the reason.
    status: Option<StatusCode>,
    fields: HeaderMap,
}

impl Refusal {
    /// A refusal with the usual text for `reason`.
    pub fn new(reason: Reason) -> Self {
        Self::with_message(reason, reason.explanation())
    }

    /// A refusal with a more specific text.
    pub fn with_message(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            html: None,
            detail: None,
            retry_after: None,
            allow: "GET",
            excused: false,
            additions: None,
        }
    }

    /// Adds Retry-After (RFC 9110 §10.2.3).
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Names the methods that would be accepted, if these are not only GET (RFC 9110 §15.5.6).
    pub(super) fn allow(mut self, methods: &'static str) -> Self {
        self.allow = methods;
        self
    }

    /// Says that the client is not to blame.
    pub fn excused(mut self) -> Self {
        self.excused = true;
        self
    }

    /// Whether the client is not to blame, so that it does not count for a penalty.
    pub fn is_excused(&self) -> bool {
        self.excused
    }

    /// Replaces the status of the reason, where an answer of another server is passed on.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.additions.get_or_insert_default().status = Some(status);
        self
    }

    /// Adds a field to the response, behind those of the same name.
    pub fn with_field(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.additions.get_or_insert_default().fields.append(name, value);
        self
    }

    /// Adds a detail for the access log. The client does not receive it.
    pub fn with_detail(mut self, detail: String) -> Self {
        self.detail = Some(detail);
        self
    }

    /// The detail for the access log.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// Why the connection ends.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Replaces the line of text by a page, for a person who opened the address in a browser.
    pub fn with_html(mut self, html: String) -> Self {
        self.html = Some(html);
        self
    }

    /// The response, with `Connection: close`: what the client sends next is not read as a request.
    pub(super) fn into_response(self) -> Response<Body> {
        let (content_type, body) = match self.html {
            Some(html) => ("text/html; charset=utf-8", html),
            None => ("text/plain; charset=utf-8", format!("{}\n", self.message)),
        };
        let mut response = Response::new(full_body(body));
        let Additions { status, fields } = self.additions.map(|additions| *additions).unwrap_or_default();
        let status = status.or(self.reason.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        *headers = fields;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        match self.reason {
            Reason::MethodNotAllowed => {
                headers.insert(ALLOW, HeaderValue::from_static(self.allow));
            }
            // RFC 9110 §15.5.2 requires a challenge.
            Reason::Unauthorized if status == StatusCode::UNAUTHORIZED => {
                headers.entry(WWW_AUTHENTICATE).or_insert(HeaderValue::from_static("Bearer"));
            }
            Reason::UpgradeRequired => {
                // RFC 9110 §15.5.22 and RFC 6455 §4.4 require the protocol and its version. Connection must name the
                // Upgrade field (RFC 9110 §7.8).
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
            }
            _ => {}
        }
        response
    }

    /// The whole response in wire format, for a client whose request hyper never passed on.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let body = format!("{}\n", self.message);
        let mut response = self.into_response();
        response.headers_mut().insert(CONTENT_LENGTH, body.len().into());
        let mut bytes = Vec::new();
        // Writing to memory does not fail, and every field above is visible ASCII.
        let _ = write_response(&mut bytes, &response);
        bytes.extend_from_slice(body.as_bytes());
        bytes
    }
}

fn full_body(body: String) -> Body {
    Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync()
}

/// The page that a browser shows for the address of a route.
pub(super) fn route_page(path: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>A WebSocket address</title>\n\
         <style>body{{font:1.1rem/1.6 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1.5rem;\
         color-scheme:light dark}}</style>\n\
         <h1>This address speaks WebSocket</h1>\n\
         <p><code>{}</code> is not a page. A web page or a program connects to it with\n\
         <code>new WebSocket(\"wss://…\")</code> to reach a server behind this gateway: a desktop, a chat, a message\n\
         broker.</p>\n\
         <p>If you were given this address to look at something, ask for the address of the page that uses it.</p>\n",
        escape(path)
    )
}

/// Untrusted bytes made safe for a log: control characters and bidirectional marks escaped, truncated to 256 characters.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().take(256).collect();
    format!("{text:?}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use http::header::{LOCATION, SET_COOKIE};

    use super::*;

    #[test]
    fn every_refusal_closes_the_connection_and_has_one_line_of_text() {
        for &reason in Reason::ALL.iter().filter(|reason| reason.status().is_some()) {
            let text = String::from_utf8(Refusal::new(reason).into_bytes()).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {}", reason.status().unwrap().as_u16())), "{head}");
            assert!(head.contains("connection: close"), "{head}");
            assert_eq!(body.lines().count(), 1, "{body:?}");
        }
    }

    #[test]
    fn a_refusal_names_what_would_be_accepted() {
        let field =
            |refusal: Refusal, name| refusal.into_response().headers()[name].to_str().unwrap().to_owned();
        assert_eq!(field(Refusal::new(Reason::MethodNotAllowed), "allow"), "GET");
        assert_eq!(field(Refusal::new(Reason::Unauthorized), "www-authenticate"), "Bearer");
        let challenge = HeaderValue::from_static("Basic realm=\"a\"");
        let basic = Refusal::new(Reason::Unauthorized).with_field(WWW_AUTHENTICATE, challenge);
        assert_eq!(field(basic, "www-authenticate"), "Basic realm=\"a\"");
        assert_eq!(field(Refusal::new(Reason::UpgradeRequired), "upgrade"), "websocket");
        assert_eq!(field(Refusal::new(Reason::UpgradeRequired), "sec-websocket-version"), "13");
        assert_eq!(field(Refusal::new(Reason::RateLimited).retry_after(3), "retry-after"), "3");
    }

    #[test]
    fn an_answer_that_is_passed_on_has_its_own_status_and_fields() {
        let refusal = Refusal::new(Reason::Unauthorized)
            .with_status(StatusCode::FOUND)
            .with_field(LOCATION, HeaderValue::from_static("https://login.example/"))
            .with_field(SET_COOKIE, HeaderValue::from_static("a=1"))
            .with_field(SET_COOKIE, HeaderValue::from_static("b=2"))
            .with_field(CONNECTION, HeaderValue::from_static("keep-alive"));
        let response = refusal.into_response();
        assert_eq!(response.status(), StatusCode::FOUND);
        let headers = response.headers();
        assert_eq!(headers[LOCATION], "https://login.example/");
        assert_eq!(headers.get_all(SET_COOKIE).iter().count(), 2);
        // What the gateway itself says replaces what was passed on.
        assert_eq!(headers.get_all(CONNECTION).iter().collect::<Vec<_>>(), ["close"]);
        assert!(!headers.contains_key(WWW_AUTHENTICATE));
    }

    #[test]
    fn the_page_of_a_route_escapes_its_path() {
        assert!(route_page("/<b>\"&").contains("<code>/&lt;b&gt;&quot;&amp;</code>"));
    }

    #[test]
    fn a_detail_is_for_the_log_only() {
        let refusal = Refusal::new(Reason::BadRequest).with_detail("inner".to_owned());
        assert_eq!((refusal.detail(), Refusal::new(Reason::BadRequest).detail()), (Some("inner"), None));
        assert!(!String::from_utf8(refusal.into_bytes()).unwrap().contains("inner"));
    }

    #[test]
    fn untrusted_bytes_are_escaped_and_truncated() {
        assert_eq!(quoted(b"a\x1b[\"\xe2\x80\xae"), r#""a\u{1b}[\"\u{202e}""#);
        assert_eq!(quoted(&[b'a'; 300]).len(), 258);
    }
}
