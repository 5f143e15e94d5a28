//! The clocks of a session: pure, time is an argument.

use std::time::Duration;

use tokio::time::Instant;

use super::RelaySettings;
use crate::outcome::Reason;

/// What a look at the session shows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Activity {
    /// The client said something since the last look.
    pub(super) heard: bool,
    /// A frame header has begun and not ended.
    pub(super) in_header: bool,
    /// Payload so far, both ways.
    pub(super) payload: u64,
    /// The client does not take what waits for it, and how much its socket has taken so far.
    pub(super) client_blocked: bool,
    /// See `client_blocked`.
    pub(super) client_written: u64,
    /// The backend does not take what waits for it, so the client is not read.
    pub(super) backend_blocked: bool,
    /// See `backend_blocked`.
    pub(super) backend_written: u64,
}

/// What the clocks say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClockEvent {
    /// Nothing to do before this time, if ever.
    Wait(Option<Instant>),
    /// The client has been silent: ask whether it is there.
    Ping,
    /// The session must end.
    End(Reason),
}

/// When things last happened.
#[derive(Debug)]
pub(super) struct Clocks {
    started: Instant,
    last_heard: Instant,
    /// When the client was last asked, until its Pong has come.
    ping_sent: Option<Instant>,
    /// Whether it has said nothing since.
    silent: bool,
    payload: (u64, Instant),
    header: Option<Instant>,
    client: StallClock,
    backend: StallClock,
}

impl Clocks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            last_heard: now,
            ping_sent: None,
            silent: false,
            payload: (0, now),
            header: None,
            client: StallClock::default(),
            backend: StallClock::default(),
        }
    }

    /// Looks at the session. Ask again after [`ClockEvent::Ping`].
    pub(super) fn check(&mut self, now: Instant, activity: Activity, settings: &RelaySettings) -> ClockEvent {
        self.record(now, activity);
        // In the order of blame: a peer that takes nothing is stalled, even if it does not answer either.
        let deadlines = [
            (after(self.client.since, settings.stall), Reason::ClientStalled),
            (after(self.backend.since, settings.stall), Reason::BackendStalled),
            (after(self.header, settings.stall), Reason::ClientStalled),
            (after(self.ping_sent.filter(|_| self.silent), settings.pong), Reason::PongTimeout),
            (after(Some(self.payload.1), settings.idle), Reason::IdleTimeout),
            (after(Some(self.started), settings.lifetime), Reason::LifetimeReached),
        ];
        if let Some((_, reason)) = deadlines.iter().find(|(at, _)| at.is_some_and(|at| at <= now)) {
            return ClockEvent::End(*reason);
        }
        // A Ping would stand behind what the client does not take; the stall clock runs then.
        let may_ping = !self.silent && !activity.client_blocked && !activity.backend_blocked;
        let ping = if may_ping { after(Some(self.last_heard), settings.ping) } else { None };
        if ping.is_some_and(|at| at <= now) {
            self.ping_sent = Some(now);
            self.silent = true;
            return ClockEvent::Ping;
        }
        ClockEvent::Wait(deadlines.iter().map(|(at, _)| *at).chain([ping]).flatten().min())
    }

    /// How long the client took to answer: a Pong has come. None if it was not asked; a Pong may come unasked.
    pub(super) fn round_trip(&mut self, now: Instant) -> Option<Duration> {
        self.ping_sent.take().map(|ping_sent| now.saturating_duration_since(ping_sent))
    }

    fn record(&mut self, now: Instant, activity: Activity) {
        let client_takes = self.client.update(now, activity.client_blocked, activity.client_written);
        self.backend.update(now, activity.backend_blocked, activity.backend_written);
        // While the backend keeps us from reading, silence is our own. And a client that takes what was stuck is
        // alive: its Pong stands behind all of that.
        if activity.heard || activity.backend_blocked || client_takes {
            self.last_heard = now;
            self.silent = false;
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

/// How long a peer has taken nothing of what waits for it.
#[derive(Debug, Default)]
pub(super) struct StallClock {
    since: Option<Instant>,
    bytes_written: u64,
}

impl StallClock {
    /// Looks at a peer that does or does not keep us waiting. Returns whether it took something of what was stuck.
    pub(super) fn update(&mut self, now: Instant, blocked: bool, bytes_written: u64) -> bool {
        let took = self.since.is_some() && bytes_written != self.bytes_written;
        if !blocked {
            self.since = None;
        } else if self.since.is_none() || took {
            self.since = Some(now);
        }
        self.bytes_written = bytes_written;
        took
    }

    /// When the peer has been waited for long enough.
    pub(super) fn deadline(&self, limit: Duration) -> Option<Instant> {
        after(self.since, Some(limit))
    }
}

/// `limit` after `since`, if both are set.
fn after(since: Option<Instant>, limit: Option<Duration>) -> Option<Instant> {
    since?.checked_add(limit?)
}
