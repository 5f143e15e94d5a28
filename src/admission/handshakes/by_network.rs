//! Connections by network and age.
//!
//! Owns the order in which they give way. Knows no limit. Invariant: the counts are those of the entries.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::admission::source::Source;

/// How many networks are considered when a permit is to be taken away, those with most handshakes first.
const CANDIDATES: usize = 32;

/// Orders the handshakes of a network by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) network: Source,
    pub(super) number: u64,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) source: Source,
    pub(super) limited: bool,
    pub(super) since: Instant,
    pub(super) deadline: Duration,
    pub(super) taken_away: CancellationToken,
}

/// For how long a connection keeps its permit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    /// Since it was accepted.
    pub(super) time: Duration,
    /// How long this is so, if nothing happens; then it may be less.
    pub(super) holds: Duration,
}

/// Connections by network. Every operation takes logarithmic time.
#[derive(Debug, Default)]
pub(super) struct ByNetwork {
    pub(super) entries: BTreeMap<Key, Entry>,
    pub(super) counts: HashMap<Source, usize>,
    pub(super) by_count: BTreeSet<(usize, Source)>,
    by_age: BTreeMap<u64, Source>,
}

impl ByNetwork {
    pub(super) fn count(&self, network: Source) -> usize {
        self.counts.get(&network).copied().unwrap_or(0)
    }

    /// The networks and their counts, the largest first.
    pub(super) fn largest(&self) -> impl Iterator<Item = (usize, Source)> {
        self.by_count.iter().rev().copied()
    }

    /// The oldest connection of a network.
    pub(super) fn oldest(&self, network: Source) -> Option<(Key, &Entry)> {
        let (key, entry) = self.entries.range(Key { network, number: 0 }..).next()?;
        (key.network == network).then_some((*key, entry))
    }

    /// The oldest connection of the network that has most of those whose oldest is older than `allowed` says, given the
    /// network and the deadline; else the oldest of all, if it is; or when to ask again.
    pub(super) fn to_take_away(
        &self,
        now: Instant,
        allowed: impl Fn(Source, Duration) -> Allowance,
    ) -> Result<Key, Duration> {
        let mut soonest = Duration::MAX;
        let of_oldest = self.by_age.values().next().copied();
        let largest = self.largest().map(|(_, network)| network).take(CANDIDATES);
        for network in largest.chain(of_oldest) {
            let Some((key, Entry { since, deadline, .. })) = self.oldest(network) else { continue };
            let age = now.saturating_duration_since(*since);
            let Allowance { time, holds } = allowed(network, *deadline);
            let left = time.saturating_sub(age);
            if left.is_zero() {
                return Ok(key);
            }
            soonest = soonest.min(left).min(holds);
        }
        Err(soonest)
    }

    pub(super) fn insert(&mut self, key: Key, entry: Entry) {
        if self.entries.insert(key, entry).is_none() {
            self.by_age.insert(key.number, key.network);
            self.set_count(key.network, self.count(key.network) + 1);
        }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        self.by_age.remove(&key.number);
        self.set_count(key.network, self.count(key.network) - 1);
        Some(entry)
    }

    fn set_count(&mut self, network: Source, count: usize) {
        self.by_count.remove(&(self.count(network), network));
        if count == 0 {
            self.counts.remove(&network);
        } else {
            self.counts.insert(network, count);
            self.by_count.insert((count, network));
        }
    }
}
