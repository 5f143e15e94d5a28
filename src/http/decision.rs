//! The authorisation of a request: which route it matches, and whether that route admits it.
//!
//! Owns the order of the checks, for the gateway and for `portcullis explain` alike. Pure: no socket, no clock, no counter.
//! The stateful limits (rate limit, connections per address, `max_sessions`) belong to the caller. Invariant: a decision
//! holds the result of every check, the checks after the first failure included, and [`Decision::accept`] reports the
//! first failure.

use std::{ops::Deref, sync::Arc};

use http::{HeaderValue, Request, header::ORIGIN, uri::Scheme};

use super::{
    handshake::{Handshake, check_head, host_name},
    known_hosts::KnownHosts,
    response::{Refusal, quoted},
    route::{Routed, Routes},
};
use crate::{
    admission::{Origin, OriginRefused},
    config::RoutePath,
    outcome::Reason,
};

/// What a request head alone does not show: it comes from the connection or from a trusted proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RequestContext<'a> {
    /// Whether the browser used TLS, here or at a trusted proxy that terminates it.
    pub https: bool,
    /// The Host that a trusted proxy forwarded. It replaces the request's own.
    pub forwarded_host: Option<&'a str>,
    /// The hosts that the request may name; `None` for any.
    pub hosts: Option<&'a KnownHosts>,
}

/// A request for a route, with the result of every check.
#[derive(Debug)]
pub(crate) struct Decision<'r, 'q, U, C> {
    /// The route that serves the request.
    pub routed: &'r Arc<Routed<U>>,
    /// Routes of lower precedence that match too.
    pub shadowed: Vec<&'r Arc<Routed<U>>>,
    pub handshake: Result<Handshake, Refusal>,
    /// The origin that `same-origin` stands for, if the Host can be part of one.
    pub own_origin: Option<Origin>,
    /// The result of the route's origin policy.
    pub origin: Result<(), OriginRefused>,
    /// The backend that the request selects; `None` if its token is missing or unknown.
    pub choice: Option<C>,
    sent_origins: Vec<&'q [u8]>,
}

/// An upgrade request that passed every check.
#[derive(Debug)]
pub(crate) struct AcceptedRequest<U, C> {
    pub routed: Arc<Routed<U>>,
    pub choice: C,
    pub handshake: Handshake,
    pub subprotocol: Option<String>,
}

/// Checks a request. `choose` selects the backend by the route's path and the request's path and query. `None`: no route
/// matches, and only a static file can answer.
///
/// # Errors
/// The request head is invalid whatever it requests, names a host that the listener does not know, or an https URI without
/// TLS (RFC 9110 §7.4).
pub(crate) fn decide<'r, 'q, U: Deref, C>(
    routes: &'r Routes<U>,
    request: &'q Request<()>,
    context: RequestContext<'_>,
    choose: impl FnOnce(&U::Target, &RoutePath, &str, Option<&str>) -> Option<C>,
) -> Result<Option<Decision<'r, 'q, U, C>>, Refusal> {
    let own_host = check_head(request)?;
    if request.uri().scheme() == Some(&Scheme::HTTPS) && !context.https {
        let detail = "the request target is an https URI, and the connection does not use TLS".to_owned();
        return Err(Refusal::new(Reason::Misdirected).with_detail(detail));
    }
    let host = context.forwarded_host.map_or(own_host, str::to_ascii_lowercase);
    if context.hosts.is_some_and(|hosts| !hosts.contains(host_name(&host))) {
        let detail = format!("unknown host: {}", quoted(host.as_bytes()));
        return Err(Refusal::new(Reason::Misdirected).with_detail(detail));
    }
    let (path, query) = (request.uri().path(), request.uri().query());
    let mut matching = routes.matching(host_name(&host), path);
    let Some(routed) = matching.next() else { return Ok(None) };
    let shadowed = matching.collect();
    let route = &routed.route;
    let sent_origins: Vec<&[u8]> =
        request.headers().get_all(ORIGIN).iter().map(HeaderValue::as_bytes).collect();
    let own_origin = Origin::of_host(context.https, &host);
    Ok(Some(Decision {
        routed,
        shadowed,
        handshake: Handshake::read(request),
        origin: route.origins.permit(&sent_origins, own_origin.as_ref()),
        own_origin,
        choice: choose(&routed.upstream, &route.path, path, query),
        sent_origins,
    }))
}

