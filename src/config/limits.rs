//! `[limits]` and `[limits.per_ip]`: how many connections and sessions, and how fast.
//!
//! Owns the keys, their defaults and their ranges. Enforcing them is the task of `admission`.

use std::num::NonZeroU32;

use super::error::ConfigWarning;
use super::scalar::{Integer, OptionalKey, StringList};
use super::values::{MAX_CONNECTIONS, Result, integer, networks};
use crate::admission::PerIp;

/// Limits on connections and sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Refuse a session while this many are open, over all listeners and routes.
    pub max_sessions: usize,
    /// Refuse a connection while this many others have been accepted but are not yet sessions.
    pub max_handshakes: usize,
    /// Limits for each client address.
    pub per_ip: PerIp,
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
        let per_ip = PerIp { rate: RATE, burst: BURST, sessions: SESSIONS, exempt: Vec::new() };
        Self { max_sessions: 9000, max_handshakes: 1024, per_ip, core_dumps: false }
    }
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    max_sessions: OptionalKey<Integer>,
    max_handshakes: OptionalKey<Integer>,
    core_dumps: OptionalKey<bool>,
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
    Ok(Limits {
        max_sessions: max_sessions.map_or(default.max_sessions, |number| number.get() as usize),
        max_handshakes: max_handshakes.map_or(default.max_handshakes, |number| number.get() as usize),
        core_dumps: raw.core_dumps.is_some_and(|on| *on.get_ref()),
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
