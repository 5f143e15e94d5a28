//! Configuration: TOML in, domain types out.
//!
//! Owns every key of `gateway.toml`: its default, its range and its error messages. Each table has a file with its domain
//! type, its keys as serde reads them (`Raw...`) and the conversion between the two; `[[route]]` is split between `route`
//! and `upstream`. Knows nothing of sockets or of the contents of certificates; the files named here are opened by the
//! modules that need them (only `web.root` and `targets.path` are looked up, so that a wrong one is reported before
//! anything binds). Invariant: a [`Config`] is complete and consistent, and contains no text that is still to be parsed.

mod address;
mod admin;
mod auth;
mod backend;
mod backend_tls;
mod convert;
mod error;
mod events;
mod explain;
mod health;
mod host;
mod limits;
mod listener;
mod log;
mod path;
mod penalties;
mod raw;
mod route;
#[cfg(test)]
mod route_fixture;
mod scalar;
mod targets;
mod timeouts;
mod tls_version;
mod upstream;
mod url;
mod values;
mod web;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, Deserializer};

pub use address::{Address, AddressError, Group, SocketAccess};
pub use admin::{Admin, AdminAddress, AdminAddressError, TicketAddress};
pub use auth::{
    AuthKind, AuthMethod, BaseUrl, BaseUrlError, Basic, ClientCertificateConfig, FingerprintError, Forward,
    Jwt, JwtKeys, NamePattern, NamePatternError, PlaceError, TicketConfig, TokenPlace,
};
pub use backend::{Backend, BackendError};
pub use backend_tls::BackendTls;
pub use error::{ConfigError, Problem};
pub use events::Events;
pub use health::Health;
pub(crate) use host::reached;
pub use host::{Host, HostError};
pub(crate) use limits::DEFAULT_MAX_TICKETS;
pub use limits::Limits;
pub use listener::{AllowedHosts, ClientCa, Identity, Listener, Secret};
pub use log::{Log, LogFormat};
pub(crate) use path::is_unambiguous;
pub use path::{PathError, RoutePath};
pub use route::{BackendFailure, Receive, Route, Send};
pub use targets::TokenFile;
pub use timeouts::Timeouts;
pub use tls_version::TlsVersion;
pub use upstream::{Balance, Destinations, SendProxy, UpstreamConfig};
pub(crate) use values::read_duration;
pub use web::Web;

/// A file larger than this many bytes is refused, because it is not a configuration.
const MAX_FILE: u64 = 1 << 20;

/// The configuration of a gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it was read from, as it was named.
    pub file: PathBuf,
    /// The listeners, in the order of the file; at least one.
    pub listeners: Vec<Listener>,
    /// The routes, in the order of the file.
    pub routes: Vec<Route>,
    /// The methods of authentication, in the order of their names.
    pub auth: Vec<AuthMethod>,
    /// Limits on connections and sessions.
    pub limits: Limits,
    /// When connections and sessions are closed.
    pub timeouts: Timeouts,
    /// Static files, if any are served.
    pub web: Option<Web>,
    /// The admin API, if there is one.
    pub admin: Option<Admin>,
    /// Logging.
    pub log: Log,
    /// The receiver of events, if there is one.
    pub events: Option<Events>,
    /// What is valid but probably a mistake: one sentence each, with its position in the file.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads a configuration file. Relative paths in it resolve against its directory.
    ///
    /// # Errors
    /// [`ConfigError`] states in one line the file, the position, what is wrong and what to do.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read(file)?, file)
    }

    /// Parses the text of a configuration file. `file` names it in messages, and relative paths resolve against its
    /// directory; it is not read. Whether `web.root` and the file of `targets` exist is checked.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for the first mistake.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let invalid = |fault| ConfigError::invalid(file, text, fault);
        let document = DeTable::parse(text).map_err(|error| invalid(explain::syntax(&error, text)))?;
        if let Some(fault) = explain::brackets(document.get_ref()) {
            return Err(invalid(fault));
        }
        let raw = raw::RawFile::deserialize(Deserializer::from(document.clone()))
            .map_err(|error| invalid(explain::shape(&error, document.get_ref(), text)))?;
        let (mut config, warnings) = convert::config(raw, file).map_err(invalid)?;
        config.warnings = warnings.iter().map(|warning| error::located(file, text, warning)).collect();
        Ok(config)
    }
}

