//! The admin address of a running gateway, and its client.
//!
//! Owns the server ([`server`], [`socket`]), who may use it (`guard`), its API and status page, the metrics text, and the
//! client behind the commands ([`client`]). Acts on the process through [`control::ProcessControl`] alone.

mod api;
pub(crate) mod client;
pub(crate) mod control;
mod guard;
mod metrics_text;
mod page;
mod process;
pub(crate) mod server;
pub(crate) mod sessions;
pub(crate) mod socket;
mod status;
