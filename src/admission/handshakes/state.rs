//! The handshakes by network and age, and the rules by which they give way.
//!
//! Owns the counts of each source and network. Knows nothing of locks and of those who wait. Invariant: the counts are those
//! of the entries.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    HandshakeLimits, Newcomer,
    by_network::{Allowance, ByNetwork, Entry, Key},
};
use crate::admission::{limits::LimitExceeded, source::Source};

/// The handshakes of a network are disproportionate if they are more than this part of the limit beyond twice those of the
/// newcomer's network.
const DISPROPORTIONATE: usize = 32;
/// The least of that margin, for small limits.
const LEAST_MARGIN: usize = 8;
/// The part of its deadline that a handshake is given if its client is silent or its network is disproportionate. A
/// handshake takes a few round trips, and clients speak first.
pub(super) const SUSPECT: u32 = 10;
/// The part that is given to a silent client if all clients are silent.
pub(super) const ALL_SILENT: u32 = 20;
/// The part that is given to all others: to a client that was heard, and to a silent one while many are heard. Thousands of
/// clients that return at once can keep each other from sending anything for seconds, where they share a processor or a line.
pub(super) const SLOW: u32 = 2;
/// Many clients are heard if, within the time that [`SUSPECT`] is given, they are this part of the limit.
pub(super) const MANY: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    /// The client has sent nothing yet.
    Silent,
    /// In the middle of TLS or of the first request, or served.
    Active,
    /// Between two requests.
    Waiting,
}

pub(super) enum NotAdmitted {
    Full(Duration),
    Exceeded(LimitExceeded),
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) limits: HandshakeLimits,
    last_number: u64,
    /// When the last clients were heard for the first time, as many as [`MANY`] needs.
    heard: VecDeque<Instant>,
    pub(super) silent: ByNetwork,
    pub(super) active: ByNetwork,
    pub(super) waiting: ByNetwork,
    /// The limited handshakes of each source, without those that wait.
    pub(super) sources: HashMap<Source, usize>,
}

impl State {
    pub(super) fn new(limits: HandshakeLimits) -> Self {
        let (silent, active, waiting) = Default::default();
        Self {
            limits,
            last_number: 0,
            heard: VecDeque::new(),
            silent,
            active,
            waiting,
            sources: HashMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.silent.entries.len() + self.active.entries.len() + self.waiting.entries.len()
    }

    /// The handshakes of a network, without those that wait.
    fn count(&self, network: Source) -> usize {
        self.silent.count(network) + self.active.count(network)
    }

    pub(super) fn admit(
        &mut self,
        newcomer: Newcomer,
        now: Instant,
    ) -> Result<(Key, CancellationToken), NotAdmitted> {
        let Newcomer { address, limited, deadline } = newcomer;
        let source = Source::of(address);
        let network = source.network();
        if limited {
            self.check(source).map_err(NotAdmitted::Exceeded)?;
        }
        while self.len() >= self.limits.total.max(1) {
            let key = self.to_take_away(network, now).map_err(NotAdmitted::Full)?;
            if let Some((entry, _)) = self.remove(key) {
                entry.taken_away.cancel();
            }
        }
        self.last_number += 1;
        let key = Key { network, number: self.last_number };
        let taken_away = CancellationToken::new();
        let entry = Entry { source, limited, since: now, deadline, taken_away: taken_away.clone() };
        self.insert(key, entry, Group::Silent);
        Ok((key, taken_away))
    }

    /// Checks the limits of a source and of its network.
    fn check(&self, source: Source) -> Result<(), LimitExceeded> {
        if self.sources.get(&source).is_some_and(|count| *count >= self.limits.per_ip) {
            return Err(LimitExceeded::Handshakes);
        }
        if self.count(source.network()) >= self.limits.per_network {
            return Err(LimitExceeded::NetworkHandshakes);
        }
        Ok(())
    }

    /// The connection that gives way to one from `network`, or how long it takes until there is one.
    fn to_take_away(&self, network: Source, now: Instant) -> Result<Key, Duration> {
        let longest_waiting = self.waiting.largest().find_map(|(_, largest)| self.waiting.oldest(largest));
        if let Some((key, _)) = longest_waiting {
            return Ok(key);
        }
        // Since when has no client been heard, and since when many of them? If never, for longer than any deadline.
        let age =
            |heard: Option<&Instant>| heard.map_or(Duration::MAX, |&at| now.saturating_duration_since(at));
        let many = self.heard.len().checked_sub(self.many()).and_then(|first| self.heard.get(first));
        let (since_one, since_many) = (age(self.heard.back()), age(many));
        let margin = (self.limits.total / DISPROPORTIONATE).max(LEAST_MARGIN);
        let fair = 2 * self.count(network) + margin;
        let is_disproportionate = |network| self.count(network) >= fair;
        let silent = self.silent.to_take_away(now, |network, deadline| {
            let (suspect, all_silent) = (deadline / SUSPECT, deadline / ALL_SILENT);
            if since_many < suspect && !is_disproportionate(network) {
                Allowance { time: deadline / SLOW, holds: suspect - since_many }
            } else if since_one < all_silent {
                Allowance { time: suspect, holds: all_silent - since_one }
            } else {
                Allowance { time: all_silent, holds: Duration::MAX }
            }
        });
        let Err(soonest) = silent else { return silent };
        let active = self.active.to_take_away(now, |network, deadline| Allowance {
            time: deadline / if is_disproportionate(network) { SUSPECT } else { SLOW },
            holds: Duration::MAX,
        });
        active.map_err(|soon| soon.min(soonest))
    }

    /// How many clients are many.
    fn many(&self) -> usize {
        (self.limits.total / MANY).max(1)
    }

    /// A client was heard for the first time.
    pub(super) fn set_heard(&mut self, key: Key, now: Instant) {
        self.heard.push_back(now);
        let surplus = self.heard.len().saturating_sub(self.many());
        self.heard.drain(..surplus);
        self.move_to(key, Group::Active);
    }

    pub(super) fn move_to(&mut self, key: Key, group: Group) {
        // It is absent if the permit was taken away.
        if let Some((entry, _)) = self.remove(key) {
            self.insert(key, entry, group);
        }
    }

    pub(super) fn set_client(
        &mut self,
        key: Key,
        address: IpAddr,
        limited: bool,
    ) -> Result<Key, LimitExceeded> {
        let source = Source::of(address);
        if limited {
            self.check(source)?;
        }
        let moved = Key { network: source.network(), ..key };
        if let Some((entry, group)) = self.remove(key) {
            self.insert(moved, Entry { source, limited, ..entry }, group);
        }
        Ok(moved)
    }

    fn insert(&mut self, key: Key, entry: Entry, group: Group) {
        if group != Group::Waiting && entry.limited {
            *self.sources.entry(entry.source).or_default() += 1;
        }
        match group {
            Group::Silent => self.silent.insert(key, entry),
            Group::Active => self.active.insert(key, entry),
            Group::Waiting => self.waiting.insert(key, entry),
        }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<(Entry, Group)> {
        if let Some(entry) = self.waiting.remove(key) {
            return Some((entry, Group::Waiting));
        }
        let silent = self.silent.remove(key).map(|entry| (entry, Group::Silent));
        let (entry, group) = silent.or_else(|| Some((self.active.remove(key)?, Group::Active)))?;
        if entry.limited
            && let Some(count) = self.sources.get_mut(&entry.source)
        {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&entry.source);
            }
        }
        Some((entry, group))
    }
}
