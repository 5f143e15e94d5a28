//! A table of recent sources or networks with a bounded number of rows.
//!
//! Owns the bound and the choice of the row to evict. Knows nothing of addresses (a row has a number), nor of what its rows
//! mean. Invariants: the table never exceeds its bound; a row that is in use is never evicted.

use std::hash::BuildHasher;

use indexmap::IndexMap;

/// What is known of one source or network. The default is that of an unknown one.
pub(super) trait Row: Default {
    /// Whether the row must not be evicted.
    fn is_in_use(&self) -> bool;
    /// When the row becomes equivalent to an absent one, on the clock of its owner.
    fn expiry(&self) -> u64;
}

/// The hasher is randomly keyed, so that no client can choose colliding addresses.
#[derive(Debug)]
pub(super) struct BoundedTable<R> {
    rows: IndexMap<u64, R>,
    bound: usize,
    draws: u64,
}

impl<R: Row> BoundedTable<R> {
    /// The number of rows sampled to find one to evict.
    const SAMPLE: usize = 8;

    /// A bound of 0 counts as 1.
    pub(super) fn new(bound: usize) -> Self {
        Self { rows: IndexMap::new(), bound: bound.max(1), draws: 0 }
    }

    /// A table that exceeds its new bound evicts rows as new ones come.
    pub(super) fn set_bound(&mut self, bound: usize) {
        self.bound = bound.max(1);
    }

    /// The row with this key, which may have expired.
    pub(super) fn get(&self, key: u64) -> Option<&R> {
        self.rows.get(&key)
    }

    /// The same, to change it.
    pub(super) fn get_mut(&mut self, key: u64) -> Option<&mut R> {
        self.rows.get_mut(&key)
    }

    /// The row with this key, a new one if there is none. `None` if every row of a full table is in use.
    pub(super) fn get_or_insert(&mut self, key: u64, now: u64) -> Option<&mut R> {
        if let Some(index) = self.rows.get_index_of(&key) {
            return Some(&mut self.rows[index]);
        }
        // At most two at a time if the bound was lowered, so that no single connection pays for the whole excess.
        for _ in 0..self.rows.len().saturating_sub(self.bound - 1).min(2) {
            let candidate = self.eviction_candidate(now)?;
            self.rows.swap_remove_index(candidate);
        }
        Some(self.rows.entry(key).or_default())
    }

    /// Removes all rows and releases their memory.
    pub(super) fn clear(&mut self) {
        self.rows = IndexMap::new();
    }

    /// The row to evict: of a random sample, the one not in use that expires first, because it holds the least
    /// information. A source that is being refused expires in the future, so it is evicted last.
    fn eviction_candidate(&mut self, now: u64) -> Option<usize> {
        let mut first: Option<(u64, usize)> = None;
        for _ in 0..Self::SAMPLE {
            let index = self.random_index();
            let row = &self.rows[index];
            if !row.is_in_use() && first.is_none_or(|(expiry, _)| row.expiry() < expiry) {
                first = Some((row.expiry(), index));
                if row.expiry() <= now {
                    break;
                }
            }
        }
        if let Some((_, index)) = first {
            return Some(index);
        }
        let start = self.random_index();
        (start..self.rows.len()).chain(0..start).find(|&index| !self.rows[index].is_in_use())
    }

    /// An index that no client can predict: a counter under the table's own keyed hash. The table must not be empty.
    fn random_index(&mut self) -> usize {
        self.draws = self.draws.wrapping_add(1);
        (self.rows.hasher().hash_one(self.draws) % self.rows.len() as u64) as usize
    }
}

#[cfg(test)]
impl<R: Row> BoundedTable<R> {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.rows.capacity()
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &R> {
        self.rows.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct AlwaysEqual;

    impl Row for AlwaysEqual {
        fn is_in_use(&self) -> bool {
            false
        }

        fn expiry(&self) -> u64 {
            u64::MAX
        }
    }

    /// A client that knew which row is evicted next could keep its own.
    #[test]
    fn rows_that_are_equal_are_evicted_at_random() {
        let mut table = BoundedTable::<AlwaysEqual>::new(100);
        for key in 0..400 {
            assert!(table.get_or_insert(key, 0).is_some());
        }
        assert_eq!(table.len(), 100);
        // Each insertion evicts 1 of 100: of the first 100 rows, 5 remain on average.
        let remaining = (0..100).filter(|key| table.get(*key).is_some()).count();
        assert!(remaining < 50, "{remaining} of the first 100 rows remain");
    }
}
