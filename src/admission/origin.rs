//! The Origin check: which web pages may connect.
//!
//! A browser lets any page open a WebSocket to any server, and reports the page only in the Origin header; the Origin
//! check refuses foreign pages (RFC 6455 §10.2: protection against cross-site WebSocket hijacking). Owns the definition
//! of an origin and of the equality of two; knows nothing of requests, routes or proxies.
//!
//! Invariants: anything but exactly one well-formed origin (RFC 6454 §6.2) is refused under every policy, including
//! `"*"`. Two origins are equal if scheme, host and port are: compared as a whole, never by prefix or suffix, in
//! lower-case ASCII (IDNA) form, with the default ports of http and https explicit or not.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use url::Host;

/// A web origin (RFC 6454 §4): scheme, host and port.
///
/// Besides http and https any scheme is accepted (`chrome-extension://…`, `capacitor://localhost`, and `file://`, the
/// only one without a host); hosts of other schemes are plain tokens, and their ports have no default.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Lower case.
    scheme: String,
    /// Lower-case ASCII; an IP literal keeps its brackets.
    host: String,
    /// `None` if it is the default of the scheme.
    port: Option<u16>,
}

impl Origin {
    /// The origin of a page served under this scheme and Host: what a request is compared with for `"same-origin"`.
    /// `None` if `host_header` is not a host with an optional port.
    pub(crate) fn of_host(https: bool, host_header: &str) -> Option<Self> {
        Self::new(if https { "https" } else { "http" }, host_header).ok()
    }

    fn new(scheme: &str, authority: &str) -> Result<Self, InvalidOrigin> {
        let scheme = scheme.to_ascii_lowercase();
        let (host, port) = split_authority(authority)?;
        let (host, default_port) = match scheme.as_str() {
            "https" => (web_host(host)?, Some(443)),
            "http" => (web_host(host)?, Some(80)),
            _ => (token_host(host)?, None),
        };
        Ok(Self { scheme, host, port: port.filter(|_| port != default_port) })
    }

    /// Whether the host is an IP literal (RFC 3986 §3.2.2): an address in brackets.
    fn is_ip_literal(&self) -> bool {
        self.host.starts_with('[')
    }
}

impl FromStr for Origin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let (scheme, rest) = text.split_once("://").ok_or(InvalidOrigin::Scheme)?;
        // RFC 3986 §3.1.
        let mut chars = scheme.chars();
        if !chars.next().is_some_and(|c| c.is_ascii_alphabetic())
            || !chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
        {
            return Err(InvalidOrigin::Scheme);
        }
        if scheme.eq_ignore_ascii_case("ws") || scheme.eq_ignore_ascii_case("wss") {
            return Err(InvalidOrigin::WebSocketScheme);
        }
        if scheme.eq_ignore_ascii_case("file") && rest.is_empty() {
            return Ok(Self { scheme: "file".to_owned(), host: String::new(), port: None });
        }
        Self::new(scheme, rest)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Why a text is not a valid origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum InvalidOrigin {
    /// It does not begin with a scheme and `://`.
    #[error("it does not begin with a scheme as \"https://desk.example.com\" does")]
    Scheme,
    /// It begins with `ws://` or `wss://`.
    #[error("an origin is that of the page, so it begins with http:// or https://, not with ws:// or wss://")]
    WebSocketScheme,
    /// A `/` follows the host.
    #[error("an origin ends after its host and port: leave out the path, even a lone \"/\"")]
    Path,
    /// It has an `@`.
    #[error("an origin has no user name: leave out everything up to the \"@\"")]
    Userinfo,
    /// A character that no host and no port can contain, such as `?`, `#`, `%`, a backslash or white space.
    #[error("an origin cannot contain {0:?}")]
    Character(char),
    /// The host has a `*`.
    #[error("wildcards inside an origin are not supported: list each origin")]
    Wildcard,
    /// The host is empty.
    #[error("it has no host")]
    NoHost,
    /// The host ends with a dot, which makes it a different host for a browser.
    #[error("its host must not end with a dot")]
    TrailingDot,
    /// The host is neither a domain name nor an address in its usual form.
    #[error("its host is neither a domain name nor an IP address in its usual form")]
    Host,
    /// The port is not a number from 1 to 65535 without leading zeros.
    #[error("its port must be a number from 1 to 65535, without leading zeros")]
    Port,
    /// Not UTF-8, in a header.
    #[error("it is not UTF-8")]
    Encoding,
}

