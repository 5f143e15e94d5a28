//! Why a gateway does not start, and why a reload changes nothing.

use std::io;

use crate::{
    admin::socket::SocketError,
    auth::AuthError,
    backend::UpstreamError,
    config::{Address, AdminAddress, Backend, ConfigError},
    events::ReceiverError,
    service::logging::LogError,
    transport::tls::TlsError,
};

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A certificate, a key or another file of TLS is missing, unreadable or invalid.
    #[error("{file}: listener {number}: {cause}")]
    Tls {
        /// The configuration file.
        file: String,
        /// The listener, counted from 1.
        number: usize,
        /// The error.
        cause: Box<TlsError>,
    },
    /// A file that a method of `[auth]` needs is missing, unreadable or invalid.
    #[error("{file}: {cause}")]
    Auth {
        /// The configuration file.
        file: String,
        /// The error.
        cause: Box<AuthError>,
    },
    /// A file that `[events]` needs is missing, unreadable or invalid.
    #[error("{file}: {cause}")]
    Events {
        /// The configuration file.
        file: String,
        /// The error.
        cause: ReceiverError,
    },
    /// A file that the backends of a route need is missing, unreadable or invalid.
    #[error("{file}: route {route:?}: {cause}")]
    Upstream {
        /// The configuration file.
        file: String,
        /// The name of the route.
        route: String,
        /// The error.
        cause: Box<UpstreamError>,
    },
    /// A backend of a route is an address that the gateway itself listens on.
    #[error(
        "{file}: route {route:?}: backend {backend}: this gateway itself listens there, and no route leads to it; set another backend"
    )]
    OwnAddress {
        /// The configuration file.
        file: String,
        /// The name of the route.
        route: String,
        /// The backend.
        backend: Backend,
    },
    /// The web root cannot be served.
    #[error("{file}: web.root: cannot open {root}: {cause}; check the path and its permissions")]
    Web {
        /// The configuration file.
        file: String,
        /// The directory.
        root: String,
        /// The system's error.
        cause: io::Error,
    },
    /// The gateway cannot listen on the admin address.
    #[error("{file}: {key} {address}: cannot listen on it: {cause}")]
    Admin {
        /// The configuration file.
        file: String,
        /// The key of the address.
        key: &'static str,
        /// The address.
        address: AdminAddress,
        /// The error.
        cause: SocketError,
    },
    /// The gateway cannot listen on an address.
    #[error("{file}: listener {number}: address {address}: cannot listen on it: {cause}; {advice}")]
    Listen {
        /// The configuration file.
        file: String,
        /// The listener, counted from 1.
        number: usize,
        /// The address.
        address: Address,
        /// The system's error.
        cause: io::Error,
        /// What to do about it.
        advice: &'static str,
    },
}

impl StartError {
    /// Whether the configuration is at fault, rather than the machine.
    pub fn is_config(&self) -> bool {
        !matches!(self, Self::Listen { .. } | Self::Admin { .. })
    }
}

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration file is unreadable or invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file that the configuration names is invalid, or the gateway cannot listen on an address.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The log cannot be reconfigured.
    #[error("{file}: {cause}")]
    Log {
        /// The configuration file.
        file: String,
        /// The error.
        cause: LogError,
    },
    /// A draining gateway accepts no new connections, so a new configuration would have no effect.
    #[error("the gateway is draining and accepts no new connections; restart it instead")]
    Draining,
    /// Loading panicked. The log has the message of the panic.
    #[error("loading the configuration failed unexpectedly; see the log line that begins with \"panic\"")]
    Panicked,
}
