//! Which addresses may be dialled.
//!
//! Owns `allowed_networks` and the default rules against server-side request forgery. A DNS server can answer with
//! any address, and with another one a second later (DNS rebinding); so addresses are checked rather than names,
//! directly before each connection attempt. Pure: no I/O.

use std::{fmt, net::IpAddr, sync::LazyLock};

use ipnet::IpNet;

use crate::admission::rate::covers;

/// What no name may resolve to, unless the route's `allowed_networks` permit it: link-local addresses, cloud metadata
/// services, which give out credentials, and addresses that are not those of a single machine.
static FORBIDDEN_BY_DEFAULT: LazyLock<Vec<(IpNet, Rule)>> = LazyLock::new(|| {
    [
        ("0.0.0.0/8", Rule::Unspecified),
        ("::/128", Rule::Unspecified),
        // AWS, Azure, Google and most others. It is link-local too, but this rule explains more.
        ("169.254.169.254/32", Rule::CloudMetadata),
        // Alibaba Cloud.
        ("100.100.100.200/32", Rule::CloudMetadata),
        // Azure's wire server.
        ("168.63.129.16/32", Rule::CloudMetadata),
        // AWS and Google.
        ("fd00:ec2::254/128", Rule::CloudMetadata),
        ("fd20:ce::254/128", Rule::CloudMetadata),
        ("169.254.0.0/16", Rule::LinkLocal),
        ("fe80::/10", Rule::LinkLocal),
        ("224.0.0.0/4", Rule::Multicast),
        ("255.255.255.255/32", Rule::Multicast),
        ("ff00::/8", Rule::Multicast),
    ]
    .into_iter()
    .filter_map(|(network, rule)| Some((network.parse().ok()?, rule)))
    .collect()
});

/// The rule that forbids an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Not in the route's `allowed_networks`.
    NotAllowed,
    /// `169.254.0.0/16` or `fe80::/10`.
    LinkLocal,
    /// A cloud's metadata service.
    CloudMetadata,
    /// `0.0.0.0/8` or `::`, which mean this machine.
    Unspecified,
    /// More than one machine.
    Multicast,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAllowed => "it is not in the route's allowed_networks",
            Self::LinkLocal => {
                "a name may not resolve to a link-local address, unless allowed_networks permits it"
            }
            Self::CloudMetadata => {
                "a name may not resolve to a cloud's metadata service, unless allowed_networks permits it"
            }
            Self::Unspecified => {
                "a name may not resolve to the unspecified address, unless allowed_networks permits it"
            }
            Self::Multicast => {
                "a name may not resolve to a multicast address, unless allowed_networks permits it"
            }
        })
    }
}

/// The addresses that a route may dial.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Allowed {
    /// The only networks that may be dialled. Without them, any address that is written in the configuration may be
    /// dialled, and a name may resolve to any address but link-local, cloud metadata, unspecified and multicast ones.
    pub networks: Option<Vec<IpNet>>,
}

impl Allowed {
    /// Whether `address` may be dialled. `literal`: it is written in the configuration, not resolved from a name.
    ///
    /// # Errors
    /// The rule that forbids it.
    pub(crate) fn check(&self, address: IpAddr, literal: bool) -> Result<(), Rule> {
        match &self.networks {
            Some(networks) if covers(networks, address) => Ok(()),
            Some(_) => Err(Rule::NotAllowed),
            None if literal => Ok(()),
            None => FORBIDDEN_BY_DEFAULT
                .iter()
                .find(|(network, _)| covers(std::slice::from_ref(network), embedded(address)))
                .map_or(Ok(()), |(_, rule)| Err(*rule)),
        }
    }
}

/// The IPv4 address that NAT64 translates an IPv6 address to (RFC 6052 §2.1: `64:ff9b::/96`).
fn embedded(address: IpAddr) -> IpAddr {
    const TRANSLATED: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];
    match address {
        IpAddr::V6(v6) if v6.segments()[..6] == TRANSLATED => {
            let [.., a, b, c, d] = v6.octets();
            IpAddr::from([a, b, c, d])
        }
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_resolve_to_any_address_but_these() {
        let default = Allowed::default();
        for (address, rule) in [
            ("169.254.169.254", Rule::CloudMetadata),
            ("::ffff:169.254.169.254", Rule::CloudMetadata),
            ("64:ff9b::169.254.169.254", Rule::CloudMetadata),
            ("100.100.100.200", Rule::CloudMetadata),
            ("168.63.129.16", Rule::CloudMetadata),
            ("fd00:ec2::254", Rule::CloudMetadata),
            ("fd20:ce::254", Rule::CloudMetadata),
            ("169.254.0.1", Rule::LinkLocal),
            ("169.254.255.255", Rule::LinkLocal),
            ("fe80::1", Rule::LinkLocal),
            ("febf::1", Rule::LinkLocal),
            ("0.0.0.0", Rule::Unspecified),
            ("0.1.2.3", Rule::Unspecified),
            ("::", Rule::Unspecified),
            ("::ffff:0.0.0.0", Rule::Unspecified),
            ("224.0.0.1", Rule::Multicast),
            ("239.255.255.255", Rule::Multicast),
            ("255.255.255.255", Rule::Multicast),
            ("ff02::1", Rule::Multicast),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(default.check(address, false), Err(rule), "{address}");
            assert_eq!(default.check(address, true), Ok(()), "{address} was written by the operator");
        }
        for address in ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "fd00::1", "8.8.8.8", "2001:db8::1"] {
            assert_eq!(default.check(address.parse().unwrap(), false), Ok(()), "{address}");
        }
    }

    #[test]
    fn allowed_networks_replace_the_default_and_apply_to_literals_too() {
        let networks = ["10.0.0.0/8", "169.254.0.0/16", "fd00::/8"].map(|network| network.parse().unwrap());
        let allowed = Allowed { networks: Some(networks.to_vec()) };
        for literal in [true, false] {
            for address in ["10.1.2.3", "::ffff:10.1.2.3", "169.254.169.254", "fd00:ec2::254"] {
                assert_eq!(allowed.check(address.parse().unwrap(), literal), Ok(()), "{address}");
            }
            for address in ["11.0.0.1", "127.0.0.1", "::1", "64:ff9b::10.0.0.1"] {
                let answer = allowed.check(address.parse().unwrap(), literal);
                assert_eq!(answer, Err(Rule::NotAllowed), "{address}");
            }
        }
    }
}