impl<U, C> Decision<'_, '_, U, C> {
    /// The first failure of the checks that come before those of a credential: handshake, Origin.
    pub(crate) fn check_page(&self) -> Result<(), Refusal> {
        self.handshake.as_ref().map_err(Refusal::clone)?;
        self.origin.as_ref().map_err(|error| origin_refusal(error, &self.sent_origins))?;
        Ok(())
    }

    /// Removes credentials from the offered subprotocols.
    pub(crate) fn remove_offers(&mut self, applies: impl Fn(&str) -> bool) {
        if let Ok(handshake) = &mut self.handshake {
            handshake.remove_offers(applies);
        }
    }

    /// Accepts the request if every check passed.
    ///
    /// # Errors
    /// The first failure, in this order: handshake, Origin, subprotocol, token.
    pub(crate) fn accept(self) -> Result<AcceptedRequest<U, C>, Refusal> {
        self.check_page()?;
        let handshake = self.handshake?;
        let subprotocol = handshake.subprotocol(&self.routed.route.subprotocols)?.map(str::to_owned);
        let choice = self
            .choice
            .ok_or_else(|| Refusal::new(Reason::UnknownRoute).with_detail("unknown token".to_owned()))?;
        Ok(AcceptedRequest { routed: Arc::clone(self.routed), choice, handshake, subprotocol })
    }
}

