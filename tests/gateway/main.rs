//! The real binary, over real sockets, with TLS, against clients and backends that behave and that do not.
//!
//! Every test starts a gateway of its own on ports of its own and ends by asking that gateway to account for
//! what happened: one line for each connection, every descriptor given back, and one more session that works.

mod support;

mod admin;
mod admin_guard;
mod admin_metrics;
mod admin_socket;
mod backend;
mod backends;
mod capacity;
mod cli;
mod doors;
mod files;
mod frames;
mod handshake;
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
