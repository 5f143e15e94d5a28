//! The limits and the state of one source or network: its token bucket, and its connections.
//!
//! Knows nothing of addresses and tables. Invariant: a refused attempt changes nothing.

use std::{num::NonZeroU32, time::Duration};

use crate::admission::{gcra::Gcra, limits::LimitExceeded, table::Row};

/// The limits of a level: its token bucket, and its connection limit.
#[derive(Debug)]
pub(super) struct TokenBucket {
    gcra: Gcra,
    sessions: u32,
}

impl TokenBucket {
    pub(super) fn new(rate: NonZeroU32, burst: NonZeroU32, sessions: NonZeroU32) -> Self {
        Self { gcra: Gcra::new(rate, burst), sessions: sessions.get() }
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
        let rate_exceeded = |early| LimitExceeded::Rate { retry_after: Duration::from_nanos(early) };
        let tat = bucket.gcra.take(self.tat, now).map_err(rate_exceeded)?;
        self.held += 1;
        Ok(std::mem::replace(&mut self.tat, tat))
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
