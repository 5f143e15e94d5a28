//! The real binary, over real sockets, with TLS, against clients and backends that behave and that do not.
//!
//! Every test starts its own gateway on free ports, and ends with checks of that gateway:
//! one log line for each connection, every descriptor released, and one more session that works.

#[allow(dead_code, unused_imports, reason = "the tests of tests/hostile use more of it")]
mod support;

mod admin;
mod admin_guard;
mod admin_metrics;
mod admin_socket;
mod auth;
mod backend;
mod backends;
mod capacity;
mod cli;
mod core_dumps;
mod events;
mod files;
mod frames;
mod handshake;
mod listeners;
mod log;
mod logs;
mod origin;
mod rate;
mod relay;
mod reload;
mod reload_load;
mod renewal;
mod stall;
mod stop;
mod stream;
mod text;
mod tls;
