//! What would happen to a connection: the facts, without their wording.
//!
//! Owns the choice of the listener, and the assumptions where only a real connection would show. The request itself is
//! checked by [`http::decide`], as it is in a running gateway. Invariant: a step after the first refusal is still reported
//! if it can be known.

use std::{net::IpAddr, sync::Arc};

use ::http::StatusCode;

use super::question::Question;
use crate::{
    admission::{Origin, OriginRefused, rate},
    backend::{BackendChoice, Upstream, targets::token_of},
    config::{Address, Backend, Config, Listener, Route},
    http::{self, Decision, Files, KnownHosts, RequestContext, Routed, Routes},
    outcome::Reason,
    transport::peer,
};

/// Everything that is known about a connection.
#[derive(Debug)]
pub(crate) struct Findings<'a> {
    pub config: &'a Config,
    pub question: &'a Question,
    pub listener_match: ListenerMatch<'a>,
    pub client: ClientKind,
    /// The route, or why there is none.
    pub route_match: Result<RouteMatch<'a>, NoSession>,
    /// The first refusal, which is the one that the client receives. `None` if the connection is accepted.
    pub refusal: Option<NoSession>,
}

/// The listener that accepts a connection.
#[derive(Debug)]
pub(crate) enum ListenerMatch<'a> {
    Open {
        listener: &'a Listener,
        /// Whether the URL is that of a proxy in front of the listener.
        behind_proxy: bool,
    },
    /// The port matches, but one side uses TLS and the other does not.
    WrongScheme(&'a Listener),
    None,
}

/// How the gateway classifies the source address of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientKind {
    /// The question names no address.
    Unknown,
    /// A client in `limits.per_ip.exempt`.
    Exempt(IpAddr),
    /// A client to which the limits per address apply.
    Counted(IpAddr),
    /// A trusted proxy, which names the client in forwarding headers.
    Proxy(IpAddr),
    /// A trusted proxy, which names the client in a PROXY header.
    ProxyByHeader(IpAddr),
    /// Not a trusted proxy, on a listener that requires a PROXY header.
    Untrusted(IpAddr),
}

/// The route of a connection, and the results of its checks.
#[derive(Debug)]
pub(crate) struct RouteMatch<'a> {
    pub routed: &'a Arc<Routed<Arc<Upstream>>>,
    /// Routes of lower precedence that match too.
    pub shadowed: Vec<&'a Route>,
    /// The origin that `same-origin` stands for.
    pub own_origin: Option<Origin>,
    pub origin: Result<(), OriginRefused>,
    pub targets: DialTargets,
    /// The reason of the first check that fails.
    pub refusal: Option<Reason>,
}

/// The backends that a connection can be forwarded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DialTargets {
    /// One of these, by the balance policy.
    Any(Vec<Backend>),
    /// The one that its token selects.
    Token(Backend),
    /// None, for lack of one token.
    NoToken,
    /// None, for the token is unknown.
    UnknownToken,
}

/// Why a connection does not become a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSession {
    NoListener,
    /// It gets a file, with this status.
    File(StatusCode),
    Refused(Reason),
}

impl<'a> Findings<'a> {
    /// Evaluates all steps, also those after the first refusal.
    pub(crate) async fn of(
        config: &'a Config,
        routes: &'a Routes<Arc<Upstream>>,
        files: Option<&Files>,
        known_hosts: &[Option<KnownHosts>],
        question: &'a Question,
    ) -> Self {
        let listener_match = listener_match(config, question);
        let client = client_kind(config, &listener_match, question);
        let request = question.request();
        let hosts = known_hosts_of(config, known_hosts, &listener_match);
        let context = RequestContext {
            https: is_https(&listener_match, client, question),
            forwarded_host: None,
            hosts: hosts.filter(|hosts| hosts.apply_to(matches!(client, ClientKind::Proxy(_)))),
        };
        let route_match = match http::decide(routes, &request, context, Upstream::choose) {
            Err(refusal) => Err(NoSession::Refused(refusal.reason())),
            Ok(None) => Err(no_route(files, question).await),
            Ok(Some(decision)) => Ok(RouteMatch::new(decision, question)),
        };
        let refusal = refusal_before_request(&listener_match, client).or_else(|| match &route_match {
            Err(refused) => Some(*refused),
            Ok(route_match) => route_match.refusal.map(NoSession::Refused),
        });
        Self { config, question, listener_match, client, route_match, refusal }
    }
}

/// The refusal of a connection before it sends a request.
fn refusal_before_request(listener_match: &ListenerMatch<'_>, client: ClientKind) -> Option<NoSession> {
    match (listener_match, client) {
        (ListenerMatch::None, _) => Some(NoSession::NoListener),
        (ListenerMatch::Open { .. }, ClientKind::Untrusted(_)) => {
            Some(NoSession::Refused(Reason::ProxyHeaderInvalid))
        }
        (ListenerMatch::Open { .. }, _) => None,
        (ListenerMatch::WrongScheme(listener), _) if listener.identity.is_some() => {
            Some(NoSession::Refused(Reason::NotTls))
        }
        // A TLS ClientHello is not a valid request.
        (ListenerMatch::WrongScheme(_), _) => Some(NoSession::Refused(Reason::BadRequest)),
    }
}

