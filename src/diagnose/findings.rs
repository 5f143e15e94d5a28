//! What would become of a connection: the facts.
//!
//! Owns the order of the steps, which is that of a connection's life, and what is taken for granted where only a real
//! connection would tell. Each step is judged by the room that judges it while the gateway runs.

use std::{net::IpAddr, sync::Arc};

use ::http::StatusCode;

use super::question::Question;
use crate::{
    admission::{Origin, OriginRefused, rate},
    backend::{BackendChoice, Upstream, targets::token_of},
    config::{Address, Backend, Config, Listener, Route},
    http::{self, Decision, Files, RequestContext, Routed, Routes},
    outcome::Reason,
    transport::peer,
};

/// Everything there is to say about a connection.
#[derive(Debug)]
pub(crate) struct Findings<'a> {
    /// The configuration that is asked.
    pub config: &'a Config,
    /// What is asked.
    pub question: &'a Question,
    /// Who takes the connection.
    pub listener_match: ListenerMatch<'a>,
    /// Who it comes from.
    pub caller: ClientKind,
    /// Where it leads, or why nowhere.
    pub found: Result<RouteMatch<'a>, NotAdmitted>,
    /// Why it is not let in. The first reason is the one that a client meets.
    pub refusal: Option<NotAdmitted>,
}

/// Who takes a connection.
#[derive(Debug)]
pub(crate) enum ListenerMatch<'a> {
    /// This one.
    Open {
        /// Which.
        listener: &'a Listener,
        /// Whether the URL is that of a proxy in front, rather than of the listener.
        elsewhere: bool,
    },
    /// This one would, if the scheme were the other one.
    WrongScheme(&'a Listener),
    /// Nobody.
    None,
}

/// Who a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientKind {
    /// It was not said.
    Unknown,
    /// A client that the limits do not count.
    Exempt(IpAddr),
    /// A client.
    Counted(IpAddr),
    /// A trusted proxy, which says in its requests who the client is.
    Proxy(IpAddr),
    /// A trusted proxy, which says in a PROXY header who the client is.
    ProxyByHeader(IpAddr),
    /// A stranger, where only trusted proxies may connect.
    Intruder(IpAddr),
}

/// Where a connection leads.
#[derive(Debug)]
pub(crate) struct RouteMatch<'a> {
    /// The route.
    pub routed: &'a Arc<Routed<Arc<Upstream>>>,
    /// Other routes that would take it, were this one not there.
    pub others: Vec<&'a Route>,
    /// What "same-origin" means.
    pub own: Option<Origin>,
    /// What the origin rule says.
    pub origin: Result<(), OriginRefused>,
    /// The servers.
    pub target: DialTargets,
    /// The reason of the first check that fails.
    pub refusal: Option<Reason>,
}

/// The servers that a connection may be led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DialTargets {
    /// One of these.
    Any(Vec<Backend>),
    /// The one that its token names.
    Token(Backend),
    /// None, without a token.
    NoToken,
    /// None, for this token.
    UnknownToken,
}

/// Why a connection is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// Nobody listens.
    Nobody,
    /// It gets a file instead, with this status.
    File(StatusCode),
    /// It ends for this reason.
    End(Reason),
}

impl<'a> Findings<'a> {
    /// Goes through all steps, those behind the first refusal included as far as they can be known.
    pub(crate) async fn of(
        config: &'a Config,
        routes: &'a Routes<Arc<Upstream>>,
        files: Option<&Files>,
        question: &'a Question,
    ) -> Self {
        let listener_match = listener_match(config, question);
        let caller = caller(config, &listener_match, question);
        let request = question.request();
        let context =
            RequestContext { https: is_https(&listener_match, caller, question), forwarded_host: None };
        let found = match http::decide(routes, &request, context, Upstream::choose) {
            Err(refusal) => Err(NotAdmitted::End(refusal.reason())),
            Ok(None) => Err(no_route(files, question).await),
            Ok(Some(decision)) => Ok(RouteMatch::new(decision, question)),
        };
        let refusal = at_the_door(&listener_match, caller).or_else(|| match &found {
            Err(refused) => Some(*refused),
            Ok(found) => found.refusal.map(NotAdmitted::End),
        });
        Self { config, question, listener_match, caller, found, refusal }
    }
}

/// Why a connection never gets to ask for anything.
fn at_the_door(listener_match: &ListenerMatch<'_>, caller: ClientKind) -> Option<NotAdmitted> {
    match (listener_match, caller) {
        (ListenerMatch::None, _) => Some(NotAdmitted::Nobody),
        (ListenerMatch::Open { .. }, ClientKind::Intruder(_)) => {
            Some(NotAdmitted::End(Reason::ProxyHeaderInvalid))
        }
        (ListenerMatch::Open { .. }, _) => None,
        (ListenerMatch::WrongScheme(listener), _) if listener.identity.is_some() => {
            Some(NotAdmitted::End(Reason::NotTls))
        }
        // The beginning of a TLS handshake is no request.
        (ListenerMatch::WrongScheme(_), _) => Some(NotAdmitted::End(Reason::BadRequest)),
    }
}

