//! The source of a connection and the networks around it: the units that limits are counted by.
//!
//! Owns the prefix lengths. Knows nothing of limits. A source is one IPv4 address or one IPv6 /64, the smallest block that
//! is assigned to a single subscriber (RFC 6177 §2); `::ffff:a.b.c.d` is `a.b.c.d`.

use std::net::{IpAddr, Ipv6Addr};

/// A source, or a network of them: the upper bits of an address. Networks of different sizes are never compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Source {
    V4(u32),
    /// Bits of the upper 64 bits of the address.
    V6(u64),
}

/// How many bits the network of a source is shorter than the source: an IPv4 /24, an IPv6 /56.
pub(super) const NETWORK_BITS: u32 = 8;
/// The same for an IPv6 /48.
pub(super) const SITE_BITS: u32 = 16;

impl Source {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> (Ipv6Addr::BITS / 2)) as u64),
        }
    }

    /// The /24 or /56 of a source.
    pub(super) fn network(self) -> Self {
        match self {
            Self::V4(bits) => Self::V4(bits >> NETWORK_BITS),
            Self::V6(bits) => Self::V6(bits >> NETWORK_BITS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> Source {
        Source::of(address.parse().unwrap())
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_64() {
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.2"), of("192.0.2.1"));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
    }

    #[test]
    fn a_network_is_an_ipv4_24_or_an_ipv6_56() {
        let network = |address| of(address).network();
        assert_eq!(network("192.0.2.1"), network("192.0.2.255"));
        assert_ne!(network("192.0.2.1"), network("192.0.3.1"));
        assert_eq!(network("2001:db8:0:100::1"), network("2001:db8:0:1ff::1"));
        assert_ne!(network("2001:db8:0:100::1"), network("2001:db8:0:200::1"));
    }
}
