//! What would become of a connection: the words.
//!
//! Owns how facts are told to people: one step a line, what belongs to it below. Decides nothing. Invariant: of a URL only
//! scheme, host and port are ever shown, for a token can stand in the rest.

use std::{fmt::Write, net::IpAddr};

use ipnet::IpNet;

use super::{
    dial::{self, Reached},
    findings::{ClientKind, DialTargets, Findings, ListenerMatch, NotAdmitted, RouteMatch},
    list::list,
};
use crate::{
    admission::MissingOrigin,
    backend::{ConnectError, proxy_header},
    config::{Backend, BackendFailure, Balance, Destinations, Listener, Route, RoutePath, SendProxy},
    outcome::Reason,
    session::ConnectionIds,
};

/// The width of the first column: that of "sub-protocols".
const LABEL: usize = 13;

/// What is told of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Explanation {
    /// For people; ends with a line of its own for the verdict.
    pub text: String,
    /// Whether it would become a session that can last.
    pub is_let_in: bool,
}

/// What came of dialling a server.
pub(crate) type DialOutcome = (Backend, Result<Reached, ConnectError>);

/// Tells what was found, and what the servers said that were dialled.
pub(crate) fn report(findings: &Findings<'_>, dialled: &[DialOutcome]) -> Explanation {
    let mut page = Page::default();
    page.step("listener", listener(findings));
    page.step("from", from(findings));
    page.step("route", route(findings));
    if let Ok(found) = &findings.found {
        page.step("origin", origin(found, findings));
        page.step("sub-protocols", [subprotocols(&found.routed.route)]);
        page.step("backend", backends(found));
        page.step("PROXY header", [proxy_header(findings, &found.routed.route)]);
        for (backend, outcome) in dialled {
            let mut lines = dial::words(outcome);
            lines[0] = format!("{backend}: {}", lines[0]);
            page.step("dial", lines);
        }
    }
    let (verdict, is_let_in) = verdict(findings, dialled);
    page.0.push_str(&verdict);
    page.0.push('\n');
    Explanation { text: page.0, is_let_in }
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn step(&mut self, label: &str, lines: impl IntoIterator<Item = String>) {
        for (index, line) in lines.into_iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            // Writing to a String never fails.
            let _ = writeln!(self.0, "{label:LABEL$}  {line}");
        }
    }
}

fn listener(findings: &Findings<'_>) -> Vec<String> {
    let port = findings.question.port();
    let tls = |listener: &Listener| if listener.identity.is_some() { "with TLS" } else { "without TLS" };
    match findings.listener_match {
        ListenerMatch::Open { listener, elsewhere } => {
            let mut lines = vec![format!("{} takes it, {}", listener.address, tls(listener))];
            if elsewhere {
                lines.push(format!("(nothing listens on port {port} itself: that is the proxy's)"));
            }
            if listener.proxy_protocol {
                let networks = list(&listener.trusted_proxies, IpNet::to_string);
                lines.push(format!("every connection must begin with a PROXY header, sent from {networks}"));
            }
            lines
        }
        ListenerMatch::WrongScheme(listener) => {
            let advice = match listener.identity {
                Some(_) => "ask for wss://",
                None => "ask for ws://, or let a proxy of its trusted_proxies end TLS (--from its address)",
            };
            vec![format!("{} listens on that port, but {}: {advice}", listener.address, tls(listener))]
        }
        ListenerMatch::None => {
            let all = list(&findings.config.listeners, |listener| {
                format!("{} {}", listener.address, tls(listener))
            });
            let at = findings.question.address().map(|address| format!(" of {address}")).unwrap_or_default();
            vec![
                format!("nothing listens on port {port}{at}; there is {all}"),
                "if a proxy stands in front, give its address: --from ADDRESS".to_owned(),
            ]
        }
    }
}

