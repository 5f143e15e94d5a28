//! What every test stands on: a running gateway, clients, backends and a way to wait.
//!
//! Nothing here sleeps to let something happen. Whoever waits names what for, and a wait that is in vain
//! fails with that name and with the log of the gateway.

mod admin;
mod again;
mod backend;
mod client;
mod frames;
mod head;
mod identity;
mod pattern;
mod process;

use std::future::Future;
use std::time::{Duration, Instant};

pub(crate) use admin::{ask_on, command};
pub(crate) use again::{again, alone, part};
pub(crate) use backend::Backend;
pub(crate) use client::{Dripping, Wire};
pub(crate) use frames::{BINARY, CLOSE, CONTINUATION, Frame, Frames, MASK, PING, PONG, Session, TEXT};
pub(crate) use frames::{close_body, frame, header, masked};
pub(crate) use head::{KEY, Request, Response, read_response, read_to_end};
pub(crate) use identity::{Identity, client_config};
pub(crate) use pattern::{Check, pattern};
pub(crate) use process::{Door, End, Gateway, PLAIN, Setup, TLS, ask, run};

/// How long a test waits for what must happen. Far more than it takes, for the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `future`, and fails naming `what` if it does not come.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}

/// Looks again and again until `check` is content; fails with what it last saw when `limit` is over.
pub(crate) async fn eventually(what: &str, limit: Duration, mut check: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while let Err(seen) = check() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}, {seen}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asserts that something took as long as the clock that ended it, and not much longer.
#[track_caller]
pub(crate) fn assert_took(start: Instant, clock: Duration) {
    let took = start.elapsed();
    let earliest = clock.saturating_sub(Duration::from_millis(50));
    let latest = clock + Duration::from_millis(1500);
    assert!((earliest..latest).contains(&took), "ended after {took:?}, the clock says {clock:?}");
}
