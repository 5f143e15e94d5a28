//! `[limits]`, `[limits.per_ip]`, `[limits.per_network]` and `[limits.per_user]`: how many connections and sessions, and how fast.
//!
//! Owns the keys, their defaults and their ranges. Enforcing them is the task of `admission`.

use std::{num::NonZeroU32, ops::RangeInclusive};

use super::error::ConfigWarning;
use super::penalties::{self, RawPenalties};
use super::scalar::{Integer, OptionalKey, StringList};
use super::values::{MAX_CONNECTIONS, Result, integer, integer_from, networks};
use crate::{
    admission::{Penalties, PerIp, PerNetwork},
    socket_buffer::DEFAULT_SOCKET_BUFFER,
};

/// How much more than one address a network may use, unless the configuration says otherwise.
const ADDRESSES_PER_NETWORK: NonZeroU32 = NonZeroU32::new(8).expect("not zero");
/// The same for handshakes, which a network can hold at little cost to itself.
const HANDSHAKES_PER_NETWORK: NonZeroU32 = NonZeroU32::new(4).expect("not zero");

/// The range of `limits.socket_buffer`: at least one TLS record, and no more than any path needs.
const SOCKET_BUFFERS: RangeInclusive<u32> = 16 * 1024..=64 * 1024 * 1024;

/// The default of `limits.max_tickets`.
pub(crate) const DEFAULT_MAX_TICKETS: usize = 100_000;

/// Limits on connections and sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Refuse a session while this many are open, over all listeners and routes.
    pub max_sessions: usize,
    /// Pause accepting while this many connections have been accepted but are not yet sessions.
    pub max_handshakes: usize,
    /// Close a connection after this many requests that open no session.
    pub max_requests: NonZeroU32,
    /// Issue no ticket while this many have not expired.
    pub max_tickets: usize,
    /// How much the kernel buffers of what a peer sends, and how much that a peer is yet to be sent, in bytes.
    pub socket_buffer: u32,
    /// Limits for each client address.
    pub per_ip: PerIp,
    /// Limits for each network of client addresses.
    pub per_network: PerNetwork,
    /// Refuse a session of a user who has this many, over all listeners and routes; `None` for no limit.
    pub sessions_per_user: Option<NonZeroU32>,
    /// Penalties for client addresses that are refused again and again, if there are any.
    pub penalties: Option<Penalties>,
    /// Leave the system's limit of core dumps as it is, instead of forbidding them.
    pub core_dumps: bool,
}

impl Limits {
    /// The descriptors that the gateway needs beside those of open sessions: one for each handshake and listener, and some
    /// for log files and the runtime.
    pub(crate) fn descriptors_beside_sessions(&self, listeners: usize) -> u64 {
        const SPARE: u64 = 64;
        self.max_handshakes as u64 + listeners as u64 + SPARE
    }
}

