//! Conversions that several tables share: integers, durations, keywords, paths, networks.
//!
//! Owns their ranges and the faults that they report. Knows no table and no key.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use toml::Spanned;

use super::backend::Backend;
use super::error::{ConfigFault, ConfigWarning, Problem, alternatives, nearest, quoted};
use super::scalar::{DurationText, Integer, OptionalKey};

pub(super) type Result<T> = std::result::Result<T, ConfigFault>;

/// Names a key of a route in messages.
pub(super) type RouteKey<'a> = &'a dyn Fn(&str) -> String;

/// A backend and its position in the text.
pub(super) type SpannedBackend = (Backend, Spanned<String>);

/// More sessions or handshakes than this are a typing error: no machine has the sockets.
pub(super) const MAX_CONNECTIONS: u32 = 10_000_000;
/// Keeps timers far from where clocks overflow.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The resolution of the timers.
const MIN_DURATION: Duration = Duration::from_millis(1);
/// The prefix of a path that names a systemd credential.
const CREDENTIAL: &str = "credential:";
const DURATIONS: &str = "write a duration such as \"5s\", \"1m 30s\" or \"250ms\"";

/// The fault of a string value.
pub(super) fn invalid(
    key: impl Into<String>,
    written: &Spanned<String>,
    wrong: impl fmt::Display,
) -> ConfigFault {
    let problem =
        Problem::Value { key: key.into(), value: quoted(written.get_ref()), wrong: wrong.to_string() };
    ConfigFault { at: written.span(), problem }
}

/// The fault of a required key that is absent.
pub(super) fn missing(at: Range<usize>, key: impl Into<String>, advice: impl Into<String>) -> ConfigFault {
    ConfigFault { at, problem: Problem::Missing { key: key.into(), advice: advice.into() } }
}

/// A fault of several values together.
pub(super) fn conflict(at: Range<usize>, sentence: impl Into<String>) -> ConfigFault {
    ConfigFault { at, problem: Problem::Conflict(sentence.into()) }
}

/// The fault of a value that is not a string.
pub(super) fn invalid_literal<T: fmt::Display>(
    key: impl Into<String>,
    at: Range<usize>,
    written: T,
    wrong: impl fmt::Display,
) -> ConfigFault {
    let problem = Problem::Value { key: key.into(), value: written.to_string(), wrong: wrong.to_string() };
    ConfigFault { at, problem }
}

/// Parses a value by its type's `FromStr`.
pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(key: &str, written: &Spanned<String>) -> Result<T> {
    written.get_ref().parse().map_err(|wrong| invalid(key, written, wrong))
}

/// One of a fixed set of keywords.
pub(super) fn keyword<T: Copy>(
    key: &str,
    written: OptionalKey<String>,
    keywords: &[(&str, T)],
) -> Result<Option<T>> {
    written.map(|written| one_of(key, &written, keywords)).transpose()
}

/// The same for a value that is there.
pub(super) fn one_of<T: Copy>(key: &str, written: &Spanned<String>, keywords: &[(&str, T)]) -> Result<T> {
    if let Some((_, value)) = keywords.iter().find(|(keyword, _)| keyword == written.get_ref()) {
        return Ok(*value);
    }
    let names = keywords.iter().map(|(keyword, _)| *keyword);
    let known = alternatives(names.clone().map(quoted));
    let near =
        nearest(written.get_ref(), names).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
    Err(invalid(key, written, format!("must be {known}{near}")))
}

/// An integer from 1 to `max`.
pub(super) fn integer(key: &str, written: OptionalKey<Integer>, max: u32) -> Result<Option<NonZeroU32>> {
    Ok(integer_from(key, written, 1..=max)?.and_then(NonZeroU32::new))
}

/// An integer in `range`.
pub(super) fn integer_from(
    key: &str,
    written: OptionalKey<Integer>,
    range: RangeInclusive<u32>,
) -> Result<Option<u32>> {
    let Some(written) = written else { return Ok(None) };
    let number = written.get_ref().0;
    let fits = u32::try_from(number).ok().filter(|number| range.contains(number));
    fits.map(Some).ok_or_else(|| {
        let (min, max) = range.into_inner();
        invalid_literal(key, written.span(), number, format!("must be a whole number from {min} to {max}"))
    })
}

/// A timeout that cannot be turned off.
pub(super) fn duration(key: &str, written: OptionalKey<DurationText>, default: Duration) -> Result<Duration> {
    nonzero_duration(key, written, default, "this timeout cannot be turned off")
}

/// A duration that may not be zero; `zero` is the message if it is.
pub(super) fn nonzero_duration(
    key: &str,
    written: OptionalKey<DurationText>,
    default: Duration,
    zero: &str,
) -> Result<Duration> {
    let Some(written) = written else { return Ok(default) };
    let text = text_of(written);
    match parse_duration(key, &text)? {
        Duration::ZERO => Err(invalid(key, &text, format!("{zero}; {DURATIONS}"))),
        duration => Ok(duration),
    }
}

/// A timeout that `"0s"` turns off.
pub(super) fn duration_or_off(
    key: &str,
    written: OptionalKey<DurationText>,
    default: Option<Duration>,
) -> Result<Option<Duration>> {
    let Some(written) = written else { return Ok(default) };
    let duration = parse_duration(key, &text_of(written))?;
    Ok(Some(duration).filter(|duration| !duration.is_zero()))
}

fn text_of(written: Spanned<DurationText>) -> Spanned<String> {
    Spanned::new(written.span(), written.into_inner().0)
}

