//! One connection's whole life, and nothing else.
//!
//! Owns the order of the stations from the accepted socket to the closing line. Refuses to know how any station works.
//! Invariants: every connection writes exactly one closing line and is counted once; whatever it holds (places,
//! slots, its registry entry) is a guard that its end releases; no backend hears of a client that was refused.

mod accepted;
mod access_log;
mod dial;
mod request;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use ipnet::IpNet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use self::{
    accepted::{ConnectionInfo, secure},
    access_log::AccessLogLine,
    dial::{DialOutcome, dial},
    request::read_requests,
};
use crate::{
    admission::{AddressPermit, ConcurrencyLimit, Permit, RateLimiter, canonical},
    backend::{BackendStream, ClientInfo, Upstream, balance},
    config::{BackendFailure, Receive, Route, Send, Timeouts},
    http::{Exchange, ExchangeError, Files, Refusal, Routes},
    metrics::{Metrics, SessionGauge},
    outcome::Reason,
    relay::{self, RelaySettings, RelayStream},
    session::{Registry, Session, SessionInfo},
    transport::{socket::Socket, stream::ClientStream, tls::Tls},
};

/// How long a client that has just come may take to ask once the gateway stops.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// What the connections of one listener share, as of one reading of the configuration.
#[derive(Debug)]
pub(crate) struct ListenerSettings {
    /// Its certificate; without one the listener is plain.
    pub tls: Option<Tls>,
    /// Who may say for whom it speaks.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether every connection must begin with a PROXY header.
    pub proxy_protocol: bool,
    /// What its connections are opened under.
    pub snapshot: Arc<ConfigSnapshot>,
}

/// What connections are opened under: one reading of the configuration. A session keeps to it when another is read.
#[derive(Debug)]
pub(crate) struct ConfigSnapshot {
    /// Where requests may lead.
    pub routes: Routes<Arc<Upstream>>,
    /// What else may be asked for.
    pub files: Option<Files>,
    /// How long each station may take.
    pub timeouts: Timeouts,
}

/// What all connections share for as long as the process lives.
#[derive(Debug)]
pub struct Shared {
    /// How often and how many from one address.
    pub limiter: Arc<RateLimiter>,
    /// Connections that are not sessions yet.
    pub handshakes: Arc<ConcurrencyLimit>,
    /// Connections that are, or are about to be.
    pub sessions: Arc<ConcurrencyLimit>,
    /// What is alive.
    pub registry: Arc<Registry>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the gateway stops: whoever does not ask for anything soon is let go.
    pub draining: CancellationToken,
}

/// Lives the life of one connection.
pub(crate) async fn serve(
    socket: Socket,
    peer: SocketAddr,
    settings: Arc<ListenerSettings>,
    shared: Arc<Shared>,
) {
    let peer = SocketAddr::new(canonical(peer.ip()), peer.port());
    let id = shared.registry.connections.next();
    let mut log_line = AccessLogLine::new(id, peer, Arc::clone(&shared.metrics));
    // Boxed, so that a session carries nothing of its youth: handshakes are large.
    let established = Box::pin(establish(socket, &settings, &shared, &mut log_line)).await;
    let established = match established {
        Ok(established) => established,
        Err(reason) => return log_line.write(reason, None),
    };
    // A session can outlive many readings of the configuration, and keeps none of them in memory.
    drop((settings, shared));
    let Established { stream, pipelined, backend, relay_settings, session, guards } = *established;
    let ended = match backend {
        Ok(backend) => relay::relay(stream, pipelined, backend, &relay_settings, &session).await,
        Err(reason) => {
            relay::refuse(stream, pipelined, (reason, reason.explanation()), &relay_settings, &session).await
        }
    };
    // Whoever reads the line finds room for the next.
    drop(session);
    drop(guards);
    log_line.write(ended.reason, Some(ended));
}

/// A connection that has become a session.
struct Established {
    stream: ClientStream,
    pipelined: Bytes,
    backend: Result<BackendStream, Reason>,
    relay_settings: RelaySettings,
    session: Session,
    guards: (Option<AddressPermit>, Permit, Option<balance::BackendPermit>, Option<SessionGauge>),
}

