//! What a route leads to: the servers, and how they are reached.
//!
//! Owns the domain types alone; how they are written is the business of `convert`, and what is done with them
//! that of the backend room.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::{Backend, TlsVersion};

/// Everything a route says about its servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Which servers there are.
    pub destinations: Destinations,
    /// Which of several is next.
    pub balance: Balance,
    /// Sessions at the same time with each single server; without it there is no limit but that of the
    /// gateway.
    pub max_sessions: Option<usize>,
    /// How TLS is spoken with those that speak it.
    pub tls: BackendTls,
    /// The domain that `starttls+xmpp://` backends are asked for, in lower-case ASCII and without trailing dot
    /// (RFC 6120 §4.7.2). In a parsed configuration there is one exactly if there is such a backend.
    pub xmpp_domain: Option<String>,
    /// The only networks that may be dialled, IPv4 in IPv6 written as IPv4; never empty. Without it, addresses
    /// are dialled as they are written, and names may lead anywhere but to link-local and cloud metadata
    /// addresses.
    pub allowed_networks: Option<Vec<IpNet>>,
    /// Whether a server is told who the client is.
    pub send_proxy: Option<SendProxy>,
    /// How often servers are tried while nobody asks for them; without it they are not.
    pub health: Option<Health>,
}

impl UpstreamConfig {
    /// This one server, and for all else the defaults.
    pub fn single(backend: Backend) -> Self {
        Self {
            destinations: Destinations::Fixed(vec![backend]),
            balance: Balance::default(),
            max_sessions: None,
            tls: BackendTls::default(),
            xmpp_domain: None,
            allowed_networks: None,
            send_proxy: None,
            health: None,
        }
    }
}

/// Where the servers are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destinations {
    /// In the configuration; at least one, none twice.
    Fixed(Vec<Backend>),
    /// In a file of tokens, of which a client shows one.
    Tokens(TokenFile),
}

/// Where tokens are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile {
    /// A file of lines `token: host:port`, or a directory of such files.
    pub path: PathBuf,
}

/// Which of several servers takes the next session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// The one with the fewest sessions.
    LeastSessions,
    /// The first that can be reached, in the order of the list.
    First,
    /// Always the same for the same client address.
    SourceIp,
}

/// How TLS is spoken with a server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackendTls {
    /// PEM file with the only authorities to trust; without one, those of the system.
    pub ca: Option<PathBuf>,
    /// The name that the server's certificate must be for: a name in lower-case ASCII and without trailing dot,
    /// or an IP address without brackets. Without one it is the host of the backend, or its `xmpp_domain`.
    pub server_name: Option<String>,
    /// PEM files to show to the server: a certificate chain, and its private key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// The oldest TLS version spoken.
    pub min_version: TlsVersion,
    /// Take any certificate, whoever made it and whatever it is for.
    pub insecure_no_verify: bool,
}

/// In which version of the PROXY protocol a server is told who the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendProxy {
    /// One line of text.
    V1,
    /// Binary, and with more in it than the addresses.
    V2,
}

/// How servers are tried while nobody asks for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// From one try to the next.
    pub interval: Duration,
    /// How long one try may take.
    pub timeout: Duration,
    /// How many tries in a row must succeed before a server is used again; at least one.
    pub rise: u32,
    /// How many tries in a row must fail before a server is used no more; at least one.
    pub fall: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 2, fall: 3 }
    }
}
