//! The opening handshake of RFC 6455 §4.2, as pure functions of a request head.

use http::{
    HeaderMap, HeaderName, Method, Request, Response, StatusCode, Version,
    header::{
        ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
    },
    uri::Scheme,
};
use http_body_util::{BodyExt, Empty};
use tungstenite::handshake::server::create_response;

use super::response::{Body, Refusal, route_page};
use crate::{config::is_unambiguous, outcome::Reason, websocket::is_token};

/// The longest request target, in bytes.
pub(super) const MAX_TARGET: usize = 8 * 1024;
/// A subprotocol that promises message framing, which a byte pipe does not have (RFC 7395). Never selected unless a route
/// lists it.
const FRAMED: &str = "xmpp";

/// Checks the rules for every request, whatever it requests, and returns its Host in lower case.
///
/// # Errors
/// The refusal to respond with.
pub(crate) fn check_head(request: &Request<()>) -> Result<String, Refusal> {
    if request.version() != Version::HTTP_11 {
        return Err(Refusal::with_message(Reason::BadRequest, "only HTTP/1.1 is supported"));
    }
    if request.method() == Method::CONNECT {
        return Err(Refusal::new(Reason::MethodNotAllowed));
    }
    let target = request.uri();
    if target.scheme().is_some_and(|scheme| ![Scheme::HTTP, Scheme::HTTPS].contains(scheme)) {
        return Err(Refusal::with_message(
            Reason::BadRequest,
            "the request target is not an http or https URI",
        ));
    }
    if !target.path().starts_with('/') {
        return Err(Refusal::with_message(Reason::BadRequest, "the request target must begin with /"));
    }
    let target_length = target.path_and_query().map_or(0, |target| target.as_str().len());
    if target_length > MAX_TARGET {
        return Err(Refusal::new(Reason::UriTooLong));
    }
    if !is_unambiguous(target.path()) {
        let wrong =
            "the path has an empty segment, a \".\" or \"..\", a backslash, or an encoded one of these";
        return Err(Refusal::with_message(Reason::BadRequest, wrong));
    }
    // RFC 9112 §3.2: exactly one Host.
    let host = match single(request.headers(), HOST) {
        Some(host) => host.to_str().ok().filter(|host| is_host(host)),
        None => None,
    };
    let host = host.ok_or_else(|| {
        Refusal::with_message(Reason::BadRequest, "exactly one valid Host field is required")
    })?;
    // RFC 9112 §3.2.2: the target wins. A proxy that matched the other one must not be bypassed.
    if target.authority().is_some_and(|authority| !authority.as_str().eq_ignore_ascii_case(host)) {
        let wrong = "the host of the request target and the Host field differ";
        return Err(Refusal::with_message(Reason::BadRequest, wrong));
    }
    Ok(host.to_ascii_lowercase())
}

/// A valid WebSocket opening handshake.
#[derive(Debug)]
pub(crate) struct Handshake {
    accept: HeaderValue,
    offered: Vec<String>,
}

impl Handshake {
    /// Reads the handshake of a request for a route.
    ///
    /// # Errors
    /// The refusal to respond with.
    pub(crate) fn read(request: &Request<()>) -> Result<Self, Refusal> {
        if request.method() != Method::GET {
            return Err(Refusal::new(Reason::MethodNotAllowed));
        }
        let headers = request.headers();
        if has_body(headers) {
            return Err(Refusal::with_message(Reason::BadRequest, "a WebSocket handshake has no body"));
        }
        if !has_token(headers, CONNECTION, "upgrade") || !has_token(headers, UPGRADE, "websocket") {
            let refusal = Refusal::new(Reason::UpgradeRequired);
            // A browser asks for HTML: a person opened the address, and gets an explanation instead of one line.
            let is_browser = has_token(headers, ACCEPT, "text/html");
            return Err(if is_browser {
                refusal.with_html(route_page(request.uri().path()))
            } else {
                refusal
            });
        }
        if single(headers, SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(Refusal::with_message(
                Reason::UpgradeRequired,
                "only WebSocket version 13 is supported",
            ));
        }
        let key = single(headers, SEC_WEBSOCKET_KEY);
        let accept = key.and_then(accept_for).ok_or_else(|| {
            Refusal::with_message(
                Reason::BadRequest,
                "exactly one Sec-WebSocket-Key of 16 bytes in base64 is required",
            )
        })?;
        if !headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().all(lists_extensions) {
            return Err(Refusal::with_message(Reason::BadRequest, "Sec-WebSocket-Extensions is malformed"));
        }
        Ok(Self { accept, offered: offered_subprotocols(headers)? })
    }

