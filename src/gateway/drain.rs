//! Connection draining: closes all sessions at a limited pace during a graceful shutdown.

use std::time::Duration;

use tokio::time::{self, MissedTickBehavior};

use crate::{outcome::Reason, session::Registry};

/// The interval between two batches of sessions that are closed.
const DRAIN_TICK: Duration = Duration::from_millis(100);
/// The least size of a batch: a handful of sessions need not wait.
const DRAIN_BATCH: usize = 16;

/// Closes all sessions over the first half of `drain`, so that their clients do not all reconnect at once. Then waits for
/// the rest of `drain`.
pub(super) async fn close_sessions(registry: &Registry, drain: Duration) {
    let end = time::Instant::now() + drain;
    let ticks = (drain / 2).div_duration_f64(DRAIN_TICK).max(1.0);
    let batch = DRAIN_BATCH.max((registry.len() as f64 / ticks).ceil() as usize);
    let mut ticker = time::interval(DRAIN_TICK);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // Session ids only grow, so a session that opened after the last tick is found by the next one.
    let mut last_closed = 0;
    while time::Instant::now() < end {
        tokio::select! {
            _ = ticker.tick() => {}
            () = time::sleep_until(end) => break,
        }
        let last = last_closed;
        for id in registry.ids().into_iter().filter(|id| *id > last).take(batch) {
            registry.end(id, Reason::Draining);
            last_closed = id;
        }
    }
}
