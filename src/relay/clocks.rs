//! The clocks of a session: pure, time is an argument.

use std::time::Duration;

use tokio::time::Instant;

use super::Rules;
use crate::outcome::Reason;

/// What a look at the session shows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Observed {
    /// The client said something since the last look.
    pub(super) heard: bool,
    /// A frame header has begun and not ended.
    pub(super) in_header: bool,
    /// Payload so far, both ways.
    pub(super) payload: u64,
    /// The client does not take what waits for it, and how much its socket has taken so far.
    pub(super) client_blocked: bool,
    /// See `client_blocked`.
    pub(super) client_taken: u64,
    /// The backend does not take what waits for it, so the client is not read.
    pub(super) backend_blocked: bool,
    /// See `backend_blocked`.
    pub(super) backend_taken: u64,
}

/// What the clocks say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
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
    heard: Instant,
    /// When the client was last asked, until its Pong has come.
    asked: Option<Instant>,
    /// Whether it has said nothing since.
    silent: bool,
    payload: (u64, Instant),
    header: Option<Instant>,
    client: Stall,
    backend: Stall,
}

impl Clocks {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            heard: now,
            asked: None,
            silent: false,
            payload: (0, now),
            header: None,
            client: Stall::default(),
            backend: Stall::default(),
        }
    }

    /// Looks at the session. Ask again after [`Verdict::Ping`].
    pub(super) fn look(&mut self, now: Instant, seen: Observed, rules: &Rules) -> Verdict {
        self.note(now, seen);
        // In the order of blame: a peer that takes nothing is stalled, even if it does not answer either.
        let deadlines = [
            (after(self.client.since, rules.stall), Reason::ClientStalled),
            (after(self.backend.since, rules.stall), Reason::BackendStalled),
            (after(self.header, rules.stall), Reason::ClientStalled),
            (after(self.asked.filter(|_| self.silent), rules.pong), Reason::PongTimeout),
            (after(Some(self.payload.1), rules.idle), Reason::IdleTimeout),
            (after(Some(self.started), rules.lifetime), Reason::LifetimeReached),
        ];
        if let Some((_, reason)) = deadlines.iter().find(|(at, _)| at.is_some_and(|at| at <= now)) {
            return Verdict::End(*reason);
        }
        // A Ping would stand behind what the client does not take; the stall clock runs then.
        let may_ping = !self.silent && !seen.client_blocked && !seen.backend_blocked;
        let ping = if may_ping { after(Some(self.heard), rules.ping) } else { None };
        if ping.is_some_and(|at| at <= now) {
            self.asked = Some(now);
            self.silent = true;
            return Verdict::Ping;
        }
        Verdict::Wait(deadlines.iter().map(|(at, _)| *at).chain([ping]).flatten().min())
    }

    /// How long the client took to answer: a Pong has come. None if it was not asked; a Pong may come unasked.
    pub(super) fn round_trip(&mut self, now: Instant) -> Option<Duration> {
        self.asked.take().map(|asked| now.saturating_duration_since(asked))
    }

    fn note(&mut self, now: Instant, seen: Observed) {
        let client_takes = self.client.watch(now, seen.client_blocked, seen.client_taken);
        self.backend.watch(now, seen.backend_blocked, seen.backend_taken);
        // While the backend keeps us from reading, silence is our own. And a client that takes what was stuck is
        // alive: its Pong stands behind all of that.
        if seen.heard || seen.backend_blocked || client_takes {
            self.heard = now;
            self.silent = false;
        }
        if seen.payload != self.payload.0 {
            self.payload = (seen.payload, now);
        }
        self.header = match self.header {
            _ if !seen.in_header || seen.backend_blocked => None,
            None => Some(now),
            since => since,
        };
    }
}

/// How long a peer has taken nothing of what waits for it.
#[derive(Debug, Default)]
pub(super) struct Stall {
    since: Option<Instant>,
    taken: u64,
}

impl Stall {
    /// Looks at a peer that does or does not keep us waiting. Returns whether it took something of what was stuck.
    pub(super) fn watch(&mut self, now: Instant, blocked: bool, taken: u64) -> bool {
        let took = self.since.is_some() && taken != self.taken;
        if !blocked {
            self.since = None;
        } else if self.since.is_none() || took {
            self.since = Some(now);
        }
        self.taken = taken;
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
