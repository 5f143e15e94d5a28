//! The credentials stage: asks the methods of a route, and words their answer as a refusal.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use ::http::Request;

use super::access_log::AccessLogLine;
use crate::{
    auth::{AuthRequest, Authenticator, Denied, Grant},
    backend::{BackendChoice, Upstream},
    http::{Decision, Refusal},
};

/// Checks the credentials of a request that the route's other rules admit. What carried one is no subprotocol any more.
pub(super) async fn authenticate(
    authenticator: &Authenticator,
    decision: &mut Decision<'_, '_, Arc<Upstream>, BackendChoice>,
    head: &Request<()>,
    client: SocketAddr,
    log_line: &mut AccessLogLine,
) -> Result<Grant, Refusal> {
    decision.check_page()?;
    let request = AuthRequest { head, client, route: &decision.routed.route.name, now: SystemTime::now() };
    let grant = authenticator.check(&request).await.map_err(|denied| {
        // A client without a credential asks what it needs.
        let is_question = matches!(denied, Denied::Unauthorized { attempted: false, .. });
        let refusal = refusal(denied);
        if is_question { refusal.excused() } else { refusal }
    })?;
    decision.remove_offers(|offered| authenticator.is_credential(offered));
    if let Some(target) = &grant.target {
        decision.choice = decision.routed.upstream.choose_target(target);
        if decision.choice.is_none() {
            return Err(refusal(Denied::no_such_target()));
        }
    }
    log_line.user = grant.user.clone();
    Ok(grant)
}

/// The response. Whatever is wrong with a credential, it is the same: a difference would help to guess one.
fn refusal(denied: Denied) -> Refusal {
    let is_temporary = matches!(denied, Denied::Unavailable { .. });
    let refusal = Refusal::new(denied.reason()).with_detail(denied.into_detail());
    if is_temporary { refusal.retry_after(1) } else { refusal }
}
