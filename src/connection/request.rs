//! The HTTP stage: reads requests and serves files until an authorised upgrade request.

use std::{sync::Arc, time::Duration};

use ::http::{HeaderValue, Request, Response, header};
use tokio::time::Instant;

use super::{
    ConfigSnapshot, ListenerSettings, Shared,
    accepted::{ConnectionInfo, EarlyEnd, admit, reason_of},
    access_log::AccessLogLine,
    authenticate::{Requester, authenticate, authenticate_for_files},
    drain_grace,
};
use crate::{
    admission::{AddressPermit, HandshakePermit, LimitExceeded, Permit, UserPermit},
    auth::Grant,
    backend::{BackendChoice, Upstream},
    http::{self, AcceptedRequest, Body, Exchange, ExchangeError, Refusal, RequestContext},
    outcome::Reason,
    transport::{
        peer::{self, Client},
        stream::ClientStream,
    },
};

/// How many requests for files count as one new connection against the rate limit: a page can load a hundred of them.
const FILES_PER_CONNECTION: u32 = 16;

/// Reads requests up to the one that opens a session. Serves files, and refuses everything else.
pub(super) async fn read_requests<'a>(
    mut exchange: Exchange<'a, ClientStream>,
    mut head_deadline: Instant,
    info: ConnectionInfo<'_>,
    settings: &ListenerSettings,
    shared: &Shared,
    permit: &mut HandshakePermit,
    log_line: &mut AccessLogLine,
) -> Result<(Exchange<'a, ClientStream>, SessionRequest), EarlyEnd> {
    let ConfigSnapshot { timeouts, max_requests, .. } = &*settings.snapshot;
    let last_request_at = Instant::now() + timeouts.keep_alive;
    let mut files_requested = 0_u32;
    loop {
        let request = tokio::select! {
            biased;
            request = exchange.next(head_deadline) => request,
            () = shared.draining.cancelled(), if files_requested > 0 => return Err(Reason::Served.into()),
            () = drain_grace(shared), if files_requested == 0 => return Err(Reason::Draining.into()),
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                return Err(close(exchange, error, files_requested > 0, timeouts.close, log_line).await);
            }
        };
        if files_requested > 0 {
            permit.resume();
        }
        match authorise(request, info, settings, shared, files_requested, log_line).await {
            Ok(Requested::Session(session_request)) => return Ok((exchange, *session_request)),
            Ok(Requested::File(mut file)) => {
                files_requested = files_requested.saturating_add(1);
                if files_requested >= max_requests.get() || Instant::now() >= last_request_at {
                    // The client sends its next request on a new connection, which the limits of its address count.
                    file.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                exchange.respond(file);
            }
            Err(refusal) => {
                let end = EarlyEnd { reason: refusal.reason(), excused: refusal.is_excused() };
                log_line.detail = refusal.detail().map(str::to_owned);
                exchange.respond_and_close(refusal, timeouts.close).await;
                return Err(end);
            }
        }
        // A file may take longer than a head: the time for the next head begins when the file is sent.
        let sent = tokio::select! {
            biased;
            sent = exchange.sent() => sent,
            () = drain_grace(shared) => return Err(Reason::Served.into()),
        };
        if let Err(error) = sent {
            return Err(close(exchange, error, true, timeouts.close, log_line).await);
        }
        permit.wait();
        head_deadline = Instant::now() + timeouts.request;
    }
}

/// Closes a connection without a further request. Returns why it ends.
async fn close(
    exchange: Exchange<'_, ClientStream>,
    error: ExchangeError,
    served: bool,
    linger: Duration,
    log_line: &mut AccessLogLine,
) -> EarlyEnd {
    let (error, has_begun) = exchange.close_on_error(error, linger).await;
    if error == ExchangeError::BodyFailed {
        log_line.detail = Some(error.to_string());
    }
    let idle = matches!(error, ExchangeError::Disconnected | ExchangeError::Timeout);
    let reason = if served && idle { Reason::Served } else { error.reason() };
    // Browsers open connections before they need them.
    EarlyEnd { reason, excused: !has_begun }
}

/// What an authorised request gets.
enum Requested {
    File(Response<Body>),
    Session(Box<SessionRequest>),
}

/// An accepted upgrade request and the permits it holds.
pub(super) struct SessionRequest {
    pub(super) accepted: AcceptedRequest<Arc<Upstream>, BackendChoice>,
    pub(super) address_permit: Option<AddressPermit>,
    pub(super) session_permit: Permit,
    /// One of the sessions that the user may have, if there is a user.
    pub(super) user_permit: Option<UserPermit>,
    /// What the client's credential grants, if the route requires one.
    pub(super) grant: Option<Grant>,
}

