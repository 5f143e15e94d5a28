//! The control trait: what signals and the admin API may ask of the running process, and its status.
//!
//! Owns the contract between those callers and the gateway, which implements it. Knows nothing of the implementation.

use std::{fmt::Debug, pin::Pin, time::SystemTime};

use crate::events::EventStats;

/// Keeps [`ProcessControl`] usable as a trait object.
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

pub(crate) trait ProcessControl: Debug + Send + Sync {
    /// Reloads the configuration and every file it names. New connections use it; open sessions keep the configuration
    /// they started with. Returns one line for the caller's terminal.
    ///
    /// # Errors
    /// Something is wrong, and nothing has changed. One line that says what is wrong, where, and what to do.
    fn reload(&self) -> BoxFuture<'_, Result<String, String>>;

    /// Starts a graceful shutdown that leaves the process running: stops accepting and closes every session, spread over
    /// the first half of `timeouts.drain`. A second call changes nothing.
    fn drain(&self);

    /// Changes the log level until the next reload.
    ///
    /// # Errors
    /// It cannot be changed; one line for the caller's terminal.
    fn set_log_level(&self, level: tracing::Level) -> Result<(), String>;

    /// How a ticket for a route, and for one of its targets, becomes a link.
    ///
    /// # Errors
    /// There is no such route or target, or the route accepts no tickets. One line for the caller's terminal.
    fn ticket_route(&self, route: &str, target: Option<&str>) -> Result<TicketRoute, String>;

    fn status(&self) -> GatewayStatus;
}

/// A route that accepts tickets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TicketRoute {
    /// A path that the route matches.
    pub path: String,
    /// The parameter of the query that takes the ticket, if one does.
    pub parameter: Option<String>,
    /// What comes before the path, if the configuration says it.
    pub base: Option<String>,
}

/// A snapshot of the gateway.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GatewayStatus {
    /// Whether new connections are accepted: it listens, and does not drain.
    pub ready: bool,
    /// Whether a drain has started.
    pub draining: bool,
    /// When the configuration that new connections use was loaded.
    pub loaded: SystemTime,
    /// Successful reloads, and reloads that changed nothing because of an error.
    pub reloads: (u64, u64),
    /// Sessions, open or being set up, and `limits.max_sessions`.
    pub sessions: (usize, usize),
    /// Connections that are not sessions yet, and `limits.max_handshakes`.
    pub handshakes: (usize, usize),
    /// In the order of the configuration; none once it drains.
    pub listeners: Vec<ListenerStatus>,
    /// The backends of each route, the most specific route first. Routes with `targets` are left out: the backends in
    /// token files are secret.
    pub backends: Vec<BackendStatus>,
    /// Log lines lost because a sink could not keep up or failed.
    pub dropped_log_lines: u64,
    pub events: EventStats,
}

#[cfg(any(test, fuzzing))]
impl GatewayStatus {
    /// That of a gateway which is ready, without listeners, backends and sessions, as test doubles report it.
    pub(crate) fn empty() -> Self {
        Self {
            ready: true,
            draining: false,
            loaded: SystemTime::UNIX_EPOCH,
            reloads: (0, 0),
            sessions: (0, 1),
            handshakes: (0, 1),
            listeners: Vec::new(),
            backends: Vec::new(),
            dropped_log_lines: 0,
            events: EventStats::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenerStatus {
    /// As configured.
    pub address: String,
    pub tls: bool,
    /// When the first certificate of the chain expires. `None` without TLS, or if the certificate does not say.
    pub certificate_expiry: Option<SystemTime>,
}

/// One backend of one route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackendStatus {
    /// The name of the route.
    pub route: String,
    /// The backend, as configured.
    pub backend: String,
    /// Whether new sessions may be sent to it: its health checks have not marked it down, and no dial has just failed.
    pub up: bool,
    /// Its sessions, and dials in progress.
    pub sessions: usize,
}