/// Splits an authority into host and port; the host is not parsed yet.
fn split_authority(authority: &str) -> Result<(&str, Option<u16>), InvalidOrigin> {
    for c in authority.chars() {
        match c {
            '/' => return Err(InvalidOrigin::Path),
            '@' => return Err(InvalidOrigin::Userinfo),
            '?' | '#' | '%' | '\\' => return Err(InvalidOrigin::Character(c)),
            _ if c.is_whitespace() || c.is_control() => return Err(InvalidOrigin::Character(c)),
            _ => {}
        }
    }
    let host_end = match authority.strip_prefix('[') {
        Some(rest) => "[".len() + rest.find(']').ok_or(InvalidOrigin::Host)? + "]".len(),
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(host_end);
    if host.is_empty() {
        return Err(InvalidOrigin::NoHost);
    }
    if port.is_empty() {
        return Ok((host, None));
    }
    let digits = port.strip_prefix(':').ok_or(InvalidOrigin::Host)?;
    // Digits are checked one by one, because parse() also accepts a leading "+".
    if digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidOrigin::Port);
    }
    Ok((host, Some(digits.parse().map_err(|_| InvalidOrigin::Port)?)))
}

/// The host of an http or https origin, as a browser writes it.
fn web_host(host: &str) -> Result<String, InvalidOrigin> {
    match Host::parse(host).map_err(|_| wrong_host(host))? {
        Host::Domain(domain) => name(&domain),
        // Browsers send an address as four decimal parts; 127.1 or 0x7f000001 did not come from a browser.
        Host::Ipv4(address) if address.to_string() == host => Ok(address.to_string()),
        Host::Ipv4(_) => Err(wrong_host(host)),
        Host::Ipv6(address) => Ok(literal(address)),
    }
}

/// The host of any other scheme: an identifier, so there is no IDNA, and digits are not an IPv4 address.
fn token_host(host: &str) -> Result<String, InvalidOrigin> {
    if !host.starts_with('[') {
        return name(host);
    }
    match Host::parse(host) {
        Ok(Host::Ipv6(address)) => Ok(literal(address)),
        _ => Err(InvalidOrigin::Host),
    }
}

/// A name in lower case. Checked after IDNA, which maps other characters to dots and more.
fn name(name: &str) -> Result<String, InvalidOrigin> {
    let is_valid = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if name.split('.').all(is_valid) { Ok(name.to_ascii_lowercase()) } else { Err(wrong_host(name)) }
}

fn literal(address: Ipv6Addr) -> String {
    format!("[{address}]")
}

fn wrong_host(host: &str) -> InvalidOrigin {
    match host {
        _ if host.ends_with('.') => InvalidOrigin::TrailingDot,
        _ if host.contains('*') => InvalidOrigin::Wildcard,
        _ => InvalidOrigin::Host,
    }
}

/// What happens to a request without an Origin header. Browsers always send one in a WebSocket handshake (RFC 6455
/// §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingOrigin {
    /// Refuse it.
    #[default]
    Refuse,
    /// Admit it: such a client is not a browser, and must be authenticated by other means.
    Allow,
}

/// Which origins a route admits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginPolicy {
    /// `"*"`: any well-formed origin, `null` included.
    pub any: bool,
    /// `"same-origin"`: the origin of pages that this gateway itself serves. Never an IP literal; those must be
    /// listed.
    pub same_origin: bool,
    /// `"null"`: pages with an opaque origin, such as sandboxed frames. Any site can create such a page.
    pub null: bool,
    /// The origins listed by name.
    pub listed: Vec<Origin>,
    /// What happens to a request without an Origin header. Independent of `"*"`.
    pub missing: MissingOrigin,
}

impl OriginPolicy {
    /// Parses the entries of a route's `origins`: `"same-origin"`, `"*"`, `"null"` or an origin. An empty list admits
    /// no origin.
    ///
    /// # Errors
    /// [`OriginError`] with the first entry that is none of these.
    pub(crate) fn parse(entries: &[String], missing: MissingOrigin) -> Result<Self, OriginError> {
        let mut policy = Self { any: false, same_origin: false, null: false, listed: Vec::new(), missing };
        for (index, entry) in entries.iter().enumerate() {
            match entry.as_str() {
                "*" => policy.any = true,
                "same-origin" => policy.same_origin = true,
                "null" => policy.null = true,
                origin => {
                    let invalid = |reason| OriginError { index, entry: entry.clone(), reason };
                    policy.listed.push(origin.parse().map_err(invalid)?);
                }
            }
        }
        Ok(policy)
    }