impl<'a> RouteMatch<'a> {
    fn new(decision: Decision<'a, '_, Arc<Upstream>, BackendChoice>, question: &Question) -> Self {
        let (routed, request) = (decision.routed, question.request());
        let targets = match decision.choice.clone() {
            Some(BackendChoice::Any) => DialTargets::Any(routed.upstream.backends()),
            Some(BackendChoice::This { backend, .. }) => DialTargets::Token(backend),
            None if token_of(&routed.route.path, request.uri().path(), request.uri().query()).is_some() => {
                DialTargets::UnknownToken
            }
            None => DialTargets::NoToken,
        };
        Self {
            routed,
            shadowed: decision.shadowed.iter().map(|routed| &routed.route).collect(),
            own_origin: decision.own_origin.clone(),
            origin: decision.origin.clone(),
            targets,
            refusal: decision.accept().err().map(|refusal| refusal.reason()),
        }
    }
}

/// Whether the browser uses TLS. A trusted proxy is assumed to forward the scheme of the URL.
fn is_https(listener_match: &ListenerMatch<'_>, client: ClientKind, question: &Question) -> bool {
    match (listener_match, client) {
        (_, ClientKind::Proxy(_)) | (ListenerMatch::None, _) => question.is_wss(),
        (ListenerMatch::Open { listener, .. } | ListenerMatch::WrongScheme(listener), _) => {
            listener.identity.is_some()
        }
    }
}

/// The hosts that requests to the listener may name.
fn known_hosts_of<'k>(
    config: &Config,
    known_hosts: &'k [Option<KnownHosts>],
    listener_match: &ListenerMatch<'_>,
) -> Option<&'k KnownHosts> {
    let ListenerMatch::Open { listener, .. } = listener_match else { return None };
    let index = config.listeners.iter().position(|other| std::ptr::eq(other, *listener))?;
    known_hosts.get(index)?.as_ref()
}

/// The listener that accepts a connection: one of that port and scheme, or else one that trusts the proxy it comes from.
fn listener_match<'a>(config: &'a Config, question: &Question) -> ListenerMatch<'a> {
    let trusts = |listener: &Listener| {
        question.from().is_some_and(|from| peer::is_trusted(&listener.trusted_proxies, from))
    };
    // A wss:// connection arrives without TLS where a proxy in front terminates it.
    let is_behind_proxy =
        |listener: &Listener| trusts(listener) || listener.proxy_protocol && question.from().is_none();
    let fits = |listener: &&Listener| {
        let tls = listener.identity.is_some();
        tls == question.is_wss() || !tls && is_behind_proxy(listener)
    };
    let on_port = || config.listeners.iter().filter(|listener| listens_on(&listener.address, question));
    let trusting = || config.listeners.iter().filter(|listener| trusts(listener));
    if let Some(listener) = on_port().find(fits) {
        ListenerMatch::Open { listener, behind_proxy: false }
    } else if let Some(listener) = trusting().find(fits) {
        ListenerMatch::Open { listener, behind_proxy: true }
    } else {
        on_port().next().map_or(ListenerMatch::None, ListenerMatch::WrongScheme)
    }
}

/// Whether a listener receives a connection. A host name is assumed to resolve to this machine, and an inherited socket is
/// assumed to match, since its address is not known here.
fn listens_on(listener: &Address, question: &Question) -> bool {
    let listener = match listener {
        Address::Ip(address) => address,
        Address::Unix(_) => return false,
        Address::Inherited(_) => return true,
    };
    let covers = |address: IpAddr| match listener.ip().to_canonical() {
        // An IPv6 socket accepts IPv4 as well.
        ip if ip.is_unspecified() => ip.is_ipv6() || address.is_ipv4(),
        ip => ip == address,
    };
    listener.port() == question.port() && question.address().is_none_or(covers)
}

fn client_kind(config: &Config, listener_match: &ListenerMatch<'_>, question: &Question) -> ClientKind {
    let Some(from) = question.from() else { return ClientKind::Unknown };
    if let ListenerMatch::Open { listener, .. } = listener_match {
        match (listener.proxy_protocol, peer::is_trusted(&listener.trusted_proxies, from)) {
            (true, true) => return ClientKind::ProxyByHeader(from),
            (true, false) => return ClientKind::Untrusted(from),
            (false, true) => return ClientKind::Proxy(from),
            (false, false) => {}
        }
    }
    let is_exempt = rate::covers(&config.limits.per_ip.exempt, from);
    if is_exempt { ClientKind::Exempt(from) } else { ClientKind::Counted(from) }
}

/// The result of a request that matches no route.
async fn no_route(files: Option<&Files>, question: &Question) -> NoSession {
    let Some(files) = files else { return NoSession::Refused(Reason::UnknownRoute) };
    match files.find(question.request()).await {
        Ok(file) => NoSession::File(file.status()),
        Err(refusal) => NoSession::Refused(refusal.reason()),
    }
}
