//! Sockets, certificates and addresses: from an accepted socket to a stream of plaintext and the client it belongs to.
//!
//! Owns listening, TLS and the canonical client address. Refuses to know HTTP answers, routes and sessions.

pub(crate) mod certificate;
pub(crate) mod listener;
pub(crate) mod peer;
pub(crate) mod proxy_protocol;
pub(crate) mod self_signed;
pub(crate) mod socket;
pub(crate) mod stream;
pub(crate) mod tls;
pub(crate) mod unix;
