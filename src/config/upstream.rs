//! The keys of `[[route]]` about backends: `backend` or `targets`, load balancing, and how backends are reached.
//!
//! Owns the rules between these keys. Resolving, dialling and health checks are the task of `backend`.

use std::ops::Range;
use std::path::Path;

use ipnet::IpNet;
use toml::Spanned;

use super::backend::Backend;
use super::backend_tls::{BackendTls, check_certificate_names, tls};
use super::error::ConfigWarning;
use super::health::{Health, health};
use super::host::{Host, reached, without_trailing_dot};
use super::raw::RawRoute;
use super::scalar::{OptionalKey, StringList, StringOrList};
use super::targets::{TokenFile, targets};
use super::values::{
    MAX_CONNECTIONS, Result, RouteKey, SpannedBackend, conflict, integer, invalid, invalid_literal, keyword,
    missing, networks, parsed,
};

use crate::admission::rate::covers;

/// The backends of a route, and how they are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// The backends.
    pub destinations: Destinations,
    /// Which of several backends gets the next session.
    pub balance: Balance,
    /// Skip a backend that has this many sessions; `None` leaves only the limit of the gateway.
    pub max_sessions: Option<usize>,
    /// TLS to the backends that use it.
    pub tls: BackendTls,
    /// The domain to request from `starttls+xmpp://` backends, in lower-case ASCII and without trailing dot
    /// (RFC 6120 §4.7.2). In a parsed configuration it is set exactly if there is such a backend.
    pub xmpp_domain: Option<String>,
    /// The only networks that may be dialled, IPv4-mapped IPv6 written as IPv4; never empty. `None` permits the
    /// addresses in the configuration, and names that resolve to anything but link-local and cloud metadata addresses.
    pub allowed_networks: Option<Vec<IpNet>>,
    /// Send the client's address to the backend in a PROXY protocol header of this version.
    pub send_proxy: Option<SendProxy>,
    /// Active health checks; `None` is off.
    pub health: Option<Health>,
}

impl UpstreamConfig {
    /// This one backend, and defaults for everything else.
    pub fn single(backend: Backend) -> Self {
        Self {
            destinations: Destinations::Fixed(vec![backend]),
            balance: Balance::default(),
            max_sessions: None,
            tls: BackendTls::default(),
            xmpp_domain: None,
            allowed_networks: None,
            send_proxy: None,
            health: None,
        }
    }
}

/// Where the backends are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destinations {
    /// In the configuration; at least one, no duplicates.
    Fixed(Vec<Backend>),
    /// In a file of tokens; a client's token selects one.
    Tokens(TokenFile),
}

/// The load balancing method: which of several backends gets the next session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// The one with the fewest sessions.
    LeastSessions,
    /// The first that can be reached, in the order of the list.
    First,
    /// Always the same one for a client address.
    SourceIp,
}

/// The version of the PROXY protocol header that is sent to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendProxy {
    /// Version 1: one line of text.
    V1,
    /// Version 2: binary, with TLS information and a unique id in addition to the addresses.
    V2,
}

