//! How many may be inside at once.
//!
//! Owns one counter and its limit; knows nothing about who is counted. Invariant: the number of living
//! [`Permit`]s of a [`ConcurrencyLimit`] is exactly [`ConcurrencyLimit::in_use`], and it never exceeds the limit, not even for
//! a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A limit on how many of something exist at once.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    limit: AtomicUsize,
    in_use: AtomicUsize,
}

impl ConcurrencyLimit {
    /// Room for `limit` slots. A limit of 0 admits nobody.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), in_use: AtomicUsize::new(0) })
    }

    /// A slot, or `None` when all of them are taken.
    #[must_use = "the slot is given back when it is dropped"]
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        // Add only below the limit: add-then-check would overshoot for a moment and refuse others meanwhile.
        let limit = self.limit();
        let room = |in_use| (in_use < limit).then_some(in_use + 1);
        self.in_use.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        Some(Permit { of: Arc::clone(self) })
    }

    /// How many slots are held now.
    pub fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Acquire)
    }

    /// How many slots there are.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Acquire)
    }

    /// Changes how many there are. Slots that are taken stay taken: below them, nobody is admitted until enough of
    /// them have come back.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Release);
    }
}

/// One held place of a [`ConcurrencyLimit`]; dropping it gives the place back.
#[derive(Debug)]
pub struct Permit {
    of: Arc<ConcurrencyLimit>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.of.in_use.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn slots_come_back_when_they_are_dropped() {
        let capacity = ConcurrencyLimit::new(2);
        let first = capacity.try_acquire().unwrap();
        let _second = capacity.try_acquire().unwrap();
        assert!(capacity.try_acquire().is_none());
        assert_eq!((capacity.in_use(), capacity.limit()), (2, 2));
        drop(first);
        assert_eq!(capacity.in_use(), 1);
        assert!(capacity.try_acquire().is_some());
    }

    #[test]
    fn a_limit_that_shrinks_takes_no_slot_away() {
        let capacity = ConcurrencyLimit::new(2);
        let (first, second) = (capacity.try_acquire().unwrap(), capacity.try_acquire().unwrap());
        capacity.set_limit(1);
        assert_eq!((capacity.in_use(), capacity.limit()), (2, 1));
        drop(first);
        assert!(capacity.try_acquire().is_none());
        drop(second);
        assert!(capacity.try_acquire().is_some());
        capacity.set_limit(3);
        let _held = [
            capacity.try_acquire().unwrap(),
            capacity.try_acquire().unwrap(),
            capacity.try_acquire().unwrap(),
        ];
        assert!(capacity.try_acquire().is_none());
    }

    #[test]
    fn a_limit_of_zero_admits_nobody() {
        assert!(ConcurrencyLimit::new(0).try_acquire().is_none());
    }

    #[test]
    fn the_limit_holds_under_threads() {
        const LIMIT: usize = 3;
        const THREADS: usize = 8;
        let capacity = ConcurrencyLimit::new(LIMIT);
        // Counted apart from the subject, by those who are inside.
        let (inside, most, bytes_written) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let start = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..20_000 {
                        let Some(slot) = capacity.try_acquire() else { continue };
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        bytes_written.fetch_add(1, Ordering::SeqCst);
                        assert!(capacity.in_use() <= LIMIT, "{} in use", capacity.in_use());
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(slot);
                    }
                });
            }
        });
        let (most, bytes_written) = (most.into_inner(), bytes_written.into_inner());
        assert!(most <= LIMIT, "{most} were inside at once");
        assert!(bytes_written >= 20_000, "only {bytes_written} slots were ever taken");
        assert_eq!(capacity.in_use(), 0);
    }

    #[test]
    fn everyone_finds_a_slot_while_there_are_enough() {
        let capacity = ConcurrencyLimit::new(64);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let held: Vec<Permit> = (0..8).filter_map(|_| capacity.try_acquire()).collect();
                        assert_eq!(held.len(), 8, "a slot was refused below the limit");
                    }
                });
            }
        });
        assert_eq!(capacity.in_use(), 0);
    }
}
