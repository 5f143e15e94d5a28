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
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use ipnet::IpNet;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use self::{
    accepted::{ConnectionInfo, count_refusal, refused, secure},
    access_log::AccessLogLine,
    dial::{DialOutcome, dial},
    request::read_requests,
};
use crate::{
    admission::{
        AddressPermit, ConcurrencyLimit, HandshakePermit, Handshakes, LimitExceeded, Newcomer, Permit,
        RateLimiter, canonical,
    },
    backend::{BackendStream, ClientInfo, Upstream, balance},
    config::{BackendFailure, Receive, Route, Send, Timeouts},
    http::{AcceptedRequest, Exchange, ExchangeError, Files, KnownHosts, Refusal, Routes},
    metrics::{Metrics, SessionGauge},
    outcome::Reason,
    relay::{self, RelaySettings, RelayStream},
    session::{Registry, Session, SessionInfo},
    transport::{socket::Socket, stream::ClientStream, tls::Tls, turns::Turns},
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
    /// A connection is closed after this many requests that open no session.
    pub max_requests: NonZeroU32,
}

/// What all connections share while the process runs.
#[derive(Debug)]
pub struct Shared {
    /// The rate limit and the connection limit per client address.
    pub limiter: Arc<RateLimiter>,
    /// Connections that are not sessions yet, up to `limits.max_handshakes`.
    pub handshakes: Arc<Handshakes>,
    /// The turns of TLS handshakes at the processor.
    pub turns: Turns,
    /// Sessions, those being dialled included, up to `limits.max_sessions`.
    pub sessions: Arc<ConcurrencyLimit>,
    /// The open sessions.
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    /// Cancelled when a drain begins: connections without a request are closed soon after.
    pub draining: CancellationToken,
}

/// An accepted connection that the limits of its address admit. It has no handshake permit yet.
pub(crate) struct NewConnection {
    // Boxed, so that the task of a session carries only a pointer.
    parts: Box<Parts>,
}

struct Parts {
    socket: Socket,
    info: ConnectionInfo,
    address_permit: Option<AddressPermit>,
    settings: Arc<ListenerSettings>,
    shared: Arc<Shared>,
    log_line: AccessLogLine,
}

impl NewConnection {
    /// Checks the limits that need no more than the socket's address. A connection over one is closed, with its access log
    /// line, and `None` is returned.
    pub(crate) fn admit(
        socket: Socket,
        peer: SocketAddr,
        settings: Arc<ListenerSettings>,
        shared: Arc<Shared>,
    ) -> Option<Self> {
        let peer = SocketAddr::new(canonical(peer.ip()), peer.port());
        let id = shared.registry.connection_ids.next();
        let mut log_line = AccessLogLine::new(id, peer, Arc::clone(&shared.metrics));
        let info = ConnectionInfo::new(&socket, peer, &settings);
        let is_full = shared.sessions.in_use() >= shared.sessions.limit();
        let address_permit = match info.admit(&shared, &mut log_line) {
            Ok(_) if is_full => Err(Reason::Overloaded),
            admitted => admitted,
        };
        match address_permit {
            Ok(address_permit) => {
                let parts = Parts { socket, info, address_permit, settings, shared, log_line };
                Some(Self { parts: Box::new(parts) })
            }
            Err(reason) => {
                log_line.write(reason, None);
                None
            }
        }
    }

    /// What the handshake permits need to know of it.
    pub(crate) fn newcomer(&self) -> Newcomer {
        let Parts { info, address_permit, settings, .. } = &*self.parts;
        Newcomer {
            address: info.peer.ip(),
            limited: is_limited(address_permit.as_ref()),
            deadline: settings.handshake_limit(),
        }
    }

    /// Closes the connection, because too many of its address or network are not sessions yet.
    pub(crate) fn refuse(mut self, exceeded: &LimitExceeded) {
        let reason = refused(exceeded, &mut self.parts.log_line);
        self.parts.log_line.write(reason, None);
    }

    /// Closes the connection, because there is no handshake permit.
    pub(crate) fn refuse_as_overloaded(mut self) {
        self.parts.log_line.write(Reason::Overloaded, None);
    }

