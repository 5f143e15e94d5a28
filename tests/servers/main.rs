//! The real binary with real servers from a distribution around it: Prosody, HAProxy and nginx.
//!
//! They run on free ports of this machine, with a configuration and a directory of their own, and end with the
//! test. `tests/run --only servers` installs them and runs these tests; where one is missing, its tests say so
//! and do nothing, and fail with `CI=true`.

#[path = "../gateway/backends/authority.rs"]
#[allow(dead_code, reason = "the tests over plain sockets use more of it")]
mod authority;
mod haproxy;
mod nginx;
mod prosody;
mod server;
#[path = "../gateway/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests over plain sockets use more of it")]
mod support;
