//! The rate limits and the connection limits per client address and per network, and the penalties per client address.
//!
//! A rate limit is a token bucket of `rate` and `burst`. Owns the state of recent sources and of their networks: bounded
//! tables for each address family. Knows nothing of clocks (`now` is an argument), of sockets, and of what a connection
//! does while it holds its [`AddressPermit`].
//!
//! Every connection counts on several levels: for its source, for the network around it (IPv4 /24, IPv6 /56), and with
//! IPv6 for its site (/48). The wider levels exist because a subscriber can have 256 IPv6 /64s or more, and a tenant many
//! neighbouring IPv4 addresses. Invariants: a table never exceeds its bound, regardless of the traffic; a source or network
//! that holds a permit is never evicted; a refused attempt consumes no quota, on no level.

mod bucket;
mod family;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use parking_lot::RwLock;

use self::family::{Family, LimiterSettings, V4_LEVELS, V6_LEVELS};
use super::limits::{LimitExceeded, PerIp, PerNetwork, TrackedSources};
use super::penalties::Penalties;
use super::source::Source;
use crate::sync::Mutex;

/// Limits the rate and the number of connections of every source and every network.
#[derive(Debug)]
pub struct RateLimiter {
    settings: RwLock<LimiterSettings>,
    epoch: Instant,
    v4: Mutex<Family>,
    v6: Mutex<Family>,
}

impl RateLimiter {
    /// A limiter that remembers at most so many sources and networks. A `now` before `epoch` counts as `epoch`.
    pub(crate) fn new(
        per_ip: PerIp,
        per_network: &PerNetwork,
        penalties: Option<Penalties>,
        rows: TrackedSources,
        epoch: Instant,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings: RwLock::new(LimiterSettings::new(per_ip, per_network, penalties)),
            epoch,
            v4: Mutex::new(Family::new(&V4_LEVELS, rows)),
            v6: Mutex::new(Family::new(&V6_LEVELS, rows)),
        })
    }

    /// Counts one connection from `address` at `now` against its rate, and as one of its connections until the
    /// [`AddressPermit`] is dropped; the same for its networks. The permit of an exempt address counts nothing.
    ///
    /// # Errors
    /// The address or one of its networks exceeds a limit. A penalty comes before all others, and on each level
    /// [`LimitExceeded::Sessions`] before [`LimitExceeded::Rate`], because waiting does not lift it. A refused attempt
    /// does not count against the rate.
    pub(crate) fn admit(
        self: &Arc<Self>,
        address: IpAddr,
        now: Instant,
    ) -> Result<AddressPermit, LimitExceeded> {
        let settings = self.settings.read();
        let Some((source, now)) = self.counted(address, now, &settings) else {
            return Ok(AddressPermit { held: None });
        };
        let (family, key) = self.family(source);
        family.lock().admit(key, now, &settings)?;
        Ok(AddressPermit { held: Some((Arc::clone(self), source)) })
    }

    /// Counts one refusal of `address` at `now`, after which its next connections can be refused for some time. Exempt
    /// addresses are not counted. Returns the length of a penalty that begins now.
    pub(crate) fn count_refusal(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let settings = self.settings.read();
        let (source, now) = self.counted(address, now, &settings)?;
        let (family, key) = self.family(source);
        family.lock().count_refusal(key, now, &settings)
    }

    /// Changes the limits and the bounds of the tables. The state of the sources and all permits stay valid. All penalties
    /// end, because a mistake in the old configuration may have caused them.
    pub(crate) fn set_limits(
        &self,
        per_ip: PerIp,
        per_network: &PerNetwork,
        penalties: Option<Penalties>,
        rows: TrackedSources,
    ) {
        *self.settings.write() = LimiterSettings::new(per_ip, per_network, penalties);
        for family in [&self.v4, &self.v6] {
            let mut family = family.lock();
            family.set_bounds(rows);
            family.refused.clear();
        }
    }

    /// The source of `address`, and `now` on the clock of the tables; `None` if the address is exempt.
    fn counted(&self, address: IpAddr, now: Instant, settings: &LimiterSettings) -> Option<(Source, u64)> {
        let since_epoch = nanos(now.saturating_duration_since(self.epoch));
        (!covers(&settings.exempt, address)).then(|| (Source::of(address), since_epoch))
    }

    fn family(&self, source: Source) -> (&Mutex<Family>, u64) {
        match source {
            Source::V4(key) => (&self.v4, key.into()),
            Source::V6(key) => (&self.v6, key),
        }
    }
}

/// The permit of one connection; dropping it releases it.
#[derive(Debug)]
#[must_use = "dropping the permit releases it"]
pub(crate) struct AddressPermit {
    held: Option<(Arc<RateLimiter>, Source)>,
}

impl AddressPermit {
    /// Whether the address is exempt from all limits.
    pub(crate) fn is_exempt(&self) -> bool {
        self.held.is_none()
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        if let Some((limiter, source)) = &self.held {
            let (family, key) = limiter.family(*source);
            family.lock().release(key);
        }
    }
}

/// Maps `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2) to `a.b.c.d`; other addresses stay as they are.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Whether one of `networks` contains the canonical form of `address`. A network inside `::ffff:0:0/96` stands for the
/// IPv4 network that it maps; a wider IPv6 network, even `::/0`, contains no IPv4 address.
pub(crate) fn covers(networks: &[IpNet], address: IpAddr) -> bool {
    const MAPPED_BITS: u8 = 96;
    let address = canonical(address);
    networks.iter().any(|network| {
        let mapped = || {
            // An IPv4 network has no prefix of this length.
            let prefix = network.prefix_len().checked_sub(MAPPED_BITS)?;
            match canonical(network.addr()) {
                IpAddr::V4(base) => Ipv4Net::new(base, prefix).ok(),
                IpAddr::V6(_) => None,
            }
        };
        mapped().map_or_else(|| network.contains(&address), |v4| IpNet::V4(v4).contains(&address))
    })
}

/// Saturates; 64 bits hold 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
