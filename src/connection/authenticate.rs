//! The credentials stage: asks the methods of a route, and words their answer as a refusal.

use std::sync::Arc;

use super::access_log::AccessLogLine;
use crate::{
    auth::{AuthRequest, Authenticator, Denied, Grant},
    backend::{BackendChoice, Upstream},
    http::{Decision, Refusal},
    metrics::Metrics,
};

/// Checks the credentials of a request that the route's other rules admit. What carried one is no subprotocol any more.
pub(super) async fn authenticate(
    authenticator: &Authenticator,
    decision: &mut Decision<'_, '_, Arc<Upstream>, BackendChoice>,
    request: &AuthRequest<'_>,
    metrics: &Metrics,
    log_line: &mut AccessLogLine,
) -> Result<Grant, Refusal> {
    decision.check_page()?;
    let granted = authenticator.check(request).await.and_then(|grant| {
        if let Some(target) = &grant.target {
            decision.choice = decision.routed.upstream.choose_target(target);
            if decision.choice.is_none() {
                return Err(Denied::no_such_target());
            }
        }
        Ok(grant)
    });
    metrics.count_authentication(request.route, result(&granted));
    let grant = granted.map_err(refusal)?;
    decision.remove_offers(|offered| authenticator.is_credential(offered));
    log_line.user = grant.user.clone();
    Ok(grant)
}

/// A client without a credential asks what it needs.
fn is_question(denied: &Denied) -> bool {
    matches!(denied, Denied::Unauthorized { attempted: false, .. })
}

/// The result, as a metric names it.
fn result(granted: &Result<Grant, Denied>) -> &'static str {
    match granted {
        Ok(_) => "granted",
        Err(denied) if is_question(denied) => "missing",
        Err(denied) => denied.reason().as_str(),
    }
}

/// The response. Whatever is wrong with a credential, it is the same: a difference would help to guess one.
fn refusal(denied: Denied) -> Refusal {
    let (is_temporary, is_question) = (matches!(denied, Denied::Unavailable { .. }), is_question(&denied));
    let refusal = Refusal::new(denied.reason()).with_detail(denied.into_detail());
    if is_temporary {
        refusal.retry_after(1)
    } else if is_question {
        refusal.excused()
    } else {
        refusal
    }
}
