//! What hostile and broken peers get: the rows of docs/security.md, each over real sockets against the running gateway.
//!
//! One file per section of that list. A test's name begins with its row (`row_50_…`). Rows that another test binary
//! proves in full are not repeated here, and a section of only such rows has no file; docs/security.md names the test of
//! every row.

#[path = "../gateway/backends/authority.rs"]
#[allow(dead_code, reason = "the tests of tests/gateway use more of it")]
mod authority;
#[path = "../gateway/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests of tests/gateway use more of it")]
mod support;

mod attack;
mod frames;
mod process;
mod rate;
mod relay;
mod request_head;
mod tcp_tls;