fn origin_refusal(error: &OriginRefused, sent: &[&[u8]]) -> Refusal {
    let refusal = match error {
        OriginRefused::Missing => {
            let message = "the Origin header is missing: only web pages may connect here";
            Refusal::with_message(Reason::OriginRefused, message)
        }
        _ => Refusal::new(Reason::OriginRefused),
    };
    refusal.with_detail(match error {
        OriginRefused::Malformed(_) | OriginRefused::Several => {
            format!("{error}: {}", quoted(&sent.join(&b", "[..])))
        }
        _ => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use http::{
        Method,
        header::{HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION},
    };

    use super::*;
    use crate::config::Config;

    /// Two overlapping routes, the first of which lists one subprotocol.
    fn routes() -> Routes<Arc<()>> {
        let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n\
             [[route]]\nname = \"exact\"\npath = \"/desk/one\"\nbackend = \"tcp://127.0.0.1:1\"\nsubprotocols = [\"binary\"]\n\
             [[route]]\nname = \"prefix\"\npath = \"/desk/*\"\nbackend = \"tcp://127.0.0.1:1\"\n";
        let config = Config::parse(text, Path::new("gateway.toml")).unwrap();
        Routes::new(config.routes.into_iter().map(|route| Routed { route, upstream: Arc::new(()) }))
    }

    /// An upgrade request of a page of the gateway itself.
    fn request(path: &str) -> Request<()> {
        Request::builder()
            .uri(path)
            .header(HOST, "Gate.example")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
            .header(SEC_WEBSOCKET_PROTOCOL, "binary")
            .header(ORIGIN, "https://gate.example")
            .body(())
            .unwrap()
    }

    const HTTPS: RequestContext<'_> = RequestContext { https: true, forwarded_host: None, hosts: None };

    /// The reason of the first failure.
    fn refused(request: &Request<()>, token_is_known: bool) -> Option<Reason> {
        let routes = routes();
        match decide(&routes, request, HTTPS, |(), _, _, _| token_is_known.then_some(())) {
            Err(refusal) => Some(refusal.reason()),
            Ok(None) => panic!("no route matches"),
            Ok(Some(decision)) => decision.accept().err().map(|refusal| refusal.reason()),
        }
    }

    #[test]
    fn a_request_without_an_origin_is_told_that_only_pages_may_connect() {
        let origin_refused = |values: &[&'static str]| {
            let mut request = request("/desk/one");
            request.headers_mut().remove(ORIGIN);
            for value in values {
                request.headers_mut().append(ORIGIN, HeaderValue::from_static(value));
            }
            let routes = routes();
            let decision = decide(&routes, &request, HTTPS, |(), _, _, _| Some(())).unwrap().unwrap();
            decision.accept().err().unwrap()
        };
        let missing = origin_refused(&[]);
        assert!(format!("{missing:?}").contains("only web pages may connect here"), "{missing:?}");
        let foreign = origin_refused(&["https://other.example"]);
        assert!(!format!("{foreign:?}").contains("only web pages"), "{foreign:?}");
    }

    #[test]
    fn refusals_come_in_the_documented_order() {
        let mut request = request("/desk/one");
        let known = refused(&request, true);
        assert_eq!(known, None);
        assert_eq!(refused(&request, false), Some(Reason::UnknownRoute));
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"));
        assert_eq!(refused(&request, false), Some(Reason::SubprotocolRefused));
        request.headers_mut().insert(ORIGIN, HeaderValue::from_static("https://evil.example"));
        assert_eq!(refused(&request, false), Some(Reason::OriginRefused));
        *request.method_mut() = Method::POST;
        assert_eq!(refused(&request, false), Some(Reason::MethodNotAllowed));
        request.headers_mut().remove(HOST);
        assert_eq!(refused(&request, false), Some(Reason::BadRequest));
    }

    #[test]
    fn checks_after_the_first_failure_are_reported_too() {
        let (routes, mut request) = (routes(), request("/desk/one"));
        *request.method_mut() = Method::POST;
        request.headers_mut().insert(ORIGIN, HeaderValue::from_static("https://evil.example"));
        let decision = decide(&routes, &request, HTTPS, |(), _, _, _| None::<()>).unwrap().unwrap();
        assert!(decision.handshake.is_err() && decision.origin.is_err() && decision.choice.is_none());
        assert_eq!(decision.routed.route.name, "exact");
        let shadowed: Vec<&str> = decision.shadowed.iter().map(|routed| routed.route.name.as_str()).collect();
        assert_eq!(shadowed, ["prefix"]);
    }

    #[test]
    fn the_forwarded_host_replaces_the_request_host() {
        let (routes, mut request) = (routes(), request("/desk/two"));
        request.headers_mut().insert(HOST, HeaderValue::from_static("inner:8080"));
        let context = RequestContext { forwarded_host: Some("GATE.example"), ..HTTPS };
        let decision = decide(&routes, &request, context, |(), _, _, _| Some(())).unwrap().unwrap();
        assert_eq!(decision.own_origin, "https://gate.example".parse().ok());
        assert_eq!(decision.accept().unwrap().subprotocol.as_deref(), Some("binary"));
    }

    #[test]
    fn an_https_target_needs_tls_here_or_at_a_trusted_proxy() {
        for (target, https, expected) in [
            ("https://gate.example/desk/one", true, None),
            ("https://gate.example/desk/one", false, Some(Reason::Misdirected)),
            ("HTTPS://gate.example/desk/one", false, Some(Reason::Misdirected)),
            ("http://gate.example/desk/one", false, None),
            ("http://gate.example/desk/one", true, None),
        ] {
            let (routes, request) = (routes(), request(target));
            let context = RequestContext { https, ..HTTPS };
            let refused = decide(&routes, &request, context, |(), _, _, _| Some(())).err();
            assert_eq!(refused.map(|refusal| refusal.reason()), expected, "{target}, https: {https}");
        }
    }

    #[test]
    fn a_path_without_a_route_is_left_to_the_files() {
        let (routes, request) = (routes(), request("/index.html"));
        assert!(decide(&routes, &request, HTTPS, |(), _, _, _| Some(())).unwrap().is_none());
    }
}