fn from(findings: &Findings<'_>) -> Vec<String> {
    let limits = &findings.config.limits.per_ip;
    let counts = format!(
        "{} new connections a second, {} at once, {} held",
        limits.rate, limits.burst, limits.sessions
    );
    match findings.caller {
        ClientKind::Unknown => vec![format!("anywhere (see --from): one address may have {counts}")],
        ClientKind::Exempt(ip) => vec![format!("{ip} is exempt from the limits per address")],
        ClientKind::Counted(ip) => vec![format!("{ip} is counted: it may have {counts}")],
        ClientKind::Proxy(ip) => vec![
            format!("{ip} is a trusted proxy: the client that it names is counted, with {counts}"),
            format!(
                "taken for granted: it passes on Host, and X-Forwarded-Proto: {}",
                if findings.question.is_wss() { "https" } else { "http" }
            ),
        ],
        ClientKind::ProxyByHeader(ip) => {
            vec![format!("{ip} is a trusted proxy: the client in its PROXY header is counted, with {counts}")]
        }
        ClientKind::Intruder(ip) => {
            vec![format!("{ip} is not in trusted_proxies, and may not send a PROXY header")]
        }
    }
}

fn route(findings: &Findings<'_>) -> Vec<String> {
    let found = match &findings.found {
        Ok(found) => found,
        Err(NotAdmitted::File(_)) => return vec!["none: it is a file of [web] root".to_owned()],
        Err(NotAdmitted::End(Reason::UnknownRoute) | NotAdmitted::Nobody) => {
            return vec![match findings.config.routes.as_slice() {
                [] => "none: there is no [[route]]".to_owned(),
                routes => format!("none takes this host and path; there is {}", list(routes, which)),
            }];
        }
        Err(NotAdmitted::End(reason)) => return vec![format!("none: {}", reason.explanation())],
    };
    let mut lines = vec![which(&found.routed.route)];
    if !found.others.is_empty() {
        lines.push(format!("goes before {}", list(&found.others, |route| which(route))));
        lines.push(
            "(a host goes before any host, an exact path before a prefix, a longer prefix before a shorter)"
                .to_owned(),
        );
    }
    lines
}

fn which(route: &Route) -> String {
    let host = route.host.as_deref().map_or("any host".to_owned(), |host| format!("host {host}"));
    match &route.path {
        RoutePath::Exact(path) => format!("{:?}, {host} and exactly {path}", route.name),
        prefix @ RoutePath::Prefix(_) => format!("{:?}, {host} and all of {prefix}", route.name),
    }
}

fn origin(found: &RouteMatch<'_>, findings: &Findings<'_>) -> Vec<String> {
    let policy = &found.routed.route.origins;
    let sent = findings.question.origin().map(|sent| String::from_utf8_lossy(sent.as_bytes()));
    let verdict = match (&found.origin, sent) {
        (Ok(()), Some(sent)) => format!("{sent} is allowed"),
        (Ok(()), None) => "none is sent (see --origin), which is allowed".to_owned(),
        (Err(refused), Some(_)) => format!("refused: {refused}"),
        (Err(refused), None) => format!("refused: {refused} (see --origin)"),
    };
    let mut pass: Vec<String> = Vec::new();
    if policy.any {
        pass.push("any".to_owned());
    }
    if let Some(own) = found.own.as_ref().filter(|_| policy.same_origin) {
        let passes = policy.permit(&[own.to_string().as_bytes()], Some(own)).is_ok();
        pass.push(match passes {
            true => format!("{own} (same-origin)"),
            false => format!("not {own}, for same-origin takes no IPv6 addresses"),
        });
    }
    pass.extend(policy.listed.iter().map(ToString::to_string));
    if policy.null {
        pass.push("null".to_owned());
    }
    if policy.missing == MissingOrigin::Allow {
        pass.push("none at all".to_owned());
    }
    let pass = if pass.is_empty() { "nobody".to_owned() } else { pass.join(", ") };
    vec![verdict, format!("would pass: {pass}")]
}

fn subprotocols(route: &Route) -> String {
    match route.subprotocols.as_slice() {
        [] => "any: \"binary\" if offered, else the first that is not \"xmpp\"".to_owned(),
        listed => {
            format!(
                "{}: the first of them that is offered; an offer of others only is refused",
                listed.join(", ")
            )
        }
    }
}

