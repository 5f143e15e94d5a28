//! `kind = "forward"`: an HTTP server decides who may enter, the authority.
//!
//! Owns which URLs can be asked, and the bounds of what is kept and waited for.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, Uri};
use toml::Spanned;
use url::{Host, Url};

use super::RawAuth;
use crate::config::error::{ConfigWarning, quoted};
use crate::config::scalar::{DurationText, OptionalKey};
use crate::config::values::{
    Result, duration, duration_or_off, integer, invalid, invalid_literal, missing, parsed, resolve_path,
};

/// How long the authority may take, unless the configuration says otherwise.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A client does not wait longer than this.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// How many requests the authority has at the same time, unless the configuration says otherwise.
const MAX_IN_FLIGHT: u32 = 32;
/// A login that ended this long ago should not open a session.
const MAX_CACHE: Duration = Duration::from_secs(60 * 60);

/// The authority, and what its answers mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// With `http` or `https`.
    pub url: Uri,
    /// The PEM file with the authorities that the server's certificate must be of, if not one of the system's.
    pub ca: Option<PathBuf>,
    /// How long a client waits, for its turn and for the answer.
    pub timeout: Duration,
    /// The largest number of requests at the same time.
    pub max_in_flight: u32,
    /// How long an answer that admits a request counts for equal requests; `None` if each is asked for.
    pub cache: Option<Duration>,
    /// The field of the answer with the user's name.
    pub user_header: Option<HeaderName>,
    /// The field that selects one of the route's targets.
    pub target_header: Option<HeaderName>,
    /// The field with when the session must end.
    pub expires_header: Option<HeaderName>,
}

