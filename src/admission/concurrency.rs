//! A concurrency limit: a semaphore whose limit can change while permits are held.
//!
//! Owns one counter and its limit; knows nothing of what is counted. Invariant: [`ConcurrencyLimit::in_use`] is exactly
//! the number of [`Permit`]s that exist, and acquiring one never makes it exceed the limit, not even for a moment.

use std::sync::Arc;

use crate::sync::atomic::{AtomicUsize, Ordering};

/// A limit on how many of something exist at once.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    limit: AtomicUsize,
    in_use: AtomicUsize,
}

impl ConcurrencyLimit {
    /// A limit of 0 grants no permit.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), in_use: AtomicUsize::new(0) })
    }

    /// A permit, or `None` if all are in use. Never waits.
    #[must_use = "dropping the permit releases it"]
    pub(crate) fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        // Increment only below the limit: to increment first and then check would exceed the limit for a moment and
        // refuse others meanwhile.
        let limit = self.limit();
        let next = |in_use| (in_use < limit).then_some(in_use + 1);
        self.in_use.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok()?;
        Some(Permit { limit: Arc::clone(self) })
    }

    /// The number of permits in use.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Acquire)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Acquire)
    }

    /// Changes the limit. Permits in use stay valid: if there are more than the new limit, none is granted until enough
    /// of them are released.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Release);
    }
}

/// One permit of a [`ConcurrencyLimit`]; dropping it releases it.
#[derive(Debug)]
pub(crate) struct Permit {
    limit: Arc<ConcurrencyLimit>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limit.in_use.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn dropping_a_permit_releases_it() {
        let limit = ConcurrencyLimit::new(2);
        let first = limit.try_acquire().unwrap();
        let _second = limit.try_acquire().unwrap();
        assert!(limit.try_acquire().is_none());
        assert_eq!((limit.in_use(), limit.limit()), (2, 2));
        drop(first);
        assert_eq!(limit.in_use(), 1);
        assert!(limit.try_acquire().is_some());
    }

    #[test]
    fn lowering_the_limit_keeps_permits_valid() {
        let limit = ConcurrencyLimit::new(2);
        let (first, second) = (limit.try_acquire().unwrap(), limit.try_acquire().unwrap());
        limit.set_limit(1);
        assert_eq!((limit.in_use(), limit.limit()), (2, 1));
        drop(first);
        assert!(limit.try_acquire().is_none());
        drop(second);
        assert!(limit.try_acquire().is_some());
        limit.set_limit(3);
        let _held =
            [limit.try_acquire().unwrap(), limit.try_acquire().unwrap(), limit.try_acquire().unwrap()];
        assert!(limit.try_acquire().is_none());
    }

    #[test]
    fn limit_of_zero_grants_no_permit() {
        assert!(ConcurrencyLimit::new(0).try_acquire().is_none());
    }

    #[test]
    fn limit_holds_under_concurrent_threads() {
        const LIMIT: usize = 3;
        const THREADS: usize = 8;
        let limit = ConcurrencyLimit::new(LIMIT);
        // Counted by the holders, independently of the limit under test.
        let (held, most, acquired) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let start = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..20_000 {
                        let Some(permit) = limit.try_acquire() else { continue };
                        most.fetch_max(held.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        acquired.fetch_add(1, Ordering::SeqCst);
                        assert!(limit.in_use() <= LIMIT, "{} in use", limit.in_use());
                        held.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                });
            }
        });
        let (most, acquired) = (most.into_inner(), acquired.into_inner());
        assert!(most <= LIMIT, "{most} permits were held at once");
        assert!(acquired >= 20_000, "only {acquired} permits were ever acquired");
        assert_eq!(limit.in_use(), 0);
    }

    #[test]
    fn no_permit_is_refused_below_the_limit() {
        let limit = ConcurrencyLimit::new(64);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let held: Vec<Permit> = (0..8).filter_map(|_| limit.try_acquire()).collect();
                        assert_eq!(held.len(), 8, "a permit was refused below the limit");
                    }
                });
            }
        });
        assert_eq!(limit.in_use(), 0);
    }
}