impl Default for Limits {
    fn default() -> Self {
        const RATE: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
        const BURST: NonZeroU32 = NonZeroU32::new(60).expect("not zero");
        const SESSIONS: NonZeroU32 = NonZeroU32::new(200).expect("not zero");
        const HANDSHAKES: NonZeroU32 = NonZeroU32::new(64).expect("not zero");
        const REQUESTS: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");
        let exempt = Vec::new();
        let per_ip = PerIp { rate: RATE, burst: BURST, sessions: SESSIONS, handshakes: HANDSHAKES, exempt };
        let per_network = network_of(&per_ip);
        Self {
            max_sessions: 9000,
            max_handshakes: 1024,
            max_requests: REQUESTS,
            max_tickets: DEFAULT_MAX_TICKETS,
            socket_buffer: DEFAULT_SOCKET_BUFFER,
            per_ip,
            per_network,
            sessions_per_user: None,
            penalties: Some(penalties::DEFAULT),
            core_dumps: false,
        }
    }
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    max_sessions: OptionalKey<Integer>,
    max_handshakes: OptionalKey<Integer>,
    max_requests: OptionalKey<Integer>,
    max_tickets: OptionalKey<Integer>,
    core_dumps: OptionalKey<bool>,
    socket_buffer: OptionalKey<Integer>,
    #[serde(default)]
    per_ip: RawPerIp,
    #[serde(default)]
    per_network: RawPerNetwork,
    #[serde(default)]
    per_user: RawPerUser,
    #[serde(default)]
    penalties: RawPenalties,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPerIp {
    rate: OptionalKey<Integer>,
    burst: OptionalKey<Integer>,
    sessions: OptionalKey<Integer>,
    handshakes: OptionalKey<Integer>,
    #[serde(default)]
    exempt: StringList,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPerNetwork {
    enabled: OptionalKey<bool>,
    rate: OptionalKey<Integer>,
    burst: OptionalKey<Integer>,
    sessions: OptionalKey<Integer>,
    handshakes: OptionalKey<Integer>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPerUser {
    sessions: OptionalKey<Integer>,
}

pub(super) fn limits(raw: RawLimits, warnings: &mut Vec<ConfigWarning>) -> Result<Limits> {
    let default = Limits::default();
    let max_sessions = integer("limits.max_sessions", raw.max_sessions, MAX_CONNECTIONS)?;
    let max_handshakes = integer("limits.max_handshakes", raw.max_handshakes, MAX_CONNECTIONS)?;
    let socket_buffer = integer_from("limits.socket_buffer", raw.socket_buffer, SOCKET_BUFFERS)?;
    let max_requests = integer("limits.max_requests", raw.max_requests, u32::MAX)?;
    let max_tickets = integer("limits.max_tickets", raw.max_tickets, MAX_CONNECTIONS)?;
    let per_ip = per_ip(raw.per_ip, &default.per_ip, warnings)?;
    Ok(Limits {
        max_sessions: max_sessions.map_or(default.max_sessions, |number| number.get() as usize),
        max_handshakes: max_handshakes.map_or(default.max_handshakes, |number| number.get() as usize),
        max_requests: max_requests.unwrap_or(default.max_requests),
        max_tickets: max_tickets.map_or(default.max_tickets, |number| number.get() as usize),
        per_network: per_network(raw.per_network, &network_of(&per_ip))?,
        per_ip,
        sessions_per_user: integer("limits.per_user.sessions", raw.per_user.sessions, u32::MAX)?,
        penalties: penalties::penalties(raw.penalties)?,
        socket_buffer: socket_buffer.unwrap_or(default.socket_buffer),
        core_dumps: raw.core_dumps.is_some_and(|on| *on.get_ref()),
    })
}

fn per_ip(raw: RawPerIp, default: &PerIp, warnings: &mut Vec<ConfigWarning>) -> Result<PerIp> {
    Ok(PerIp {
        rate: integer("limits.per_ip.rate", raw.rate, u32::MAX)?.unwrap_or(default.rate),
        burst: integer("limits.per_ip.burst", raw.burst, u32::MAX)?.unwrap_or(default.burst),
        sessions: integer("limits.per_ip.sessions", raw.sessions, u32::MAX)?.unwrap_or(default.sessions),
        handshakes: integer("limits.per_ip.handshakes", raw.handshakes, u32::MAX)?
            .unwrap_or(default.handshakes),
        exempt: networks("limits.per_ip.exempt", &raw.exempt, warnings)?,
    })
}

/// The limits of a network that the limits of one address imply.
fn network_of(per_ip: &PerIp) -> PerNetwork {
    PerNetwork {
        rate: per_ip.rate.saturating_mul(ADDRESSES_PER_NETWORK),
        burst: per_ip.burst.saturating_mul(ADDRESSES_PER_NETWORK),
        sessions: per_ip.sessions.saturating_mul(ADDRESSES_PER_NETWORK),
        handshakes: per_ip.handshakes.saturating_mul(HANDSHAKES_PER_NETWORK),
    }
}

fn per_network(raw: RawPerNetwork, default: &PerNetwork) -> Result<PerNetwork> {
    let limit = |key: &str, written, default| Ok(integer(key, written, u32::MAX)?.unwrap_or(default));
    let per_network = PerNetwork {
        rate: limit("limits.per_network.rate", raw.rate, default.rate)?,
        burst: limit("limits.per_network.burst", raw.burst, default.burst)?,
        sessions: limit("limits.per_network.sessions", raw.sessions, default.sessions)?,
        handshakes: limit("limits.per_network.handshakes", raw.handshakes, default.handshakes)?,
    };
    let is_enabled = raw.enabled.is_none_or(|on| *on.get_ref());
    Ok(if is_enabled { per_network } else { PerNetwork::UNLIMITED })
}