/// Takes the keys of this kind. `at` is where the table is, `key` writes one in full.
pub(super) fn forward(
    table: &mut RawAuth,
    at: Range<usize>,
    key: &dyn Fn(&str) -> String,
    base: &Path,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Forward> {
    let Some(written) = table.url.take() else {
        return Err(missing(at, key("url"), "add url = \"http://127.0.0.1:9000/check\""));
    };
    let url = url(&key("url"), &written, warnings)?;
    let is_https = url.scheme_str() == Some("https");
    if let Some(ca) = table.ca.as_ref().filter(|_| !is_https) {
        return Err(invalid(key("ca"), ca, "the url does not use https; remove this key"));
    }
    let header = |name: &str, written: OptionalKey<String>| {
        written.map(|written| header_name(&key(name), &written)).transpose()
    };
    Ok(Forward {
        url,
        ca: table.ca.take().map(|path| resolve_path(&key("ca"), &path, base)).transpose()?,
        timeout: at_most(&key("timeout"), table.timeout.take(), MAX_TIMEOUT, |key, written| {
            duration(key, written, TIMEOUT)
        })?,
        max_in_flight: integer(&key("max_in_flight"), table.max_in_flight.take(), 1000)?
            .map_or(MAX_IN_FLIGHT, u32::from),
        cache: at_most(&key("cache"), table.cache.take(), MAX_CACHE, |key, written| {
            Ok(duration_or_off(key, written, None)?.unwrap_or_default())
        })
        .map(|cache| Some(cache).filter(|cache| !cache.is_zero()))?,
        user_header: header("user_header", table.user_header.take())?,
        target_header: header("target_header", table.target_header.take())?,
        expires_header: header("expires_header", table.expires_header.take())?,
    })
}

/// A duration of at most `max`.
fn at_most(
    key: &str,
    written: OptionalKey<DurationText>,
    max: Duration,
    convert: impl FnOnce(&str, OptionalKey<DurationText>) -> Result<Duration>,
) -> Result<Duration> {
    let text = written.as_ref().map(|written| Spanned::new(written.span(), written.get_ref().0.clone()));
    let duration = convert(key, written)?;
    match text {
        Some(text) if duration > max => {
            let wrong = format!("must be at most \"{}\"", humantime::format_duration(max));
            Err(invalid(key, &text, wrong))
        }
        _ => Ok(duration),
    }
}

/// A URL that can be asked. Cookies and passwords are sent to it.
fn url(key: &str, written: &Spanned<String>, warnings: &mut Vec<ConfigWarning>) -> Result<Uri> {
    const ADVICE: &str = "write one such as \"http://127.0.0.1:9000/check\"";
    let wrong = |wrong: &str| invalid(key, written, format!("{wrong}; {ADVICE}"));
    let url = Url::parse(written.get_ref()).map_err(|error| wrong(&format!("not a URL ({error})")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("the scheme is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(wrong("a user, a password or a fragment cannot be part of it"));
    }
    let is_loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    if url.scheme() == "http" && !is_loopback {
        let sentence = format!(
            "{key} {} sends the cookies and passwords of users without encryption; use https unless the network is yours.",
            quoted(written.get_ref())
        );
        warnings.push(ConfigWarning { at: written.span(), sentence });
    }
    url.as_str().parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))
}

fn header_name(key: &str, written: &Spanned<String>) -> Result<HeaderName> {
    if written.get_ref().is_empty() {
        return Err(invalid_literal(
            key,
            written.span(),
            "\"\"",
            "write the name of a field, or remove the key",
        ));
    }
    parsed(key, written)
}

#[cfg(test)]
mod tests {
    use super::super::{super::Config, AuthKind};
    use super::*;

    fn config(lines: &str) -> std::result::Result<Config, String> {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"desk\"\npath = \"/\"\nbackend = \"tcp://127.0.0.1:1\"\nauth = \"portal\"\n[auth.portal]\nkind = \"forward\"\n{lines}"
        );
        Config::parse(&text, Path::new("/etc/g.toml")).map_err(|error| error.to_string())
    }

    fn parse(lines: &str) -> std::result::Result<Forward, String> {
        match config(lines)?.auth.into_iter().next().unwrap().kind {
            AuthKind::Forward(forward) => Ok(*forward),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_wait_five_seconds_and_keep_nothing() {
        let expected = Forward {
            url: "http://127.0.0.1:9000/check".parse().unwrap(),
            ca: None,
            timeout: Duration::from_secs(5),
            max_in_flight: 32,
            cache: None,
            user_header: None,
            target_header: None,
            expires_header: None,
        };
        assert_eq!(parse("url = \"http://127.0.0.1:9000/check\"").unwrap(), expected);
    }

    #[test]
    fn every_key_is_read() {
        let forward = parse(
            "url = \"https://id.example.com/check?a=b\"\nca = \"ca.pem\"\ntimeout = \"2s\"\nmax_in_flight = 4\ncache = \"30s\"\nuser_header = \"Remote-User\"\ntarget_header = \"X-Desk\"\nexpires_header = \"X-Expires\"",
        )
        .unwrap();
        let expected = Forward {
            url: "https://id.example.com/check?a=b".parse().unwrap(),
            ca: Some("/etc/ca.pem".into()),
            timeout: Duration::from_secs(2),
            max_in_flight: 4,
            cache: Some(Duration::from_secs(30)),
            user_header: Some(HeaderName::from_static("remote-user")),
            target_header: Some(HeaderName::from_static("x-desk")),
            expires_header: Some(HeaderName::from_static("x-expires")),
        };
        assert_eq!(forward, expected);
        assert_eq!(parse("url = \"http://[::1]/\"\ncache = \"0s\"").unwrap().cache, None);
    }

    #[test]
    fn each_wrong_value_names_the_key_and_what_to_do() {
        for (lines, expected) in [
            ("", "auth.portal.url is missing; add url = "),
            ("url = \"127.0.0.1:9000\"", "auth.portal.url \"127.0.0.1:9000\": not a URL"),
            ("url = \"unix:/run/a.sock\"", "the scheme is neither http nor https; write one"),
            ("url = \"http://ann:secret@127.0.0.1/\"", "cannot be part of it"),
            ("url = \"http://127.0.0.1/#a\"", "cannot be part of it"),
            ("url = \"http://127.0.0.1/\"\nca = \"a\"", "auth.portal.ca \"a\": the url does not use https"),
            ("url = \"http://127.0.0.1/\"\ntimeout = \"0s\"", "this timeout cannot be turned off"),
            ("url = \"http://127.0.0.1/\"\ntimeout = \"2m\"", "must be at most \"1m\""),
            ("url = \"http://127.0.0.1/\"\ncache = \"2h\"", "must be at most \"1h\""),
            ("url = \"http://127.0.0.1/\"\nmax_in_flight = 0", "must be a whole number from 1 to 1000"),
            (
                "url = \"http://127.0.0.1/\"\nuser_header = \"a b\"",
                "auth.portal.user_header \"a b\": invalid",
            ),
            ("url = \"http://127.0.0.1/\"\nuser_header = \"\"", "write the name of a field"),
            ("url = \"http://127.0.0.1/\"\nfrom = [\"header\"]", "auth.portal.from does not belong"),
        ] {
            let error = parse(lines).unwrap_err();
            assert!(error.contains(expected), "{lines}: {error}");
        }
    }

    #[test]
    fn a_url_that_sends_passwords_over_a_network_in_clear_is_a_warning() {
        let warnings = config("url = \"http://login.example.com/\"").unwrap().warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("without encryption"), "{warnings:?}");
        for url in
            ["https://login.example.com/", "http://127.0.0.2:80/", "http://[::1]/", "http://localhost/"]
        {
            assert_eq!(config(&format!("url = \"{url}\"")).unwrap().warnings, Vec::<String>::new());
        }
    }
}