/// From the socket to the 101: every station that may say no.
async fn establish(
    mut socket: Socket,
    settings: &ListenerSettings,
    shared: &Shared,
    log_line: &mut AccessLogLine,
) -> Result<Box<Established>, Reason> {
    let mut info = ConnectionInfo::new(&socket, log_line.peer, settings);
    let mut address_permit = info.admit(shared)?;
    let handshake = shared.handshakes.try_acquire().ok_or(Reason::Overloaded)?;
    if shared.sessions.in_use() >= shared.sessions.limit() {
        return Err(Reason::Overloaded);
    }
    if settings.proxy_protocol {
        info = info.read_proxy_header(&mut socket, settings, log_line).await?;
        address_permit = info.admit(shared)?;
    }
    let (mut stream, head_by) = tokio::select! {
        biased;
        tls_stream = secure(socket, settings, &shared.metrics, log_line) => tls_stream?,
        () = drain_grace(shared) => return Err(Reason::Draining),
    };
    info.tls = stream.tls_version();
    let exchange = Exchange::new(&mut stream, settings.snapshot.timeouts.stall);
    let (exchange, session_request) =
        read_requests(exchange, head_by, info, settings, shared, log_line).await?;
    let route = &session_request.routed.route;
    let session_info = SessionInfo { peer: log_line.peer, route: &route.name, since: SystemTime::now() };
    let session = shared.registry.open(session_info);
    log_line.session = Some(session.id());
    let client_info = ClientInfo { client: log_line.peer, local: info.local, tls: info.tls, id: log_line.id };
    let timeouts = &settings.snapshot.timeouts;
    let DialOutcome { backend, permit: backend_permit, label } =
        dial(&session_request, &client_info, timeouts.connect, &shared.metrics, log_line).await;
    if let Err(reason) = backend
        && route.backend_failure == BackendFailure::Status
    {
        exchange.refuse(Refusal::new(reason), timeouts.close).await;
        return Err(reason);
    }
    let switching = session_request.handshake.switching(session_request.subprotocol.as_deref());
    let pipelined = exchange.upgrade(switching).await.map_err(ExchangeError::reason)?;
    drop(handshake);
    let recorded = log_line.backend.as_ref().zip(label).filter(|_| backend.is_ok());
    let session_gauge = recorded.map(|(backend, label)| {
        session.reached(&backend.to_string());
        shared.metrics.open_session(&route.name, &label)
    });
    let relay_settings = relay_settings(route, timeouts);
    let guards = (
        address_permit.or(session_request.address_permit),
        session_request.session_permit,
        backend_permit,
        session_gauge,
    );
    Ok(Box::new(Established { stream, pipelined, backend, relay_settings, session, guards }))
}

/// Ready when the gateway stops and whoever came while the door was open has had a moment to ask: nobody is turned away in
/// the middle of asking, and nobody who is silent holds the end up.
async fn drain_grace(shared: &Shared) {
    shared.draining.cancelled().await;
    time::sleep(DRAIN_GRACE).await;
}

/// What a session of this route is held to.
fn relay_settings(route: &Route, timeouts: &Timeouts) -> RelaySettings {
    RelaySettings {
        accept_text: route.receive == Receive::Any,
        send_text: route.send == Send::Text,
        close: timeouts.close,
        stall: timeouts.stall,
        ping: timeouts.ping,
        pong: timeouts.pong,
        idle: timeouts.idle,
        lifetime: timeouts.lifetime,
    }
}

impl RelayStream for ClientStream {
    fn bytes_written(&self) -> u64 {
        self.bytes_written()
    }
}

impl RelayStream for BackendStream {
    fn bytes_written(&self) -> u64 {
        self.bytes_written()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_output<F, A, B, C, D>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_a_session_is_small() {
        let size = size_of_output(serve);
        assert!(size <= 1280, "{size} bytes");
    }
}
