//! The kinds of values that several tables share: numbers, durations, words, paths, networks.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use toml::Spanned;

use crate::config::TlsVersion;
use crate::config::error::{ConfigFault, ConfigWarning, Problem, alternatives, nearest, quoted};
use crate::config::raw::{Maybe, Span, Whole};

pub(super) type Result<T> = std::result::Result<T, ConfigFault>;

/// Timers stay far from where clocks overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The resolution of the timers.
const SHORTEST: Duration = Duration::from_millis(1);
/// What the names of files begin with that systemd hands over.
const CREDENTIAL: &str = "credential:";
/// How the versions of TLS are written.
pub(super) const TLS_VERSIONS: [(&str, TlsVersion); 2] =
    [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
const DURATIONS: &str = "write a duration such as \"5s\", \"1m 30s\" or \"250ms\"";

/// A value that is wrong, and why.
pub(super) fn value(
    key: impl Into<String>,
    written: &Spanned<String>,
    wrong: impl fmt::Display,
) -> ConfigFault {
    let problem =
        Problem::Value { key: key.into(), value: quoted(written.get_ref()), wrong: wrong.to_string() };
    ConfigFault { at: written.span(), problem }
}

/// A key that must be there.
pub(super) fn missing(at: Range<usize>, key: impl Into<String>, advice: impl Into<String>) -> ConfigFault {
    ConfigFault { at, problem: Problem::Missing { key: key.into(), advice: advice.into() } }
}

/// Something that is wrong with more than one value.
pub(super) fn conflict(at: Range<usize>, sentence: impl Into<String>) -> ConfigFault {
    ConfigFault { at, problem: Problem::Conflict(sentence.into()) }
}

/// A value that is no text and is wrong, and why.
pub(super) fn bare<T: fmt::Display>(
    key: impl Into<String>,
    at: Range<usize>,
    written: T,
    wrong: impl fmt::Display,
) -> ConfigFault {
    let problem = Problem::Value { key: key.into(), value: written.to_string(), wrong: wrong.to_string() };
    ConfigFault { at, problem }
}

/// A value whose type knows how it is written.
pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(key: &str, written: &Spanned<String>) -> Result<T> {
    written.get_ref().parse().map_err(|wrong| value(key, written, wrong))
}

/// One of a few words.
pub(super) fn word<T: Copy>(key: &str, written: Maybe<String>, words: &[(&str, T)]) -> Result<Option<T>> {
    let Some(written) = written else { return Ok(None) };
    if let Some((_, meant)) = words.iter().find(|(word, _)| word == written.get_ref()) {
        return Ok(Some(*meant));
    }
    let names = words.iter().map(|(word, _)| *word);
    let known = alternatives(names.clone().map(quoted));
    let near =
        nearest(written.get_ref(), names).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
    Err(value(key, &written, format!("must be {known}{near}")))
}

/// A number from 1 to `most`.
pub(super) fn whole(key: &str, written: Maybe<Whole>, most: u32) -> Result<Option<NonZeroU32>> {
    let Some(written) = written else { return Ok(None) };
    let number = written.get_ref().0;
    let fits = u32::try_from(number).ok().filter(|number| *number <= most).and_then(NonZeroU32::new);
    fits.map(Some)
        .ok_or_else(|| bare(key, written.span(), number, format!("must be a whole number from 1 to {most}")))
}

/// A duration that cannot be turned off.
pub(super) fn duration(key: &str, written: Maybe<Span>, default: Duration) -> Result<Duration> {
    longer_than_zero(key, written, default, "this timeout cannot be turned off")
}

/// A duration that is none when it is zero, and why not.
pub(super) fn longer_than_zero(
    key: &str,
    written: Maybe<Span>,
    default: Duration,
    zero: &str,
) -> Result<Duration> {
    let Some(written) = written else { return Ok(default) };
    let text = text_of(written);
    match understood(key, &text)? {
        Duration::ZERO => Err(value(key, &text, format!("{zero}; {DURATIONS}"))),
        duration => Ok(duration),
    }
}

/// A duration that "0s" turns off.
pub(super) fn duration_or_off(
    key: &str,
    written: Maybe<Span>,
    default: Option<Duration>,
) -> Result<Option<Duration>> {
    let Some(written) = written else { return Ok(default) };
    let duration = understood(key, &text_of(written))?;
    Ok(Some(duration).filter(|duration| !duration.is_zero()))
}

fn text_of(written: Spanned<Span>) -> Spanned<String> {
    Spanned::new(written.span(), written.into_inner().0)
}

fn understood(key: &str, text: &Spanned<String>) -> Result<Duration> {
    let duration = humantime::parse_duration(text.get_ref()).map_err(|wrong| {
        let wrong = match wrong {
            humantime::DurationError::UnknownUnit { unit, .. } if unit.is_empty() => {
                "the unit is missing".into()
            }
            humantime::DurationError::UnknownUnit { unit, .. } => {
                format!("{} is no unit of time", quoted(unit))
            }
            humantime::DurationError::NumberOverflow => "out of range".into(),
            _ => "not a duration".into(),
        };
        value(key, text, format!("{wrong}; {DURATIONS}"))
    })?;
    match duration {
        _ if duration > LONGEST => Err(value(key, text, format!("longer than 365 days; {DURATIONS}"))),
        _ if !duration.is_zero() && duration < SHORTEST => {
            Err(value(key, text, format!("shorter than a millisecond; {DURATIONS}")))
        }
        _ => Ok(duration),
    }
}

/// A path, resolved against the directory of the file.
pub(super) fn resolved(key: &str, written: &Spanned<String>, base: &Path) -> Result<PathBuf> {
    match written.get_ref().as_str() {
        "" => {
            Err(value(key, written, "the path is empty; write one, relative to the directory of this file"))
        }
        text if text.contains('\0') => {
            Err(value(key, written, "no path has a NUL character in it; remove it"))
        }
        text => match text.strip_prefix(CREDENTIAL) {
            Some(name) => credential(name, env::var_os("CREDENTIALS_DIRECTORY")).ok_or_else(|| {
                value(key, written, "a credential's name is letters, digits, \".\", \"_\" and \"-\"")
            }),
            None => Ok(base.join(text)),
        },
    }
}

/// The file in which systemd hands over a credential (systemd.exec(5), LoadCredential=).
fn credential(name: &str, directory: Option<OsString>) -> Option<PathBuf> {
    // For a check by hand: where the running service has its own.
    const OF_THE_SERVICE: &str = "/run/credentials/portcullis.service";
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_name = !name.is_empty() && !name.starts_with('.') && name.bytes().all(good);
    is_name.then(|| Path::new(&directory.unwrap_or_else(|| OF_THE_SERVICE.into())).join(name))
}

/// A list of networks. A lone address is a network of one.
pub(super) fn networks(
    key: &str,
    written: &[Spanned<String>],
    remarks: &mut Vec<ConfigWarning>,
) -> Result<Vec<IpNet>> {
    written.iter().map(|entry| network(key, entry, remarks)).collect()
}

fn network(key: &str, written: &Spanned<String>, remarks: &mut Vec<ConfigWarning>) -> Result<IpNet> {
    const WRONG: &str =
        "no network; write one such as \"10.0.0.0/8\" or \"2001:db8::/32\", or a single address";
    let text = written.get_ref();
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    let net = text.parse::<IpNet>().or_else(|_| address()).map_err(|_| value(key, written, WRONG))?;
    if net != net.trunc() {
        let meant = quoted(net.trunc().to_string());
        let sentence =
            format!("{key} {} names an address within a network and means all of {meant}.", quoted(text));
        remarks.push(ConfigWarning { at: written.span(), sentence });
    }
    Ok(unmapped(net.trunc()))
}

/// Client addresses are compared as IPv4 when they are IPv4 in IPv6 (RFC 4291 §2.5.5.2), so networks must be
/// too.
fn unmapped(net: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let IpNet::V6(v6) = net else { return net };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(MAPPED_BITS));
    v4.and_then(|(address, bits)| Ipv4Net::new(address, bits).ok()).map_or(net, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_lies_where_systemd_put_it() {
        let in_run = credential("tls.key", Some("/run/credentials/portcullis@spare.service".into()));
        assert_eq!(in_run, Some("/run/credentials/portcullis@spare.service/tls.key".into()));
        assert_eq!(credential("tls.key", None), Some("/run/credentials/portcullis.service/tls.key".into()));
        for name in ["", ".", "..", "../x", "a/b", "a b"] {
            assert_eq!(credential(name, None), None, "{name}");
        }
    }
}
