//! Portcullis, a WebSocket-to-TCP gateway: `wss://` in, TCP out, bytes piped both ways.
//!
//! The modules form layers. A module imports only from layers below its own; modules of one layer are independent of each
//! other. `tests/modules.rs` enforces this.
//!
//! | layer | modules |
//! |---|---|
//! | program | `main` |
//! | command line | [`cli`]: arguments, messages, exit codes |
//! | process | [`gateway`]: listeners, accept loops, configuration reload, drain |
//! | connection, operation | `connection`: the stages of one connection, its access log line; `admin`: admin API, status page, metrics endpoint; `diagnose`: `explain` and the offline checks; `service`: logging, signals, systemd, resource limits |
//! | stages | `transport`: sockets, PROXY header, TLS; `http`: requests, authorisation, files; `backend`: load balancing, health checks, dialling; `events`: tells the operator's server of sessions; `relay`: WebSocket to TCP and back |
//! | configuration | [`config`]: TOML to domain types |
//! | state and rules | `session`: session registry; `metrics`: counters and gauges; `admission`: rate limit, concurrency limits, Origin policy; `websocket`: framing |
//! | foundation | [`outcome`]: why a connection ended, with status, close code and log level; `client_certificate`: what a client certificate says of its owner; `counting_stream`: a stream that counts bytes; `pem`: certificates and keys in PEM form; `socket_buffer`: how much the kernel buffers for a connection; `watched_file`: detects changed files for hot reload |

mod admin;
mod admission;
mod auth;
mod backend;
pub mod cli;
mod client_certificate;
pub mod config;
mod connection;
mod counting_stream;
mod diagnose;
mod events;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod gateway;
mod http;
mod http_client;
mod metrics;
pub mod outcome;
mod pem;
#[cfg(test)]
mod random;
mod relay;
mod service;
mod session;
#[cfg(test)]
mod simulation;
mod socket_buffer;
mod sync;
mod transport;
mod watched_file;
mod websocket;

pub use transport::self_signed::{SelfSigned, self_signed};
