//! One connection, from the accepted socket to its access log line.
//!
//! Owns the order of the stages: PROXY header, TLS, HTTP, dial, relay. Knows nothing of how a stage works. Invariants: every
//! connection writes exactly one access log line and is counted once; everything it holds (permits, its entry in the
//! session registry) is a guard that is released when it ends; no backend is contacted for a client that was refused.

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
    http::{AcceptedRequest, Exchange, ExchangeError, Files, KnownHosts, Refusal, Routes},
    metrics::{Metrics, SessionGauge},
    outcome::Reason,
    relay::{self, RelaySettings, RelayStream},
    session::{Registry, Session, SessionInfo},
    transport::{socket::Socket, stream::ClientStream, tls::Tls},
};

/// How long a client that has just connected may take to send its request once a drain has begun.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// What the connections of one listener share, as of one loaded configuration.
#[derive(Debug)]
pub(crate) struct ListenerSettings {
    /// The TLS configuration; `None` for plain TCP.
    pub tls: Option<Tls>,
    /// The proxies whose forwarding headers and PROXY headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether every connection must begin with a PROXY header.
    pub proxy_protocol: bool,
    /// The hosts that requests may name; `None` for any.
    pub hosts: Option<KnownHosts>,
    pub snapshot: Arc<ConfigSnapshot>,
}

/// One loaded configuration, for the connections that are accepted under it. A reload does not change it for them.
#[derive(Debug)]
pub(crate) struct ConfigSnapshot {
    pub routes: Routes<Arc<Upstream>>,
    /// The files of `[web] root`, if it is set.
    pub files: Option<Files>,
    pub timeouts: Timeouts,
}

/// What all connections share while the process runs.
#[derive(Debug)]
pub struct Shared {
    /// The rate limit and the connection limit per client address.
    pub limiter: Arc<RateLimiter>,
    /// Connections that are not sessions yet, up to `limits.max_handshakes`.
    pub handshakes: Arc<ConcurrencyLimit>,
    /// Sessions, those being dialled included, up to `limits.max_sessions`.
    pub sessions: Arc<ConcurrencyLimit>,
    /// The open sessions.
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    /// Cancelled when a drain begins: connections without a request are closed soon after.
    pub draining: CancellationToken,
}

/// Serves one connection until it ends.
pub(crate) async fn serve(
    socket: Socket,
    peer: SocketAddr,
    settings: Arc<ListenerSettings>,
    shared: Arc<Shared>,
) {
    let peer = SocketAddr::new(canonical(peer.ip()), peer.port());
    let id = shared.registry.connection_ids.next();
    let mut log_line = AccessLogLine::new(id, peer, Arc::clone(&shared.metrics));
    // Boxed, so that the handshake's state, which is large, is freed before relaying.
    let established = Box::pin(establish(socket, &settings, &shared, &mut log_line)).await;
    let established = match established {
        Ok(established) => established,
        Err(reason) => return log_line.write(reason, None),
    };
    // A session can outlive many reloads, and must not keep their configurations in memory.
    drop((settings, shared));
    let Established { stream, pipelined, backend, relay_settings, session, guards } = *established;
    let session_end = match backend {
        Ok(backend) => relay::relay(stream, pipelined, backend, &relay_settings, &session).await,
        Err(reason) => relay::refuse(stream, pipelined, reason, &relay_settings, &session).await,
    };
    // When the access log line appears, the permits are free again.
    drop(session);
    drop(guards);
    log_line.write(session_end.reason, Some(session_end));
}

/// An upgraded connection, ready to relay.
struct Established {
    stream: ClientStream,
    pipelined: Bytes,
    backend: Result<BackendStream, Reason>,
    relay_settings: RelaySettings,
    session: Session,
    guards: (Option<AddressPermit>, Permit, Option<balance::BackendPermit>, Option<SessionGauge>),
}

/// From the accepted socket to the 101: every stage that can refuse the connection.
async fn establish(
    mut socket: Socket,
    settings: &ListenerSettings,
    shared: &Shared,
    log_line: &mut AccessLogLine,
) -> Result<Box<Established>, Reason> {
    let mut info = ConnectionInfo::new(&socket, log_line.peer, settings);
    let mut address_permit = info.admit(shared)?;
    let handshake_permit = shared.handshakes.try_acquire().ok_or(Reason::Overloaded)?;
    if shared.sessions.in_use() >= shared.sessions.limit() {
        return Err(Reason::Overloaded);
    }
    if settings.proxy_protocol {
        info = info.read_proxy_header(&mut socket, settings, log_line).await?;
        address_permit = info.admit(shared)?;
    }
    let (mut stream, head_deadline) = tokio::select! {
        biased;
        tls_stream = secure(socket, settings, &shared.metrics, log_line) => tls_stream?,
        () = drain_grace(shared) => return Err(Reason::Draining),
    };
    info.tls = stream.tls_version();
    let exchange = Exchange::new(&mut stream, settings.snapshot.timeouts.stall);
    let (exchange, session_request) =
        read_requests(exchange, head_deadline, info, settings, shared, log_line).await?;
    let AcceptedRequest { routed, handshake, subprotocol, .. } = &session_request.accepted;
    let route = &routed.route;
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
        exchange.respond_and_close(Refusal::new(reason), timeouts.close).await;
        return Err(reason);
    }
    let switching = handshake.switching(subprotocol.as_deref());
    let pipelined = exchange.upgrade(switching).await.map_err(ExchangeError::reason)?;
    drop(handshake_permit);
    let recorded = log_line.backend.as_ref().zip(label).filter(|_| backend.is_ok());
    let session_gauge = recorded.map(|(backend, label)| {
        session.set_backend(&backend.to_string());
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

/// Ready [`DRAIN_GRACE`] after a drain has begun: a client that is sending its request is not cut off, and a silent client
/// does not delay the shutdown.
async fn drain_grace(shared: &Shared) {
    shared.draining.cancelled().await;
    time::sleep(DRAIN_GRACE).await;
}

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