    /// Removes what `applies` to from the offered subprotocols: credentials are never agreed on.
    pub(crate) fn remove_offers(&mut self, applies: impl Fn(&str) -> bool) {
        self.offered.retain(|offered| !applies(offered));
    }

    /// Selects the subprotocol: the first offered one that the route lists. A route that lists none gets `binary` if it is
    /// offered, else the first offer that is not `xmpp`, else none.
    ///
    /// # Errors
    /// The client offered only subprotocols that the route does not list.
    pub(crate) fn subprotocol(&self, listed: &[String]) -> Result<Option<&str>, Refusal> {
        let mut offered = self.offered.iter().map(String::as_str);
        if listed.is_empty() {
            let binary = offered.clone().find(|&name| name == "binary");
            return Ok(binary.or_else(|| offered.find(|name| !name.eq_ignore_ascii_case(FRAMED))));
        }
        match offered.find(|name| listed.iter().any(|listed| listed == name)) {
            None if !self.offered.is_empty() => Err(Refusal::with_message(
                Reason::SubprotocolRefused,
                format!("only these subprotocols are supported here: {}", listed.join(", ")),
            )),
            selected => Ok(selected),
        }
    }

    /// The 101 (RFC 6455 §4.2.2). Extensions are never accepted.
    pub(crate) fn switching(&self, subprotocol: Option<&str>) -> Response<Body> {
        let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert("sec-websocket-accept", self.accept.clone());
        if let Some(Ok(name)) = subprotocol.map(HeaderValue::from_str) {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, name);
        }
        response
    }
}

/// The value of a field that occurs exactly once.
fn single(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

/// Whether a comma-separated list, split over any number of field lines, contains `token`.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        || headers
            .get_all(CONTENT_LENGTH)
            .iter()
            .any(|length| length.as_bytes().iter().any(|byte| *byte != b'0'))
}

/// The Sec-WebSocket-Accept for a valid key (RFC 6455 §4.2.2), computed by tungstenite. tungstenite reads only the first
/// Connection line, so it gets a request made for this purpose.
fn accept_for(key: &HeaderValue) -> Option<HeaderValue> {
    let request = Request::builder()
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, key)
        .body(())
        .ok()?;
    create_response(&request).ok()?.headers_mut().remove("sec-websocket-accept")
}

/// The subprotocols that a client offers, over all field lines: unique tokens (RFC 6455 §4.1).
fn offered_subprotocols(headers: &HeaderMap) -> Result<Vec<String>, Refusal> {
    let mut offered: Vec<String> = Vec::new();
    for line in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        let line = line.to_str().unwrap_or("?\u{0}");
        for name in line.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if !is_token(name) || offered.iter().any(|other| other == name) {
                let message = "Sec-WebSocket-Protocol must list each subprotocol once, as a token";
                return Err(Refusal::with_message(Reason::BadRequest, message));
            }
            offered.push(name.to_owned());
        }
    }
    Ok(offered)
}

/// Whether a line of Sec-WebSocket-Extensions is a list of extensions. None is ever accepted, but RFC 6455 §9.1 requires a
/// handshake with a malformed list to fail.
fn lists_extensions(line: &HeaderValue) -> bool {
    let mut extensions = line.to_str().unwrap_or("?\u{0}").split(',').filter(|item| !item.trim().is_empty());
    extensions.all(|extension| {
        let mut parts = extension.split(';').map(str::trim);
        parts.next().is_some_and(is_token) && parts.all(is_extension_parameter)
    })
}

/// Whether the text is a token, or a token and its value: a token as well, quoted or not.
fn is_extension_parameter(text: &str) -> bool {
    let Some((name, value)) = text.split_once('=') else { return is_token(text) };
    let value = value.trim_start();
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    is_token(name.trim_end()) && quoted.map_or_else(|| is_token(value), |quoted| is_token(&unescaped(quoted)))
}

/// The text of a quoted string (RFC 9110 §5.6.4).
fn unescaped(quoted: &str) -> String {
    let mut characters = quoted.chars();
    let next = || {
        let character = characters.next()?;
        // A backslash at the end escapes nothing, and is no part of a token either.
        Some(if character == '\\' { characters.next().unwrap_or(character) } else { character })
    };
    std::iter::from_fn(next).collect()
}

