//! Sockets, certificates and addresses: from an accepted socket to a stream of plaintext and the client it belongs to.
//!
//! Owns listening, TLS and the canonical client address. Refuses to know HTTP answers, routes and sessions.

pub mod certificate;
pub mod listener;
pub mod peer;
pub mod proxy_protocol;
pub mod self_signed;
pub mod socket;
pub mod stream;
pub mod tls;
pub mod unix;
