//! The hosts that requests to a listener may name.
//!
//! A page whose name an attacker resolves to a loopback or private address (DNS rebinding) has that name as Host and as
//! Origin, so no Origin check can refuse it. Without TLS, which would fail for want of a certificate, the Host is all that
//! tells it from a page of this gateway. Pure.

use std::net::IpAddr;

use crate::config::{Address, AllowedHosts, Listener};

/// The hosts that requests to one listener may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownHosts {
    /// Lower case; `*.example.com` stands for any one label in place of the star.
    names: Vec<String>,
    /// The listener's own address, if names of this machine and of that address are known too.
    local: Option<IpAddr>,
}

impl KnownHosts {
    /// The hosts of a listener; `None` if requests may name any. `names` are those that routes and certificates have: they
    /// count where the listener does not list its own.
    pub(crate) fn of(listener: &Listener, names: &[String]) -> Option<Self> {
        match (&listener.hosts, &listener.address) {
            (AllowedHosts::Any, _) => None,
            (AllowedHosts::Listed(hosts), _) => Some(Self { names: hosts.clone(), local: None }),
            // The proxies pass on the public name.
            (AllowedHosts::Default, _) if listener.identity.is_some() || listener.proxy_protocol => None,
            (AllowedHosts::Default, Address::Ip(address)) if is_internal(address.ip()) => {
                Some(Self { names: names.to_vec(), local: Some(address.ip().to_canonical()) })
            }
            (AllowedHosts::Default, _) => None,
        }
    }

    /// Whether these are the hosts that a connection may name. A trusted proxy names those that its own clients know, and its
    /// requests are limited by a list only.
    pub(crate) fn apply_to(&self, by_trusted_proxy: bool) -> bool {
        self.local.is_none() || !by_trusted_proxy
    }

    /// Whether a request may name `host`: in lower case, without port.
    pub(crate) fn contains(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        self.names.iter().any(|name| matches(name, host))
            || self.local.is_some_and(|own| {
                let is_own = |address: IpAddr| address == own || address.is_loopback() && own.is_loopback();
                host == "localhost" || host.ends_with(".localhost") || literal(host).is_some_and(is_own)
            })
    }
}

/// Whether only this machine or a private network reaches an address: the addresses that DNS rebinding is for.
fn is_internal(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

fn matches(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        None => name == host,
    }
}

/// The address of an IP literal, IPv6 in brackets.
fn literal(host: &str) -> Option<IpAddr> {
    let v6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match v6 {
        Some(v6) => IpAddr::V6(v6.parse().ok()?),
        None => IpAddr::V4(host.parse().ok()?),
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn known(listener: &str) -> Option<KnownHosts> {
        let text = format!(
            "[[listener]]\n{listener}\n[[route]]\nname = \"a\"\npath = \"/a\"\nbackend = \"tcp://127.0.0.1:1\"\n"
        );
        let config = Config::parse(&text, Path::new("gateway.toml")).unwrap();
        KnownHosts::of(&config.listeners[0], &["gate.example".to_owned(), "*.desk.example".to_owned()])
    }

    #[test]
    fn a_plain_loopback_listener_knows_its_own_names_only() {
        let known = known("address = \"127.0.0.1:80\"").unwrap();
        for host in [
            "localhost",
            "app.localhost",
            "localhost.",
            "127.0.0.1",
            "127.9.9.9",
            "[::1]",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(known.contains(host), "{host}");
        }
        assert!(known.contains("gate.example") && known.contains("one.desk.example"));
        for host in [
            "attacker.example",
            "localhost.attacker.example",
            "127.0.0.1.attacker.example",
            "notlocalhost",
            "192.0.2.1",
            "10.0.0.1",
            "[2001:db8::1]",
            "desk.example",
            "a.b.desk.example",
            ".desk.example",
            "",
            ".",
        ] {
            assert!(!known.contains(host), "{host}");
        }
    }

    #[test]
    fn a_plain_private_listener_knows_its_own_address() {
        for (own, literal) in
            [("10.1.2.3", "10.1.2.3"), ("[fd00::1]", "[fd00:0::1]"), ("169.254.1.1", "169.254.1.1")]
        {
            let known = known(&format!("address = \"{own}:80\"")).unwrap();
            assert!(known.contains(literal) && known.contains("localhost"), "{own}");
            assert!(!known.contains("127.0.0.1") && !known.contains("10.1.2.4"), "{own}");
        }
    }

    #[test]
    fn other_listeners_have_no_default() {
        for listener in [
            "address = \"0.0.0.0:80\"",
            "address = \"[::]:80\"",
            "address = \"192.0.2.1:80\"",
            "address = \"unix:/run/a.sock\"",
            "address = \"systemd:web\"",
            "address = \"127.0.0.1:80\"\nhosts = [\"*\"]",
            "address = \"127.0.0.1:80\"\nproxy_protocol = true\ntrusted_proxies = [\"127.0.0.1\"]",
            "address = \"127.0.0.1:80\"\ncertificate = \"a.crt\"\nprivate_key = \"a.key\"",
        ] {
            assert_eq!(known(listener), None, "{listener}");
        }
    }

    #[test]
    fn a_list_replaces_the_default() {
        let known =
            known("address = \"127.0.0.1:80\"\nhosts = [\"Desk.example\", \"[::1]\", \"*.lab.example\"]")
                .unwrap();
        for host in ["desk.example", "[::1]", "one.lab.example"] {
            assert!(known.contains(host), "{host}");
        }
        for host in ["localhost", "127.0.0.1", "gate.example", "lab.example"] {
            assert!(!known.contains(host), "{host}");
        }
    }

    #[test]
    fn the_default_does_not_apply_to_a_trusted_proxy_and_a_list_does() {
        let default = known("address = \"127.0.0.1:80\"").unwrap();
        assert!(default.apply_to(false) && !default.apply_to(true));
        let listed = known("address = \"127.0.0.1:80\"\nhosts = [\"a.example\"]").unwrap();
        assert!(listed.apply_to(false) && listed.apply_to(true));
    }
}