impl<'a> RouteMatch<'a> {
    fn new(decision: Decision<'a, '_, Arc<Upstream>, BackendChoice>, question: &Question) -> Self {
        let (routed, request) = (decision.routed, question.request());
        let target = match decision.choice.clone() {
            Some(BackendChoice::Any) => DialTargets::Any(routed.upstream.backends()),
            Some(BackendChoice::This(backend)) => DialTargets::Token(backend),
            None if token_of(&routed.route.path, request.uri().path(), request.uri().query()).is_some() => {
                DialTargets::UnknownToken
            }
            None => DialTargets::NoToken,
        };
        Self {
            routed,
            others: decision.shadowed.iter().map(|other| &other.route).collect(),
            own: decision.own_origin.clone(),
            origin: decision.origin.clone(),
            target,
            refusal: decision.accept().err().map(|refusal| refusal.reason()),
        }
    }
}

/// Whether the browser uses TLS: a trusted proxy passes on what it was asked for.
fn is_https(listener_match: &ListenerMatch<'_>, caller: ClientKind, question: &Question) -> bool {
    match (listener_match, caller) {
        (_, ClientKind::Proxy(_)) | (ListenerMatch::None, _) => question.is_wss(),
        (ListenerMatch::Open { listener, .. } | ListenerMatch::WrongScheme(listener), _) => {
            listener.identity.is_some()
        }
    }
}

/// Which listener takes a connection: one of that port and scheme, or else one that trusts the proxy it comes from.
fn listener_match<'a>(config: &'a Config, question: &Question) -> ListenerMatch<'a> {
    let trusts = |listener: &Listener| {
        question.from().is_some_and(|from| peer::is_trusted(&listener.trusted_proxies, from))
    };
    // What asks for TLS may come without it where a proxy in front ends it.
    let is_behind_proxy =
        |listener: &Listener| trusts(listener) || listener.proxy_protocol && question.from().is_none();
    let fits = |listener: &&Listener| {
        let tls = listener.identity.is_some();
        tls == question.is_wss() || !tls && is_behind_proxy(listener)
    };
    let here = || config.listeners.iter().filter(|listener| is_called(&listener.address, question));
    let elsewhere = || config.listeners.iter().filter(|listener| trusts(listener));
    if let Some(listener) = here().find(fits) {
        ListenerMatch::Open { listener, elsewhere: false }
    } else if let Some(listener) = elsewhere().find(fits) {
        ListenerMatch::Open { listener, elsewhere: true }
    } else {
        here().next().map_or(ListenerMatch::None, ListenerMatch::WrongScheme)
    }
}

/// Whether a listener hears of a connection; a name is taken to lead to this machine, and what a socket unit opened is
/// not known here.
fn is_called(listener: &Address, question: &Question) -> bool {
    let listener = match listener {
        Address::Ip(address) => address,
        Address::Unix(_) => return false,
        Address::Inherited(_) => return true,
    };
    let listens_at = |address: IpAddr| match listener.ip().to_canonical() {
        // An IPv6 socket takes IPv4 as well.
        ip if ip.is_unspecified() => ip.is_ipv6() || address.is_ipv4(),
        ip => ip == address,
    };
    listener.port() == question.port() && question.address().is_none_or(listens_at)
}

fn caller(config: &Config, listener_match: &ListenerMatch<'_>, question: &Question) -> ClientKind {
    let Some(from) = question.from() else { return ClientKind::Unknown };
    if let ListenerMatch::Open { listener, .. } = listener_match {
        match (listener.proxy_protocol, peer::is_trusted(&listener.trusted_proxies, from)) {
            (true, true) => return ClientKind::ProxyByHeader(from),
            (true, false) => return ClientKind::Intruder(from),
            (false, true) => return ClientKind::Proxy(from),
            (false, false) => {}
        }
    }
    let is_exempt = rate::covers(&config.limits.per_ip.exempt, from);
    if is_exempt { ClientKind::Exempt(from) } else { ClientKind::Counted(from) }
}

/// What becomes of a request for no route.
async fn no_route(files: Option<&Files>, question: &Question) -> NotAdmitted {
    let Some(files) = files else { return NotAdmitted::End(Reason::UnknownRoute) };
    match files.find(question.request()).await {
        Ok(file) => NotAdmitted::File(file.status()),
        Err(refusal) => NotAdmitted::End(refusal.reason()),
    }
}