/// Applies the checks of [`http::decide`], and the stateful limits: those of the address before the handshake, and
/// `max_sessions` last. A credential is checked only for pages that the route admits.
async fn authorise(
    request: Request<()>,
    info: ConnectionInfo<'_>,
    settings: &ListenerSettings,
    shared: &Shared,
    files_requested: u32,
    log_line: &mut AccessLogLine,
) -> Result<Requested, Refusal> {
    let snapshot = &settings.snapshot;
    let client = match info.proxied {
        true => peer::client(info.peer, &settings.trusted_proxies, request.headers()),
        false => Client { address: info.peer, https: None, host: None },
    };
    let context = RequestContext {
        https: client.https.unwrap_or(info.tls.is_some()),
        forwarded_host: client.host.as_deref(),
        hosts: settings.hosts.as_ref().filter(|hosts| hosts.apply_to(info.proxied)),
    };
    log_line.peer = client.address;
    let requester =
        Requester { head: &request, client: &client, https: context.https, certificate: info.certificate };
    let decision = http::decide(&snapshot.routes, &request, context, Upstream::choose)?;
    let Some(mut decision) = decision else {
        let Some(files) = &snapshot.files else { return Err(Refusal::new(Reason::UnknownRoute)) };
        // The connection itself has paid for the first files, unless it is a proxy's.
        if files_requested.is_multiple_of(FILES_PER_CONNECTION) && (files_requested > 0 || info.proxied) {
            // Released at once: only the rate counts.
            drop(admit(shared, client.address).map_err(|exceeded| too_many(&exceeded))?);
        }
        let Some(authenticator) = snapshot.authenticators.of_files() else {
            return files.find(request).await.map(Requested::File);
        };
        authenticate_for_files(authenticator, requester, &shared.credentials, log_line).await?;
        return files.find(request).await.map(private).map(Requested::File);
    };
    log_line.route = Some(decision.routed.route.name.as_str().into());
    // Only the request head names the client behind a proxy, so its limits apply here.
    let permit = info.proxied.then(|| admit(shared, client.address)).transpose();
    let address_permit = permit.map_err(|exceeded| too_many(&exceeded))?;
    let grant = match snapshot.authenticators.of(&decision.routed.route.name) {
        Some(authenticator) => {
            let metrics = &shared.metrics;
            Some(authenticate(authenticator, &mut decision, requester, metrics, log_line).await?)
        }
        None => None,
    };
    let admitted = decision
        .accept()
        .and_then(|accepted| Ok((accepted, user_permit(shared, grant.as_ref())?, session_permit(shared)?)));
    let (accepted, user_permit, session_permit) = admitted.inspect_err(|_| {
        if let Some(credential) = grant.as_ref().and_then(|grant| grant.credential.as_ref()) {
            shared.credentials.give_back(credential);
        }
    })?;
    let request = SessionRequest { accepted, address_permit, session_permit, user_permit, grant };
    Ok(Requested::Session(Box::new(request)))
}

fn session_permit(shared: &Shared) -> Result<Permit, Refusal> {
    shared.sessions.try_acquire().ok_or_else(|| Refusal::new(Reason::Overloaded).retry_after(1))
}

fn user_permit(shared: &Shared, grant: Option<&Grant>) -> Result<Option<UserPermit>, Refusal> {
    let Some(user) = grant.and_then(|grant| grant.user.as_deref()) else { return Ok(None) };
    shared.users.try_acquire(user).map(Some).ok_or_else(|| {
        let message = "you have too many sessions already; end one of them first";
        Refusal::with_message(Reason::TooManySessions, message)
            .with_detail("the user has as many sessions as limits.per_user allows".to_owned())
            .retry_after(1)
    })
}

/// A file that not every client may read: a cache that several clients share must not keep it (RFC 9111 §5.2.2.7).
fn private(mut file: Response<Body>) -> Response<Body> {
    file.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    file
}

fn too_many(exceeded: &LimitExceeded) -> Refusal {
    Refusal::new(reason_of(exceeded)).retry_after(whole_seconds(exceeded.retry_after()))
}

/// For `Retry-After`: how long to wait, rounded up, and at least a second.
fn whole_seconds(wait: Option<Duration>) -> u64 {
    wait.map_or(1, |wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_in_whole_seconds_when_to_retry() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (1999, 2), (30_000, 30)] {
            assert_eq!(whole_seconds(Some(Duration::from_millis(millis))), seconds, "{millis} ms");
        }
        assert_eq!(whole_seconds(None), 1);
    }
}
