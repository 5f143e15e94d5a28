//! The queue in which events wait to be delivered.
//!
//! Invariants: an event is reported without waiting; at most `events.queue` events wait, beside those of the one request that is
//! under way.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    Event,
    receiver::EventSettings,
    waiting::{Numbered, Waiting},
};

/// The longest pause between two requests while the process ends.
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// The events that wait, and the settings by which they are delivered.
#[derive(Debug)]
pub(crate) struct EventQueue {
    state: Mutex<State>,
    /// Notified when there is an event.
    filled: Notify,
    /// Notified when there is none, and none is being delivered.
    emptied: Notify,
    /// Notified when the settings have changed.
    configured: Notify,
    /// Cancelled when the process ends: what waits is delivered soon, or not at all.
    finishing: CancellationToken,
}

#[derive(Debug)]
struct State {
    settings: Arc<EventSettings>,
    events: Waiting,
    in_flight: usize,
    delivered: u64,
    dropped: u64,
    requests: (u64, u64),
    is_closed: bool,
}

/// What the queue has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct EventStats {
    /// Events that wait, or are being delivered.
    pub queued: usize,
    /// Events that the receiver has accepted.
    pub delivered: u64,
    /// Events that are lost.
    pub dropped: u64,
    /// Requests that the receiver has accepted, and others.
    pub requests: (u64, u64),
}

/// Events that were taken from the queue to be delivered.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) events: Vec<Numbered>,
    pub(super) settings: Arc<EventSettings>,
    /// How many events have been dropped so far.
    pub(super) dropped: u64,
}

impl EventQueue {
    pub(crate) fn new(settings: Arc<EventSettings>) -> Self {
        let state = State {
            settings,
            events: Waiting::default(),
            in_flight: 0,
            delivered: 0,
            dropped: 0,
            requests: (0, 0),
            is_closed: false,
        };
        Self {
            state: Mutex::new(state),
            filled: Notify::new(),
            emptied: Notify::new(),
            configured: Notify::new(),
            finishing: CancellationToken::new(),
        }
    }

    /// Changes the settings. What waits is delivered by the new ones.
    pub(crate) fn configure(&self, settings: Arc<EventSettings>) {
        let mut state = self.state.lock();
        state.settings = settings;
        state.trim();
        drop(state);
        self.configured.notify_one();
    }

    /// Adds an event. Never waits.
    pub(crate) fn push(&self, event: Event) {
        let mut state = self.state.lock();
        if state.is_closed {
            return;
        }
        state.events.push(event);
        state.trim();
        drop(state);
        self.filled.notify_one();
    }

    pub(crate) fn stats(&self) -> EventStats {
        let State { ref events, in_flight, delivered, dropped, requests, .. } = *self.state.lock();
        EventStats { queued: events.len() + in_flight, delivered, dropped, requests }
    }

    /// The process ends: waits until everything is delivered, at most until `deadline`. Returns how many events are left.
    pub(crate) async fn finish(&self, deadline: Instant) -> usize {
        self.finishing.cancel();
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            // Before the check, so that no notification is missed.
            emptied.as_mut().enable();
            let queued = self.stats().queued;
            if queued == 0 || time::timeout_at(deadline, emptied).await.is_err() {
                return self.stats().queued;
            }
        }
    }

    /// Drops everything, now and from now on. Returns how many events are lost.
    pub(crate) fn close(&self) -> usize {
        let mut state = self.state.lock();
        let lost = state.events.len() + state.in_flight;
        (state.events, state.in_flight, state.is_closed) = (Waiting::default(), 0, true);
        state.dropped += lost as u64;
        lost
    }

    /// Waits for events, and takes the oldest, at most `most`.
    pub(super) async fn next(&self, most: usize) -> Batch {
        loop {
            if let Some(batch) = self.take(most, Instant::now()) {
                return batch;
            }
            self.filled.notified().await;
        }
    }

    fn take(&self, most: usize, now: Instant) -> Option<Batch> {
        let mut state = self.state.lock();
        let max_age = state.settings.max_age;
        let expired = state.events.expire(now, max_age);
        state.dropped += expired as u64;
        let events = state.events.take(most);
        if events.is_empty() {
            drop(state);
            self.emptied.notify_waiters();
            return None;
        }
        state.in_flight = events.len();
        Some(Batch { events, settings: Arc::clone(&state.settings), dropped: state.dropped })
    }

    /// The receiver has accepted a batch.
    pub(super) fn accepted(&self, batch: Batch) {
        let mut state = self.state.lock();
        state.in_flight = 0;
        state.delivered += batch.events.len() as u64;
        state.requests.0 += 1;
    }

    /// The receiver says that a batch is wrong.
    pub(super) fn rejected(&self, batch: Batch) {
        let mut state = self.state.lock();
        state.in_flight = 0;
        state.dropped += batch.events.len() as u64;
        state.requests.1 += 1;
    }

    /// A batch was not delivered: it is the oldest again.
    pub(super) fn put_back(&self, batch: Batch) {
        let mut state = self.state.lock();
        state.requests.1 += 1;
        state.in_flight = 0;
        if state.is_closed {
            return;
        }
        state.events.put_back(batch.events);
        state.trim();
    }

    /// Waits after a failure, but not if something has changed.
    pub(super) async fn pause(&self, pause: Duration) {
        if self.finishing.is_cancelled() {
            return time::sleep(pause.min(LAST_PAUSE)).await;
        }
        tokio::select! {
            () = time::sleep(pause) => {}
            () = self.finishing.cancelled() => {}
            () = self.configured.notified() => {}
        }
    }
}

impl State {
    /// Drops what is beyond the limit.
    fn trim(&mut self) {
        self.dropped += self.events.trim(self.settings.queue) as u64;
    }
}
