//! `[route.health]`: active health checks of a route's backends.

use std::num::NonZeroU32;
use std::time::Duration;

use super::scalar::{DurationText, Integer, OptionalKey};
use super::values::{Result, RouteKey, duration, integer, nonzero_duration};

/// More checks in a row than this are a typing error.
const MAX_CHECKS: u32 = 1000;

/// Active health checks: backends are dialled at an interval, whether or not there are clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Check each backend this often.
    pub interval: Duration,
    /// Fail a check that takes longer than this.
    pub timeout: Duration,
    /// Use a backend again after this many successful checks in a row; at least one.
    pub rise: u32,
    /// Stop using a backend after this many failed checks in a row; at least one.
    pub fall: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 2, fall: 3 }
    }
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHealth {
    interval: OptionalKey<DurationText>,
    timeout: OptionalKey<DurationText>,
    rise: OptionalKey<Integer>,
    fall: OptionalKey<Integer>,
}

pub(super) fn health(key: RouteKey<'_>, raw: RawHealth) -> Result<Health> {
    const ZERO: &str = "the interval cannot be zero; remove health to turn the checks off";
    let default = Health::default();
    let rise = integer(&key("health.rise"), raw.rise, MAX_CHECKS)?;
    let fall = integer(&key("health.fall"), raw.fall, MAX_CHECKS)?;
    Ok(Health {
        interval: nonzero_duration(&key("health.interval"), raw.interval, default.interval, ZERO)?,
        timeout: duration(&key("health.timeout"), raw.timeout, default.timeout)?,
        rise: rise.map_or(default.rise, NonZeroU32::get),
        fall: fall.map_or(default.fall, NonZeroU32::get),
    })
}