fn backends(found: &RouteMatch<'_>) -> Vec<String> {
    let upstream = &found.routed.route.upstream;
    let mut lines = match (&found.target, &upstream.destinations) {
        (DialTargets::Token(backend), _) => vec![format!("{backend}, which the token names")],
        (DialTargets::NoToken, _) => {
            let last = matches!(found.routed.route.path, RoutePath::Prefix(_));
            let or = if last { ", or as the last part of the path" } else { "" };
            vec![format!("none: the URL has no token, or two; it stands in ?token=…{or}")]
        }
        (DialTargets::UnknownToken, Destinations::Tokens(file)) => {
            vec![format!("none: the token is not in {}", file.path.display())]
        }
        (DialTargets::UnknownToken, Destinations::Fixed(_)) => vec!["none".to_owned()],
        (DialTargets::Any(backends), _) => match backends.as_slice() {
            [only] => vec![only.to_string()],
            several => {
                let words = match upstream.balance {
                    Balance::RoundRobin => "each in turn",
                    Balance::LeastSessions => "the one with the fewest sessions",
                    Balance::First => "the first that can be reached",
                    Balance::SourceIp => "always the same for the same client address",
                };
                let head = format!("{words}, and the others if it fails:");
                std::iter::once(head).chain(several.iter().map(ToString::to_string)).collect()
            }
        },
    };
    if let Some(most) = upstream.max_sessions {
        lines.push(format!("at most {most} sessions with each"));
    }
    if upstream.tls.insecure_no_verify {
        lines.push("any certificate is taken (insecure_no_verify)".to_owned());
    }
    lines
}

fn proxy_header(findings: &Findings<'_>, route: &Route) -> String {
    match (route.upstream.send_proxy, exact_header(findings)) {
        (None, _) => "none is sent".to_owned(),
        (Some(SendProxy::V1), Some(line)) => format!("version 1: {line:?}, with the client's port for 0"),
        (Some(SendProxy::V1), None) => {
            "version 1, with the client's address and the one it called".to_owned()
        }
        (Some(SendProxy::V2), _) => {
            "version 2, with the client's address and the one it called, TLS and the session's number"
                .to_owned()
        }
    }
}

/// The header in version 1, if the client is known and what it calls.
fn exact_header(findings: &Findings<'_>) -> Option<String> {
    let (ClientKind::Exempt(client) | ClientKind::Counted(client)) = findings.caller else { return None };
    let ListenerMatch::Open { listener, .. } = findings.listener_match else { return None };
    let listener = listener.address.ip()?;
    let bound = Some(listener.ip()).filter(|ip: &IpAddr| !ip.is_unspecified());
    let local = (bound.or(findings.question.address())?, listener.port()).into();
    let caller = proxy_header::ClientInfo {
        client: (client, 0).into(),
        local,
        tls: None,
        id: ConnectionIds::default().next(),
    };
    let line = String::from_utf8(proxy_header::header(SendProxy::V1, Some(&caller))).ok()?;
    Some(line.trim_end().to_owned())
}

fn verdict(findings: &Findings<'_>, dialled: &[DialOutcome]) -> (String, bool) {
    match findings.refusal {
        Some(NotAdmitted::Nobody) => {
            return (
                format!("would be refused: nothing listens on port {}", findings.question.port()),
                false,
            );
        }
        Some(NotAdmitted::File(status)) => {
            return (format!("would get a file and no session (HTTP {})", status.as_u16()), false);
        }
        Some(NotAdmitted::End(reason)) => return (refused(reason), false),
        None => {}
    }
    // Only when all have failed does a client hear of it: of the last one.
    let failed: Vec<&ConnectError> =
        dialled.iter().filter_map(|(_, outcome)| outcome.as_ref().err()).collect();
    let Some(last) = failed.last().filter(|_| failed.len() == dialled.len()) else {
        return ("would be let in".to_owned(), true);
    };
    let reason = last.reason();
    let failure = findings.found.as_ref().map(|found| found.routed.route.backend_failure);
    match (failure, reason.close_code()) {
        (Ok(BackendFailure::Close), Some(code)) => {
            (format!("would be let in, and closed at once: {reason} (Close {code})"), false)
        }
        _ => (refused(reason), false),
    }
}

fn refused(reason: Reason) -> String {
    match reason.status() {
        Some(status) => format!("would be refused: {reason} (HTTP {})", status.as_u16()),
        None => format!("would be refused: {reason} (closed without an answer)"),
    }
}