    /// Serves the connection until it ends.
    pub(crate) async fn serve(self, permit: HandshakePermit) {
        let Parts { socket, info, address_permit, settings, shared, mut log_line } = *self.parts;
        // Boxed, so that the handshake's state, which is large, is freed before relaying.
        let (kept_settings, kept_shared) = (Arc::clone(&settings), Arc::clone(&shared));
        let established =
            Box::pin(establish(socket, info, address_permit, permit, settings, shared, &mut log_line)).await;
        let established = match established {
            Ok(established) => established,
            Err(reason) => {
                count_refusal(reason, &kept_settings, &kept_shared, &log_line);
                return log_line.write(reason, None);
            }
        };
        // A session must not keep the configuration in memory.
        drop((kept_settings, kept_shared));
        let Established { stream, pipelined, backend, relay_settings, session, guards } = *established;
        #[cfg(debug_assertions)]
        panic_on_request(log_line.route.as_deref());
        let session_end = match backend {
            Ok(backend) => relay::relay(stream, pipelined, backend, &relay_settings, &session).await,
            Err(reason) => relay::refuse(stream, pipelined, reason, &relay_settings, &session).await,
        };
        // When the access log line appears, the permits are free again.
        drop(session);
        drop(guards);
        log_line.write(session_end.reason, Some(session_end));
    }
}

impl ListenerSettings {
    /// How long a client may take from its connection to the end of its first request head.
    fn handshake_limit(&self) -> Duration {
        let Timeouts { tls, request, .. } = self.snapshot.timeouts;
        if self.tls.is_some() { tls + request } else { request }
    }
}

/// Whether the limits of an address apply to a connection with this permit: not to one of a proxy that is still to name its
/// client, and not to one of an exempt address.
fn is_limited(address_permit: Option<&AddressPermit>) -> bool {
    address_permit.is_some_and(|permit| !permit.is_exempt())
}

/// Panics in the sessions of the route that an environment variable names, so that a test can show what a panic does to
/// the others. Release builds do not contain it.
#[cfg(debug_assertions)]
fn panic_on_request(route: Option<&str>) {
    let requested = std::env::var("PORTCULLIS_TEST_PANIC_ROUTE").ok();
    assert!(route.is_none() || route != requested.as_deref(), "a panic on request");
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
///
/// The settings and the shared state are owned: a session can outlive many reloads, and must not keep their configurations
/// in memory.
async fn establish(
    mut socket: Socket,
    mut info: ConnectionInfo,
    mut address_permit: Option<AddressPermit>,
    mut permit: HandshakePermit,
    settings: Arc<ListenerSettings>,
    shared: Arc<Shared>,
    log_line: &mut AccessLogLine,
) -> Result<Box<Established>, Reason> {
    let (settings, shared) = (&*settings, &*shared);
    // One deadline for everything up to the first request head, however the client spreads it.
    let first_head = Instant::now() + settings.handshake_limit();
    if settings.proxy_protocol {
        let taken_away = permit.taken_away();
        info = tokio::select! {
            biased;
            named = info.read_proxy_header(&mut socket, settings, log_line) => named?,
            () = taken_away => return Err(gave_way(log_line)),
        };
        address_permit = info.admit(shared, log_line)?;
        let moved = permit.set_client(info.peer.ip(), is_limited(address_permit.as_ref()));
        moved.map_err(|exceeded| refused(&exceeded, log_line))?;
    }
    let taken_away = permit.taken_away();
    let (mut stream, head_deadline) = tokio::select! {
        biased;
        tls_stream = secure(socket, settings, shared, &mut permit, log_line) => tls_stream?,
        () = taken_away => return Err(gave_way(log_line)),
        () = drain_grace(shared) => return Err(Reason::Draining),
    };
    info.tls = stream.tls_version();
    let exchange = Exchange::new(&mut stream, settings.snapshot.timeouts.stall);
    let head_deadline = head_deadline.min(first_head);
    let taken_away = permit.taken_away();
    let (exchange, session_request) = tokio::select! {
        biased;
        requested = read_requests(exchange, head_deadline, info, settings, shared, &mut permit, log_line) => requested?,
        () = taken_away => return Err(if permit.is_waiting() { Reason::Served } else { gave_way(log_line) }),
    };
    // It is a session from here on, and has the permit of one.
    drop(permit);
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

/// The reason of a connection whose handshake permit was given to a newer one.
fn gave_way(log_line: &mut AccessLogLine) -> Reason {
    log_line.detail =
        Some("too slow while limits.max_handshakes connections were not sessions yet".to_owned());
    Reason::Overloaded
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

    fn force_write(&mut self) {
        self.force_write();
    }
}

impl RelayStream for BackendStream {
    fn bytes_written(&self) -> u64 {
        self.bytes_written()
    }

    fn force_write(&mut self) {
        self.force_write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_output<F, A, B>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_a_session_is_small() {
        let size = size_of_output(NewConnection::serve);
        assert!(size <= 1344, "{size} bytes");
    }
}
