//! The harness of the tests: a running gateway, clients, backends, and ways to wait.
//!
//! Nothing here sleeps to let something happen. Each wait names its condition, and a wait that times out
//! fails with that name and with the gateway's log.

mod admin;
mod backend;
mod client;
mod frames;
mod head;
mod identity;
mod pattern;
mod process;
mod sources;
mod subprocess;

use std::future::Future;
use std::time::{Duration, Instant};

pub(crate) use admin::{command, request_on};
pub(crate) use backend::Backend;
pub(crate) use client::{ClientStream, SmallWrites};
pub(crate) use frames::{BINARY, CLOSE, CONTINUATION, End, Frame, Frames, MASK, PING, PONG, Session, TEXT};
pub(crate) use frames::{close_body, frame, header, masked};
pub(crate) use head::{KEY, Request, Response, read_response, read_to_end};
pub(crate) use identity::{Identity, client_config, client_config_with};
pub(crate) use pattern::{Check, pattern};
pub(crate) use process::{AccessLogLine, Gateway, ListenerIndex, PLAIN, Setup, TLS, run, send_request};
pub(crate) use subprocess::{isolated, rerun, role};

/// How long a test waits for a condition. Far more than necessary, because the machine may be busy.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// Waits for `future`, and fails naming `what` after the timeout.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(TIMEOUT, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {TIMEOUT:?} for {what}"),
    }
}

/// Polls until `check` succeeds; fails with its last error after `limit`.
pub(crate) async fn eventually(what: &str, limit: Duration, mut check: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while let Err(seen) = check() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}, {seen}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asserts that something took as long as the timeout that ended it, and not much longer.
#[track_caller]
pub(crate) fn assert_took(start: Instant, clock: Duration) {
    let took = start.elapsed();
    let earliest = clock.saturating_sub(Duration::from_millis(50));
    let latest = clock + Duration::from_millis(1500);
    assert!((earliest..latest).contains(&took), "ended after {took:?}, the timeout is {clock:?}");
}