    /// Checks a request: `headers` are the values of all its Origin header lines, `own` is the origin of the gateway as
    /// the request addresses it.
    ///
    /// # Errors
    /// [`OriginRefused`] if the policy does not admit it.
    pub(crate) fn permit(&self, headers: &[&[u8]], own: Option<&Origin>) -> Result<(), OriginRefused> {
        let value = match (headers, self.missing) {
            ([value], _) => {
                std::str::from_utf8(value).map_err(|_| OriginRefused::Malformed(InvalidOrigin::Encoding))?
            }
            ([], MissingOrigin::Allow) => return Ok(()),
            ([], MissingOrigin::Refuse) => return Err(OriginRefused::Missing),
            _ => return Err(OriginRefused::Several),
        };
        if value == "null" {
            return if self.null || self.any { Ok(()) } else { Err(OriginRefused::Null) };
        }
        let origin: Origin = value.parse().map_err(OriginRefused::Malformed)?;
        let is_own = || self.same_origin && own == Some(&origin) && !origin.is_ip_literal();
        if self.any || self.listed.contains(&origin) || is_own() {
            return Ok(());
        }
        Err(OriginRefused::Foreign(origin))
    }
}

/// An invalid entry of `origins`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{entry:?} is neither \"same-origin\", \"*\", \"null\" nor an origin: {reason}")]
pub(crate) struct OriginError {
    /// The index of the entry in the list.
    pub index: usize,
    /// The entry as written.
    pub entry: String,
    /// What is wrong with it.
    pub reason: InvalidOrigin,
}

