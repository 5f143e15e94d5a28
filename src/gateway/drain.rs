//! The end of all sessions.

use std::time::Duration;

use tokio::time::{self, MissedTickBehavior};

use crate::{outcome::Reason, session::Registry};

/// How often a draining gateway tells some sessions.
const DRAIN_TICK: Duration = Duration::from_millis(100);
/// How many sessions it tells at a time at least: a handful need not wait.
const DRAIN_BATCH: usize = 16;

/// Tells all sessions that the gateway goes away, spread over the first half of `drain` so that their clients do not
/// come back all at once; then waits for the rest of it.
pub(super) async fn close_sessions(registry: &Registry, drain: Duration) {
    let end = time::Instant::now() + drain;
    let ticks = (drain / 2).div_duration_f64(DRAIN_TICK).max(1.0);
    let batch = DRAIN_BATCH.max((registry.len() as f64 / ticks).ceil() as usize);
    let mut ticker = time::interval(DRAIN_TICK);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // Numbers only grow, so a session that began after the last look is found by the next.
    let mut told = 0;
    while time::Instant::now() < end {
        tokio::select! {
            _ = ticker.tick() => {}
            () = time::sleep_until(end) => break,
        }
        let last = told;
        for id in registry.ids().into_iter().filter(|id| *id > last).take(batch) {
            registry.end(id, Reason::Draining);
            told = id;
        }
    }
}
