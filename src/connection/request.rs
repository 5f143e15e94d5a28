//! The HTTP stage: reads requests and serves files until an authorised upgrade request.

use std::sync::Arc;

use ::http::{HeaderValue, Request, Response, header};
use tokio::time::Instant;

use super::{
    ConfigSnapshot, ListenerSettings, Shared,
    accepted::{ConnectionInfo, admit, reason_of},
    access_log::AccessLogLine,
    drain_grace,
};
use crate::{
    admission::{AddressPermit, HandshakePermit, LimitExceeded, Permit},
    backend::{BackendChoice, Upstream},
    http::{self, AcceptedRequest, Body, Exchange, ExchangeError, Refusal, RequestContext},
    outcome::Reason,
    transport::{
        peer::{self, Client},
        stream::ClientStream,
    },
};

/// Reads requests up to the one that opens a session. Serves files, and refuses everything else.
pub(super) async fn read_requests<'a>(
    mut exchange: Exchange<'a, ClientStream>,
    mut head_deadline: Instant,
    info: ConnectionInfo,
    settings: &ListenerSettings,
    shared: &Shared,
    permit: &mut HandshakePermit,
    log_line: &mut AccessLogLine,
) -> Result<(Exchange<'a, ClientStream>, SessionRequest), Reason> {
    let ConfigSnapshot { timeouts, max_requests, .. } = &*settings.snapshot;
    let last_request_at = Instant::now() + timeouts.keep_alive;
    let mut served = 0;
    loop {
        let request = tokio::select! {
            biased;
            request = exchange.next(head_deadline) => request,
            () = shared.draining.cancelled(), if served > 0 => return Err(Reason::Served),
            () = drain_grace(shared), if served == 0 => return Err(Reason::Draining),
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                exchange.close_on_error(error, timeouts.close).await;
                let idle = matches!(error, ExchangeError::Disconnected | ExchangeError::Timeout);
                return Err(if served > 0 && idle { Reason::Served } else { error.reason() });
            }
        };
        if served > 0 {
            permit.resume();
        }
        match authorise(request, info, settings, shared, log_line).await {
            Ok(Requested::Session(session_request)) => return Ok((exchange, session_request)),
            Ok(Requested::File(mut file)) => {
                served += 1;
                if served >= max_requests.get() || Instant::now() >= last_request_at {
                    // The client sends its next request on a new connection, which the limits of its address count.
                    file.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                exchange.respond(file);
            }
            Err(refusal) => {
                let reason = refusal.reason();
                log_line.detail = refusal.detail().map(str::to_owned);
                exchange.respond_and_close(refusal, timeouts.close).await;
                return Err(reason);
            }
        }
        permit.wait();
        head_deadline = Instant::now() + timeouts.request;
    }
}

/// What an authorised request gets.
enum Requested {
    File(Response<Body>),
    Session(SessionRequest),
}

/// An accepted upgrade request and the permits it holds.
pub(super) struct SessionRequest {
    pub(super) accepted: AcceptedRequest<Arc<Upstream>, BackendChoice>,
    pub(super) address_permit: Option<AddressPermit>,
    pub(super) session_permit: Permit,
}

/// Applies the checks of [`http::decide`], and the stateful limits: those of the address before the handshake, and
/// `max_sessions` last.
async fn authorise(
    request: Request<()>,
    info: ConnectionInfo,
    settings: &ListenerSettings,
    shared: &Shared,
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
    };
    let decision = http::decide(&snapshot.routes, &request, context, Upstream::choose)?;
    log_line.peer = client.address;
    let Some(decision) = decision else {
        return match &snapshot.files {
            Some(files) => files.find(request).await.map(Requested::File),
            None => Err(Refusal::new(Reason::UnknownRoute)),
        };
    };
    log_line.route = Some(decision.routed.route.name.as_str().into());
    // Only the request head names the client behind a proxy, so its limits apply here. Requests for files are not
    // counted: a page can load a hundred of them.
    let permit = info.proxied.then(|| admit(shared, client.address)).transpose();
    let address_permit = permit.map_err(|exceeded| too_many(&exceeded))?;
    let accepted = decision.accept()?;
    let session_permit =
        shared.sessions.try_acquire().ok_or_else(|| Refusal::new(Reason::Overloaded).retry_after(1))?;
    Ok(Requested::Session(SessionRequest { accepted, address_permit, session_permit }))
}

fn too_many(exceeded: &LimitExceeded) -> Refusal {
    let seconds =
        exceeded.retry_after().map_or(1, |wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
    Refusal::new(reason_of(exceeded)).retry_after(seconds.max(1))
}
