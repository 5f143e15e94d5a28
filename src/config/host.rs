//! Host names and addresses, as a route or a backend names them.
//!
//! Pure text: nothing is resolved here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A machine by name or by address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name that is still to be resolved: lower-case ASCII, IDNA done (RFC 5891), of at most 253 characters
    /// beside a trailing dot (RFC 1035 §2.3.4).
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// What is wrong with a text that should be a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// Nothing is there.
    #[error("the host is empty")]
    Empty,
    /// A colon outside of brackets: a port, or an IPv6 address.
    #[error("a host has no \":\" in it (an IPv6 address stands in brackets, as in [::1])")]
    Colon,
    /// Brackets without an IPv6 address in them. Zones are not understood.
    #[error("there is no IPv6 address in the brackets")]
    NotIpv6,
    /// A name whose last label is a number, which URL parsers take for an IPv4 address, but not four decimal
    /// parts.
    #[error("this is neither a name nor an IPv4 address of four decimal parts")]
    NotIpv4,
    /// A wildcard.
    #[error("a host has no \"*\" in it")]
    Wildcard,
    /// A character that no host name has.
    #[error("only letters, digits, \"-\", \"_\" and \".\" make a host name")]
    Character,
    /// An empty label, one of over 63 characters, or a name of over 253.
    #[error("each part between dots has 1 to 63 characters, and all of it at most 253")]
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
            // A URL parser would decode it; a configuration says what it means.
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

/// The URL rules are looser than those of DNS.
fn checked(name: String) -> Result<Host, HostError> {
    const LONGEST_LABEL: usize = 63;
    const LONGEST_NAME: usize = 253;
    let bare = without_trailing_dot(&name);
    if !bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(HostError::Character);
    }
    if bare.len() > LONGEST_NAME || bare.split('.').any(|label| !(1..=LONGEST_LABEL).contains(&label.len())) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_become_lower_case_ascii() {
        for (written, understood) in [
            ("Desk.Example.COM", "desk.example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("my_db-1", "my_db-1"),
            ("backend.example.", "backend.example."),
            ("127.0.0.1", "127.0.0.1"),
            ("[0:0:0:0:0:0:0:1]", "[::1]"),
        ] {
            assert_eq!(
                written.parse::<Host>().map(|host| host.to_string()),
                Ok(understood.to_owned()),
                "{written}"
            );
        }
    }

    #[test]
    fn everything_else_is_refused_by_its_true_name() {
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
        fn what_is_displayed_is_understood_again(text in "\\PC{0,20}|[a-zA-Z0-9._-]{1,30}|\\[[0-9a-f:]{2,12}\\]") {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert_eq!(host.to_string().parse::<Host>(), Ok(host));
            }
        }
    }
}