fn parse_duration(key: &str, text: &Spanned<String>) -> Result<Duration> {
    let duration = read_duration(text.get_ref()).map_err(|wrong| {
        let wrong = match wrong {
            humantime::DurationError::UnknownUnit { unit, .. } if unit.is_empty() => {
                "the unit is missing".into()
            }
            humantime::DurationError::UnknownUnit { unit, .. } => {
                format!("{} is not a unit of time", quoted(unit))
            }
            humantime::DurationError::NumberOverflow => "out of range".into(),
            _ => "not a duration".into(),
        };
        invalid(key, text, format!("{wrong}; {DURATIONS}"))
    })?;
    match duration {
        _ if duration > MAX_DURATION => Err(invalid(key, text, format!("longer than 365 days; {DURATIONS}"))),
        _ if !duration.is_zero() && duration < MIN_DURATION => {
            Err(invalid(key, text, format!("shorter than a millisecond; {DURATIONS}")))
        }
        _ => Ok(duration),
    }
}

/// The duration that a text such as `1h 30m` stands for. `humantime` panics if the sum of the parts overflows, so they are
/// added up here first.
pub(crate) fn read_duration(text: &str) -> std::result::Result<Duration, humantime::DurationError> {
    let (mut sum, mut start, mut previous) = (Duration::ZERO, 0, ' ');
    let characters = text.char_indices().filter(|(_, character)| !character.is_whitespace());
    for (at, character) in characters.chain([(text.len(), '0')]) {
        if character.is_ascii_digit() && previous.is_alphabetic() {
            let part = humantime::parse_duration(&text[start..at])?;
            sum = sum.checked_add(part).ok_or(humantime::DurationError::NumberOverflow)?;
            start = at;
        }
        previous = character;
    }
    humantime::parse_duration(text)
}

/// A path, resolved against the directory of the configuration file.
pub(super) fn resolve_path(key: &str, written: &Spanned<String>, base: &Path) -> Result<PathBuf> {
    match written.get_ref().as_str() {
        "" => {
            Err(invalid(key, written, "the path is empty; write one, relative to the directory of this file"))
        }
        text if text.contains('\0') => {
            Err(invalid(key, written, "a path cannot contain a NUL character; remove it"))
        }
        text => match text.strip_prefix(CREDENTIAL) {
            Some(name) => credential(name, env::var_os("CREDENTIALS_DIRECTORY")).ok_or_else(|| {
                invalid(key, written, "a credential name may contain only letters, digits, \".\", \"_\" and \"-\", and cannot begin with \".\"")
            }),
            None => Ok(base.join(text)),
        },
    }
}

/// The path of a systemd credential (systemd.exec(5), LoadCredential=).
fn credential(name: &str, directory: Option<OsString>) -> Option<PathBuf> {
    // Where the running service has its credentials, so that a `check` by hand finds them.
    const SERVICE_CREDENTIALS: &str = "/run/credentials/portcullis.service";
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_name = !name.is_empty() && !name.starts_with('.') && name.bytes().all(good);
    is_name.then(|| Path::new(&directory.unwrap_or_else(|| SERVICE_CREDENTIALS.into())).join(name))
}

/// A list of networks. An address without a prefix length is a network of one.
pub(super) fn networks(
    key: &str,
    written: &[Spanned<String>],
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Vec<IpNet>> {
    written.iter().map(|entry| network(key, entry, warnings)).collect()
}

fn network(key: &str, written: &Spanned<String>, warnings: &mut Vec<ConfigWarning>) -> Result<IpNet> {
    const WRONG: &str =
        "not a valid network; use one such as \"10.0.0.0/8\" or \"2001:db8::/32\", or a single address";
    let text = written.get_ref();
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    let net = text.parse::<IpNet>().or_else(|_| address()).map_err(|_| invalid(key, written, WRONG))?;
    if net != net.trunc() {
        let network = quoted(net.trunc().to_string());
        let sentence =
            format!("{key} {} is an address within a network and matches all of {network}.", quoted(text));
        warnings.push(ConfigWarning { at: written.span(), sentence });
    }
    Ok(unmapped(net.trunc()))
}

/// An IPv4-mapped IPv6 network (RFC 4291 §2.5.5.2) as IPv4, because client addresses are compared in that form.
fn unmapped(net: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let IpNet::V6(v6) = net else { return net };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(MAPPED_BITS));
    v4.and_then(|(address, bits)| Ipv4Net::new(address, bits).ok()).map_or(net, IpNet::V4)
}

/// The directory of the configuration file, against which relative paths resolve.
pub(super) fn base_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_that_overflows_is_an_error() {
        for text in [
            "18446744073709551615s 1000ms",
            "18446744073709551615s1s",
            "9999999999999999999999s",
            "600000000000y",
        ] {
            assert_eq!(read_duration(text), Err(humantime::DurationError::NumberOverflow), "{text}");
        }
        for (text, millis) in
            [("1m 30s", 90_000), ("1m30s", 90_000), ("1.5s", 1500), ("0", 0), ("1 0s", 10_000)]
        {
            assert_eq!(read_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "5m 0", "5m 30", "x5m", "5m x", "5 minutes ago"] {
            assert!(read_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_credential_resolves_to_the_directory_of_systemd() {
        let in_run = credential("tls.key", Some("/run/credentials/portcullis@spare.service".into()));
        assert_eq!(in_run, Some("/run/credentials/portcullis@spare.service/tls.key".into()));
        assert_eq!(credential("tls.key", None), Some("/run/credentials/portcullis.service/tls.key".into()));
        for name in ["", ".", "..", "../x", "a/b", "a b"] {
            assert_eq!(credential(name, None), None, "{name}");
        }
    }
}
