//! What would happen to a connection: the wording of what concerns the backend.
//!
//! Owns the lines about the choice of a backend and about the PROXY header to it. Decides nothing. Invariant: a token is not
//! shown.

use std::net::IpAddr;

use crate::{
    backend::proxy_header,
    config::{Balance, Destinations, Route, RoutePath, SendProxy},
    diagnose::findings::{ClientKind, DialTargets, Findings, ListenerMatch, RouteMatch},
    session::ConnectionIds,
};

/// Which backends a session of the route would be sent to.
pub(super) fn backends(route_match: &RouteMatch<'_>) -> Vec<String> {
    let upstream = &route_match.routed.route.upstream;
    let mut lines = match (&route_match.targets, &upstream.destinations) {
        (DialTargets::Token(backend), _) => vec![format!("{backend}, selected by the token")],
        (DialTargets::NoToken, _) => {
            let last = matches!(route_match.routed.route.path, RoutePath::Prefix(_));
            let or = if last { ", or as the last part of the path" } else { "" };
            vec![format!("none: the URL has no token, or several; it belongs in ?token=…{or}")]
        }
        (DialTargets::UnknownToken, Destinations::Tokens(file)) => {
            vec![format!("none: the token is not in {}", file.path.display())]
        }
        (DialTargets::UnknownToken, Destinations::Fixed(_)) => vec!["none".to_owned()],
        (DialTargets::Any(backends), _) => match backends.as_slice() {
            [only] => vec![only.to_string()],
            several => {
                let policy = match upstream.balance {
                    Balance::RoundRobin => "each in turn",
                    Balance::LeastSessions => "the one with the fewest sessions",
                    Balance::First => "the first that can be reached",
                    Balance::SourceIp => "always the same for the same client address",
                };
                let head = format!("{policy}, and the others if it fails:");
                std::iter::once(head).chain(several.iter().map(ToString::to_string)).collect()
            }
        },
    };
    if let Some(max) = upstream.max_sessions {
        lines.push(format!("at most {max} sessions each"));
    }
    if upstream.tls.insecure_no_verify {
        lines.push("any certificate is accepted (insecure_no_verify)".to_owned());
    }
    lines
}

/// The PROXY header to the backend.
pub(super) fn proxy_header(findings: &Findings<'_>, route: &Route) -> String {
    match (route.upstream.send_proxy, exact_header(findings)) {
        (None, _) => "none is sent".to_owned(),
        (Some(SendProxy::V1), Some(line)) => {
            format!("version 1: {line:?}, with the client's port instead of 0")
        }
        (Some(SendProxy::V1), None) => {
            "version 1, with the client's address and the one it connected to".to_owned()
        }
        (Some(SendProxy::V2), _) => {
            "version 2, with the client's address, the one it connected to, TLS, the user and the connection's id"
                .to_owned()
        }
    }
}

/// The header in version 1, if both its addresses are known.
fn exact_header(findings: &Findings<'_>) -> Option<String> {
    let (ClientKind::Exempt(client) | ClientKind::Counted(client)) = findings.client else { return None };
    let ListenerMatch::Open { listener, .. } = findings.listener_match else { return None };
    let listener = listener.address.ip()?;
    let bound = Some(listener.ip()).filter(|ip: &IpAddr| !ip.is_unspecified());
    let local = (bound.or(findings.question.address())?, listener.port()).into();
    let client_info = proxy_header::ClientInfo {
        client: (client, 0).into(),
        local,
        tls: None,
        certificate: None,
        user: None,
        id: ConnectionIds::default().next(),
    };
    let line = String::from_utf8(proxy_header::header(SendProxy::V1, Some(&client_info))).ok()?;
    Some(line.trim_end().to_owned())
}
