//! The middle stations: what the client asks for, and whether it may have it.

use std::sync::Arc;

use ::http::{HeaderValue, Request, Response, header::ORIGIN};
use tokio::time::Instant;

use super::{
    ListenerSettings, Shared,
    accepted::{ConnectionInfo, admit, reason_of},
    access_log::AccessLogLine,
    drain_grace,
};
use crate::{
    admission::{AddressPermit, LimitExceeded, Origin, OriginRefused, Permit},
    backend::{BackendChoice, Upstream},
    http::{self, Body, Exchange, ExchangeError, Handshake, Refusal, Routed},
    outcome::Reason,
    transport::{
        peer::{self, Client},
        stream::ClientStream,
    },
};

/// From the first request head to the one that wants a session: files are answered on the way, all else is refused.
pub(super) async fn read_requests<'a>(
    mut exchange: Exchange<'a, ClientStream>,
    mut head_by: Instant,
    info: ConnectionInfo,
    settings: &ListenerSettings,
    shared: &Shared,
    log_line: &mut AccessLogLine,
) -> Result<(Exchange<'a, ClientStream>, SessionRequest), Reason> {
    let timeouts = &settings.snapshot.timeouts;
    let mut served = false;
    loop {
        let request = tokio::select! {
            biased;
            request = exchange.next(head_by) => request,
            () = shared.draining.cancelled(), if served => return Err(Reason::Served),
            () = drain_grace(shared), if !served => return Err(Reason::Draining),
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                exchange.close(error, timeouts.close).await;
                let idle = matches!(error, ExchangeError::Gone | ExchangeError::Timeout);
                return Err(if served && idle { Reason::Served } else { error.reason() });
            }
        };
        match authorise(request, info, settings, shared, log_line).await {
            Ok(Requested::Session(session_request)) => return Ok((exchange, session_request)),
            Ok(Requested::File(file)) => exchange.answer(file),
            Err(refusal) => {
                let reason = refusal.reason();
                log_line.detail = refusal.detail().map(str::to_owned);
                exchange.refuse(refusal, timeouts.close).await;
                return Err(reason);
            }
        }
        served = true;
        head_by = Instant::now() + timeouts.request;
    }
}

/// What a request asks for, if it may have it.
enum Requested {
    File(Response<Body>),
    Session(SessionRequest),
}

/// A session that may begin once its backend answers.
pub(super) struct SessionRequest {
    pub(super) routed: Arc<Routed<Arc<Upstream>>>,
    pub(super) choice: BackendChoice,
    pub(super) handshake: Handshake,
    pub(super) subprotocol: Option<String>,
    pub(super) address_permit: Option<AddressPermit>,
    pub(super) session_permit: Permit,
}

/// From the request head to the decision: route, handshake, Origin, sub-protocol, and what only the head could tell.
async fn authorise(
    request: Request<()>,
    info: ConnectionInfo,
    settings: &ListenerSettings,
    shared: &Shared,
    log_line: &mut AccessLogLine,
) -> Result<Requested, Refusal> {
    let host = http::check_head(&request)?;
    let client = match info.proxied {
        true => peer::client(info.peer, &settings.trusted_proxies, request.headers()),
        false => Client { address: info.peer, https: None, host: None },
    };
    log_line.peer = client.address;
    let host = client.host.map_or(host, |host| host.to_ascii_lowercase());
    let Some(routed) = settings.snapshot.routes.find(http::host_name(&host), request.uri().path()) else {
        return match &settings.snapshot.files {
            Some(files) => files.find(request).await.map(Requested::File),
            None => Err(Refusal::new(Reason::UnknownRoute)),
        };
    };
    let route = &routed.route;
    log_line.route = Some(route.name.as_str().into());
    // Only now is it known who is behind the proxy. Files are not counted: a page can have a hundred of them.
    let admitted = info.proxied.then(|| admit(shared, client.address)).transpose();
    let address_permit = admitted.map_err(|refused| too_many(&refused))?;
    let handshake = Handshake::read(&request)?;
    let origins: Vec<&[u8]> = request.headers().get_all(ORIGIN).iter().map(HeaderValue::as_bytes).collect();
    let own = Origin::of_host(client.https.unwrap_or(info.tls.is_some()), &host);
    let permitted = route.origins.permit(&origins, own.as_ref());
    permitted.map_err(|refused| origin_refusal(&refused, &origins))?;
    let subprotocol = handshake.subprotocol(&route.subprotocols)?.map(str::to_owned);
    let choice = routed.upstream.choose(&route.path, request.uri().path(), request.uri().query());
    let choice =
        choice.ok_or_else(|| Refusal::new(Reason::UnknownRoute).because_of("unknown token".to_owned()))?;
    let session_permit =
        shared.sessions.try_acquire().ok_or_else(|| Refusal::new(Reason::Overloaded).retry_after(1))?;
    Ok(Requested::Session(SessionRequest {
        routed: Arc::clone(routed),
        choice,
        handshake,
        subprotocol,
        address_permit,
        session_permit,
    }))
}

fn origin_refusal(refused: &OriginRefused, origins: &[&[u8]]) -> Refusal {
    let refusal = match refused {
        OriginRefused::Missing => {
            let words = "an Origin header is needed here: only web pages may connect";
            Refusal::because(Reason::OriginRefused, words)
        }
        _ => Refusal::new(Reason::OriginRefused),
    };
    refusal.because_of(match refused {
        OriginRefused::Malformed(_) | OriginRefused::Several => {
            format!("{refused}: {}", http::quoted(&origins.join(&b", "[..])))
        }
        _ => refused.to_string(),
    })
}

fn too_many(refused: &LimitExceeded) -> Refusal {
    let seconds = match refused {
        LimitExceeded::Rate { retry_after } => {
            retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0)
        }
        LimitExceeded::Sessions => 1,
    };
    Refusal::new(reason_of(refused)).retry_after(seconds.max(1))
}
