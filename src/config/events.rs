//! `[events]`: the receiver of an event for each session that opens or ends.
//!
//! Reads neither the secret nor the certificates: `events` does, when it is set up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use toml::Spanned;

use super::scalar::{DurationText, Integer, OptionalKey};
use super::url::server_url;
use super::values::{Result, duration, integer, invalid, missing, nonzero_duration, resolve_path};

/// The default of `events.queue`.
const QUEUE: usize = 10_000;
/// More events than this are a typing error: they would take gigabytes.
const MAX_QUEUE: u32 = 1_000_000;
/// The default of `events.timeout`.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The default of `events.max_age`.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Where events are sent, and how long they are kept for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Events {
    /// The URL that they are posted to: with `https`, or with `http` and a loopback address.
    pub url: Uri,
    /// The file with the secret that signs them.
    pub secret_file: PathBuf,
    /// The PEM file with the authorities that the receiver's certificate must be of, if not one of the system's.
    pub ca: Option<PathBuf>,
    /// How many events wait at most.
    pub queue: usize,
    /// How long a request may take.
    pub timeout: Duration,
    /// How long an event waits at most.
    pub max_age: Duration,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEvents {
    url: OptionalKey<String>,
    secret_file: OptionalKey<String>,
    ca: OptionalKey<String>,
    queue: OptionalKey<Integer>,
    timeout: OptionalKey<DurationText>,
    max_age: OptionalKey<DurationText>,
}

pub(super) fn events(table: Spanned<RawEvents>, base: &Path) -> Result<Events> {
    let at = table.span();
    let raw = table.into_inner();
    let Some(url) = raw.url else {
        return Err(missing(at, "events.url", "add url = \"https://www.example.com/events\""));
    };
    let Some(secret_file) = raw.secret_file else {
        return Err(missing(at, "events.secret_file", "add secret_file = \"events.secret\""));
    };
    let (url, is_https) = server_url("events.url", &url, "https://www.example.com/events")?;
    if let Some(ca) = raw.ca.as_ref().filter(|_| !is_https) {
        return Err(invalid("events.ca", ca, "events.url does not use https; remove this key"));
    }
    let queue = integer("events.queue", raw.queue, MAX_QUEUE)?;
    let kept = "events would never be sent again";
    Ok(Events {
        url,
        secret_file: resolve_path("events.secret_file", &secret_file, base)?,
        ca: raw.ca.map(|path| resolve_path("events.ca", &path, base)).transpose()?,
        queue: queue.map_or(QUEUE, |number| number.get() as usize),
        timeout: duration("events.timeout", raw.timeout, TIMEOUT)?,
        max_age: nonzero_duration("events.max_age", raw.max_age, MAX_AGE, kept)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(lines: &str) -> std::result::Result<Option<Events>, String> {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"a\"\npath = \"/a\"\n\
             backend = \"tcp://127.0.0.1:5900\"\n{lines}\n"
        );
        let config = Config::parse(&text, Path::new("gateway.toml")).map_err(|error| error.to_string())?;
        Ok(config.events)
    }

    #[test]
    fn without_the_table_there_are_no_events() {
        assert_eq!(parse(""), Ok(None));
    }

    #[test]
    fn every_key_is_parsed_and_has_its_default() {
        let needed =
            "[events]\nurl = \"https://www.example.com/events?a=b\"\nsecret_file = \"events.secret\"\n";
        let default = Events {
            url: Uri::from_static("https://www.example.com/events?a=b"),
            secret_file: "events.secret".into(),
            ca: None,
            queue: 10_000,
            timeout: Duration::from_secs(5),
            max_age: Duration::from_secs(86_400),
        };
        assert_eq!(parse(needed), Ok(Some(default.clone())));
        let all = format!("{needed}ca = \"ca.pem\"\nqueue = 1\ntimeout = \"250ms\"\nmax_age = \"1h\"");
        let all_set = Events {
            ca: Some("ca.pem".into()),
            queue: 1,
            timeout: Duration::from_millis(250),
            max_age: Duration::from_secs(3600),
            ..default
        };
        assert_eq!(parse(&all), Ok(Some(all_set)));
    }

    #[test]
    fn each_mistake_has_its_own_message() {
        let url = "url = \"https://www.example.com/events\"\n";
        let secret = "secret_file = \"s\"\n";
        for (lines, message) in [
            (secret.to_owned(), "events.url is missing; add url = "),
            (url.to_owned(), "events.secret_file is missing; add secret_file = "),
            (format!("url = \"http://www.example.com/\"\n{secret}"), "http is for loopback addresses"),
            (format!("url = \"ftp://www.example.com/\"\n{secret}"), "the scheme is not https"),
            (format!("url = \"https://ann:pw@www.example.com/\"\n{secret}"), "a user, a password"),
            (format!("url = \"/events\"\n{secret}"), "not a URL"),
            (format!("url = \"http://127.0.0.1:9000/\"\nca = \"a\"\n{secret}"), "does not use https"),
            (format!("{url}{secret}queue = 0"), "must be a whole number from 1 to 1000000"),
            (format!("{url}{secret}timeout = \"0s\""), "this timeout cannot be turned off"),
            (format!("{url}{secret}max_age = \"0s\""), "events would never be sent again"),
            (format!("{url}{secret}secret = \"s\""), "unknown key \"secret\" in [events]"),
        ] {
            let error = parse(&format!("[events]\n{lines}")).unwrap_err();
            assert!(error.contains(message), "{lines}: {error}");
        }
    }
}
