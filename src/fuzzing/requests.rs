//! Requests: from the bytes of a head to the decision about it.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use http::{
    HeaderValue, Method, Request, StatusCode,
    header::{HOST, ORIGIN, SEC_WEBSOCKET_PROTOCOL},
};
use ipnet::IpNet;
use tokio::time::Instant;

use super::input::{Pieces, block_on};
use crate::{
    config::{Config, RoutePath},
    http::{AcceptedRequest, Exchange, KnownHosts, RequestContext, Routed, Routes, decide},
    outcome::Reason,
    transport::peer,
};

/// Routes that overlap, with each kind of host, path, Origin policy and list of subprotocols.
const CONFIG: &str = r#"
[[listener]]
address = "127.0.0.1:0"

[[route]]
name = "listed"
path = "/chat"
backend = "tcp://127.0.0.1:1"
subprotocols = ["xmpp", "binary", "v12.stomp"]

[[route]]
name = "tree"
path = "/desk/*"
backend = "tcp://127.0.0.1:1"

[[route]]
name = "host"
host = "a.example"
path = "/desk/one"
backend = "tcp://127.0.0.1:1"
origins = ["https://b.example:8443", "null"]

[[route]]
name = "open"
path = "/open"
backend = "tcp://127.0.0.1:1"
origins = ["*"]
missing_origin = "allow"
"#;

/// What no path of a request may contain, in lower case: proxies read it in different ways.
const AMBIGUOUS: [&str; 7] = ["//", "/./", "/../", "\\", "%2e", "%2f", "%5c"];

thread_local! {
    static ROUTES: Routes<Arc<()>> = Routes::new(
        config().routes.into_iter().map(|route| Routed { route, upstream: Arc::new(()) }),
    );
    /// The hosts that the listener, a plain one on a loopback address, knows by default.
    static HOSTS: KnownHosts = KnownHosts::of(&config().listeners[0], &["a.example".to_owned()])
        .expect("a listener that does not allow any host");
}

fn config() -> Config {
    Config::parse(CONFIG, Path::new("gateway.toml")).expect("a valid configuration")
}

/// A request head as it arrives. The first byte chooses how it is split, and whether it comes from a trusted proxy.
pub fn request_head(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let head = |size| {
        block_on(async {
            let mut stream = Pieces::new(bytes, size);
            let deadline = Instant::now() + Duration::from_secs(60);
            Exchange::new(&mut stream, None).next(deadline).await
        })
    };
    let whole = head(usize::MAX);
    let split = head(usize::from(choice >> 1) + 1);
    // In pieces, hyper parses a head only once it is complete, so that the error of an incomplete one differs.
    let (Ok(request), Ok(in_pieces)) = (&whole, &split) else {
        return assert_eq!(whole.is_ok(), split.is_ok(), "the split changed the result");
    };
    assert_eq!(format!("{request:?}"), format!("{in_pieces:?}"), "the split changed the request");
    let trusted: [IpNet; 1] = ["10.0.0.0/8".parse().expect("a network")];
    let from = if choice & 1 == 0 { [10_u8, 0, 0, 1] } else { [192, 0, 2, 1] };
    let client = peer::client((from, 4711).into(), &trusted, request.headers());
    let https = client.https.unwrap_or(true);
    check(request, RequestContext { https, forwarded_host: client.host.as_deref(), hosts: None });
}

/// A valid upgrade request with any target and Host: the first line and the second.
pub fn target_and_host(data: &[u8]) {
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    let (Some(target), Some(host)) = (lines.next(), lines.next()) else { return };
    let (Ok(target), Ok(host)) = (http::Uri::try_from(target), HeaderValue::from_bytes(host)) else { return };
    let mut request = upgrade_request();
    let origin = [b"https://", host.as_bytes()].concat();
    if let Ok(origin) = HeaderValue::from_bytes(&origin) {
        request.headers_mut().insert(ORIGIN, origin);
    }
    *request.uri_mut() = target;
    request.headers_mut().insert(HOST, host);
    check(&request, RequestContext { https: true, forwarded_host: None, hosts: None });
    HOSTS.with(|hosts| {
        check(&request, RequestContext { https: true, forwarded_host: None, hosts: Some(hosts) });
    });
}

/// A valid upgrade request that offers any subprotocols: one Sec-WebSocket-Protocol for each line.
pub fn subprotocols(data: &[u8]) {
    for path in ["/chat", "/desk/x"] {
        let mut request = upgrade_request();
        *request.uri_mut() = http::Uri::from_static(path);
        for line in data.split(|byte| *byte == b'\n') {
            let Ok(line) = HeaderValue::from_bytes(line) else { return };
            request.headers_mut().append(SEC_WEBSOCKET_PROTOCOL, line);
        }
        check(&request, RequestContext { https: true, forwarded_host: None, hosts: None });
    }
}

