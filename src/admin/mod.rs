//! The admin address of a running gateway, and its client.
//!
//! Owns the server ([`server`], [`socket`]), the check of who may use it (`guard`), the API (`api`, `*_api`), the
//! status page (`page`), the metrics text, and the client behind the commands ([`client`]). Acts on the process through
//! [`control::ProcessControl`] alone.

mod api;
pub(crate) mod client;
mod connections;
pub(crate) mod control;
mod deny_api;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod guard;
pub(crate) mod kill;
mod metrics_text;
mod page;
mod process;
mod response;
pub(crate) mod server;
mod session_api;
pub(crate) mod sessions;
pub(crate) mod socket;
mod status;
mod ticket_api;
pub(crate) mod tickets;
