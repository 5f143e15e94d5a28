//! HTTP: a request head becomes an upgrade, a refusal or a static file.
//!
//! Owns what stands between TLS and the relay. hyper does the protocol; this room asks it one request at a time
//! ([`Exchange`]), judges heads ([`check_head`], [`Handshake`]), finds routes and files, and words the answers. Refuses to
//! know backends and sessions. Invariant: after a refusal nothing more is read as a request.

mod decision;
mod exchange;
mod files;
mod handshake;
mod response;
mod route;

pub(crate) use decision::{AcceptedRequest, Decision, RequestContext, decide};
pub(crate) use exchange::{Exchange, ExchangeError, refuse_without_request};
pub(crate) use files::Files;
pub(crate) use response::{Body, Refusal, quoted};
pub(crate) use route::{Routed, Routes};
