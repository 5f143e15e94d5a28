//! What is counted in one address family: sources, their networks and, with IPv6, their sites.
//!
//! Owns the levels, the limit of each and a table for each. Knows nothing of locks, clocks and addresses: a source has a number.
//! Invariant: a connection counts on every level or on none.

use std::num::NonZeroU32;

use ipnet::IpNet;

use super::table::{SourceTable, TokenBucket};
use crate::admission::{
    limits::{LimitExceeded, PerIp, PerNetwork, TrackedSources},
    source::{NETWORK_BITS, SITE_BITS},
};

/// How much more than one network a site may use.
const NETWORKS_PER_SITE: NonZeroU32 = NonZeroU32::new(4).expect("not zero");

/// What a reload can change.
#[derive(Debug)]
pub(super) struct LimiterSettings {
    source: TokenBucket,
    network: TokenBucket,
    site: TokenBucket,
    pub(super) exempt: Vec<IpNet>,
}

impl LimiterSettings {
    pub(super) fn new(per_ip: PerIp, per_network: &PerNetwork) -> Self {
        let PerNetwork { rate, burst, sessions, .. } = per_network;
        let site = |limit: &NonZeroU32| limit.saturating_mul(NETWORKS_PER_SITE);
        Self {
            source: TokenBucket::new(per_ip.rate, per_ip.burst, per_ip.sessions),
            network: TokenBucket::new(*rate, *burst, *sessions),
            site: TokenBucket::new(site(rate), site(burst), site(sessions)),
            exempt: per_ip.exempt,
        }
    }

    fn bucket(&self, level: Level) -> &TokenBucket {
        match level {
            Level::Site => &self.site,
            Level::Network => &self.network,
            Level::Source => &self.source,
        }
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// An IPv6 /48.
    Site,
    /// An IPv4 /24 or IPv6 /56.
    Network,
    /// An IPv4 address or IPv6 /64.
    Source,
}

/// The widest level comes first: an attempt that it refuses then creates no row for its source.
pub(super) const V4_LEVELS: [Level; 2] = [Level::Network, Level::Source];
pub(super) const V6_LEVELS: [Level; 3] = [Level::Site, Level::Network, Level::Source];

impl Level {
    /// The key of this level for a source.
    fn key(self, source: u64) -> u64 {
        match self {
            Self::Site => source >> SITE_BITS,
            Self::Network => source >> NETWORK_BITS,
            Self::Source => source,
        }
    }
}

/// The tables of one address family. One lock guards them all, so that a connection counts on every level or on none.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) tables: Vec<(Level, SourceTable)>,
}

impl Family {
    pub(super) fn new(levels: &[Level], rows: TrackedSources) -> Self {
        let table = |&level| (level, SourceTable::new(rows.of(level)));
        Self { tables: levels.iter().map(table).collect() }
    }

    pub(super) fn set_bounds(&mut self, rows: TrackedSources) {
        for (level, table) in &mut self.tables {
            table.set_bound(rows.of(*level));
        }
    }

    pub(super) fn admit(&mut self, source: u64, now: u64, settings: &LimiterSettings) -> Result<(), LimitExceeded> {
        let mut previous = [0; V6_LEVELS.len()];
        for index in 0..self.tables.len() {
            let (level, table) = &mut self.tables[index];
            match table.admit(level.key(source), now, settings.bucket(*level)) {
                Ok(tat) => previous[index] = tat,
                Err(exceeded) => {
                    let exceeded = if *level == Level::Source { exceeded } else { exceeded.of_network() };
                    for ((level, table), tat) in self.tables[..index].iter_mut().zip(previous) {
                        table.undo(level.key(source), tat);
                    }
                    return Err(exceeded);
                }
            }
        }
        Ok(())
    }

    pub(super) fn release(&mut self, source: u64) {
        for (level, table) in &mut self.tables {
            table.release(level.key(source));
        }
    }
}

impl TrackedSources {
    fn of(self, level: Level) -> usize {
        match level {
            Level::Source => self.sources,
            Level::Network | Level::Site => self.networks,
        }
    }
}
