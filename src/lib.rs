//! Portcullis, a WebSocket-to-TCP gateway: `wss://` in, TCP out, bytes piped both ways.
//!
//! This is the map of the house. A connection passes through its rooms from top to bottom; each imports only from
//! the floors below its own, and rooms on one floor do not know each other.
//!
//! | floor | rooms |
//! |---|---|
//! | the program | `main`, [`cli`]: arguments and exit codes |
//! | the process | [`gateway`]: listeners, accept loops, reload, drain |
//! | one connection | [`connection`]: its whole life; [`service`]: living on a machine; [`admin`]: what an operator asks |
//! | its stations | [`transport`], [`http`], [`backend`], [`relay`] |
//! | shared by the TLS of clients and of backends | [`tls`]: PEM files, protocol versions |
//! | the file | [`config`]: TOML to domain types |
//! | pure rules | [`admission`], [`websocket`]; what is counted: [`session`], [`metrics`] |
//! | the ends | [`outcome`]: why a connection ended, and what everybody is told; under every stream: [`counting_stream`]; hot reload: [`watched_file`] |

mod admin;
mod admission;
mod backend;
pub mod cli;
pub mod config;
mod connection;
mod counting_stream;
mod diagnose;
pub mod gateway;
mod http;
mod metrics;
pub mod outcome;
mod relay;
mod service;
mod session;
mod tls;
mod transport;
mod watched_file;
mod websocket;

pub use transport::self_signed::{SelfSigned, self_signed};