fn read(file: &Path) -> Result<String, ConfigError> {
    let owned = || file.to_path_buf();
    let unreadable = |cause: std::io::Error| match cause.kind() {
        ErrorKind::NotFound => ConfigError::Missing { file: owned() },
        ErrorKind::IsADirectory => ConfigError::Directory { file: owned() },
        _ => ConfigError::Unreadable { file: owned(), cause },
    };
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|opened| opened.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(ConfigError::TooLarge { file: owned(), limit: MAX_FILE });
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..good]);
        let (line, column) = error::position(&text, good);
        ConfigError::NotUtf8 { file: owned(), line, column }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::admission::MissingOrigin;

    const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    const ROUTE: &str = "[[route]]\nname = \"vnc\"\npath = \"/vnc\"\nbackend = \"tcp://127.0.0.1:5900\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("gateway.toml"))
    }

    /// The configuration with these lines after a listener and a route: keys of the route, or further tables.
    fn with(lines: &str) -> Config {
        parse(&format!("{LISTENER}{ROUTE}{lines}\n")).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The error of a file with these lines after a listener and a route. The first of them is line 7.
    fn error_with(lines: &str) -> String {
        parse(&format!("{LISTENER}{ROUTE}{lines}\n")).unwrap_err().to_string()
    }

    #[test]
    fn absent_keys_have_their_defaults() {
        let config = with("");
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.timeouts, Timeouts::default());
        assert_eq!(config.log, Log::default());
        assert_eq!((&config.web, &config.admin), (&None, &None));
        assert_eq!(config.listeners[0].min_tls, TlsVersion::V1_2);
        assert!(!config.listeners[0].proxy_protocol);
        let route = &config.routes[0];
        assert!(route.origins.same_origin && !route.origins.any && !route.origins.null);
        assert_eq!(route.origins.missing, MissingOrigin::Refuse);
        assert_eq!((route.receive, route.send), (Receive::Any, Send::Binary));
        assert_eq!(route.backend_failure, BackendFailure::Close);
        assert_eq!((&route.host, &route.subprotocols), (&None, &Vec::new()));
        assert_eq!(config.warnings, Vec::<String>::new());
    }

    #[test]
    fn every_key_is_parsed() {
        let config = parse(
            r#"
            [[listener]]
            address = "[::1]:8443"
            certificate = "certs/a.crt"
            private_key = "/etc/keys/a.key"
            min_tls = "1.3"
            trusted_proxies = ["10.0.0.0/8", "2001:db8::1", "::ffff:192.0.2.0/120"]
            proxy_protocol = true
            [[route]]
            name = "desk"
            host = "Bücher.Example."
            path = "/desk/*"
            backend = "tcp://[::1]:5900"
            origins = ["same-origin", "https://desk.example.com"]
            missing_origin = "allow"
            subprotocols = ["binary", "base64"]
            receive = "binary"
            send = "text"
            backend_failure = "status"
            [limits]
            max_sessions = 10_000_000
            max_handshakes = 1
            per_ip = { rate = 4294967295, burst = 2, sessions = 3, exempt = ["127.0.0.0/8"] }
            [timeouts]
            tls = "250ms"
            drain = "1m 30s"
            ping = "0s"
            lifetime = "12h"
            [admin]
            address = "unix:admin.sock"
            [log]
            format = "json"
            level = "debug"
            "#,
        )
        .unwrap();
        let listener = &config.listeners[0];
        let (certificate, private_key) = ("certs/a.crt".into(), "/etc/keys/a.key".into());
        assert_eq!(listener.identity, Some(Identity::Files { certificate, private_key }));
        assert_eq!(listener.min_tls, TlsVersion::V1_3);
        let networks: Vec<String> = listener.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.0.0.0/8", "2001:db8::1/128", "192.0.2.0/24"]);
        assert!(listener.proxy_protocol);
        let route = &config.routes[0];
        assert_eq!(route.host.as_deref(), Some("xn--bcher-kva.example"));
        assert_eq!(route.path, RoutePath::Prefix("/desk/".into()));
        assert_eq!(route.upstream, UpstreamConfig::single("tcp://[::1]:5900".parse().unwrap()));
        assert!(route.origins.same_origin);
        assert_eq!(route.origins.listed, ["https://desk.example.com".parse().unwrap()]);
        assert_eq!(route.origins.missing, MissingOrigin::Allow);
        assert_eq!(route.subprotocols, ["binary", "base64"]);
        assert_eq!((route.receive, route.send), (Receive::Binary, Send::Text));
        assert_eq!(route.backend_failure, BackendFailure::Status);
        assert_eq!((config.limits.max_sessions, config.limits.max_handshakes), (10_000_000, 1));
        assert_eq!(config.limits.per_ip.rate.get(), u32::MAX);
        assert_eq!(config.limits.per_ip.exempt.len(), 1);
        assert_eq!(config.timeouts.tls, Duration::from_millis(250));
        assert_eq!(config.timeouts.drain, Duration::from_secs(90));
        assert_eq!(config.timeouts.ping, None);
        assert_eq!(config.timeouts.lifetime, Some(Duration::from_secs(43_200)));
        assert_eq!(
            config.admin,
            Some(Admin { address: AdminAddress::Unix("admin.sock".into()), tickets: None })
        );
        assert_eq!((config.log.format, config.log.level), (LogFormat::Json, tracing::Level::DEBUG));
        assert_eq!(config.warnings, Vec::<String>::new());
    }

    #[test]
    fn route_and_table_errors_state_position_cause_and_remedy() {
        for (lines, message) in [
            ("orgins = []", r#"7:1: unknown key "orgins" in [[route]]; did you mean "origins"?"#),
            (
                "max_handshakes = 1",
                r#"7:1: unknown key "max_handshakes" in [[route]]; "max_handshakes" belongs in [limits]"#,
            ),
            (
                "[limits]\ntls = \"5s\"",
                r#"8:1: unknown key "tls" in [limits]; "tls" belongs in [[route]] or [timeouts]"#,
            ),
            (
                "[log]\nhealth = {}",
                r#"8:1: unknown key "health" in [log]; it is a table: write [route.health] on a line of its own"#,
            ),
            ("[limits.per-ip]", r#"7:9: unknown key "per-ip" in [limits]; did you mean "per_ip"?"#),
            (
                "[per_ip]",
                r#"7:2: unknown key "per_ip" at the top level; it is a table: write [limits.per_ip] on a line of its own"#,
            ),
            (
                "[steering]",
                r#"7:2: unknown key "steering" at the top level; known here: listener, route, auth, limits, timeouts, web, admin, log, events"#,
            ),
            (
                "[log]\n\"a\\nb\" = 1",
                r#"8:1: unknown key "a\nb" in [log]; known here: format, level, sessions, refused_per_second"#,
            ),
            ("origins = \"*\"", r#"7:11: route "vnc": origins must be a list such as ["…"], found a string"#),
            (
                "origins = [1]",
                r#"7:12: route "vnc": every entry of origins must be a string, found a whole number"#,
            ),
            (
                "origins = []",
                r#"7:11: route "vnc": origins []: an empty list would refuse every page; list some, such as ["https://desk.example.com"], or remove the key to allow pages of this gateway itself"#,
            ),
            ("send = true", r#"7:8: route "vnc": send must be a string, found a boolean"#),
            (
                "receive = \"bin\"",
                r#"7:11: route "vnc": receive "bin": must be "any" or "binary"; did you mean "binary"?"#,
            ),
            (
                "subprotocols = [\"a\", \"a\"]",
                r#"7:22: route "vnc": subprotocols "a": listed twice; remove one of them"#,
            ),
            ("name = \"x\"", r#"7:1: duplicate key "name"; keep one of them"#),
            (
                "[limits]\nmax_sessions = \"5\"",
                "8:16: limits.max_sessions must be a whole number, found a string",
            ),
            (
                "[limits]\nmax_sessions = 5.5",
                "8:16: limits.max_sessions must be a whole number, found a fractional number",
            ),
            (
                "[limits]\nmax_sessions = 0",
                "8:16: limits.max_sessions 0: must be a whole number from 1 to 10000000",
            ),
            (
                "[limits]\nmax_handshakes = 10000001",
                "8:18: limits.max_handshakes 10000001: must be a whole number from 1 to 10000000",
            ),
            (
                "[limits.per_ip]\nrate = -1",
                "8:8: limits.per_ip.rate -1: must be a whole number from 1 to 4294967295",
            ),
            (
                "[limits.per_ip]\nburst = 18446744073709551616",
                "8:9: limits.per_ip.burst 18446744073709551616: must be a whole number from 1 to 4294967295",
            ),
            (
                "[limits.per_ip]\nburst = 170141183460469231731687303715884105728",
                r#"8:9: limits.per_ip.burst "170141183460469231731687303715884105728": the number is too large; write a smaller one"#,
            ),
            (
                "[limits.per_ip]\nexempt = [\"all\"]",
                r#"8:11: limits.per_ip.exempt "all": not a valid network; use one such as "10.0.0.0/8" or "2001:db8::/32", or a single address"#,
            ),
            (
                "[[limits]]",
                "7:3: limits is a table: write [limits] with one bracket on a line of its own, and its keys below",
            ),
            (
                "[timeouts]\ntls = 5",
                r#"8:7: timeouts.tls must be a duration in quotes such as "5s", found a whole number"#,
            ),
            (
                "[timeouts]\nping = \"5\"",
                r#"8:8: timeouts.ping "5": the unit is missing; write a duration such as "5s", "1m 30s" or "250ms""#,
            ),
            (
                "[timeouts]\nping = \"5 parsecs\"",
                r#"8:8: timeouts.ping "5 parsecs": "parsecs" is not a unit of time; write a duration such as "5s", "1m 30s" or "250ms""#,
            ),
            (
                "[timeouts]\nidle = \"2y\"",
                r#"8:8: timeouts.idle "2y": longer than 365 days; write a duration such as "5s", "1m 30s" or "250ms""#,
            ),
            (
                "[timeouts]\npong = \"1us\"",
                r#"8:8: timeouts.pong "1us": shorter than a millisecond; write a duration such as "5s", "1m 30s" or "250ms""#,
            ),
            ("[web]", r#"7:1: web.root is missing; add root = "web", or leave [web] out"#),
            (
                "[admin]",
                r#"7:1: admin.address is missing; add address = "127.0.0.1:9101" or "unix:/run/portcullis/admin.sock", or leave [admin] out"#,
            ),
            (
                "[admin]\naddress = \"0.0.0.0:9101\"",
                r#"8:11: admin.address "0.0.0.0:9101": not a loopback address: anyone who can reach the admin API can close every session; use "127.0.0.1", "[::1]" or "unix:/path", and SSH for remote access"#,
            ),
            (
                "[web]\nroot = \"\"",
                r#"8:8: web.root "": the path is empty; write one, relative to the directory of this file"#,
            ),
            (
                "[web]\nroot = \"src/lib.rs\"",
                r#"8:8: web.root "src/lib.rs": this is not a directory; name the directory that holds the files"#,
            ),
            (
                "[log]\nlevel = \"warning\"",
                r#"8:9: log.level "warning": must be "error", "warn", "info", "debug" or "trace"; did you mean "warn"?"#,
            ),
            (
                "host = \"desk.example.com:8443\"",
                r#"7:8: route "vnc": host "desk.example.com:8443": a host cannot contain ":" (put an IPv6 address in brackets, as in [::1]); write the host alone, such as "desk.example.com", without scheme and port"#,
            ),
            (ROUTE, r#"8:8: route "vnc": name "vnc": another route already has this name; choose a new one"#),
            (
                "[[route]]\npath = \"/x\"",
                r#"7:1: route 2: name is missing; add name = "…", a short name for log lines"#,
            ),
            ("[[route]]\nname = \"x\"", r#"7:1: route "x": path is missing; add path = "/vnc""#),
            (
                "[[route]]\nname = \"x\"\npath = \"/x\"",
                r#"7:1: route "x": backend is missing; add backend = "tcp://host:port""#,
            ),
            (
                "[[route]]\nname = \"x\"\npath = \"/vnc\"\nbackend = \"tcp://a:1\"",
                r#"9:8: route "x": path "/vnc": route "vnc" already has this path on the same host; change one of them"#,
            ),
            (
                "[[route]]\nname = \"x\"\npath = \"/a/../b\"\nbackend = \"tcp://a:1\"",
                r#"9:8: route "x": path "/a/../b": requests for such a path are refused, because proxies read it differently; remove empty, "." and ".." segments, backslashes, and encoded ".", "/", "\" and NUL"#,
            ),
        ] {
            assert_eq!(error_with(lines), format!("gateway.toml:{message}"), "for {lines}");
        }
    }

    #[test]
    fn invalid_origins_and_names_are_refused_with_advice() {
        for (lines, position, advice) in [
            ("origins = [\"*\", \"same_origin\"]", "7:17", r#"did you mean "same-origin"?"#),
            ("origins = [\"desk.example.com\"]", "7:12", r#"such as "https://desk.example.com""#),
            ("subprotocols = [\"a, b\"]", "7:17", "one per entry"),
            ("subprotocols = [\"\"]", "7:17", "one per entry"),
            ("host = \"*.example.com\"", "7:8", "write the host alone"),
            ("[[route]]\nname = \"\"", "8:8", "1 to 64 visible characters"),
            ("[[route]]\nname = \"a\\nb\"", "8:8", "1 to 64 visible characters"),
        ] {
            let error = error_with(lines);
            assert!(error.starts_with(&format!("gateway.toml:{position}: route ")), "for {lines}: {error}");
            assert!(error.contains(advice), "for {lines}: {error}");
            assert_eq!(error.lines().count(), 1, "for {lines}: {error}");
        }
    }

    #[test]
    fn listener_errors_state_position_cause_and_remedy() {
        for (text, message) in [
            (
                "",
                r#"1:1: there is no [[listener]]; add one with address = "0.0.0.0:8443", certificate and private_key"#,
            ),
            (
                "[listener]",
                "1:2: listener is a table: write [[listener]] with two brackets on a line of its own, and its keys below",
            ),
            (
                "listener = [\"x\"]",
                "1:13: listener is a table: write [[listener]] with two brackets on a line of its own, and its keys below",
            ),
            (
                "log = [\"json\", \"info\"]",
                "1:1: log is a table: write [log] with one bracket on a line of its own, and its keys below",
            ),
            (
                "orgins = 1",
                r#"1:1: unknown key "orgins" at the top level; did you mean "origins", which belongs in [[route]]?"#,
            ),
            ("[[listener]]", r#"1:1: listener 1: address is missing; add address = "0.0.0.0:8443""#),
            (
                "[[listener]]\naddress = 8443",
                "2:11: listener 1: address must be a string, found a whole number",
            ),
            (
                "[[listener]]\naddress = \"localhost:8443\"",
                r#"2:11: listener 1: address "localhost:8443": write ip:port, such as "0.0.0.0:8443", "127.0.0.1:8443" or "[::1]:8443"; unix:/path for a Unix socket; or systemd:NAME for the sockets of a socket unit"#,
            ),
            (
                "[[listener]]\naddress = \"127.0.0.1:1\"\ncertificate = \"a\"",
                r#"3:15: listener 1: private_key is missing; a certificate needs its key; add private_key = "….key", or leave both out for plain ws://"#,
            ),
            (
                "[[listener]]\naddress = \"127.0.0.1:1\"\nprivate_key = \"a\"",
                r#"3:15: listener 1: certificate is missing; a key needs its certificate; add certificate = "….crt", or leave both out for plain ws://"#,
            ),
            (
                "[[listener]]\naddress = \"127.0.0.1:1\"\n[[listener]]\naddress = \"127.0.0.1:1\"",
                r#"4:11: listener 2: address "127.0.0.1:1": listener 1 already has this address and port; choose another port"#,
            ),
            (
                "[[listener]]\naddress = \"0.0.0.0:1\"\n[[listener]]\naddress = \"127.0.0.1:1\"",
                r#"4:11: listener 2: address "127.0.0.1:1": listener 1 already has this address and port; choose another port"#,
            ),
            (
                "[[listener]]\naddress = \"127.0.0.1:1\"\nproxy_protocol = true",
                r#"3:18: listener 1: proxy_protocol true: anyone could send a PROXY header and claim any address; list your proxies, such as trusted_proxies = ["10.0.0.0/8"]"#,
            ),
            (
                "[[listener]]\naddress = \"127.0.0.1:1\"\nproxy_protocol = \"v2\"",
                "3:18: listener 1: proxy_protocol must be a boolean, found a string",
            ),
            (
                LISTENER,
                "1:1: there is no [[route]] and no [web], so nothing to serve; add a [[route]] with name, path and backend",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), format!("gateway.toml:{message}"), "for {text}");
        }
    }

    #[test]
    fn listeners_that_can_be_bound_together_are_accepted() {
        let config = parse(&format!("{LISTENER}{LISTENER}[[listener]]\naddress = \"127.0.0.1:1\"\n[[listener]]\naddress = \"[::]:1\"\n{ROUTE}")).unwrap();
        assert_eq!(config.listeners.len(), 4);
    }

    #[test]
    fn text_that_is_not_toml_is_an_error_with_a_position() {
        for (text, position) in
            [("a = b", "1:5"), ("[web", "1:5"), ("\u{feff}a", "1:2"), ("x = \"\n", "1:6"), ("\0", "1:2")]
        {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("gateway.toml:{position}: ")), "for {text:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn probable_mistakes_cause_warnings() {
        let warnings = |text: &str| parse(text).unwrap_or_else(|error| panic!("{error}")).warnings;
        for (lines, beginning) in [
            (
                "origins = [\"same-origin\", \"*\"]",
                "gateway.toml:7:27: route \"vnc\": origins \"*\" allows every web page",
            ),
            (
                "origins = [\"null\"]",
                "gateway.toml:7:12: route \"vnc\": origins \"null\" is the origin of any page",
            ),
            (
                "[limits.per_ip]\nexempt = [\"127.0.0.1/8\"]",
                "gateway.toml:8:11: limits.per_ip.exempt \"127.0.0.1/8\" is an address within a network and matches all of \"127.0.0.0/8\".",
            ),
        ] {
            let warnings = warnings(&format!("{LISTENER}{ROUTE}{lines}"));
            assert_eq!(warnings.len(), 1, "for {lines}: {warnings:?}");
            assert!(warnings[0].starts_with(beginning), "for {lines}: {warnings:?}");
        }
        for (listener, beginning) in [
            (
                "address = \"0.0.0.0:80\"",
                "gateway.toml:2:11: listener 1: address 0.0.0.0:80 is reachable from other machines without TLS",
            ),
            (
                "address = \"[2001:db8::1]:80\"",
                "gateway.toml:2:11: listener 1: address [2001:db8::1]:80 is reachable",
            ),
            (
                "address = \"[::1]:80\"\nmin_tls = \"1.2\"",
                "gateway.toml:3:11: listener 1: min_tls has no effect",
            ),
            (
                "address = \"127.9.9.9:80\"\ntrusted_proxies = [\"::/0\"]",
                "gateway.toml:3:20: listener 1: trusted_proxies ::/0 trusts every address",
            ),
        ] {
            let warnings = warnings(&format!("[[listener]]\n{listener}\n{ROUTE}"));
            assert_eq!(warnings.len(), 1, "for {listener}: {warnings:?}");
            assert!(warnings[0].starts_with(beginning), "for {listener}: {warnings:?}");
        }
    }

    #[test]
    fn errors_distinguish_unreadable_from_invalid_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("gateway.toml");
        let name = file.display();
        let error = || Config::load(&file).unwrap_err().to_string();

        let missing =
            "no such file; name another with --config, or copy the gateway.toml that ships with Portcullis";
        assert_eq!(error(), format!("{name}: {missing}"));

        fs::write(&file, b"# fine\nkey = \"\xff\"").unwrap();
        assert_eq!(error(), format!("{name}:2:8: not UTF-8 from here on; save the file as UTF-8"));

        fs::write(&file, "#".repeat(MAX_FILE as usize + 1)).unwrap();
        assert_eq!(
            error(),
            format!(
                "{name}: larger than 1048576 bytes, so not a configuration file; name another file with --config"
            )
        );

        let error = Config::load(directory.path()).unwrap_err().to_string();
        let directory = directory.path().display();
        assert_eq!(
            error,
            format!("{directory}: this is a directory; name the file in it with --config {name}")
        );
    }

    #[test]
    fn relative_paths_resolve_against_the_directory_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("gateway.toml");
        fs::create_dir(directory.path().join("pages")).unwrap();
        let text =
            format!("{LISTENER}certificate = \"a.crt\"\nprivate_key = \"a.key\"\n[web]\nroot = \"pages\"");
        fs::write(&file, &text).unwrap();

        let config = Config::load(&file).unwrap();

        let inside = |name| directory.path().join(name);
        assert_eq!(config.file, file);
        assert_eq!(config.web, Some(Web { root: inside("pages"), auth: Vec::new() }));
        let identity = Identity::Files { certificate: inside("a.crt"), private_key: inside("a.key") };
        assert_eq!(config.listeners[0].identity, Some(identity));

        let of_route = |lines| {
            let text = format!("{LISTENER}[[route]]\nname = \"a\"\npath = \"/a\"\n{lines}");
            Config::parse(&text, &file).unwrap_or_else(|error| panic!("{error}")).routes.remove(0).upstream
        };
        let tls = of_route(
            "backend = \"tls://a:1\"\ntls = { ca = \"a.pem\", client_certificate = \"b.crt\", client_key = \"b.key\" }",
        )
        .tls;
        assert_eq!((tls.ca, tls.client), (Some(inside("a.pem")), Some((inside("b.crt"), inside("b.key")))));
        let tokens = of_route("targets = { from = \"file\", path = \"pages\" }").destinations;
        assert_eq!(
            tokens,
            Destinations::Tokens(TokenFile { path: inside("pages"), unix: None, end_sessions: false })
        );

        fs::remove_dir(inside("pages")).unwrap();
        let error = Config::load(&file).unwrap_err().to_string();
        assert!(
            error.contains(":6:8: web.root \"pages\": ") && error.contains("create the directory"),
            "{error}"
        );
    }

    #[test]
    fn private_files_cannot_be_below_the_web_root() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("gateway.toml");
        fs::create_dir(directory.path().join("certs")).unwrap();
        fs::write(directory.path().join("certs/a.key"), "").unwrap();
        let text =
            format!("{LISTENER}certificate = \"a.crt\"\nprivate_key = \"certs/a.key\"\n[web]\nroot = \".\"");
        let error = Config::parse(&text, &file).unwrap_err().to_string();
        assert!(
            error.contains(":6:8: web.root \".\": any client could download the private key "),
            "{error}"
        );
        assert!(error.ends_with("certs/a.key from this directory; move it elsewhere"), "{error}");

        for (route, secret) in [
            (
                "backend = \"tls://a:1\"\ntls = { client_certificate = \"a.crt\", client_key = \"certs/a.key\" }",
                "private key",
            ),
            ("targets = { from = \"file\", path = \"certs\" }", "tokens in"),
        ] {
            let text =
                format!("{LISTENER}[[route]]\nname = \"a\"\npath = \"/\"\n{route}\n[web]\nroot = \".\"");
            let error = Config::parse(&text, &file).unwrap_err().to_string();
            assert!(error.contains(&format!(": any client could download the {secret} ")), "{error}");
        }

        for log in ["sessions.log", "certs/sessions.log", "certs/a.key"] {
            let text = format!("{LISTENER}{ROUTE}[web]\nroot = \".\"\n[log]\nsessions = \"{log}\"");
            let error = Config::parse(&text, &file).unwrap_err().to_string();
            assert!(error.contains(": web.root \".\": any client could download the log "), "{error}");
        }

        let text = format!("{LISTENER}{ROUTE}[web]\nroot = \".\"");
        fs::write(&file, text).unwrap();
        let warnings = Config::load(&file).unwrap().warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].contains(":8:8: web.root \".\" publishes this configuration file"),
            "{warnings:?}"
        );
    }

    /// Lines that are almost valid, so that random files get past the TOML syntax.
    fn line() -> impl Strategy<Value = String> {
        let tables = raw::tables();
        let headers: Vec<String> = tables.iter().map(|table| table.header.to_owned()).collect();
        let keys: Vec<String> =
            tables.iter().flat_map(|table| table.keys).map(|key| (*key).to_owned()).collect();
        let value = prop_oneof![
            "\"\\PC{0,12}\"",
            any::<i128>().prop_map(|number| number.to_string()),
            any::<f64>().prop_map(|number| number.to_string()),
            Just("[]".to_owned()),
            Just("[[\"*\"], 1]".to_owned()),
            Just("{ root = \"/\" }".to_owned()),
            Just("{ from = \"file\", path = \"src\" }".to_owned()),
            Just("{ insecure_no_verify = true }".to_owned()),
            Just("{}".to_owned()),
            Just("true".to_owned()),
            Just("[\"tls://a:1\", \"starttls+xmpp://a:1\"]".to_owned()),
            Just("\"0s\"".to_owned()),
            Just("\"127.0.0.1:0\"".to_owned()),
            Just("\"tcp://a:1\"".to_owned()),
        ];
        prop_oneof![
            prop::sample::select(headers),
            (prop::sample::select(keys), value).prop_map(|(key, value)| format!("{key} = {value}")),
        ]
    }

    fn assert_error_or_complete(text: &str) -> Result<(), TestCaseError> {
        match parse(text) {
            Ok(config) => {
                prop_assert!(!config.listeners.is_empty());
                for UpstreamConfig { destinations, xmpp_domain, .. } in
                    config.routes.iter().map(|route| &route.upstream)
                {
                    let backends = match destinations {
                        Destinations::Fixed(backends) => &backends[..],
                        Destinations::Tokens(_) => continue,
                    };
                    prop_assert!(!backends.is_empty());
                    let is_xmpp = |backend: &Backend| matches!(backend, Backend::StartTlsXmpp { .. });
                    prop_assert_eq!(backends.iter().any(is_xmpp), xmpp_domain.is_some());
                }
            }
            Err(error) => {
                let error = error.to_string();
                prop_assert!(error.starts_with("gateway.toml:"), "{}", error);
                prop_assert_eq!(error.lines().count(), 1, "{}", error);
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_in_one_line(text in any::<String>()) {
            assert_error_or_complete(&text)?;
        }

        #[test]
        fn any_lines_are_parsed_or_refused_in_one_line(lines in prop::collection::vec(line(), 0..12)) {
            assert_error_or_complete(&lines.join("\n"))?;
            assert_error_or_complete(&format!("{LISTENER}{ROUTE}{}", lines.join("\n")))?;
        }

        #[test]
        fn any_text_in_a_value_is_parsed_or_refused_in_one_line(text in any::<String>(), key in 0..100usize) {
            let keys: Vec<_> =
                raw::tables().iter().flat_map(|table| table.keys.iter().map(|key| (table.header, *key))).collect();
            let (header, key) = keys[key % keys.len()];
            let quoted: String = text.chars().map(|c| format!("\\U{:08X}", u32::from(c))).collect();
            assert_error_or_complete(&format!("{LISTENER}{ROUTE}{header}\n{key} = \"{quoted}\""))?;
            assert_error_or_complete(&format!("{LISTENER}{ROUTE}{header}\n{key} = [\"{quoted}\"]"))?;
        }
    }
}
