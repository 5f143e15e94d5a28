//! What would happen to a connection: the wording.
//!
//! Owns the report for people: one line for each step, with its details below. Decides nothing. Invariant: of a URL, only
//! scheme, host and port are shown, because the rest can contain a token.

mod backend;

use ipnet::IpNet;

use self::backend::{backends, proxy_header};
use super::{
    credential::CredentialReport,
    dial::{self, Reached},
    findings::{ClientKind, Findings, ListenerMatch, NoSession, RouteMatch},
    required::required,
    text::list,
};
use crate::{
    admission::MissingOrigin,
    backend::ConnectError,
    config::{Backend, BackendFailure, Listener, Route, RoutePath},
    outcome::Reason,
};

/// The width of the first column: that of "subprotocols".
const LABEL_WIDTH: usize = 12;

/// The report about a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Explanation {
    /// The lines for people. The last one is the verdict.
    pub lines: Vec<String>,
    /// Whether it would become a session, and the backend is reachable as far as it was dialled.
    pub is_accepted: bool,
}

/// A backend and the result of dialling it.
pub(crate) type DialResult = (Backend, Result<Reached, ConnectError>);

/// Words the findings and the results of the dials.
pub(crate) fn report(
    findings: &Findings<'_>,
    credentials: &[CredentialReport],
    dialled: &[DialResult],
) -> Explanation {
    let mut text = ReportText::default();
    text.step("listener", listener(findings));
    text.step("from", client(findings));
    text.step("route", route(findings));
    if let (Err(NoSession::File(_)), Some(web)) = (&findings.route_match, &findings.config.web)
        && !web.auth.is_empty()
    {
        text.step("auth", required(&web.auth, findings.config));
    }
    if let Ok(route_match) = &findings.route_match {
        text.step("origin", origin(route_match, findings));
        if let methods @ [_, ..] = route_match.routed.route.auth.as_slice() {
            text.step("auth", required(methods, findings.config));
        }
        for credential in credentials {
            text.step(credential.label, credential.lines.iter().cloned());
        }
        text.step("subprotocols", [subprotocols(&route_match.routed.route)]);
        text.step("backend", backends(route_match));
        text.step("PROXY header", [proxy_header(findings, &route_match.routed.route)]);
        for (backend, outcome) in dialled {
            let mut lines = dial::lines(outcome);
            lines[0] = format!("{backend}: {}", lines[0]);
            text.step("dial", lines);
        }
    }
    let (verdict, is_accepted) =
        verdict(findings, credentials.iter().find_map(|credential| credential.refusal), dialled);
    text.0.push(verdict);
    Explanation { lines: text.0, is_accepted }
}

#[derive(Default)]
struct ReportText(Vec<String>);

impl ReportText {
    fn step(&mut self, label: &str, lines: impl IntoIterator<Item = String>) {
        for (index, line) in lines.into_iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            self.0.push(format!("{label:LABEL_WIDTH$}  {line}"));
        }
    }
}

fn listener(findings: &Findings<'_>) -> Vec<String> {
    let port = findings.question.port();
    let tls = |listener: &Listener| if listener.identity.is_some() { "with TLS" } else { "without TLS" };
    match findings.listener_match {
        ListenerMatch::Open { listener, behind_proxy } => {
            let mut lines = vec![format!("{} accepts it, {}", listener.address, tls(listener))];
            if behind_proxy {
                lines.push(format!("(no listener has port {port}: it is the proxy's)"));
            }
            if listener.proxy_protocol {
                let networks = list(&listener.trusted_proxies, IpNet::to_string);
                lines.push(format!("every connection must begin with a PROXY header, sent from {networks}"));
            }
            if listener.client_ca.as_ref().is_some_and(|client_ca| client_ca.required) {
                lines.push("every client must present a certificate that client_ca has signed".to_owned());
            }
            lines
        }
        ListenerMatch::WrongScheme(listener) => {
            let advice = match listener.identity {
                Some(_) => "use wss://",
                None => "use ws://, or terminate TLS at one of its trusted_proxies (--from its address)",
            };
            vec![format!("{} listens on that port, but {}: {advice}", listener.address, tls(listener))]
        }
        ListenerMatch::None => {
            let all = list(&findings.config.listeners, |listener| {
                format!("{} {}", listener.address, tls(listener))
            });
            let at = findings.question.address().map(|address| format!(" of {address}")).unwrap_or_default();
            vec![
                format!("none has port {port}{at}; configured: {all}"),
                "if a proxy is in front, give its address: --from ADDRESS".to_owned(),
            ]
        }
    }
}

fn client(findings: &Findings<'_>) -> Vec<String> {
    let limits = &findings.config.limits.per_ip;
    let counts = format!(
        "{} new connections per second, bursts of {}, {} open",
        limits.rate, limits.burst, limits.sessions
    );
    match findings.client {
        ClientKind::Unknown => vec![format!("any address (see --from), each limited to {counts}")],
        ClientKind::Exempt(ip) => vec![format!("{ip} is exempt from the limits per address")],
        ClientKind::Counted(ip) => vec![format!("{ip}, limited to {counts}")],
        ClientKind::Proxy(ip) => vec![
            format!("{ip} is a trusted proxy: the client that it names is limited to {counts}"),
            format!(
                "assumed: it forwards Host, and sends X-Forwarded-Proto: {}",
                if findings.question.is_wss() { "https" } else { "http" }
            ),
        ],
        ClientKind::ProxyByHeader(ip) => {
            vec![format!("{ip} is a trusted proxy: the client in its PROXY header is limited to {counts}")]
        }
        ClientKind::Untrusted(ip) => {
            vec![format!("{ip} is not in trusted_proxies, so its PROXY header is refused")]
        }
    }
}

