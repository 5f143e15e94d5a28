//! One connection, from the accepted socket to its access log line.
//!
//! Owns the order of the stages: PROXY header, TLS, HTTP, credentials, dial, relay. Knows nothing of how a stage works. Invariants: every
//! connection writes exactly one access log line and is counted once; everything it holds (permits, its entry in the
//! session registry) is a guard that is released when it ends; no backend is contacted for a client that was refused.

mod accepted;
mod access_log;
mod authenticate;
mod dial;
mod establish;
mod request;

use std::{net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use ipnet::IpNet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use self::{
    accepted::{ConnectionInfo, is_limited, refused},
    access_log::AccessLogLine,
    establish::{Established, OpenSession, establish},
};
use crate::{
    admission::{
        AddressPermit, ConcurrencyLimit, HandshakePermit, Handshakes, LimitExceeded, Newcomer, RateLimiter,
        UserSessions, canonical,
    },
    auth::{Authenticators, Credentials},
    backend::Upstream,
    config::Timeouts,
    events::EventQueue,
    http::{Files, KnownHosts, Routes},
    metrics::Metrics,
    outcome::Reason,
    relay,
    session::Registry,
    transport::{socket::Socket, tls::Tls, turns::Turns},
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
    /// What the routes that require a credential demand.
    pub authenticators: Authenticators,
    pub timeouts: Timeouts,
    /// A connection is closed after this many requests that open no session.
    pub max_requests: NonZeroU32,
    /// Takes the events of sessions, if they are reported.
    pub events: Option<Arc<EventQueue>>,
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
    /// The sessions of each user, up to `limits.per_user.sessions`.
    pub users: Arc<UserSessions>,
    pub registry: Arc<Registry>,
    /// The issued tickets and the denied JWTs.
    pub(crate) credentials: Arc<Credentials>,
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
    info: ConnectionInfo<'static>,
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

    /// Moves the parts out and frees the box, which would otherwise live as long as the session.
    fn into_parts(self) -> Parts {
        *self.parts
    }

    /// Serves the connection until it ends.
    pub(crate) async fn serve(self, permit: HandshakePermit) {
        let Parts { socket, info, address_permit, settings, shared, mut log_line } = self.into_parts();
        // Boxed, so that the handshake's state, which is large, is freed before relaying.
        let established =
            Box::pin(establish(socket, info, address_permit, permit, settings, shared, &mut log_line)).await;
        let established = match established {
            Ok(established) => established,
            Err(reason) => return log_line.write(reason, None),
        };
        let Established {
            stream,
            session: OpenSession { pipelined, backend, relay_settings, session, guards },
        } = *established;
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

/// Panics in the sessions of the route that an environment variable names, so that a test can show what a panic does to
/// the others. Release builds do not contain it.
#[cfg(debug_assertions)]
fn panic_on_request(route: Option<&str>) {
    let requested = std::env::var("PORTCULLIS_TEST_PANIC_ROUTE").ok();
    assert!(route.is_none() || route != requested.as_deref(), "a panic on request");
}

/// Ready [`DRAIN_GRACE`] after a drain has begun: a client that is sending its request is not cut off, and a silent client
/// does not delay the shutdown.
async fn drain_grace(shared: &Shared) {
    shared.draining.cancelled().await;
    time::sleep(DRAIN_GRACE).await;
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
