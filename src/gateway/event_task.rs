//! The task that delivers events, from the first configuration with `[events]` to the last.
//!
//! Invariant: a reload keeps the task and the queue while there is `[events]`, whatever is in it.

use std::sync::Arc;

use tokio::time::{Duration, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::events::{EventQueue, EventSettings, deliver};

/// How long a process that ends delivers events, at most. It is part of `timeouts.drain`.
const LAST_DELIVERY: Duration = Duration::from_secs(5);
/// The same if the whole of `timeouts.drain` has passed.
const LATE_DELIVERY: Duration = Duration::from_secs(1);

/// The task, if there is one. It stops when this is dropped.
#[derive(Debug, Default)]
pub(super) struct EventTask {
    running: Option<(Arc<EventQueue>, DropGuard)>,
}

impl EventTask {
    /// Delivers the events of `queue` by these settings from now on. Without a queue, events that wait are dropped.
    pub(super) fn replace(
        self,
        queue: Option<&Arc<EventQueue>>,
        settings: Option<&Arc<EventSettings>>,
    ) -> Self {
        let (Some(queue), Some(settings)) = (queue, settings) else {
            if let Some((removed, _)) = self.running {
                let dropped = removed.close();
                tracing::info!(dropped, "[events] was removed: events are not reported any more");
            }
            return Self::default();
        };
        match self.running {
            Some((running, guard)) if Arc::ptr_eq(&running, queue) => {
                running.configure(Arc::clone(settings));
                Self { running: Some((running, guard)) }
            }
            _ => {
                let stop = CancellationToken::new();
                tokio::spawn(deliver(Arc::clone(queue), stop.clone()));
                Self { running: Some((Arc::clone(queue), stop.drop_guard())) }
            }
        }
    }

    /// Delivers what waits, now that all sessions have ended. `drained`: when `timeouts.drain` has passed.
    pub(super) async fn finish(self, drained: Instant) {
        let Some((queue, _guard)) = self.running else { return };
        let now = Instant::now();
        let deadline = drained.clamp(now + LATE_DELIVERY, now + LAST_DELIVERY);
        let dropped = queue.finish(deadline).await;
        if dropped > 0 {
            tracing::warn!(dropped, "events dropped: the receiver has not accepted them in time");
        }
    }
}