fn route(findings: &Findings<'_>) -> Vec<String> {
    let route_match = match &findings.route_match {
        Ok(route_match) => route_match,
        Err(NoSession::File(_)) => return vec!["none: it is a file of [web] root".to_owned()],
        Err(NoSession::Refused(Reason::UnknownRoute) | NoSession::NoListener) => {
            return vec![match findings.config.routes.as_slice() {
                [] => "none: no [[route]] is configured".to_owned(),
                routes => {
                    format!("none matches this host and path; configured: {}", list(routes, describe_route))
                }
            }];
        }
        Err(NoSession::Refused(Reason::Misdirected)) => {
            return vec![
                "none: the listener does not know this host; add it to hosts of the [[listener]]".to_owned(),
            ];
        }
        Err(NoSession::Refused(reason)) => return vec![format!("none: {}", reason.explanation())],
    };
    let mut lines = vec![describe_route(&route_match.routed.route)];
    if !route_match.shadowed.is_empty() {
        lines.push(format!(
            "takes precedence over {}",
            list(&route_match.shadowed, |route| describe_route(route))
        ));
        lines.push(
            "(a host takes precedence over any host, an exact path over a prefix, a longer prefix over a shorter)"
                .to_owned(),
        );
    }
    lines
}

fn describe_route(route: &Route) -> String {
    let host = route.host.as_deref().map_or("any host".to_owned(), |host| format!("host {host}"));
    match &route.path {
        RoutePath::Exact(path) => format!("{:?}: {host}, path {path}", route.name),
        prefix @ RoutePath::Prefix(_) => format!("{:?}: {host}, paths {prefix}", route.name),
    }
}

fn origin(route_match: &RouteMatch<'_>, findings: &Findings<'_>) -> Vec<String> {
    let policy = &route_match.routed.route.origins;
    let sent = findings.question.origin().map(|sent| String::from_utf8_lossy(sent.as_bytes()));
    let verdict = match (&route_match.origin, sent) {
        (Ok(()), Some(sent)) => format!("{sent} is allowed"),
        (Ok(()), None) => "none is sent (see --origin), which is allowed".to_owned(),
        (Err(refused), Some(_)) => format!("refused: {refused}"),
        (Err(refused), None) => format!("refused: {refused} (see --origin)"),
    };
    let mut allowed: Vec<String> = Vec::new();
    if policy.any {
        allowed.push("any".to_owned());
    }
    if let Some(own) = route_match.own_origin.as_ref().filter(|_| policy.same_origin) {
        let is_allowed = policy.permit(&[own.to_string().as_bytes()], Some(own)).is_ok();
        allowed.push(match is_allowed {
            true => format!("{own} (same-origin)"),
            false => format!("not {own}: same-origin never covers an IPv6 address"),
        });
    }
    allowed.extend(policy.listed.iter().map(ToString::to_string));
    if policy.null {
        allowed.push("null".to_owned());
    }
    if policy.missing == MissingOrigin::Allow {
        allowed.push("no Origin header".to_owned());
    }
    let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
    vec![verdict, format!("allowed: {allowed}")]
}

fn subprotocols(route: &Route) -> String {
    match route.subprotocols.as_slice() {
        [] => "any: \"binary\" if offered, else the first that is not \"xmpp\"".to_owned(),
        listed => {
            format!(
                "{}: the client's first offer among these; refused if it offers only others",
                listed.join(", ")
            )
        }
    }
}

fn verdict(
    findings: &Findings<'_>,
    credential_refusal: Option<Reason>,
    dialled: &[DialResult],
) -> (String, bool) {
    match findings.refusal {
        Some(NoSession::NoListener) => {
            return (format!("would be refused: no listener on port {}", findings.question.port()), false);
        }
        Some(NoSession::File(status)) => {
            return (format!("would get a file, not a session (HTTP {})", status.as_u16()), false);
        }
        Some(NoSession::Refused(reason)) => return (refused(reason), false),
        None => {}
    }
    if let Some(reason) = credential_refusal {
        return (refused(reason), false);
    }
    // The client sees a failure only if every backend fails, and then that of the last one.
    let failed: Vec<&ConnectError> =
        dialled.iter().filter_map(|(_, outcome)| outcome.as_ref().err()).collect();
    let Some(last) = failed.last().filter(|_| failed.len() == dialled.len()) else {
        return ("would be accepted".to_owned(), true);
    };
    let reason = last.reason();
    let failure = findings.route_match.as_ref().map(|found| found.routed.route.backend_failure);
    match (failure, reason.close_code()) {
        (Ok(BackendFailure::Close), Some(code)) => {
            (format!("would be accepted, then closed at once: {reason} (Close {code})"), false)
        }
        _ => (refused(reason), false),
    }
}

fn refused(reason: Reason) -> String {
    match reason.status() {
        Some(status) => format!("would be refused: {reason} (HTTP {})", status.as_u16()),
        None => format!("would be refused: {reason} (closed without a response)"),
    }
}
