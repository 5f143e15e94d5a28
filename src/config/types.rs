//! The parts of a configuration, and the defaults of those that have some.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::{Address, RoutePath, UpstreamConfig};
use crate::admission::{OriginPolicy, PerIp};

/// One address to accept clients on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where to listen.
    pub address: Address,
    /// What to show to TLS clients; without one the listener is plain `ws://`.
    pub identity: Option<Identity>,
    /// The oldest TLS version spoken.
    pub min_tls: TlsVersion,
    /// Proxies in front whose word about the client is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether every connection comes from one of them and begins with a PROXY protocol header.
    pub proxy_protocol: bool,
}

/// A certificate chain and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// In two PEM files.
    Files {
        /// The chain, the server's own certificate first.
        certificate: PathBuf,
        /// The key that belongs to the first certificate.
        private_key: PathBuf,
    },
    /// In memory, as PEM.
    Pem {
        /// The chain, the server's own certificate first.
        certificate: String,
        /// The key that belongs to the first certificate.
        private_key: Secret,
    },
}

/// A text that no log and no Debug shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps the text from being shown by accident.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one who needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// A TLS version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    V1_3,
}

/// One path and the backends it leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// What log lines call it; no other route has the same.
    pub name: String,
    /// The only host it is for, in lower-case ASCII and without port or trailing dot (an IPv6 address in
    /// brackets); or every host.
    pub host: Option<String>,
    /// The paths it takes.
    pub path: RoutePath,
    /// Where it leads.
    pub upstream: UpstreamConfig,
    /// Which pages may use it.
    pub origins: OriginPolicy,
    /// The sub-protocols it speaks (RFC 6455 §1.9); none means that it does not care.
    pub subprotocols: Vec<String>,
    /// Which messages a client may send.
    pub receive: Receive,
    /// Which messages a client gets.
    pub send: Send,
    /// What a client hears when the backend cannot be reached.
    pub backend_failure: BackendFailure,
}

/// Which messages a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Receive {
    /// Binary and text; of both, the bytes are forwarded.
    #[default]
    Any,
    /// Binary only; text is answered with Close 1003 (RFC 6455 §7.4.1).
    Binary,
}

/// Which messages a client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Send {
    /// Binary messages.
    #[default]
    Binary,
    /// Text messages, for backends that speak nothing but UTF-8.
    Text,
}

/// What a client hears when the backend cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendFailure {
    /// The upgrade is completed and closed with a code and a reason, because browsers hide HTTP statuses from
    /// scripts.
    #[default]
    Close,
    /// The HTTP request is refused with a status.
    Status,
}

/// How many may come, and how fast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at the same time, over all listeners.
    pub max_sessions: usize,
    /// Connections at the same time that are not yet sessions.
    pub max_handshakes: usize,
    /// What one address may do.
    pub per_ip: PerIp,
}

impl Limits {
    /// Descriptors beside those of sessions: one for each handshake and each listener, and some to spare for logs, files
    /// and the runtime.
    pub(crate) fn other_descriptors(&self, listeners: usize) -> u64 {
        const SPARE: u64 = 64;
        self.max_handshakes as u64 + listeners as u64 + SPARE
    }
}

impl Default for Limits {
    fn default() -> Self {
        const RATE: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
        const BURST: NonZeroU32 = NonZeroU32::new(60).expect("not zero");
        const SESSIONS: NonZeroU32 = NonZeroU32::new(200).expect("not zero");
        let per_ip = PerIp { rate: RATE, burst: BURST, sessions: SESSIONS, exempt: Vec::new() };
        Self { max_sessions: 9000, max_handshakes: 1024, per_ip }
    }
}

/// How long things may take. `None` is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// The whole TLS handshake.
    pub tls: Duration,
    /// The whole request head.
    pub request: Duration,
    /// Finding and reaching the backend.
    pub connect: Duration,
    /// The other side's answer to a Close, and what it still has to say.
    pub close: Duration,
    /// The end of all sessions once the gateway has to stop.
    pub drain: Duration,
    /// How long a peer may accept nothing that is waiting for it.
    pub stall: Option<Duration>,
    /// Silence of the client after which it is pinged.
    pub ping: Option<Duration>,
    /// How long the answer to a ping may take.
    pub pong: Option<Duration>,
    /// How long a session may carry no payload either way.
    pub idle: Option<Duration>,
    /// How long a session may last.
    pub lifetime: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            tls: seconds(5),
            request: seconds(5),
            connect: seconds(5),
            close: seconds(2),
            drain: seconds(30),
            stall: Some(seconds(30)),
            ping: Some(seconds(30)),
            pong: Some(seconds(20)),
            idle: None,
            lifetime: None,
        }
    }
}

/// Static files on the same listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Web {
    /// The directory whose files everyone may read.
    pub root: PathBuf,
}

/// How to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// For people or for programs.
    pub format: LogFormat,
    /// The least important level that is still written.
    pub level: tracing::Level,
    /// The file that gets a line at the end of each connection, besides.
    pub sessions: Option<PathBuf>,
    /// How many lines a second are written about refused connections of each reason.
    pub refused_per_second: NonZeroU32,
}

impl Default for Log {
    fn default() -> Self {
        const REFUSED: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
        let (format, level) = (LogFormat::default(), tracing::Level::INFO);
        Self { format, level, sessions: None, refused_per_second: REFUSED }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
    /// The protocol of systemd's journal, with a field for each thing that is said.
    Journald,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown_by_debug() {
        let private_key = Secret::new("-----BEGIN PRIVATE KEY-----");
        assert_eq!(private_key.expose(), "-----BEGIN PRIVATE KEY-----");
        let identity = Identity::Pem { certificate: "public".into(), private_key };
        assert_eq!(format!("{identity:?}"), r#"Pem { certificate: "public", private_key: Secret(***) }"#);
    }
}