fn upgrade_request() -> Request<()> {
    let request = Request::builder()
        .uri("/chat")
        .header(HOST, "gate.example")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header(ORIGIN, "https://gate.example")
        .body(());
    request.expect("a valid request")
}

/// Whatever is decided, what is accepted is what may be accepted.
fn check(request: &Request<()>, context: RequestContext<'_>) {
    ROUTES.with(|routes| {
        let decision = match decide(routes, request, context, |(), _, _, _| Some(())) {
            Err(refusal) => return check_refusal(refusal.reason()),
            Ok(decision) => decision,
        };
        check_target(request, context);
        let Some(decision) = decision else { return };
        let path = request.uri().path();
        for routed in decision.shadowed.iter().chain([&decision.routed]) {
            match &routed.route.path {
                RoutePath::Exact(exact) => assert_eq!(exact, path),
                RoutePath::Prefix(prefix) => assert!(path.starts_with(prefix.as_str()), "{path}"),
            }
        }
        match decision.accept() {
            Err(refusal) => check_refusal(refusal.reason()),
            Ok(accepted) => check_accepted(request, context, &accepted),
        }
    });
}

/// Every server reads the path alike, and it names no other host than the Host field, which is one that the listener knows.
fn check_target(request: &Request<()>, context: RequestContext<'_>) {
    let path = request.uri().path().to_ascii_lowercase();
    assert!(path.starts_with('/'), "{path}");
    assert!(!AMBIGUOUS.iter().any(|wrong| path.contains(wrong)), "{path}");
    assert!(!path.ends_with("/.") && !path.ends_with("/..") && !path.contains("%00"), "{path}");
    let host = request.headers()[HOST].to_str().expect("a host in ASCII").to_ascii_lowercase();
    if let Some(authority) = request.uri().authority() {
        assert_eq!(authority.as_str().to_ascii_lowercase(), host);
    }
    if context.hosts.is_some() {
        // Up to the port; an IPv6 address has brackets.
        let end = host.rfind(':').filter(|colon| host.rfind(']').is_none_or(|bracket| bracket < *colon));
        let name = host[..end.unwrap_or(host.len())].trim_end_matches('.');
        let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
        let is_own = name == "localhost" || name.ends_with(".localhost") || name == "a.example";
        assert!(is_own || address.is_ok_and(|address| address.to_canonical().is_loopback()), "{host}");
    }
}

fn check_refusal(reason: Reason) {
    let status = reason.status().expect("a request is refused with a status");
    assert!(status.is_client_error(), "{status}");
}

fn check_accepted(
    request: &Request<()>,
    context: RequestContext<'_>,
    accepted: &AcceptedRequest<Arc<()>, ()>,
) {
    let (headers, route) = (request.headers(), &accepted.routed.route);
    assert_eq!(request.method(), Method::GET);
    assert_eq!(headers.get_all(HOST).iter().count(), 1);
    let origins: Vec<_> = headers.get_all(ORIGIN).iter().map(HeaderValue::as_bytes).collect();
    assert!(origins.len() == 1 || origins.is_empty() && route.name == "open", "{origins:?}");
    if matches!(route.name.as_str(), "listed" | "tree") {
        let host = context.forwarded_host.map_or(headers[HOST].as_bytes(), str::as_bytes);
        check_same_origin(origins[0], context.https, host);
    }
    if route.name == "host" {
        let allowed = [&b"null"[..], b"https://b.example:8443"];
        assert!(allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(origins[0])), "{origins:?}");
    }
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|line| line.to_str().ok());
    let offers: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    match &accepted.subprotocol {
        Some(subprotocol) => {
            assert!(offers.contains(&subprotocol.as_str()), "{subprotocol:?} was not offered");
            assert!(route.subprotocols.is_empty() || route.subprotocols.contains(subprotocol));
        }
        None => {
            let unselected = |offer: &&str| offer.is_empty() || offer.eq_ignore_ascii_case("xmpp");
            assert!(offers.iter().all(unselected), "none of {offers:?} was selected");
        }
    }
    let switching = accepted.handshake.switching(accepted.subprotocol.as_deref());
    assert_eq!(switching.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert!(!switching.headers().contains_key("sec-websocket-extensions"));
}

/// The Origin is the Host's, compared without the parsers of the program: in ASCII and without IDNA.
fn check_same_origin(origin: &[u8], https: bool, host: &[u8]) {
    let (origin, host) = (origin.to_ascii_lowercase(), host.to_ascii_lowercase());
    if !origin.is_ascii() || !host.is_ascii() || origin.windows(4).any(|label| label == b"xn--") {
        return;
    }
    let (scheme, port) =
        if https { (&b"https://"[..], &b":443"[..]) } else { (&b"http://"[..], &b":80"[..]) };
    let authority = origin.strip_prefix(scheme).expect("the scheme of the gateway");
    let without_port = |authority: &[u8]| authority.strip_suffix(port).unwrap_or(authority).to_vec();
    assert_eq!(without_port(authority), without_port(&host), "a foreign page");
}
