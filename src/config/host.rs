//! The host of a route or of a backend: a name or an IP address.
//!
//! Owns the syntax; nothing is resolved here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A host name or an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name, not resolved: lower-case ASCII after IDNA (RFC 5891), at most 253 characters without a trailing dot
    /// (RFC 1035 §2.3.4).
    Name(String),
    /// An IP address.
    Address(IpAddr),
}

/// Why a text is not a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The text is empty.
    #[error("the host is empty")]
    Empty,
    /// A colon outside brackets: a port, or an IPv6 address.
    #[error("a host cannot contain \":\" (put an IPv6 address in brackets, as in [::1])")]
    Colon,
    /// No valid IPv6 address in the brackets. Zone identifiers are not supported.
    #[error("the brackets do not contain a valid IPv6 address")]
    NotIpv6,
    /// A name whose last label is a number, which URL parsers treat as an IPv4 address, but not in dotted-decimal form.
    #[error("neither a valid host name nor an IPv4 address in dotted-decimal form")]
    NotIpv4,
    /// A wildcard.
    #[error("a host cannot contain \"*\"")]
    Wildcard,
    /// A character that is not allowed in a host name.
    #[error("a host name may contain only letters, digits, \"-\", \"_\" and \".\"")]
    Character,
    /// An empty label, one of over 63 characters, or a name of over 253.
    #[error("each label of a host name must have 1 to 63 characters, and the whole name at most 253")]
    Length,
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if let Some(inside) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return inside
                .parse::<Ipv6Addr>()
                .map(|v6| Self::Address(v6.into()))
                .map_err(|_| HostError::NotIpv6);
        }
        if let Ok(v4) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(v4.into()));
        }
        match text {
            _ if text.contains(':') => return Err(HostError::Colon),
            _ if text.contains('*') => return Err(HostError::Wildcard),
            // A URL parser would decode it; the configuration should state the name itself.
            _ if text.contains('%') => return Err(HostError::Character),
            _ => {}
        }
        match url::Host::parse(text) {
            Ok(url::Host::Domain(name)) => checked(name),
            Ok(url::Host::Ipv4(_)) | Err(url::ParseError::InvalidIpv4Address) => Err(HostError::NotIpv4),
            Ok(url::Host::Ipv6(_)) | Err(url::ParseError::InvalidIpv6Address) => Err(HostError::NotIpv6),
            Err(url::ParseError::EmptyHost) => Err(HostError::Empty),
            Err(_) => Err(HostError::Character),
        }
    }
}

/// Applies the rules of DNS, which are stricter than those of URLs.
fn checked(name: String) -> Result<Host, HostError> {
    const MAX_LABEL: usize = 63;
    const MAX_NAME: usize = 253;
    let bare = without_trailing_dot(&name);
    if !bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(HostError::Character);
    }
    if bare.len() > MAX_NAME || bare.split('.').any(|label| !(1..=MAX_LABEL).contains(&label.len())) {
        return Err(HostError::Length);
    }
    Ok(Host::Name(name))
}

/// The name without the dot that may end it.
pub(super) fn without_trailing_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

impl fmt::Display for Host {
    /// As in a URL: an IPv6 address in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(v4)) => v4.fmt(f),
            Self::Address(IpAddr::V6(v6)) => write!(f, "[{v6}]"),
        }
    }
}

/// The address that a connection to `address` reaches: the unspecified address stands for loopback.
pub(crate) fn reached(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_become_lower_case_ascii() {
        for (written, parsed) in [
            ("Desk.Example.COM", "desk.example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("my_db-1", "my_db-1"),
            ("backend.example.", "backend.example."),
            ("127.0.0.1", "127.0.0.1"),
            ("[0:0:0:0:0:0:0:1]", "[::1]"),
        ] {
            assert_eq!(
                written.parse::<Host>().map(|host| host.to_string()),
                Ok(parsed.to_owned()),
                "{written}"
            );
        }
    }

    #[test]
    fn each_mistake_has_its_own_error() {
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = vec!["a".repeat(60); 5].join(".");
        for (written, error) in [
            ("", HostError::Empty),
            ("desk.example.com:8443", HostError::Colon),
            ("::1", HostError::Colon),
            ("[fe80::1%eth0]", HostError::NotIpv6),
            ("[127.0.0.1]", HostError::NotIpv6),
            ("[::1", HostError::Colon),
            ("127.1", HostError::NotIpv4),
            ("0x7f000001", HostError::NotIpv4),
            ("1.2.3.4.5", HostError::NotIpv4),
            ("256.1.1.1", HostError::NotIpv4),
            ("*.example.com", HostError::Wildcard),
            ("a b", HostError::Character),
            ("user@host", HostError::Character),
            ("%61.example", HostError::Character),
            ("a/b", HostError::Character),
            ("a..b", HostError::Length),
            (".", HostError::Length),
            (&long_label, HostError::Length),
            (&long_name, HostError::Length),
        ] {
            assert_eq!(written.parse::<Host>(), Err(error), "{written}");
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(text in "\\PC{0,20}|[a-zA-Z0-9._-]{1,30}|\\[[0-9a-f:]{2,12}\\]") {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert_eq!(host.to_string().parse::<Host>(), Ok(host));
            }
        }
    }
}
