//! What the methods of a route require of a user.
//!
//! Owns the wording. The configuration alone decides: no credential is checked.

use std::sync::Arc;

use super::credential::CredentialReport;
use crate::{
    backend::Upstream,
    config::{AuthKind, Config},
    http::Routed,
    outcome::Reason,
};

/// Reports for each method of a route which credential a user needs.
pub(crate) fn examine(config: &Config, routed: &Routed<Arc<Upstream>>, user: &str) -> CredentialReport {
    let mut report = CredentialReport::new("user");
    let kind = |name: &str| config.auth.iter().find(|method| method.name == name).map(|method| &method.kind);
    for required in &routed.route.auth {
        let sufficient = match kind(required) {
            Some(AuthKind::Any(names)) => names.as_slice(),
            _ => std::slice::from_ref(required),
        };
        let mut may_pass = false;
        for name in sufficient {
            let line = match kind(name).map(|kind| needed(kind, user)) {
                Some(Err(wrong)) => format!("refused as {}: {wrong}", Reason::Forbidden),
                Some(Ok(needed)) => {
                    may_pass = true;
                    format!("needs {needed}")
                }
                None => continue,
            };
            report.lines.push(format!("{name}: {line}"));
        }
        if !may_pass {
            report.refusal = Some(Reason::Forbidden);
        }
    }
    if routed.route.auth.is_empty() {
        report.lines.push("not checked: the route requires none".to_owned());
    }
    report
}

/// The credential that a user needs, or why there is none.
fn needed(kind: &AuthKind, user: &str) -> Result<String, &'static str> {
    match kind {
        AuthKind::ClientCertificate(certificates) => {
            if !certificates.admits_name(user) {
                return Err("names do not list this name");
            }
            let pinned =
                if certificates.fingerprints.is_some() { ", and that fingerprints list" } else { "" };
            Ok(format!("a certificate that client_ca has signed for this name{pinned}"))
        }
        AuthKind::Jwt(jwt) => Ok(format!("a token whose claim {:?} is this name", jwt.user_claim)),
        AuthKind::Ticket(_) => Ok("a ticket that is issued for this user".to_owned()),
        _ => Ok("a credential of this user".to_owned()),
    }
}
