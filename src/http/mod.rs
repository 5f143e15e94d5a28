//! HTTP: turns a request head into an upgrade, a refusal or a static file.
//!
//! Owns the stage between TLS and the relay. hyper speaks the protocol; this module polls it for one request at a time
//! ([`Exchange`]), authorises requests ([`decide`]), serves files and writes the responses. Knows nothing of backends and
//! sessions. Invariant: after a refusal, nothing more is read as a request.

mod decision;
mod directory_tree;
mod exchange;
mod files;
mod handshake;
mod known_hosts;
mod response;
mod route;

pub(crate) use decision::{AcceptedRequest, Decision, RequestContext, decide};
pub(crate) use exchange::{Exchange, ExchangeError, refuse_without_request};
pub(crate) use files::Files;
pub(crate) use known_hosts::KnownHosts;
pub(crate) use response::{Body, Refusal, quoted};
pub(crate) use route::{Routed, Routes};
