//! The real binary with real servers from a distribution around it: Prosody, HAProxy and nginx.
//!
//! They run on free ports of this machine, with their own configuration and directory, and stop with the
//! test. `tests/run --only servers` installs them and runs these tests; where one is missing, its tests print so
//! and are skipped; with `CI=true` they fail.

#[path = "../gateway/backends/authority.rs"]
#[allow(dead_code, reason = "the tests over plain sockets use more of it")]
mod authority;
mod haproxy;
mod nginx;
mod nginx_auth;
mod nginx_keys;
mod prosody;
mod server;
#[path = "../gateway/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests over plain sockets use more of it")]
mod support;
