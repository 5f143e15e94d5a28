//! `[limits]` and `[limits.per_ip]`: how many connections and sessions, and how fast.
//!
//! Owns the keys, their defaults and their ranges. Enforcing them is the task of `admission`.

use std::{num::NonZeroU32, ops::RangeInclusive};

use super::error::ConfigWarning;
use super::scalar::{Integer, OptionalKey, StringList};
use super::values::{MAX_CONNECTIONS, Result, integer, integer_from, networks};
use crate::{admission::PerIp, socket_buffer::DEFAULT_SOCKET_BUFFER};

/// The range of `limits.socket_buffer`: at least one TLS record, and no more than any path needs.
const SOCKET_BUFFERS: RangeInclusive<u32> = 16 * 1024..=64 * 1024 * 1024;

/// Limits on connections and sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Refuse a session while this many are open, over all listeners and routes.
    pub max_sessions: usize,
    /// Refuse a connection while this many others have been accepted but are not yet sessions.
    pub max_handshakes: usize,
    /// How much the kernel buffers of what a peer sends, and how much that a peer is yet to be sent, in bytes.
    pub socket_buffer: u32,
    /// Limits for each client address.
    pub per_ip: PerIp,
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
        let per_ip = PerIp { rate: RATE, burst: BURST, sessions: SESSIONS, exempt: Vec::new() };
        Self { max_sessions: 9000, max_handshakes: 1024, socket_buffer: DEFAULT_SOCKET_BUFFER, per_ip }
    }
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    max_sessions: OptionalKey<Integer>,
    max_handshakes: OptionalKey<Integer>,
    socket_buffer: OptionalKey<Integer>,
    #[serde(default)]
    per_ip: RawPerIp,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPerIp {
    rate: OptionalKey<Integer>,
    burst: OptionalKey<Integer>,
    sessions: OptionalKey<Integer>,
    #[serde(default)]
    exempt: StringList,
}

pub(super) fn limits(raw: RawLimits, warnings: &mut Vec<ConfigWarning>) -> Result<Limits> {
    let default = Limits::default();
    let max_sessions = integer("limits.max_sessions", raw.max_sessions, MAX_CONNECTIONS)?;
    let max_handshakes = integer("limits.max_handshakes", raw.max_handshakes, MAX_CONNECTIONS)?;
    let socket_buffer = integer_from("limits.socket_buffer", raw.socket_buffer, SOCKET_BUFFERS)?;
    Ok(Limits {
        max_sessions: max_sessions.map_or(default.max_sessions, |number| number.get() as usize),
        max_handshakes: max_handshakes.map_or(default.max_handshakes, |number| number.get() as usize),
        socket_buffer: socket_buffer.unwrap_or(default.socket_buffer),
        per_ip: per_ip(raw.per_ip, &default.per_ip, warnings)?,
    })
}

fn per_ip(raw: RawPerIp, default: &PerIp, warnings: &mut Vec<ConfigWarning>) -> Result<PerIp> {
    Ok(PerIp {
        rate: integer("limits.per_ip.rate", raw.rate, u32::MAX)?.unwrap_or(default.rate),
        burst: integer("limits.per_ip.burst", raw.burst, u32::MAX)?.unwrap_or(default.burst),
        sessions: integer("limits.per_ip.sessions", raw.sessions, u32::MAX)?.unwrap_or(default.sessions),
        exempt: networks("limits.per_ip.exempt", &raw.exempt, warnings)?,
    })
}
