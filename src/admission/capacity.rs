//! How many may be inside at once.
//!
//! Owns one counter and its limit; knows nothing about who is counted. Invariant: the number of living [`Slot`]s of a
//! [`Capacity`] is exactly [`Capacity::in_use`], and it never exceeds the limit, not even for a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A limit on how many of something exist at once.
#[derive(Debug)]
pub struct Capacity {
    limit: usize,
    in_use: AtomicUsize,
}

impl Capacity {
    /// Room for `limit` slots. A limit of 0 admits nobody.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, in_use: AtomicUsize::new(0) })
    }

    /// A slot, or `None` when all of them are taken.
    #[must_use = "the slot is given back when it is dropped"]
    pub fn take(self: &Arc<Self>) -> Option<Slot> {
        // Add only below the limit: add-then-check would overshoot for a moment and refuse others meanwhile.
        let room = |in_use| (in_use < self.limit).then_some(in_use + 1);
        self.in_use.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        Some(Slot { of: Arc::clone(self) })
    }

    /// How many slots are held now.
    pub fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Acquire)
    }

    /// How many slots there are.
    pub fn limit(&self) -> usize {
        self.limit
    }
}

/// One held place of a [`Capacity`]; dropping it gives the place back.
#[derive(Debug)]
pub struct Slot {
    of: Arc<Capacity>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.of.in_use.fetch_sub(1, Ordering::AcqRel);
    }
}
