//! The limits of one client address and of one network, and the answer to a client that exceeds one.
//!
//! Owns no state and no rule.

use std::{num::NonZeroU32, time::Duration};

use ipnet::IpNet;

/// The limits of one source: one IPv4 address or one IPv6 /64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerIp {
    /// New connections per second, on average: the rate at which the token bucket refills.
    pub rate: NonZeroU32,
    /// New connections at once after a quiet period: the size of the token bucket.
    pub burst: NonZeroU32,
    /// Concurrent connections.
    pub sessions: NonZeroU32,
    /// Concurrent connections that are not sessions yet.
    pub handshakes: NonZeroU32,
    /// Networks that are exempt from all limits.
    pub exempt: Vec<IpNet>,
}

/// The limits of one network: one IPv4 /24 or one IPv6 /56. An IPv6 /48 may use four times as much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerNetwork {
    /// See [`PerIp::rate`].
    pub rate: NonZeroU32,
    /// See [`PerIp::burst`].
    pub burst: NonZeroU32,
    /// See [`PerIp::sessions`].
    pub sessions: NonZeroU32,
    /// See [`PerIp::handshakes`].
    pub handshakes: NonZeroU32,
}

impl PerNetwork {
    /// Limits that no network reaches.
    pub(crate) const UNLIMITED: Self = {
        const MAX: NonZeroU32 = NonZeroU32::MAX;
        Self { rate: MAX, burst: MAX, sessions: MAX, handshakes: MAX }
    };
}

/// How many rows the tables may have, per address family. Each number should exceed that of the connections that the
/// gateway can hold. At least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TrackedSources {
    pub sources: usize,
    /// For each size of networks.
    pub networks: usize,
    /// Sources that were refused. May be fewer than there are connections.
    pub refused: usize,
}

/// Why a source was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitExceeded {
    /// It connects faster than `rate` and `burst` allow.
    #[error("connects too fast; the next connection is permitted in {retry_after:?}")]
    Rate {
        /// How long until the next connection is permitted. Never zero.
        retry_after: Duration,
    },
    /// It was refused too often.
    #[error("was refused too often; the next connection is permitted in {retry_after:?}")]
    Penalty {
        /// How long until the next connection is permitted. Never zero.
        retry_after: Duration,
    },
    /// It already holds `sessions` connections. Also returned for a new source if every row of the table holds a
    /// connection, which cannot happen if the table has more rows than the gateway has connections.
    #[error("holds as many connections as one address may")]
    Sessions,
    /// Its network connects faster than its `rate` and `burst` allow.
    #[error("its network connects too fast; the next connection is permitted in {retry_after:?}")]
    NetworkRate {
        /// How long until the next connection is permitted. Never zero.
        retry_after: Duration,
    },
    /// Its network holds as many connections as it may.
    #[error("its network holds as many connections as it may")]
    NetworkSessions,
    /// It has as many connections that are not sessions yet as it may.
    #[error("has as many connections that are not sessions yet as one address may")]
    Handshakes,
    /// Its network has as many connections that are not sessions yet as it may.
    #[error("its network has as many connections that are not sessions yet as it may")]
    NetworkHandshakes,
}

impl LimitExceeded {
    /// How long until the next connection is permitted, if waiting is enough.
    pub(crate) fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Rate { retry_after }
            | Self::NetworkRate { retry_after }
            | Self::Penalty { retry_after } => Some(retry_after),
            _ => None,
        }
    }

    /// The same limit on the level of networks.
    pub(super) fn of_network(self) -> Self {
        match self {
            Self::Rate { retry_after } => Self::NetworkRate { retry_after },
            Self::Sessions => Self::NetworkSessions,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_on_rates_are_lifted_by_waiting() {
        let retry_after = Duration::from_secs(3);
        for exceeded in [
            LimitExceeded::Rate { retry_after },
            LimitExceeded::NetworkRate { retry_after },
            LimitExceeded::Penalty { retry_after },
        ] {
            assert_eq!(exceeded.retry_after(), Some(retry_after), "{exceeded}");
        }
        for exceeded in [LimitExceeded::Sessions, LimitExceeded::Handshakes, LimitExceeded::NetworkSessions] {
            assert_eq!(exceeded.retry_after(), None, "{exceeded}");
        }
    }
}
