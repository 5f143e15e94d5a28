//! The timeouts of a session: ping/pong (dead peer detection), idle timeout, stall timeout and maximum lifetime.
//!
//! Pure: time is an argument, there are no timers here. Owns when things last happened in a session, and decides from
//! that what is due. Knows nothing of streams and frames.

use std::time::Duration;

use tokio::time::Instant;

use super::RelaySettings;
use crate::outcome::Reason;

/// The longest time between two attempts to write to a peer that accepts nothing.
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// How many attempts to write there are at least before a peer counts as stalled.
const RETRIES: u32 = 4;

/// The state of a session at one moment, as far as the timeouts need it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Activity {
    /// Bytes arrived from the client since the last check.
    pub(super) received: bool,
    /// A frame header has been received in part.
    pub(super) in_header: bool,
    /// Payload bytes so far, both directions together.
    pub(super) payload: u64,
    /// Data is pending for the client.
    pub(super) client_blocked: bool,
    /// Bytes that the client's socket has accepted so far.
    pub(super) client_written: u64,
    /// Data is pending for the backend, so the client is not read (backpressure).
    pub(super) backend_blocked: bool,
    /// Bytes that the backend's socket has accepted so far.
    pub(super) backend_written: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClockEvent {
    /// Nothing before this time; nothing at all if it is `None`.
    Wait(Option<Instant>),
    /// The client has been silent: send it a Ping.
    Ping,
    /// The session must end.
    End(Reason),
}

#[derive(Debug)]
pub(super) struct Clocks {
    started: Instant,
    last_received: Instant,
    /// When the last Ping was sent; `None` once its Pong has arrived.
    ping_sent: Option<Instant>,
    /// Whether nothing has arrived from the client since that Ping.
    awaits_reply: bool,
    /// The payload bytes so far, and when they last changed.
    payload: (u64, Instant),
    /// Since when a frame header is incomplete.
    header: Option<Instant>,
    client: StallClock,
    backend: StallClock,
}

impl Clocks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            last_received: now,
            ping_sent: None,
            awaits_reply: false,
            payload: (0, now),
            header: None,
            client: StallClock::default(),
            backend: StallClock::default(),
        }
    }

    /// Returns what is due now. Must be called again after [`ClockEvent::Ping`].
    pub(super) fn check(&mut self, now: Instant, activity: Activity, settings: &RelaySettings) -> ClockEvent {
        self.record(now, activity, settings);
        // The most specific reason first: a peer that reads nothing is stalled, even if it sends no Pong either.
        let deadlines = [
            (after(self.client.since, settings.stall), Reason::ClientStalled),
            (after(self.backend.since, settings.stall), Reason::BackendStalled),
            (after(self.header, settings.stall), Reason::ClientStalled),
            (after(self.ping_sent.filter(|_| self.awaits_reply), settings.pong), Reason::PongTimeout),
            (after(Some(self.payload.1), settings.idle), Reason::IdleTimeout),
            (settings.expires, Reason::CredentialExpired),
            (after(Some(self.started), settings.lifetime), Reason::LifetimeReached),
        ];
        if let Some((_, reason)) = deadlines.iter().find(|(at, _)| at.is_some_and(|at| at <= now)) {
            return ClockEvent::End(*reason);
        }
        // A Ping would queue behind data that the client does not read; the stall clock runs in that case.
        let may_ping = !self.awaits_reply && !activity.client_blocked && !activity.backend_blocked;
        let ping = if may_ping { after(Some(self.last_received), settings.ping) } else { None };
        if ping.is_some_and(|at| at <= now) {
            self.ping_sent = Some(now);
            self.awaits_reply = true;
            return ClockEvent::Ping;
        }
        let retries = [self.client.retry_at, self.backend.retry_at];
        ClockEvent::Wait(deadlines.iter().map(|(at, _)| *at).chain([ping]).chain(retries).flatten().min())
    }

    /// Whether a blocked write to the client, and one to the backend, are to be tried again now.
    pub(super) fn take_retries(&mut self, now: Instant, settings: &RelaySettings) -> (bool, bool) {
        (self.client.take_retry(now, settings.stall), self.backend.take_retry(now, settings.stall))
    }

    /// When the session's lifetime is over, or its credential expires.
    pub(super) fn end_of_lifetime(&self, settings: &RelaySettings) -> Option<Instant> {
        [after(Some(self.started), settings.lifetime), settings.expires].into_iter().flatten().min()
    }

    /// Call this when a Pong arrives. Returns the time since the Ping; `None` for an unsolicited Pong.
    pub(super) fn round_trip(&mut self, now: Instant) -> Option<Duration> {
        self.ping_sent.take().map(|ping_sent| now.saturating_duration_since(ping_sent))
    }

    fn record(&mut self, now: Instant, activity: Activity, settings: &RelaySettings) {
        let Activity { client_blocked, client_written, backend_blocked, backend_written, .. } = activity;
        let client_progressed = self.client.update(now, settings.stall, client_blocked, client_written);
        self.backend.update(now, settings.stall, backend_blocked, backend_written);
        // While backpressure from the backend keeps us from reading the client, its silence means nothing. And a
        // client that reads what was pending is alive, although its Pong may come only after all of that.
        if activity.received || activity.backend_blocked || client_progressed {
            self.last_received = now;
            self.awaits_reply = false;
        }
        if activity.payload != self.payload.0 {
            self.payload = (activity.payload, now);
        }
        self.header = match self.header {
            _ if !activity.in_header || activity.backend_blocked => None,
            None => Some(now),
            since => since,
        };
    }
}

