//! The client side of the gateway, below HTTP: listening sockets, the PROXY protocol, TLS, the client's address.
//!
//! Owns everything between an accepted socket and a plaintext stream of a known client. Knows nothing of HTTP
//! responses, routes and sessions. Invariant: the address of a client is canonical, an IPv4-mapped IPv6 address never
//! appears.

pub(crate) mod certificate;
pub(crate) mod client_ca;
pub(crate) mod listener;
pub(crate) mod peer;
pub(crate) mod proxy_protocol;
pub(crate) mod self_signed;
pub(crate) mod socket;
pub(crate) mod stream;
pub(crate) mod tls;
pub(crate) mod turns;
pub(crate) mod unix;