/// Takes the keys about backends out of the route.
pub(super) fn upstream(
    key: RouteKey<'_>,
    at: Range<usize>,
    raw: &mut RawRoute,
    base: &Path,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<UpstreamConfig> {
    let (destinations, backends) = destinations(key, at, raw, base)?;
    let xmpp_domain = xmpp_domain(key, raw.xmpp_domain.take(), &backends)?;
    let tls = tls(key, raw.tls.take(), &backends, base, warnings)?;
    if tls.server_name.is_none() {
        check_certificate_names(&key("backend"), &backends, xmpp_domain.as_deref())?;
    }
    let balances = [
        ("round-robin", Balance::RoundRobin),
        ("least-sessions", Balance::LeastSessions),
        ("first", Balance::First),
        ("source-ip", Balance::SourceIp),
    ];
    let send_proxies = [("v1", SendProxy::V1), ("v2", SendProxy::V2)];
    let allowed = raw.allowed_networks.take();
    Ok(UpstreamConfig {
        destinations,
        balance: keyword(&key("balance"), raw.balance.take(), &balances)?.unwrap_or_default(),
        max_sessions: integer(&key("max_sessions"), raw.max_sessions.take(), MAX_CONNECTIONS)?
            .map(|number| number.get() as usize),
        tls,
        xmpp_domain,
        allowed_networks: allowed
            .map(|list| allowed_networks(key, &list, &backends, warnings))
            .transpose()?,
        send_proxy: keyword(&key("send_proxy"), raw.send_proxy.take(), &send_proxies)?,
        health: raw.health.take().map(|table| health(key, table.into_inner())).transpose()?,
    })
}

/// The destinations, and the listed backends with their positions.
fn destinations(
    key: RouteKey<'_>,
    at: Range<usize>,
    raw: &mut RawRoute,
    base: &Path,
) -> Result<(Destinations, Vec<SpannedBackend>)> {
    match (raw.backend.take(), raw.targets.take()) {
        (Some(_), Some(targets)) => {
            let sentence = format!("{} and backend exclude each other; keep one of them", key("targets"));
            Err(conflict(targets.span(), sentence))
        }
        (Some(list), None) => {
            let backends = backends(&key("backend"), list)?;
            let fixed = backends.iter().map(|(backend, _)| backend.clone()).collect();
            Ok((Destinations::Fixed(fixed), backends))
        }
        (None, Some(table)) => {
            let tokens = targets(key, table, base)?;
            only_with_backend(key, raw)?;
            Ok((Destinations::Tokens(tokens), Vec::new()))
        }
        (None, None) => Err(missing(at, key("backend"), "add backend = \"tcp://host:port\"")),
    }
}

fn backends(key: &str, written: Spanned<StringOrList>) -> Result<Vec<SpannedBackend>> {
    let at = written.span();
    let texts = match written.into_inner() {
        StringOrList::One(text) => vec![Spanned::new(at.clone(), text)],
        StringOrList::Many(texts) => texts,
    };
    let mut backends: Vec<SpannedBackend> = Vec::with_capacity(texts.len());
    for text in texts {
        let backend = parsed(key, &text)?;
        if backends.iter().any(|(other, _)| *other == backend) {
            return Err(invalid(key, &text, "listed twice; remove one of them"));
        }
        backends.push((backend, text));
    }
    if backends.is_empty() {
        let wrong = "the list is empty; list at least one backend, such as [\"tcp://host:port\"]";
        return Err(invalid_literal(key, at, "[]", wrong));
    }
    Ok(backends)
}

/// Refuses keys that have no effect with `targets`, because a token selects one TCP backend.
fn only_with_backend(key: RouteKey<'_>, raw: &RawRoute) -> Result<()> {
    let present = [
        ("balance", raw.balance.as_ref().map(Spanned::span)),
        ("max_sessions", raw.max_sessions.as_ref().map(Spanned::span)),
        ("xmpp_domain", raw.xmpp_domain.as_ref().map(Spanned::span)),
        ("tls", raw.tls.as_ref().map(Spanned::span)),
        ("health", raw.health.as_ref().map(Spanned::span)),
    ];
    match present.into_iter().find_map(|(name, at)| at.map(|at| (name, at))) {
        Some((name, at)) => {
            let sentence = format!(
                "{} has no effect with targets, where a token selects one backend; remove it",
                key(name)
            );
            Err(conflict(at, sentence))
        }
        None => Ok(()),
    }
}

fn xmpp_domain(
    key: RouteKey<'_>,
    written: OptionalKey<String>,
    backends: &[SpannedBackend],
) -> Result<Option<String>> {
    const ADD: &str = "add xmpp_domain = \"example.com\", the domain that is served there";
    let key = key("xmpp_domain");
    let is_xmpp = |spanned: &&SpannedBackend| matches!(spanned.0, Backend::StartTlsXmpp { .. });
    let mut xmpp = backends.iter().filter(is_xmpp).peekable();
    if let Some(text) = written {
        if xmpp.peek().is_none() {
            return Err(invalid(key, &text, "has no effect without a starttls+xmpp:// backend; remove it"));
        }
        return domain(&key, &text).map(Some);
    }
    let mut domain: Option<&str> = None;
    for (backend, text) in xmpp {
        let Some((Host::Name(name), _)) = backend.host_and_port() else {
            let advice = format!("an IP address does not say which domain to request; {ADD}");
            return Err(missing(text.span(), key, advice));
        };
        let name = without_trailing_dot(name);
        if domain.is_some_and(|domain| domain != name) {
            return Err(missing(text.span(), key, format!("the backends have different names; {ADD}")));
        }
        domain = Some(name);
    }
    Ok(domain.map(str::to_owned))
}

fn domain(key: &str, text: &Spanned<String>) -> Result<String> {
    const WRITE: &str = "write the domain alone, such as \"example.com\"";
    match text.get_ref().parse() {
        Ok(Host::Name(name)) => Ok(without_trailing_dot(&name).to_owned()),
        Ok(Host::Address(_)) => Err(invalid(key, text, format!("an IP address is not a domain; {WRITE}"))),
        Err(wrong) => Err(invalid(key, text, format!("{wrong}; {WRITE}"))),
    }
}

fn allowed_networks(
    key: RouteKey<'_>,
    list: &Spanned<StringList>,
    backends: &[SpannedBackend],
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Vec<IpNet>> {
    if list.get_ref().is_empty() {
        let wrong = "an empty list would refuse every backend; list networks, such as [\"10.0.0.0/8\"], or \
                     remove the key";
        return Err(invalid_literal(key("allowed_networks"), list.span(), "[]", wrong));
    }
    let networks = networks(&key("allowed_networks"), list.get_ref(), warnings)?;
    for (backend, text) in backends {
        if let Some((Host::Address(address), _)) = backend.host_and_port()
            && !covers(&networks, reached(*address))
        {
            let wrong = "this address is not in allowed_networks; add its network there";
            return Err(invalid(key("backend"), text, wrong));
        }
    }
    if !backends.is_empty() && backends.iter().all(|(backend, _)| matches!(backend, Backend::Unix(_))) {
        let sentence = format!("{} has no effect on Unix sockets.", key("allowed_networks"));
        warnings.push(ConfigWarning { at: list.span(), sentence });
    }
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::route_fixture::{assert_errors, upstream, warnings};
    use super::super::{BackendTls, TlsVersion};
    use super::{Backend, Balance, Destinations, Health, SendProxy, TokenFile, UpstreamConfig};

    fn backend(text: &str) -> Backend {
        text.parse().unwrap()
    }

    #[test]
    fn one_backend_equals_a_list_of_one() {
        let single = UpstreamConfig::single(backend("tcp://vnc.internal:5900"));
        assert_eq!(upstream("backend = \"tcp://vnc.internal:5900\""), single);
        assert_eq!(upstream("backend = [\"tcp://vnc.internal:5900\"]"), single);
        assert_eq!(upstream("backend = \"tcp://vnc.internal:5900\"\nbalance = \"round-robin\""), single);
    }

    #[test]
    fn every_key_is_parsed() {
        let config = upstream(
            r#"
            backend = ["tls://[2001:db8::1]:5223", "starttls+xmpp://192.0.2.1:5222", "unix:/run/xmpp.sock", "tcp://a:1"]
            balance = "least-sessions"
            max_sessions = 500
            xmpp_domain = "Bücher.Example."
            allowed_networks = ["::ffff:192.0.2.0/120", "2001:db8::/32"]
            send_proxy = "v2"
            tls = { ca = "ca.pem", client_certificate = "/etc/a.crt", client_key = "a.key", min_version = "1.3" }
            health = { interval = "10s", timeout = "250ms", rise = 1, fall = 1000 }
            "#,
        );
        let texts = [
            "tls://[2001:db8::1]:5223",
            "starttls+xmpp://192.0.2.1:5222",
            "unix:/run/xmpp.sock",
            "tcp://a:1",
        ];
        let expected = UpstreamConfig {
            destinations: Destinations::Fixed(texts.map(backend).into()),
            balance: Balance::LeastSessions,
            max_sessions: Some(500),
            tls: BackendTls {
                ca: Some("ca.pem".into()),
                server_name: None,
                client: Some(("/etc/a.crt".into(), "a.key".into())),
                min_version: TlsVersion::V1_3,
                insecure_no_verify: false,
            },
            xmpp_domain: Some("xn--bcher-kva.example".into()),
            allowed_networks: Some(vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()]),
            send_proxy: Some(SendProxy::V2),
            health: Some(Health {
                interval: Duration::from_secs(10),
                timeout: Duration::from_millis(250),
                rise: 1,
                fall: 1000,
            }),
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn each_keyword_is_parsed() {
        for (word, balance) in [
            ("round-robin", Balance::RoundRobin),
            ("least-sessions", Balance::LeastSessions),
            ("first", Balance::First),
            ("source-ip", Balance::SourceIp),
        ] {
            assert_eq!(upstream(&format!("backend = \"tcp://a:1\"\nbalance = {word:?}")).balance, balance);
        }
        for (word, send_proxy) in [("v1", SendProxy::V1), ("v2", SendProxy::V2)] {
            let config = upstream(&format!("backend = \"unix:/a\"\nsend_proxy = {word:?}"));
            assert_eq!(config.send_proxy, Some(send_proxy));
        }
        assert_eq!(upstream("backend = \"unix:/a\"\nhealth = {}").health, Some(Health::default()));
    }

    #[test]
    fn the_xmpp_domain_defaults_to_the_host_name() {
        for backend in [
            "\"starttls+xmpp://Example.com.:5222\"",
            "[\"starttls+xmpp://example.com:5222\", \"starttls+xmpp://example.com:15222\", \"tls://b:1\"]",
        ] {
            let config = upstream(&format!("backend = {backend}"));
            assert_eq!(config.xmpp_domain.as_deref(), Some("example.com"), "for {backend}");
        }
        assert_eq!(upstream("backend = \"tls://example.com:5223\"").xmpp_domain, None);
    }

    #[test]
    fn backend_errors_state_position_cause_and_remedy() {
        assert_errors(&[
            (
                "backend = \"http://a:1\"",
                r#"6:11: route "a": backend "http://a:1": unknown scheme; write tcp://host:port, tls://host:port, starttls+xmpp://host:port or unix:/path"#,
            ),
            (
                "backend = [\"tcp://a:1\", \"b:1\"]",
                r#"6:25: route "a": backend "b:1": the scheme is missing; write tcp://host:port, tls://host:port, starttls+xmpp://host:port or unix:/path"#,
            ),
            (
                "backend = [\"tls://a:1\", \"tls://::1\"]",
                r#"6:25: route "a": backend "tls://::1": an IPv6 address must be in brackets; write tls://[::1]:port"#,
            ),
            (
                "backend = \"unix:app.sock\"",
                r#"6:11: route "a": backend "unix:app.sock": a socket path must begin with a single "/"; write unix:/path"#,
            ),
            (
                "backend = 1",
                r#"6:11: route "a": backend must be a string or a list of strings, found a whole number"#,
            ),
            (
                "backend = [\"tcp://a:1\", 1]",
                r#"6:25: route "a": every entry of backend must be a string, found a whole number"#,
            ),
            (
                "backend = { host = \"a\" }",
                r#"6:11: route "a": backend must be a string or a list of strings, found a table"#,
            ),
            (
                "backend = []",
                r#"6:11: route "a": backend []: the list is empty; list at least one backend, such as ["tcp://host:port"]"#,
            ),
            (
                "backend = [\"tcp://A:1\", \"tls://a:1\", \"tcp://a:01\"]",
                r#"6:38: route "a": backend "tcp://a:01": listed twice; remove one of them"#,
            ),
            (
                "backend = \"tcp://a:1\"\nbalance = \"roundrobin\"",
                r#"7:11: route "a": balance "roundrobin": must be "round-robin", "least-sessions", "first" or "source-ip"; did you mean "round-robin"?"#,
            ),
            (
                "backend = \"tcp://a:1\"\nmax_sessions = 0",
                r#"7:16: route "a": max_sessions 0: must be a whole number from 1 to 10000000"#,
            ),
            (
                "backend = \"tcp://a:1\"\nsend_proxy = \"v3\"",
                r#"7:14: route "a": send_proxy "v3": must be "v1" or "v2"; did you mean "v1"?"#,
            ),
            (
                "backend = \"tcp://a:1\"\nsend_proxy = true",
                r#"7:14: route "a": send_proxy must be a string, found a boolean"#,
            ),
        ]);
    }

    #[test]
    fn xmpp_domain_errors_state_position_cause_and_remedy() {
        assert_errors(&[
            (
                "backend = \"starttls+xmpp://192.0.2.1:5222\"",
                r#"6:11: route "a": xmpp_domain is missing; an IP address does not say which domain to request; add xmpp_domain = "example.com", the domain that is served there"#,
            ),
            (
                "backend = [\"starttls+xmpp://a:1\", \"starttls+xmpp://[::1]:1\"]",
                r#"6:35: route "a": xmpp_domain is missing; an IP address does not say which domain to request; add xmpp_domain = "example.com", the domain that is served there"#,
            ),
            (
                "backend = [\"starttls+xmpp://a:1\", \"starttls+xmpp://b:1\"]",
                r#"6:35: route "a": xmpp_domain is missing; the backends have different names; add xmpp_domain = "example.com", the domain that is served there"#,
            ),
            (
                "backend = \"tls://a:1\"\nxmpp_domain = \"a\"",
                r#"7:15: route "a": xmpp_domain "a": has no effect without a starttls+xmpp:// backend; remove it"#,
            ),
            (
                "backend = \"starttls+xmpp://a:1\"\nxmpp_domain = \"192.0.2.1\"",
                r#"7:15: route "a": xmpp_domain "192.0.2.1": an IP address is not a domain; write the domain alone, such as "example.com""#,
            ),
            (
                "backend = \"starttls+xmpp://a:1\"\nxmpp_domain = \"me@a\"",
                r#"7:15: route "a": xmpp_domain "me@a": a host name may contain only letters, digits, "-", "_" and "."; write the domain alone, such as "example.com""#,
            ),
        ]);
    }

    #[test]
    fn network_and_health_errors_state_position_cause_and_remedy() {
        assert_errors(&[
            (
                "backend = \"tcp://a:1\"\nallowed_networks = []",
                r#"7:20: route "a": allowed_networks []: an empty list would refuse every backend; list networks, such as ["10.0.0.0/8"], or remove the key"#,
            ),
            (
                "backend = \"tcp://a:1\"\nallowed_networks = [\"a\"]",
                r#"7:21: route "a": allowed_networks "a": not a valid network; use one such as "10.0.0.0/8" or "2001:db8::/32", or a single address"#,
            ),
            (
                "backend = [\"tcp://10.0.0.1:1\", \"tcp://[::ffff:11.0.0.1]:1\"]\nallowed_networks = [\"10.0.0.0/8\", \"::1\"]",
                r#"6:32: route "a": backend "tcp://[::ffff:11.0.0.1]:1": this address is not in allowed_networks; add its network there"#,
            ),
            (
                "backend = \"tcp://a:1\"\nhealth = { interval = \"0s\" }",
                r#"7:23: route "a": health.interval "0s": the interval cannot be zero; remove health to turn the checks off; write a duration such as "5s", "1m 30s" or "250ms""#,
            ),
            (
                "backend = \"tcp://a:1\"\nhealth = { timeout = \"0s\" }",
                r#"7:22: route "a": health.timeout "0s": this timeout cannot be turned off; write a duration such as "5s", "1m 30s" or "250ms""#,
            ),
            (
                "backend = \"tcp://a:1\"\nhealth = { timeout = 1 }",
                r#"7:22: route "a": health.timeout must be a duration in quotes such as "5s", found a whole number"#,
            ),
            (
                "backend = \"tcp://a:1\"\n[route.health]\nrise = 0",
                r#"8:8: route "a": health.rise 0: must be a whole number from 1 to 1000"#,
            ),
            (
                "backend = \"tcp://a:1\"\nhealth = { fall = 1001 }",
                r#"7:19: route "a": health.fall 1001: must be a whole number from 1 to 1000"#,
            ),
            (
                "backend = \"tcp://a:1\"\nhealth = true",
                "7:1: route.health is a table: write [route.health] with one bracket on a line of its own, and its keys below",
            ),
            (
                "backend = \"tcp://a:1\"\nhealth = { every = \"2s\" }",
                r#"7:12: unknown key "every" in [route.health]; known here: interval, timeout, rise, fall"#,
            ),
        ]);
    }

    #[test]
    fn names_are_not_checked_against_allowed_networks() {
        let config = upstream("backend = [\"tcp://a:1\", \"unix:/a\"]\nallowed_networks = [\"10.0.0.0/8\"]");
        assert_eq!(config.allowed_networks, Some(vec!["10.0.0.0/8".parse().unwrap()]));
        assert_eq!(
            warnings("backend = \"unix:/a\"\nallowed_networks = [\"10.0.0.0/8\"]"),
            [r#"gateway.toml:7:20: route "a": allowed_networks has no effect on Unix sockets."#]
        );
    }

    #[test]
    fn targets_name_an_existing_file_or_directory() {
        let config = upstream(
            "targets = { from = \"file\", path = \"Cargo.toml\" }\nsend_proxy = \"v1\"\nallowed_networks = [\"::1\"]",
        );
        assert_eq!(
            config.destinations,
            Destinations::Tokens(TokenFile { path: "Cargo.toml".into(), unix: None, end_sessions: false })
        );
        assert_eq!((config.send_proxy, config.max_sessions), (Some(SendProxy::V1), None));
        let config = upstream("[route.targets]\nfrom = \"file\"\npath = \"/\"\nunix = \"/run/desks\"");
        assert_eq!(
            config.destinations,
            Destinations::Tokens(TokenFile {
                path: "/".into(),
                unix: Some("/run/desks".into()),
                end_sessions: false
            })
        );
    }

    #[test]
    fn target_errors_state_position_cause_and_remedy() {
        assert_errors(&[
            (
                "backend = \"tcp://a:1\"\ntargets = { from = \"file\", path = \"src\" }",
                r#"7:11: route "a": targets and backend exclude each other; keep one of them"#,
            ),
            ("targets = {}", r#"6:11: route "a": targets.from is missing; add from = "file""#),
            (
                "targets = { from = \"file\" }",
                r#"6:11: route "a": targets.path is missing; add path = "tokens.cfg""#,
            ),
            (
                "[route.targets]\nfrom = \"redis\"\npath = \"src\"",
                r#"7:8: route "a": targets.from "redis": must be "file""#,
            ),
            (
                "targets = { from = \"file\", path = \"\" }",
                r#"6:35: route "a": targets.path "": the path is empty; write one, relative to the directory of this file"#,
            ),
            (
                "targets = { from = \"file\", path = \"no.cfg\" }",
                r#"6:35: route "a": targets.path "no.cfg": no.cfg: No such file or directory (os error 2); create the file, with a line such as "token: host:port" for each target"#,
            ),
            (
                "targets = { from = \"file\", path = \"/dev/null\" }",
                r#"6:35: route "a": targets.path "/dev/null": this is neither a file nor a directory; name the file with the tokens"#,
            ),
            (
                "targets = { from = \"file\", path = \"src\", unix = \"desks\" }",
                r#"6:49: route "a": targets.unix "desks": write an absolute path without "..", such as "/run/desks""#,
            ),
            (
                "targets = \"tokens.cfg\"",
                "6:1: route.targets is a table: write [route.targets] with one bracket on a line of its own, and its keys below",
            ),
        ]);
        for (line, key) in [
            ("balance = \"first\"", "balance"),
            ("max_sessions = 1", "max_sessions"),
            ("xmpp_domain = \"a\"", "xmpp_domain"),
            ("tls = {}", "tls"),
            ("health = {}", "health"),
        ] {
            let lines = format!("targets = {{ from = \"file\", path = \"src\" }}\n{line}");
            let column = line.find('=').unwrap() + 3;
            let message = format!(
                r#"7:{column}: route "a": {key} has no effect with targets, where a token selects one backend; remove it"#
            );
            assert_errors(&[(&lines, &message)]);
        }
    }
}
