//! `[limits.penalties]`: how repeated refusals of one address are penalised.
//!
//! Owns the keys, their defaults and their ranges. Enforcing them is the task of `admission`.

use std::{num::NonZeroU32, time::Duration};

use super::scalar::{DurationText, Integer, OptionalKey};
use super::values::{Result, conflict, integer, nonzero_duration};
use crate::admission::Penalties;

/// As many refusals as a careless page behind a NAT with hundreds of users causes, and a tenth of what `per_ip.rate` admits.
pub(super) const DEFAULT: Penalties = {
    const RATE: NonZeroU32 = NonZeroU32::new(2).expect("not zero");
    const BURST: NonZeroU32 = NonZeroU32::new(200).expect("not zero");
    Penalties { rate: RATE, burst: BURST, min: Duration::from_secs(10), max: Duration::from_secs(600) }
};

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPenalties {
    enabled: OptionalKey<bool>,
    rate: OptionalKey<Integer>,
    burst: OptionalKey<Integer>,
    min: OptionalKey<DurationText>,
    max: OptionalKey<DurationText>,
}

/// `None` if there are none.
pub(super) fn penalties(raw: RawPenalties) -> Result<Option<Penalties>> {
    const ZERO: &str = "a penalty has a length; to turn penalties off, set enabled = false";
    let RawPenalties { enabled, rate, burst, min, max } = raw;
    let at = max.as_ref().or(min.as_ref()).map(toml::Spanned::span);
    let penalties = Penalties {
        rate: integer("limits.penalties.rate", rate, u32::MAX)?.unwrap_or(DEFAULT.rate),
        burst: integer("limits.penalties.burst", burst, u32::MAX)?.unwrap_or(DEFAULT.burst),
        min: nonzero_duration("limits.penalties.min", min, DEFAULT.min, ZERO)?,
        max: nonzero_duration("limits.penalties.max", max, DEFAULT.max, ZERO)?,
    };
    if penalties.max < penalties.min {
        let sentence = "limits.penalties.max is shorter than min; make it at least as long";
        return Err(conflict(at.unwrap_or_default(), sentence));
    }
    Ok(enabled.is_none_or(|on| *on.get_ref()).then_some(penalties))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn parse(lines: &str) -> std::result::Result<Option<Penalties>, String> {
        const REST: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"a\"\npath = \"/a\"\nbackend = \"tcp://a:1\"\n[limits.penalties]\n";
        let config = Config::parse(&format!("{REST}{lines}\n"), Path::new("gateway.toml"));
        config.map(|config| config.limits.penalties).map_err(|error| error.to_string())
    }

    #[test]
    fn penalties_have_defaults_and_can_be_turned_off() {
        assert_eq!(parse(""), Ok(Some(DEFAULT)));
        assert_eq!(parse("enabled = true"), Ok(Some(DEFAULT)));
        assert_eq!(parse("enabled = false\nburst = 7"), Ok(None));
        let some = |n| NonZeroU32::new(n).unwrap();
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(60));
        let expected = Penalties { rate: some(3), burst: some(4), min, max };
        assert_eq!(parse("rate = 3\nburst = 4\nmin = \"1s\"\nmax = \"1m\""), Ok(Some(expected)));
    }

    #[test]
    fn the_longest_penalty_is_not_shorter_than_the_first() {
        let error = "gateway.toml:8:7: limits.penalties.max is shorter than min; make it at least as long";
        assert_eq!(parse("max = \"9s\""), Err(error.to_owned()));
        assert_eq!(parse("min = \"11m\""), Err(error.to_owned()));
        let zero = parse("max = \"0s\"").unwrap_err();
        assert!(zero.contains("limits.penalties.max \"0s\": a penalty has a length"), "{zero}");
    }
}