/// Measures how long a peer has read nothing while data is pending for it, and when to try to write again: a socket is
/// reported as writable long after it would accept a few bytes (see [`RelayStream::force_write`]).
///
/// [`RelayStream::force_write`]: super::RelayStream::force_write
#[derive(Debug, Default)]
pub(super) struct StallClock {
    since: Option<Instant>,
    /// When to try again; `None` if nothing is pending.
    retry_at: Option<Instant>,
    bytes_written: u64,
}

impl StallClock {
    /// Records whether data is pending for the peer (`blocked`). Returns whether a stalled peer has read something
    /// since the last call.
    pub(super) fn update(
        &mut self,
        now: Instant,
        limit: Option<Duration>,
        blocked: bool,
        bytes_written: u64,
    ) -> bool {
        let progressed = self.since.is_some() && bytes_written != self.bytes_written;
        if !blocked {
            self.since = None;
            self.retry_at = None;
        } else if self.since.is_none() || progressed {
            self.since = Some(now);
            self.retry_at = retry_after(now, limit);
        }
        self.bytes_written = bytes_written;
        progressed
    }

    /// Whether a blocked write is to be tried again now.
    pub(super) fn take_retry(&mut self, now: Instant, limit: Option<Duration>) -> bool {
        let is_due = self.retry_at.is_some_and(|at| at <= now);
        if is_due {
            self.retry_at = retry_after(now, limit);
        }
        is_due
    }

    /// When the peer will have been stalled for `limit`; `None` if nothing is pending for it.
    pub(super) fn deadline(&self, limit: Duration) -> Option<Instant> {
        after(self.since, Some(limit))
    }

    /// When a blocked write is to be tried again; `None` if nothing is pending.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }
}

fn retry_after(now: Instant, limit: Option<Duration>) -> Option<Instant> {
    after(Some(now), Some(limit.map_or(LONGEST_RETRY, |limit| LONGEST_RETRY.min(limit / RETRIES))))
}

/// `limit` after `since`, if both are set.
fn after(since: Option<Instant>, limit: Option<Duration>) -> Option<Instant> {
    since?.checked_add(limit?)
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{secs, settings as defaults},
        *,
    };

    fn settings() -> RelaySettings {
        RelaySettings { stall: Some(secs(8)), ..defaults() }
    }

    #[test]
    fn a_blocked_write_is_tried_again_until_the_peer_is_stalled() {
        // A quarter of the limit, at most 5 s.
        for (limit, pause) in [(Some(secs(8)), secs(2)), (Some(secs(60)), secs(5)), (None, secs(5))] {
            let start = Instant::now();
            let mut clock = StallClock::default();
            assert!(!clock.update(start, limit, true, 0));
            assert_eq!(clock.retry_at(), Some(start + pause));
            assert!(!clock.take_retry(start + pause - Duration::from_nanos(1), limit));
            assert!(clock.take_retry(start + pause, limit));
            assert_eq!(clock.retry_at(), Some(start + 2 * pause));
            assert_eq!(clock.deadline(secs(60)), Some(start + secs(60)));
            // It has read something: it has the whole time again.
            let later = start + secs(7);
            assert!(clock.update(later, limit, true, 1));
            assert_eq!(
                (clock.retry_at(), clock.deadline(secs(60))),
                (Some(later + pause), Some(later + secs(60)))
            );
            assert!(!clock.update(later + secs(1), limit, true, 1));
            assert_eq!(clock.deadline(secs(60)), Some(later + secs(60)));
            assert!(!clock.update(later + secs(1), limit, false, 1));
            assert_eq!((clock.retry_at(), clock.deadline(secs(60))), (None, None));
            // What is written while nothing is pending is no progress of a stalled peer.
            assert!(!clock.update(later + secs(2), limit, true, 9));
        }
    }

    #[test]
    fn the_next_deadline_is_the_earliest() {
        let start = Instant::now();
        let after = |seconds| ClockEvent::Wait(Some(start + secs(seconds)));
        let open = Activity::default();
        let mut clocks = Clocks::new(start);
        assert_eq!(clocks.check(start, open, &settings()), after(30));
        assert_eq!(clocks.check(start + secs(30), open, &settings()), ClockEvent::Ping);
        assert_eq!(clocks.check(start + secs(30), open, &settings()), after(50));
        let off = RelaySettings { stall: None, ping: None, pong: None, ..settings() };
        assert_eq!(Clocks::new(start).check(start, open, &off), ClockEvent::Wait(None));
        let limited = RelaySettings { idle: Some(secs(25)), lifetime: Some(secs(20)), ..settings() };
        assert_eq!(Clocks::new(start).check(start, open, &limited), after(20));
        assert_eq!(Clocks::new(start).end_of_lifetime(&limited), Some(start + secs(20)));
    }

    #[test]
    fn a_blocked_peer_is_waited_for_and_no_ping_is_due() {
        let start = Instant::now();
        let settings = RelaySettings { stall: None, ping: Some(secs(3)), ..settings() };
        let client = Activity { client_blocked: true, ..Activity::default() };
        let backend = Activity { backend_blocked: true, ..Activity::default() };
        for (activity, retries) in [(client, (true, false)), (backend, (false, true))] {
            let mut clocks = Clocks::new(start);
            let event = clocks.check(start, activity, &settings);
            assert_eq!(event, ClockEvent::Wait(Some(start + secs(5))), "{activity:?}");
            assert_eq!(clocks.take_retries(start + secs(4), &settings), (false, false));
            assert_eq!(clocks.take_retries(start + secs(5), &settings), retries);
        }
    }
}
