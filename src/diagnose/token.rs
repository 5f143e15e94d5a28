//! How a token fares with the methods of a route.
//!
//! Owns the wording; `auth` decides. Invariant: no part of the token is shown but what it says of its user.

use std::{sync::Arc, time::SystemTime};

use super::credential::CredentialReport;
use crate::{
    auth::{Authenticators, Denied, Grant},
    backend::Upstream,
    config::{AuthKind, Config, Secret},
    http::Routed,
};

/// Checks a token with the methods of a route that use one.
pub(crate) async fn examine(
    config: &Config,
    authenticators: &Authenticators,
    routed: &Routed<Arc<Upstream>>,
    token: &Secret,
    now: SystemTime,
) -> CredentialReport {
    let mut report = CredentialReport::new("token");
    for required in &routed.route.auth {
        let sufficient = config.auth.iter().find_map(|method| match &method.kind {
            AuthKind::Any(names) if method.name == *required => Some(names.as_slice()),
            _ => None,
        });
        let (mut refusals, mut may_pass) = (Vec::new(), false);
        for name in sufficient.unwrap_or(std::slice::from_ref(required)) {
            let line = match authenticators.examine(name, token, now).await {
                None => {
                    may_pass = true;
                    "uses no token; not checked".to_owned()
                }
                Some(result) => match result.and_then(|grant| covers(grant, routed)) {
                    Ok(grant) => {
                        may_pass = true;
                        describe(&grant, now)
                    }
                    Err(denied) => {
                        let reason = denied.reason();
                        refusals.push(reason);
                        format!("refused as {reason}: {}", denied.into_detail())
                    }
                },
            };
            report.lines.push(format!("{name}: {line}"));
        }
        if !may_pass {
            report.refusal = report.refusal.or(refusals.first().copied());
        }
    }
    if routed.route.auth.is_empty() {
        report.lines.push("not checked: the route requires none".to_owned());
    }
    report
}

/// The grant, if it is for this route and selects one of its targets.
fn covers(grant: Grant, routed: &Routed<Arc<Upstream>>) -> Result<Grant, Denied> {
    let grant = grant.on_route(Some(&routed.route.name))?;
    match &grant.target {
        Some(target) if routed.upstream.choose_target(target).is_none() => Err(Denied::no_such_target()),
        _ => Ok(grant),
    }
}

fn describe(grant: &Grant, now: SystemTime) -> String {
    let user = grant.user.as_ref().map_or("no user".to_owned(), |user| format!("user {user:?}"));
    let Some(end) = grant.end(now) else { return format!("valid: {user}") };
    let left = end.duration_since(now).unwrap_or_default().as_secs();
    let left = humantime::format_duration(std::time::Duration::from_secs(left));
    format!(
        "valid: {user}, a session that begins now ends at {} (in {left})",
        humantime::format_rfc3339_seconds(end)
    )
}
