//! Which addresses may be dialled.
//!
//! Owns `allowed_networks` and the default rules against server-side request forgery. A DNS server can answer with
//! any address, and with another one a second later (DNS rebinding); so addresses are checked rather than names,
//! directly before each connection attempt. Addresses of private networks (RFC 1918, RFC 4193, RFC 6598) are allowed:
//! most backends have one. No I/O but that of [`OwnAddresses`].

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

use ipnet::IpNet;

use super::own::OwnAddresses;
use crate::{admission::rate::covers, config::reached};

/// What no name may resolve to, unless the route's `allowed_networks` permit it: loopback and link-local addresses, cloud
/// metadata services, which give out credentials, and addresses that are not those of a single machine.
static FORBIDDEN_BY_DEFAULT: LazyLock<Vec<(IpNet, Rule)>> = LazyLock::new(|| {
    [
        ("0.0.0.0/8", Rule::Unspecified),
        ("::/128", Rule::Unspecified),
        ("127.0.0.0/8", Rule::Loopback),
        ("::1/128", Rule::Loopback),
        // AWS, Azure, Google and most others. It is link-local too, but this rule explains more.
        ("169.254.169.254/32", Rule::CloudMetadata),
        // Alibaba Cloud.
        ("100.100.100.200/32", Rule::CloudMetadata),
        // Azure's wire server.
        ("168.63.129.16/32", Rule::CloudMetadata),
        // Oracle Cloud Infrastructure Classic.
        ("192.0.0.192/32", Rule::CloudMetadata),
        // AWS: the metadata service at ::254, DNS at ::253, time at ::123, containers' credentials at ::23.
        ("fd00:ec2::/32", Rule::CloudMetadata),
        // Scaleway.
        ("fd00:42::42/128", Rule::CloudMetadata),
        // Google.
        ("fd20:ce::254/128", Rule::CloudMetadata),
        ("169.254.0.0/16", Rule::LinkLocal),
        ("fe80::/10", Rule::LinkLocal),
        ("224.0.0.0/4", Rule::Multicast),
        ("255.255.255.255/32", Rule::Multicast),
        ("ff00::/8", Rule::Multicast),
        // RFC 8215: for translators of a site's own, so that any IPv4 address may be behind it.
        ("64:ff9b:1::/48", Rule::Translated),
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
    /// The gateway itself listens there.
    Own,
    /// `127.0.0.0/8` or `::1`.
    Loopback,
    /// `169.254.0.0/16` or `fe80::/10`.
    LinkLocal,
    /// A cloud's metadata service.
    CloudMetadata,
    /// `0.0.0.0/8` or `::`, which mean this machine.
    Unspecified,
    /// More than one machine.
    Multicast,
    /// Translated to an unknown IPv4 address.
    Translated,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::NotAllowed => return f.write_str("it is not in the route's allowed_networks"),
            Self::Own => return f.write_str("this gateway itself listens there, and no route leads to it"),
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::CloudMetadata => "a cloud's metadata service",
            Self::Unspecified => "the unspecified address",
            Self::Multicast => "a multicast address",
            Self::Translated => "an address of a local NAT64 prefix",
        };
        write!(f, "a name may not resolve to {what}, unless allowed_networks permits it")
    }
}

/// Where an address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressSource {
    /// It is written instead of a name.
    Literal,
    /// The name is in the hosts file of this machine, or is `localhost`.
    Local,
    /// A name server answered with it.
    Dns,
}

/// The addresses that a route may dial.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allowed {
    /// The only networks that may be dialled. Without them, any address that is written in the configuration may be
    /// dialled, and a name may resolve to any address that [`FORBIDDEN_BY_DEFAULT`] does not contain. The hosts file
    /// may also name loopback addresses.
    pub networks: Option<Vec<IpNet>>,
    /// Whether tokens select the backends. What is written in a token file is not the configuration's word: a literal
    /// address must be in `networks`, and so must every loopback address.
    pub by_token: bool,
    /// What is never dialled.
    pub own: Arc<OwnAddresses>,
}

impl Allowed {
    /// Whether `address` may be dialled.
    ///
    /// # Errors
    /// The rule that forbids it.
    pub(crate) fn check(&self, address: SocketAddr, source: AddressSource) -> Result<(), Rule> {
        if self.own.current().has_ip(address) {
            return Err(Rule::Own);
        }
        self.check_networks(address.ip(), source)
    }

    /// As [`check`](Self::check), without the addresses of this gateway.
    pub(super) fn check_networks(&self, address: IpAddr, source: AddressSource) -> Result<(), Rule> {
        let Some(networks) = &self.networks else {
            return match source {
                AddressSource::Literal if self.by_token => Err(Rule::NotAllowed),
                AddressSource::Literal => Ok(()),
                AddressSource::Local | AddressSource::Dns => match forbidden_by_default(address) {
                    Some(Rule::Loopback) if source == AddressSource::Local && !self.by_token => Ok(()),
                    rule => rule.map_or(Ok(()), Err),
                },
            };
        };
        if covers(networks, reached(address)) { Ok(()) } else { Err(Rule::NotAllowed) }
    }
}

