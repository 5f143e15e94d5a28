//! The middle stations: what the client asks for, and whether it may have it.

use std::sync::Arc;

use ::http::{HeaderValue, Request, Response, header::ORIGIN};
use tokio::time::Instant;

use super::{
    Door, House,
    arrival::{Arrival, admit, reason_of},
    closing_line::ClosingLine,
    last_call,
};
use crate::{
    admission::{Origin, OriginRefused, Place, Refused, Slot},
    backend::{Upstream, Wish},
    http::{self, Body, Exchange, Fault, Handshake, Refusal, Routed},
    outcome::Reason,
    transport::{
        peer::{self, Client},
        stream::ClientStream,
    },
};

/// From the first request head to the one that wants a session: files are answered on the way, all else is refused.
pub(super) async fn converse<'a>(
    mut exchange: Exchange<'a, ClientStream>,
    mut head_by: Instant,
    arrival: Arrival,
    door: &Door,
    house: &House,
    line: &mut ClosingLine,
) -> Result<(Exchange<'a, ClientStream>, Wanted), Reason> {
    let timeouts = &door.terms.timeouts;
    let mut served = false;
    loop {
        let request = tokio::select! {
            biased;
            request = exchange.next(head_by) => request,
            () = house.draining.cancelled(), if served => return Err(Reason::Served),
            () = last_call(house), if !served => return Err(Reason::Draining),
        };
        let request = match request {
            Ok(request) => request,
            Err(fault) => {
                exchange.close(fault, timeouts.close).await;
                let idle = matches!(fault, Fault::Gone | Fault::Timeout);
                return Err(if served && idle { Reason::Served } else { fault.reason() });
            }
        };
        match judge(request, arrival, door, house, line).await {
            Ok(Asked::Session(wanted)) => return Ok((exchange, wanted)),
            Ok(Asked::File(file)) => exchange.answer(file),
            Err(refusal) => {
                let reason = refusal.reason();
                line.detail = refusal.detail().map(str::to_owned);
                exchange.refuse(refusal, timeouts.close).await;
                return Err(reason);
            }
        }
        served = true;
        head_by = Instant::now() + timeouts.request;
    }
}

/// What a request asks for, if it may have it.
enum Asked {
    File(Response<Body>),
    Session(Wanted),
}

/// A session that may begin once its backend answers.
pub(super) struct Wanted {
    pub(super) routed: Arc<Routed<Arc<Upstream>>>,
    pub(super) wish: Wish,
    pub(super) handshake: Handshake,
    pub(super) subprotocol: Option<String>,
    pub(super) place: Option<Place>,
    pub(super) slot: Slot,
}

/// From the request head to the decision: route, handshake, Origin, sub-protocol, and what only the head could tell.
async fn judge(
    request: Request<()>,
    arrival: Arrival,
    door: &Door,
    house: &House,
    line: &mut ClosingLine,
) -> Result<Asked, Refusal> {
    let host = http::check_head(&request)?;
    let client = match arrival.proxied {
        true => peer::client(arrival.peer, &door.trusted_proxies, request.headers()),
        false => Client { address: arrival.peer, https: None, host: None },
    };
    line.peer = client.address;
    let host = client.host.map_or(host, |host| host.to_ascii_lowercase());
    let Some(routed) = door.terms.routes.find(http::host_name(&host), request.uri().path()) else {
        return match &door.terms.files {
            Some(files) => files.find(request).await.map(Asked::File),
            None => Err(Refusal::new(Reason::UnknownRoute)),
        };
    };
    let route = &routed.route;
    line.route = Some(route.name.as_str().into());
    // Only now is it known who is behind the proxy. Files are not counted: a page can have a hundred of them.
    let admitted = arrival.proxied.then(|| admit(house, client.address)).transpose();
    let place = admitted.map_err(|refused| too_many(&refused))?;
    let handshake = Handshake::read(&request)?;
    let origins: Vec<&[u8]> = request.headers().get_all(ORIGIN).iter().map(HeaderValue::as_bytes).collect();
    let own = Origin::of_host(client.https.unwrap_or(arrival.tls.is_some()), &host);
    let permitted = route.origins.permit(&origins, own.as_ref());
    permitted.map_err(|refused| origin_refusal(&refused, &origins))?;
    let subprotocol = handshake.subprotocol(&route.subprotocols)?.map(str::to_owned);
    let wish = routed.upstream.wish(&route.path, request.uri().path(), request.uri().query());
    let wish =
        wish.ok_or_else(|| Refusal::new(Reason::UnknownRoute).because_of("unknown token".to_owned()))?;
    let slot = house.sessions.take().ok_or_else(|| Refusal::new(Reason::Overloaded).retry_after(1))?;
    Ok(Asked::Session(Wanted { routed: Arc::clone(routed), wish, handshake, subprotocol, place, slot }))
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

fn too_many(refused: &Refused) -> Refusal {
    let seconds = match refused {
        Refused::Rate { retry_after } => retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0),
        Refused::Sessions => 1,
    };
    Refusal::new(reason_of(refused)).retry_after(seconds.max(1))
}
