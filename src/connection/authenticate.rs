//! The credentials stage: asks the methods of a route or of the files, and words their answer as a refusal.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use ::http::{
    Request, StatusCode,
    header::{HOST, WWW_AUTHENTICATE},
};

use super::access_log::AccessLogLine;
use crate::{
    auth::{Answer, AuthRequest, Authenticator, Credentials, Denied, Grant},
    backend::{BackendChoice, Upstream},
    client_certificate::ClientCertificate,
    http::{Decision, Refusal},
    metrics::Metrics,
    transport::peer::Client,
};

/// A request, and what is known of its client.
#[derive(Clone, Copy)]
pub(super) struct Requester<'a> {
    pub(super) head: &'a Request<()>,
    pub(super) client: &'a Client,
    pub(super) https: bool,
    pub(super) certificate: Option<&'a ClientCertificate>,
}

impl<'a> Requester<'a> {
    fn on_route(self, route: Option<&'a str>) -> AuthRequest<'a> {
        let Self { head, client, https, certificate } = self;
        // Every request has been checked for exactly one Host.
        let own_host = || head.headers().get(HOST).and_then(|host| host.to_str().ok());
        let host = client.host.as_deref().or_else(own_host).unwrap_or_default();
        let client: SocketAddr = client.address;
        AuthRequest { head, client, https, host, certificate, route, now: SystemTime::now() }
    }
}

/// Checks the credentials of a request that the route's other rules admit. What carried one is no subprotocol any more.
pub(super) async fn authenticate(
    authenticator: &Authenticator,
    decision: &mut Decision<'_, '_, Arc<Upstream>, BackendChoice>,
    requester: Requester<'_>,
    metrics: &Metrics,
    log_line: &mut AccessLogLine,
) -> Result<Grant, Refusal> {
    decision.check_page()?;
    log_line.user = None;
    let route = &decision.routed.route.name;
    let granted = authenticator.check(&requester.on_route(Some(route))).await.and_then(|grant| {
        if let Some(target) = &grant.target {
            decision.choice = decision.routed.upstream.choose_target(target);
            if decision.choice.is_none() {
                return Err(Denied::no_such_target());
            }
        }
        Ok(grant)
    });
    metrics.count_authentication(&decision.routed.route.name, result(&granted));
    let grant = granted.map_err(|denied| refusal(denied, authenticator))?;
    decision.remove_offers(|offered| authenticator.is_credential(offered));
    log_line.user = grant.user.clone();
    Ok(grant)
}

/// The result, as a metric names it.
fn result(granted: &Result<Grant, Denied>) -> &'static str {
    match granted {
        Ok(_) => "granted",
        Err(denied) if denied.is_question() => "missing",
        Err(denied) => denied.reason().as_str(),
    }
}

/// Checks the credentials of a request for a file.
pub(super) async fn authenticate_for_files(
    authenticator: &Authenticator,
    requester: Requester<'_>,
    credentials: &Credentials,
    log_line: &mut AccessLogLine,
) -> Result<(), Refusal> {
    log_line.user = None;
    let request = requester.on_route(None);
    let grant = authenticator.check(&request).await.map_err(|denied| refusal(denied, authenticator))?;
    if grant.credential.is_some_and(|credential| credentials.is_revoked(&credential, request.now)) {
        return Err(refusal(Denied::invalid("the credential was revoked"), authenticator));
    }
    log_line.user = grant.user;
    Ok(())
}

/// The response. Whatever is wrong with a credential, it is the same: a difference would help to guess one.
fn refusal(denied: Denied, authenticator: &Authenticator) -> Refusal {
    // A client without a credential asks what it needs.
    let (is_question, reason) = (denied.is_question(), denied.reason());
    let is_temporary = matches!(denied, Denied::Unavailable { .. });
    let mut refusal = Refusal::new(reason);
    let mut status = reason.status();
    if let Denied::Answered { answer, .. } = &denied {
        status = Some(answer.status);
        refusal = pass_on(refusal, answer);
    }
    if status == Some(StatusCode::UNAUTHORIZED) {
        for challenge in authenticator.challenges() {
            refusal = refusal.with_field(WWW_AUTHENTICATE, challenge);
        }
    }
    let refusal = refusal.with_detail(denied.into_detail());
    let refusal = if is_temporary { refusal.retry_after(1) } else { refusal };
    if is_question { refusal.excused() } else { refusal }
}

/// What the client receives of an authority's answer.
fn pass_on(refusal: Refusal, answer: &Answer) -> Refusal {
    let refusal = refusal.with_status(answer.status);
    answer
        .headers
        .iter()
        .fold(refusal, |refusal, (name, value)| refusal.with_field(name.clone(), value.clone()))
}