fn forbidden_by_default(address: IpAddr) -> Option<Rule> {
    let address = embedded(address);
    let covering =
        FORBIDDEN_BY_DEFAULT.iter().find(|(network, _)| covers(std::slice::from_ref(network), address));
    covering.map(|(_, rule)| *rule)
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

    fn check(allowed: &Allowed, address: &str, source: AddressSource) -> Result<(), Rule> {
        allowed.check(SocketAddr::new(address.parse().unwrap(), 5900), source)
    }

    #[test]
    fn names_may_resolve_to_any_address_but_these() {
        let default = Allowed::default();
        for (address, rule) in [
            ("169.254.169.254", Rule::CloudMetadata),
            ("::ffff:169.254.169.254", Rule::CloudMetadata),
            ("64:ff9b::169.254.169.254", Rule::CloudMetadata),
            ("100.100.100.200", Rule::CloudMetadata),
            ("168.63.129.16", Rule::CloudMetadata),
            ("192.0.0.192", Rule::CloudMetadata),
            ("fd00:ec2::254", Rule::CloudMetadata),
            ("fd00:ec2::23", Rule::CloudMetadata),
            ("fd00:42::42", Rule::CloudMetadata),
            ("fd20:ce::254", Rule::CloudMetadata),
            ("169.254.0.1", Rule::LinkLocal),
            ("169.254.255.255", Rule::LinkLocal),
            ("fe80::1", Rule::LinkLocal),
            ("febf::1", Rule::LinkLocal),
            ("0.0.0.0", Rule::Unspecified),
            ("0.1.2.3", Rule::Unspecified),
            ("::", Rule::Unspecified),
            ("::ffff:0.0.0.0", Rule::Unspecified),
            ("127.0.0.1", Rule::Loopback),
            ("127.255.255.255", Rule::Loopback),
            ("::1", Rule::Loopback),
            ("::ffff:127.0.0.1", Rule::Loopback),
            ("64:ff9b::127.0.0.1", Rule::Loopback),
            ("224.0.0.1", Rule::Multicast),
            ("239.255.255.255", Rule::Multicast),
            ("255.255.255.255", Rule::Multicast),
            ("ff02::1", Rule::Multicast),
            ("64:ff9b:1::1", Rule::Translated),
            ("64:ff9b:1:ffff:ffff:ffff:a9fe:a9fe", Rule::Translated),
        ] {
            assert_eq!(check(&default, address, AddressSource::Dns), Err(rule), "{address}");
            assert_eq!(
                check(&default, address, AddressSource::Literal),
                Ok(()),
                "{address} was written by the operator"
            );
            let local = if rule == Rule::Loopback { Ok(()) } else { Err(rule) };
            assert_eq!(check(&default, address, AddressSource::Local), local, "{address} in the hosts file");
        }
        for address in
            ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "8.8.8.8", "2001:db8::1"]
        {
            assert_eq!(check(&default, address, AddressSource::Dns), Ok(()), "{address}");
        }
    }

    #[test]
    fn row_70_what_a_token_file_says_must_be_in_allowed_networks() {
        let tokens = Allowed { by_token: true, ..Allowed::default() };
        for address in ["127.0.0.1", "0.0.0.0", "::1", "169.254.169.254", "10.0.0.1", "8.8.8.8"] {
            assert_eq!(check(&tokens, address, AddressSource::Literal), Err(Rule::NotAllowed), "{address}");
        }
        for source in [AddressSource::Local, AddressSource::Dns] {
            assert_eq!(check(&tokens, "127.0.0.1", source), Err(Rule::Loopback));
            assert_eq!(check(&tokens, "10.0.0.1", source), Ok(()));
        }
        let networks = Some(vec!["127.0.0.0/8".parse().unwrap()]);
        let tokens = Allowed { networks, ..tokens };
        for (address, answer) in [
            ("127.0.0.1", Ok(())),
            ("0.0.0.0", Ok(())),
            ("::", Err(Rule::NotAllowed)),
            ("10.0.0.1", Err(Rule::NotAllowed)),
        ] {
            assert_eq!(check(&tokens, address, AddressSource::Literal), answer, "{address}");
        }
    }

    #[test]
    fn row_70_the_addresses_of_the_gateway_itself_are_forbidden_whatever_is_allowed() {
        let own = Arc::new(OwnAddresses::default());
        own.replace(["127.0.0.1:5900".parse().unwrap()].into_iter().collect());
        let networks = Some(vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
        for networks in [None, networks] {
            let allowed = Allowed { networks, by_token: false, own: Arc::clone(&own) };
            for source in [AddressSource::Literal, AddressSource::Local, AddressSource::Dns] {
                for address in ["127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1"] {
                    assert_eq!(check(&allowed, address, source), Err(Rule::Own), "{address}");
                }
            }
            assert_eq!(check(&allowed, "127.0.0.2", AddressSource::Literal), Ok(()));
        }
    }

    #[test]
    fn allowed_networks_replace_the_default_and_apply_to_literals_too() {
        let networks = ["10.0.0.0/8", "169.254.0.0/16", "fd00::/8"].map(|network| network.parse().unwrap());
        let allowed = Allowed { networks: Some(networks.to_vec()), ..Allowed::default() };
        for source in [AddressSource::Literal, AddressSource::Local, AddressSource::Dns] {
            for address in ["10.1.2.3", "::ffff:10.1.2.3", "169.254.169.254", "fd00:ec2::254"] {
                assert_eq!(check(&allowed, address, source), Ok(()), "{address}");
            }
            for address in ["11.0.0.1", "127.0.0.1", "0.0.0.0", "::1", "64:ff9b::10.0.0.1"] {
                assert_eq!(check(&allowed, address, source), Err(Rule::NotAllowed), "{address}");
            }
        }
    }
}