/// Why a request was refused for its Origin. Safe to log: what an untrusted client sent is shown only after it was
/// parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OriginRefused {
    /// No Origin header, and the route requires one.
    #[error("there is no Origin header")]
    Missing,
    /// More than one Origin header line.
    #[error("there is more than one Origin header")]
    Several,
    /// `null`, and the route does not list it.
    #[error("the origin is null")]
    Null,
    /// Not one well-formed origin.
    #[error("the Origin header is malformed: {0}")]
    Malformed(InvalidOrigin),
    /// A well-formed origin that the route does not admit.
    #[error("the origin {0} is not allowed")]
    Foreign(Origin),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin(text: &str) -> Origin {
        text.parse().unwrap_or_else(|wrong| panic!("{text:?}: {wrong}"))
    }

    fn policy(entries: &[&str]) -> OriginPolicy {
        let entries: Vec<String> = entries.iter().map(ToString::to_string).collect();
        OriginPolicy::parse(&entries, MissingOrigin::Refuse).unwrap()
    }

    fn permits(policy: &OriginPolicy, header: &str) -> bool {
        policy.permit(&[header.as_bytes()], Some(&origin("https://gate.example"))).is_ok()
    }

    #[test]
    fn equivalent_spellings_are_equal() {
        for (listed, sent) in [
            ("https://good.example", "https://GOOD.example"),
            ("HTTPS://Good.Example", "https://good.example"),
            ("https://good.example", "https://good.example:443"),
            ("https://good.example:443", "https://good.example"),
            ("http://good.example:80", "http://good.example"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
            ("https://xn--bcher-kva.example", "https://BÜCHER.example"),
            ("https://192.0.2.1:8443", "https://192.0.2.1:8443"),
            ("https://[::1]:8443", "https://[0:0::1]:8443"),
            ("chrome-extension://abcdefghij", "Chrome-Extension://ABCdefghij"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("app://12345", "app://12345"),
            ("app://[::1]", "app://[0:0::1]"),
            ("file://", "file://"),
        ] {
            assert_eq!(origin(listed), origin(sent));
            assert!(permits(&policy(&[listed]), sent), "{sent} where {listed} is listed");
        }
    }

    #[test]
    fn similar_origins_are_foreign() {
        let policy = policy(&["https://good.example", "https://other.example:8443", "app://12345"]);
        for sent in [
            "https://good.example.evil.com",
            "https://evilgood.example",
            "https://evil.good.example",
            "https://good.exampl",
            "http://good.example",
            "https://good.example:8443",
            "https://good.example:80",
            "https://other.example",
            "https://192.0.2.1",
            "https://[::1]",
            "app://12345:443",
            "app://0.0.48.57",
            "https://12345.example",
        ] {
            let refused = policy.permit(&[sent.as_bytes()], None).unwrap_err();
            assert!(
                matches!(&refused, OriginRefused::Foreign(_)) || sent.ends_with("84430"),
                "{sent}: {refused}"
            );
        }
    }

    #[test]
    fn malformed_origins_are_refused_under_every_policy() {
        use InvalidOrigin::*;
        for (sent, wrong) in [
            ("", Scheme),
            ("good.example", Scheme),
            ("//good.example", Scheme),
            ("://good.example", Scheme),
            ("https:/good.example", Scheme),
            ("https:\\\\good.example", Scheme),
            (" https://good.example", Scheme),
            ("\thttps://good.example", Scheme),
            ("1https://good.example", Scheme),
            ("Null", Scheme),
            ("NULL", Scheme),
            ("same-origin", Scheme),
            ("*", Scheme),
            ("null, null", Scheme),
            ("null null", Scheme),
            ("null https://good.example", Scheme),
            ("wss://good.example", WebSocketScheme),
            ("https://good.example/", Path),
            ("https://good.example/a@b", Path),
            ("https:///good.example", Path),
            ("https://user@good.example", Userinfo),
            ("https://user:secret@good.example", Userinfo),
            ("https://@good.example", Userinfo),
            ("https://good.example?", Character('?')),
            ("https://good.example#", Character('#')),
            ("https://good.example\\", Character('\\')),
            ("https://good.example%2e", Character('%')),
            ("https://good%2eexample", Character('%')),
            ("https://good.example ", Character(' ')),
            ("https://good.example\t", Character('\t')),
            ("https://good.example\u{a0}", Character('\u{a0}')),
            ("https://good.example\0", Character('\0')),
            ("https://good.example\r\nX: y", Character('\r')),
            ("https://good.example\u{7f}", Character('\u{7f}')),
            ("https://good.example https://good.example", Character(' ')),
            ("https://good.example, https://evil.example", Character(' ')),
            ("https://good.example,https://evil.example", Path),
            ("https://", NoHost),
            ("https://:443", NoHost),
            ("app://", NoHost),
            ("file:///", Path),
            ("https://good.example.", TrailingDot),
            ("https://good.example.:443", TrailingDot),
            ("https://good.example。", TrailingDot),
            ("https://192.0.2.1.", TrailingDot),
            ("app://name.", TrailingDot),
            ("https://.", TrailingDot),
            ("https://*.good.example", Wildcard),
            ("https://good..example", Host),
            ("https://.good.example", Host),
            ("https://good,evil.example", Host),
            ("https://good<evil", Host),
            ("https://good!evil", Host),
            ("https://xn--a.example\u{300}.", TrailingDot),
            ("https://xn--999999999.example", Host),
            ("https://127.1", Host),
            ("https://0x7f.0.0.1", Host),
            ("https://2130706433", Host),
            ("https://127.0.0.256", Host),
            ("https://127.0.0.01", Host),
            ("https://::1", NoHost),
            ("https://[::1", Host),
            ("https://[::1]8443", Host),
            ("https://[::1]]", Host),
            ("https://[]", Host),
            ("https://[v1.x]", Host),
            ("https://[fe80::1%25eth0]", Character('%')),
            ("app://[name]", Host),
            ("app://bücher", Host),
            ("https://good.example:", Port),
            ("https://good.example:0", Port),
            ("https://good.example:0443", Port),
            ("https://good.example:65536", Port),
            ("https://good.example:99999999999999999999", Port),
            ("https://good.example:+443", Port),
            ("https://good.example:-1", Port),
            ("https://good.example:https", Port),
            ("https://good.example:443:443", Port),
            ("https://good.example:４４３", Port),
            ("https://[::1]:", Port),
        ] {
            assert_eq!(sent.parse::<Origin>(), Err(wrong), "{sent:?}");
            let refused = policy(&["*", "null", "same-origin"]).permit(&[sent.as_bytes()], None);
            assert_eq!(refused, Err(OriginRefused::Malformed(wrong)), "{sent:?}");
        }
        let refused = policy(&["*"]).permit(&[b"https://good.example\xff"], None);
        assert_eq!(refused, Err(OriginRefused::Malformed(Encoding)));
    }

    #[test]
    fn display_omits_the_default_port() {
        for (text, shown) in [
            ("HTTPS://Desk.Example.COM:443", "https://desk.example.com"),
            ("https://desk.example.com:8443", "https://desk.example.com:8443"),
            ("http://desk.example.com:443", "http://desk.example.com:443"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
            ("https://[0:0:0:0:0:0:0:1]:443", "https://[::1]"),
            ("app://x:443", "app://x:443"),
            ("file://", "file://"),
        ] {
            assert_eq!(origin(text).to_string(), shown);
        }
    }

    #[test]
    fn star_admits_any_origin_but_not_a_missing_one() {
        let star = policy(&["*"]);
        for sent in ["https://evil.example", "http://[::1]:1", "app://x", "file://", "null"] {
            assert!(permits(&star, sent), "{sent}");
        }
        assert_eq!(star.permit(&[], None), Err(OriginRefused::Missing));
    }

    #[test]
    fn null_must_be_listed() {
        assert_eq!(
            policy(&["same-origin", "https://good.example"]).permit(&[b"null"], None),
            Err(OriginRefused::Null)
        );
        assert!(permits(&policy(&["null"]), "null"));
        assert!(!permits(&policy(&["null"]), "https://good.example"));
    }

    #[test]
    fn missing_and_repeated_headers() {
        let mut policy = policy(&["*"]);
        assert_eq!(policy.permit(&[], None), Err(OriginRefused::Missing));
        policy.missing = MissingOrigin::Allow;
        assert_eq!(policy.permit(&[], None), Ok(()));
        assert_eq!(policy.permit(&[b""], None), Err(OriginRefused::Malformed(InvalidOrigin::Scheme)));
        let twice: [&[u8]; 2] = [b"https://good.example"; 2];
        assert_eq!(policy.permit(&twice, None), Err(OriginRefused::Several));
        assert_eq!(policy.permit(&[b"null", b"null"], None), Err(OriginRefused::Several));
    }

    #[test]
    fn same_origin_compares_scheme_host_and_port() {
        let policy = policy(&["same-origin"]);
        let permit = |https, host: &str, sent: &str| {
            policy.permit(&[sent.as_bytes()], Origin::of_host(https, host).as_ref()).is_ok()
        };
        assert!(permit(true, "desk.example.com", "https://desk.example.com"));
        assert!(permit(true, "DESK.example.com:443", "https://desk.example.com"));
        assert!(permit(true, "desk.example.com:8443", "https://desk.example.com:8443"));
        assert!(permit(false, "desk.example.com:80", "http://desk.example.com"));
        assert!(permit(true, "127.0.0.1:8443", "https://127.0.0.1:8443"));
        assert!(!permit(false, "desk.example.com", "https://desk.example.com"));
        assert!(!permit(true, "desk.example.com", "http://desk.example.com"));
        assert!(!permit(true, "desk.example.com:8443", "https://desk.example.com"));
        assert!(!permit(true, "desk.example.com", "https://desk.example.com:8443"));
        assert!(!permit(false, "desk.example.com:443", "https://desk.example.com"));
        assert!(!permit(true, "desk.example.com.", "https://desk.example.com"));
        assert!(!permit(true, "desk.example.com.", "https://desk.example.com."));
        assert!(policy.permit(&[b"https://gate.example"], None).is_err());
        assert!(!permit(true, "[::1]:8443", "https://[::1]:8443"), "an IP literal must be listed");
        let listed = OriginPolicy { listed: vec![origin("https://[::1]:8443")], ..policy.clone() };
        let own = Origin::of_host(true, "[::1]:8443");
        assert_eq!(listed.permit(&[b"https://[::1]:8443"], own.as_ref()), Ok(()));
        assert!(listed.permit(&[b"https://[::1]"], own.as_ref()).is_err());
    }

    #[test]
    fn invalid_host_header_has_no_origin() {
        for host in
            ["", ":443", "a/b", "a@b", "a b", "a:b", "a:0", "a,b", "a.", "a%2eb", "https://a", "null/"]
        {
            assert_eq!(Origin::of_host(true, host), None, "{host:?}");
        }
        assert_eq!(Origin::of_host(false, "a:443"), Some(origin("http://a:443")));
    }

    #[test]
    fn empty_list_admits_no_origin() {
        let closed = policy(&[]);
        for sent in ["https://gate.example", "null", "file://"] {
            assert!(!permits(&closed, sent));
        }
    }

    #[test]
    fn errors_name_the_entry_and_the_fix() {
        let entries = ["same-origin", "https://a.example/", "https://b.example"].map(String::from);
        let error = OriginPolicy::parse(&entries, MissingOrigin::Refuse).unwrap_err();
        assert_eq!((error.index, error.reason), (1, InvalidOrigin::Path));
        assert_eq!(
            error.to_string(),
            "\"https://a.example/\" is neither \"same-origin\", \"*\", \"null\" nor an origin: \
             an origin ends after its host and port: leave out the path, even a lone \"/\""
        );
        let refused = policy(&["same-origin"]).permit(&[b"https://a.example\x1b[2J"], None).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the Origin header is malformed: an origin cannot contain '\\u{1b}'",
            "a log line never contains client input unescaped"
        );
    }

    fn domain() -> impl Strategy<Value = String> {
        "[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4})?(\\.[a-z][a-z0-9]{0,6}){1,3}"
    }

    proptest! {
        #[test]
        fn display_of_a_parsed_origin_parses_again(
            text in prop_oneof![
                any::<String>(),
                any::<String>().prop_map(|host| format!("https://{host}")),
                "[hH][tT]{2}[pP][sS]?://[\\PC]{1,20}(:[0-9]{0,6})?",
                "(https?|app|file)://[a-zA-Z0-9._üßİſ。-]{0,20}(:[0-9]{1,5})?",
                "(https|app)://\\[[0-9a-f:.]{2,20}\\](:[0-9]{1,5})?",
                "https?://[0-9x.]{1,15}",
            ],
        ) {
            if let Ok(parsed) = text.parse::<Origin>() {
                let shown = parsed.to_string();
                prop_assert!(shown.is_ascii() && !shown.ends_with(['.', '/']) || shown == "file://", "{}", shown);
                prop_assert_eq!(&shown, &shown.to_ascii_lowercase());
                prop_assert_eq!(shown.parse::<Origin>(), Ok(parsed.clone()));
                prop_assert_eq!(text.to_ascii_uppercase().parse::<Origin>(), Ok(parsed));
            }
        }

        #[test]
        fn valid_origins_parse(domain in domain(), port in prop::option::of(1_u16..), https: bool) {
            let scheme = if https { "https" } else { "http" };
            let authority = port.map_or(domain.clone(), |port| format!("{domain}:{port}"));
            let parsed = origin(&format!("{scheme}://{authority}"));
            prop_assert_eq!(Origin::of_host(https, &authority), Some(parsed.clone()));
            let default = if https { 443 } else { 80 };
            prop_assert_eq!(parsed.port, port.filter(|port| *port != default));
            prop_assert_eq!(&*parsed.host, domain.as_str());
        }

        #[test]
        fn no_variation_of_a_listed_origin_is_admitted(
            good in domain(), evil in domain(), letters in "[a-z0-9]{1,5}", port in 1_u16..,
        ) {
            let policy = policy(&[&format!("https://{good}")]);
            let own = Origin::of_host(true, "gate.example");
            let is_admitted = |sent: &str| policy.permit(&[sent.as_bytes()], own.as_ref()).is_ok();
            let listed = format!("https://{good}");
            prop_assert!(is_admitted(&listed));
            for variation in [
                format!("https://{good}.{evil}"),
                format!("https://{good}.{letters}"),
                format!("https://{good}{letters}"),
                format!("https://{good}-{evil}"),
                format!("https://{evil}.{good}"),
                format!("https://{letters}{good}"),
                format!("https://{letters}-{good}"),
                format!("https://{good}@{evil}"),
                format!("https://{evil}@{good}"),
                format!("https://{evil}/{good}"),
                format!("https://{evil}#{good}"),
                format!("https://{good}."),
                format!("https://{good}/"),
                format!("https://{good} https://{evil}"),
                format!("https://{good},https://{evil}"),
                format!("http://{good}"),
                format!("x{letters}://{good}"),
            ] {
                prop_assert!(!is_admitted(&variation), "{} is admitted where {} is listed", variation, listed);
            }
            let with_port = format!("https://{good}:{port}");
            prop_assert_eq!(is_admitted(&with_port), port == 443);
            let other = format!("https://{evil}");
            prop_assert_eq!(is_admitted(&other), evil == good);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let closed = OriginPolicy::parse(&[], MissingOrigin::Refuse).unwrap();
            prop_assert!(closed.permit(&[&bytes], None).is_err());
        }
    }
}
