//! The token bucket of one source or network, and a bounded table of them.
//!
//! Owns GCRA and the choice of the row to evict. Knows nothing of addresses: a row has a number. Invariants: a table never
//! exceeds its bound; a row that holds a permit is never evicted.

use std::{hash::BuildHasher, num::NonZeroU32, time::Duration};

use indexmap::IndexMap;

use crate::admission::limits::LimitExceeded;

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
    /// Returns the previous arrival time.
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
}

/// The rows of one level. The hasher is randomly keyed, so that no client can choose colliding addresses.
#[derive(Debug)]
pub(super) struct SourceTable {
    pub(super) sources: IndexMap<u64, SourceState>,
    bound: usize,
    draws: u64,
}

impl SourceTable {
    /// The number of rows sampled to find one to evict.
    const SAMPLE: usize = 8;

    pub(super) fn new(bound: usize) -> Self {
        Self { sources: IndexMap::new(), bound: bound.max(1), draws: 0 }
    }

    /// A table that exceeds its new bound evicts sources without permits as new sources connect.
    pub(super) fn set_bound(&mut self, bound: usize) {
        self.bound = bound.max(1);
    }

    /// Returns the previous arrival time, for [`SourceTable::undo`].
    pub(super) fn admit(
        &mut self,
        source: u64,
        now: u64,
        bucket: &TokenBucket,
    ) -> Result<u64, LimitExceeded> {
        if let Some(state) = self.sources.get_mut(&source) {
            return state.admit(now, bucket);
        }
        // At most two at a time if the bound was lowered, so that no single connection pays for the whole excess.
        for _ in 0..self.sources.len().saturating_sub(self.bound - 1).min(2) {
            let eviction_candidate = self.eviction_candidate(now).ok_or(LimitExceeded::Sessions)?;
            self.sources.swap_remove_index(eviction_candidate);
        }
        let mut state = SourceState::default();
        let previous = state.admit(now, bucket)?;
        self.sources.insert(source, state);
        Ok(previous)
    }

    pub(super) fn release(&mut self, source: u64) {
        // Always present: a source that holds a permit is never evicted.
        if let Some(state) = self.sources.get_mut(&source) {
            state.held = state.held.saturating_sub(1);
        }
    }

    /// Takes back the admission that returned `previous`, right after it.
    pub(super) fn undo(&mut self, source: u64, previous: u64) {
        if let Some(state) = self.sources.get_mut(&source) {
            state.held = state.held.saturating_sub(1);
            state.tat = previous;
        }
    }

    /// The row to evict: of a random sample, the one without permits that has the oldest arrival time, because it holds
    /// the least information. The arrival time of a source that is being refused lies in the future, so it is evicted
    /// last.
    fn eviction_candidate(&mut self, now: u64) -> Option<usize> {
        let mut oldest: Option<(u64, usize)> = None;
        for _ in 0..Self::SAMPLE {
            let index = self.random_index();
            let state = &self.sources[index];
            if state.held == 0 && oldest.is_none_or(|(tat, _)| state.tat < tat) {
                oldest = Some((state.tat, index));
                if state.tat <= now {
                    break;
                }
            }
        }
        if let Some((_, index)) = oldest {
            return Some(index);
        }
        let start = self.random_index();
        (start..self.sources.len()).chain(0..start).find(|&index| self.sources[index].held == 0)
    }

    /// An index that no client can predict: a counter under the table's own keyed hash. The table must not be empty.
    fn random_index(&mut self) -> usize {
        self.draws = self.draws.wrapping_add(1);
        (self.sources.hasher().hash_one(self.draws) % self.sources.len() as u64) as usize
    }
}
