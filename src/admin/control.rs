//! What an operator may ask of the running process, and what it says of itself.
//!
//! Owns the contract between those who ask (the admin address, signals) and the one who can (the gateway). Refuses to know
//! how anything of it is done.

use std::{fmt::Debug, pin::Pin, time::SystemTime};

/// A future that can be kept without its name.
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the admin address may ask of the process.
pub(crate) trait ProcessControl: Debug + Send + Sync {
    /// Reads the configuration and everything it names again. Connections that come from then on live under it, sessions
    /// go on under what they were opened with.
    ///
    /// # Errors
    /// Something is wrong, and nothing has changed. Both answers are one line for the caller's terminal; an error says
    /// what is wrong, where, and what to do.
    fn reload(&self) -> BoxFuture<'_, Result<String, String>>;

    /// Stops accepting and tells every session to go, spread over the first half of `timeouts.drain`. The process stays.
    /// Asked again, it changes nothing.
    fn drain(&self);

    /// Changes which log lines are written, until the next reload.
    ///
    /// # Errors
    /// It cannot be changed; one line for the caller's terminal.
    fn set_log_level(&self, level: tracing::Level) -> Result<(), String>;

    /// How the process stands now.
    fn status(&self) -> GatewayStatus;
}

/// How a gateway stands at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GatewayStatus {
    /// Whether new connections are welcome: it listens, and does not drain.
    pub ready: bool,
    /// Whether it has begun to send its sessions away.
    pub draining: bool,
    /// When the configuration that new connections live under was loaded.
    pub loaded: SystemTime,
    /// Reloads that went well, and reloads that changed nothing because something was wrong.
    pub reloads: (u64, u64),
    /// Sessions that live or are about to, and `limits.max_sessions`.
    pub sessions: (usize, usize),
    /// Connections that are not sessions yet, and `limits.max_handshakes`.
    pub handshakes: (usize, usize),
    /// Where clients are accepted, in the order of the configuration; none once it drains.
    pub listeners: Vec<ListenerStatus>,
    /// The servers behind the routes, most particular route first. Routes that lead by tokens are not among
    /// them: where those lead is nobody's business.
    pub backends: Vec<BackendStatus>,
    /// Log lines that were dropped because nobody took them fast enough.
    pub dropped_log_lines: u64,
}

/// One address on which clients are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenerStatus {
    /// As it is configured.
    pub address: String,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// When its certificate, the first of the chain, ends. `None` without TLS, or where the certificate does not tell.
    pub certificate_expiry: Option<SystemTime>,
}

/// One server of one route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackendStatus {
    /// The name of the route.
    pub route: String,
    /// The server, as it is configured.
    pub backend: String,
    /// Whether sessions are led there: its health checks have not found it down, and it has not just failed a dial.
    pub up: bool,
    /// Sessions there, and dials on their way.
    pub sessions: usize,
}
