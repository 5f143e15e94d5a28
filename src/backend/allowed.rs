//! Which addresses may be dialled.
//!
//! Whoever answers for a name can answer with any address, and with another one a second later; so it is the address that
//! is judged, and just before it is dialled. Pure: from addresses to verdicts.

use std::{fmt, net::IpAddr, sync::LazyLock};

use ipnet::IpNet;

use crate::admission::rate::covers;

/// Where no name may lead, unless the route's `allowed_networks` say so: to the machine's own neighbours, to what a cloud
/// tells its machines about themselves, credentials included, and to what is no single machine.
static REFUSED_BY_DEFAULT: LazyLock<Vec<(IpNet, Rule)>> = LazyLock::new(|| {
    [
        ("0.0.0.0/8", Rule::Unspecified),
        ("::/128", Rule::Unspecified),
        // AWS, Azure, Google and most others; all of it is link-local, but this is what people should hear.
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

/// Which rule keeps an address from being dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Not in the route's `allowed_networks`.
    NotAllowed,
    /// `169.254.0.0/16` or `fe80::/10`.
    LinkLocal,
    /// Where a cloud tells its machines about themselves.
    CloudMetadata,
    /// "This machine", in its roundabout spelling.
    Unspecified,
    /// More than one machine.
    Multicast,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAllowed => "it is outside of the route's allowed_networks",
            Self::LinkLocal => "names may not lead to link-local addresses; allowed_networks could permit it",
            Self::CloudMetadata => {
                "names may not lead to a cloud's metadata service; allowed_networks could permit it"
            }
            Self::Unspecified => {
                "names may not lead to the unspecified address; allowed_networks could permit it"
            }
            Self::Multicast => "names may not lead to multicast addresses; allowed_networks could permit it",
        })
    }
}

/// Where a route may lead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Allowed {
    /// The only networks that may be dialled. Without them, an address that stands in the configuration is dialled as it
    /// is, and a name may lead anywhere but to link-local, cloud metadata, unspecified and multicast addresses.
    pub networks: Option<Vec<IpNet>>,
}

impl Allowed {
    /// Whether `address` may be dialled. `literal`: it stands in the configuration itself.
    ///
    /// # Errors
    /// It may not; the rule says why.
    pub(crate) fn check(&self, address: IpAddr, literal: bool) -> Result<(), Rule> {
        match &self.networks {
            Some(networks) if covers(networks, address) => Ok(()),
            Some(_) => Err(Rule::NotAllowed),
            None if literal => Ok(()),
            None => REFUSED_BY_DEFAULT
                .iter()
                .find(|(network, _)| covers(std::slice::from_ref(network), embedded(address)))
                .map_or(Ok(()), |(_, rule)| Err(*rule)),
        }
    }
}

/// The IPv4 address that a translator on the way would make of an IPv6 one (RFC 6052 §2.1: `64:ff9b::/96`).
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
    fn names_may_lead_anywhere_but_there() {
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
    fn allowed_networks_replace_the_rule_and_bind_literals_too() {
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
