//! What is counted in one address family: sources, their networks and, with IPv6, their sites.
//!
//! Owns the levels, the limit of each and a table for each, and the table of sources that were refused. Knows nothing of
//! locks, clocks and addresses: a source has a number. Invariant: a connection counts on every level or on none.

use std::{num::NonZeroU32, time::Duration};

use ipnet::IpNet;

use super::bucket::{SourceState, TokenBucket};
use crate::admission::{
    limits::{LimitExceeded, PerIp, PerNetwork, TrackedSources},
    penalties::{Penalties, PenaltyRule, PenaltyState},
    source::{NETWORK_BITS, SITE_BITS},
    table::BoundedTable,
};

/// How much more than one network a site may use.
const NETWORKS_PER_SITE: NonZeroU32 = NonZeroU32::new(4).expect("not zero");

/// What a reload can change.
#[derive(Debug)]
pub(super) struct LimiterSettings {
    source: TokenBucket,
    network: TokenBucket,
    site: TokenBucket,
    penalty: Option<PenaltyRule>,
    pub(super) exempt: Vec<IpNet>,
}

impl LimiterSettings {
    pub(super) fn new(per_ip: PerIp, per_network: &PerNetwork, penalties: Option<Penalties>) -> Self {
        let PerNetwork { rate, burst, sessions, .. } = per_network;
        let site = |limit: &NonZeroU32| limit.saturating_mul(NETWORKS_PER_SITE);
        Self {
            source: TokenBucket::new(per_ip.rate, per_ip.burst, per_ip.sessions),
            network: TokenBucket::new(*rate, *burst, *sessions),
            site: TokenBucket::new(site(rate), site(burst), site(sessions)),
            penalty: penalties.map(PenaltyRule::new),
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
    pub(super) tables: Vec<(Level, BoundedTable<SourceState>)>,
    /// The sources that were refused, if there are penalties.
    pub(super) refused: BoundedTable<PenaltyState>,
}

impl Family {
    pub(super) fn new(levels: &[Level], rows: TrackedSources) -> Self {
        let table = |&level| (level, BoundedTable::new(rows.of(level)));
        Self { tables: levels.iter().map(table).collect(), refused: BoundedTable::new(rows.refused) }
    }

    pub(super) fn set_bounds(&mut self, rows: TrackedSources) {
        for (level, table) in &mut self.tables {
            table.set_bound(rows.of(*level));
        }
        self.refused.set_bound(rows.refused);
    }

    pub(super) fn admit(
        &mut self,
        source: u64,
        now: u64,
        settings: &LimiterSettings,
    ) -> Result<(), LimitExceeded> {
        let penalty = self.refused.get(source).and_then(|state| state.remaining(now));
        if let Some(retry_after) = penalty {
            return Err(LimitExceeded::Penalty { retry_after });
        }
        let mut previous = [0; V6_LEVELS.len()];
        for index in 0..self.tables.len() {
            let (level, table) = &mut self.tables[index];
            let row = table.get_or_insert(level.key(source), now).ok_or(LimitExceeded::Sessions);
            match row.and_then(|row| row.admit(now, settings.bucket(*level))) {
                Ok(tat) => previous[index] = tat,
                Err(exceeded) => {
                    let exceeded = if *level == Level::Source { exceeded } else { exceeded.of_network() };
                    for ((level, table), tat) in self.tables[..index].iter_mut().zip(previous) {
                        if let Some(row) = table.get_mut(level.key(source)) {
                            row.undo(tat);
                        }
                    }
                    return Err(exceeded);
                }
            }
        }
        Ok(())
    }

    pub(super) fn release(&mut self, source: u64) {
        for (level, table) in &mut self.tables {
            // Always present: a row that holds a permit is never evicted.
            if let Some(row) = table.get_mut(level.key(source)) {
                row.release();
            }
        }
    }

    /// Counts one refusal of a source. Returns the length of a penalty that begins now.
    pub(super) fn count_refusal(
        &mut self,
        source: u64,
        now: u64,
        settings: &LimiterSettings,
    ) -> Option<Duration> {
        let rule = settings.penalty.as_ref()?;
        self.refused.get_or_insert(source, now)?.count_refusal(now, rule)
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