/// RFC 9110 §7.2, as far as it matters here: a host that is not empty, no user information, and a number as the port, which
/// the parser of authorities does not demand.
fn is_host(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    // User information would come first.
    let Some(port) = host.strip_prefix(authority.host()) else { return false };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    !authority.host().is_empty() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// The host without its port.
pub(crate) fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The handshake of RFC 6455 §1.3, modified by `change`.
    fn request(change: impl FnOnce(&mut Request<()>)) -> Request<()> {
        let mut request = Request::builder()
            .uri("/chat")
            .header(HOST, "server.example.com")
            .header(UPGRADE, "websocket")
            .header(CONNECTION, "Upgrade")
            .header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .body(())
            .unwrap();
        change(&mut request);
        request
    }

    fn set(request: &mut Request<()>, name: &'static str, values: &[&'static str]) {
        request.headers_mut().remove(name);
        for value in values {
            request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
    }

    fn refused(name: &'static str, values: &[&'static str]) -> Option<Reason> {
        let request = request(|request| set(request, name, values));
        Handshake::read(&request).err().map(|refusal| refusal.reason())
    }

    #[test]
    fn the_example_of_the_rfc_is_accepted() {
        let response = Handshake::read(&request(|_| {})).unwrap().switching(Some("chat"));
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        assert!(!response.headers().contains_key("sec-websocket-extensions"));
    }

    #[test]
    fn header_tokens_are_case_insensitive_and_may_be_split_over_lines() {
        assert_eq!(refused("connection", &["keep-alive, Upgrade"]), None);
        assert_eq!(refused("connection", &["keep-alive", "uPgRaDe"]), None);
        assert_eq!(refused("upgrade", &["h2c, WebSocket"]), None);
        assert_eq!(refused("connection", &["keep-alive"]), Some(Reason::UpgradeRequired));
        assert_eq!(refused("upgrade", &[]), Some(Reason::UpgradeRequired));
    }

    #[test]
    fn version_and_key_must_occur_once() {
        assert_eq!(refused("sec-websocket-version", &["8"]), Some(Reason::UpgradeRequired));
        assert_eq!(refused("sec-websocket-version", &["13", "13"]), Some(Reason::UpgradeRequired));
        assert_eq!(refused("sec-websocket-key", &[]), Some(Reason::BadRequest));
        assert_eq!(refused("sec-websocket-key", &["dGhlIHNhbXBsZQ=="]), Some(Reason::BadRequest));
        assert_eq!(refused("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZQ!!"]), Some(Reason::BadRequest));
        let twice = ["dGhlIHNhbXBsZSBub25jZQ=="; 2];
        assert_eq!(refused("sec-websocket-key", &twice), Some(Reason::BadRequest));
    }

    #[test]
    fn a_malformed_list_of_extensions_is_refused() {
        for valid in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate;server_max_window_bits=10 ; a = \"b\", x-webkit-deflate-frame,",
            "a; b=\"\\c\\d\"",
            "",
        ] {
            assert_eq!(refused("sec-websocket-extensions", &[valid]), None, "{valid}");
            assert_eq!(refused("sec-websocket-extensions", &["foo", valid]), None, "{valid}");
        }
        for malformed in [
            "a b",
            ";",
            ";a",
            "a;",
            "a; =b",
            "a; b=",
            "a; b=c d",
            "a; b=\"c d\"",
            "a; b=\"\"",
            "a; b=\"c",
            "a; b=c\"",
            "a; b=\"c\\\"",
            "a; b=\"c,d\"",
            "\"a\"",
            "a, (b)",
            "a; b=c=d",
            "a; b=\"",
            "caf\u{e9}",
        ] {
            assert_eq!(
                refused("sec-websocket-extensions", &[malformed]),
                Some(Reason::BadRequest),
                "{malformed}"
            );
            assert_eq!(
                refused("sec-websocket-extensions", &["a", malformed]),
                Some(Reason::BadRequest),
                "{malformed}"
            );
        }
    }

    #[test]
    fn a_body_or_another_method_is_refused() {
        assert_eq!(refused("content-length", &["5"]), Some(Reason::BadRequest));
        assert_eq!(refused("content-length", &["0"]), None);
        assert_eq!(refused("transfer-encoding", &["chunked"]), Some(Reason::BadRequest));
        let post = request(|request| *request.method_mut() = Method::POST);
        assert_eq!(Handshake::read(&post).unwrap_err().reason(), Reason::MethodNotAllowed);
    }

    #[test]
    fn every_request_needs_http_1_1_one_host_and_a_short_target() {
        let reason = |change: &dyn Fn(&mut Request<()>)| {
            check_head(&request(change)).err().map(|refusal| refusal.reason())
        };
        assert_eq!(check_head(&request(|_| {})).unwrap(), "server.example.com");
        assert_eq!(reason(&|request| *request.version_mut() = Version::HTTP_10), Some(Reason::BadRequest));
        assert_eq!(reason(&|request| set(request, "host", &[])), Some(Reason::BadRequest));
        assert_eq!(reason(&|request| set(request, "host", &["a", "a"])), Some(Reason::BadRequest));
        assert_eq!(reason(&|request| set(request, "host", &["a b"])), Some(Reason::BadRequest));
        assert_eq!(reason(&|request| set(request, "host", &["user@a"])), Some(Reason::BadRequest));
        assert_eq!(
            reason(&|request| *request.method_mut() = Method::CONNECT),
            Some(Reason::MethodNotAllowed)
        );
        assert_eq!(
            reason(&|request| *request.uri_mut() = "localhost:80".parse().unwrap()),
            Some(Reason::BadRequest)
        );
        assert_eq!(reason(&|request| *request.uri_mut() = "*".parse().unwrap()), Some(Reason::BadRequest));
        for crooked in ["//a", "/a/../b", "/%2E/b", "http://server.example.com/a/./b"] {
            let refused = reason(&|request| *request.uri_mut() = crooked.parse().unwrap());
            assert_eq!(refused, Some(Reason::BadRequest), "{crooked}");
        }
        for (target, refused) in [
            ("http://server.example.com/chat", None),
            ("http://SERVER.example.com/chat", None),
            ("http://server.example.com", None),
            ("http://server.example.com:80/chat", Some(Reason::BadRequest)),
            ("http://user@server.example.com/chat", Some(Reason::BadRequest)),
            ("http://other.example.com/chat", Some(Reason::BadRequest)),
            ("https://server.example.com/chat", None),
            ("HTTPS://server.example.com/chat", None),
            ("ws://server.example.com/chat", Some(Reason::BadRequest)),
            ("ftp://server.example.com/chat", Some(Reason::BadRequest)),
        ] {
            assert_eq!(reason(&|request| *request.uri_mut() = target.parse().unwrap()), refused, "{target}");
        }
        let longest = format!("/{}", "a".repeat(MAX_TARGET - 1));
        assert_eq!(reason(&|request| *request.uri_mut() = longest.parse().unwrap()), None);
        let long = format!("/{}", "a".repeat(MAX_TARGET));
        assert_eq!(reason(&|request| *request.uri_mut() = long.parse().unwrap()), Some(Reason::UriTooLong));
    }

    #[test]
    fn the_first_offered_subprotocol_that_is_listed_is_selected() {
        let select = |offers: &[&'static str], listed: &[&str]| {
            let request = request(|request| set(request, "sec-websocket-protocol", offers));
            let listed: Vec<String> = listed.iter().map(|&name| name.to_owned()).collect();
            let handshake = Handshake::read(&request).map_err(|refusal| refusal.reason())?;
            handshake
                .subprotocol(&listed)
                .map(|name| name.map(str::to_owned))
                .map_err(|refusal| refusal.reason())
        };
        let selected = |name: &str| Ok(Some(name.to_owned()));
        assert_eq!(select(&[], &[]), Ok(None));
        assert_eq!(select(&[], &["binary"]), Ok(None));
        assert_eq!(select(&["chat", "binary"], &[]), selected("binary"));
        assert_eq!(select(&["v12.stomp, v11.stomp"], &[]), selected("v12.stomp"));
        assert_eq!(select(&["xmpp"], &[]), Ok(None));
        assert_eq!(select(&["xmpp"], &["xmpp"]), selected("xmpp"));
        assert_eq!(select(&["mqtt", "v11.stomp"], &["v11.stomp", "mqtt"]), selected("mqtt"));
        assert_eq!(select(&["mqtt"], &["binary"]), Err(Reason::SubprotocolRefused));
        assert_eq!(select(&["mqtt, mqtt"], &[]), Err(Reason::BadRequest));
        assert_eq!(select(&["not a token"], &[]), Err(Reason::BadRequest));
    }

    #[test]
    fn a_host_has_a_number_as_its_port() {
        for host in ["a.example", "a.example:8443", "a.example:", "[::1]", "[::1]:80", "192.0.2.1:80"] {
            assert!(is_host(host), "{host}");
        }
        for host in [
            "",
            ":80",
            "a:b",
            "a:80:90",
            "user@a",
            "a@b:80",
            "attacker.example:6.localhost",
            "[::1]:6.localhost",
        ] {
            assert!(!is_host(host), "{host}");
        }
    }

    #[test]
    fn a_host_is_compared_without_its_port() {
        assert_eq!(host_name("a.example:8443"), "a.example");
        assert_eq!(host_name("a.example"), "a.example");
        assert_eq!(host_name("[::1]:8443"), "[::1]");
        assert_eq!(host_name("[::1]"), "[::1]");
    }
}
