//! The token bucket of one source or network.
//!
//! Owns GCRA. Knows nothing of addresses and tables.

use std::{num::NonZeroU32, time::Duration};

use crate::admission::{limits::LimitExceeded, table::Row};

/// The limits of a level as the parameters of GCRA, and the connection limit.
#[derive(Debug)]
pub(super) struct TokenBucket {
    /// Nanoseconds between connections at exactly `rate`; rounded up, so that `rate` is never exceeded.
    interval: u64,
    /// How many nanoseconds before its theoretical arrival time a connection may arrive: the burst tolerance.
    tolerance: u64,
    sessions: u32,
}

impl TokenBucket {
    pub(super) fn new(rate: NonZeroU32, burst: NonZeroU32, sessions: NonZeroU32) -> Self {
        let interval = 1_000_000_000_u64.div_ceil(rate.get().into());
        let tolerance = interval.saturating_mul(u64::from(burst.get()) - 1);
        Self { interval, tolerance, sessions: sessions.get() }
    }
}

/// The state of one source or network.
#[derive(Debug, Default)]
pub(super) struct SourceState {
    /// GCRA's theoretical arrival time, in nanoseconds since the limiter's epoch. Once it is past, the bucket is full
    /// again, and the row is equivalent to an absent one.
    pub(super) tat: u64,
    /// Permits in use.
    pub(super) held: u32,
}

impl SourceState {
    /// Returns the previous arrival time, for [`SourceState::undo`].
    pub(super) fn admit(&mut self, now: u64, bucket: &TokenBucket) -> Result<u64, LimitExceeded> {
        if self.held >= bucket.sessions {
            return Err(LimitExceeded::Sessions);
        }
        let due = self.tat.max(now);
        let early = (due - now).saturating_sub(bucket.tolerance);
        if early > 0 {
            return Err(LimitExceeded::Rate { retry_after: Duration::from_nanos(early) });
        }
        self.held += 1;
        Ok(std::mem::replace(&mut self.tat, due.saturating_add(bucket.interval)))
    }

    pub(super) fn release(&mut self) {
        self.held = self.held.saturating_sub(1);
    }

    /// Takes back the admission that returned `previous`, right after it.
    pub(super) fn undo(&mut self, previous: u64) {
        self.release();
        self.tat = previous;
    }
}

impl Row for SourceState {
    fn is_in_use(&self) -> bool {
        self.held > 0
    }

    fn expiry(&self) -> u64 {
        self.tat
    }
}
