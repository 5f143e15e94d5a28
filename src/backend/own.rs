//! The addresses that this gateway itself listens on: those of its listeners and its admin address.
//!
//! Owns whether a connection to an address would end at the gateway itself, so that no route leads a client to the
//! admin API, or the gateway into a circle. Knows nothing of routes. The kernel is asked which addresses are those of
//! this machine, and only for a port that the gateway listens on.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;

use crate::config::{Address, Backend, Host, reached};

/// A set of addresses to listen on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressSet {
    tcp: Vec<SocketAddr>,
    unix: Vec<PathBuf>,
}

impl FromIterator<Address> for AddressSet {
    /// Port 0, and inherited sockets, stand for addresses that are not known yet.
    fn from_iter<I: IntoIterator<Item = Address>>(addresses: I) -> Self {
        let mut set = Self::default();
        for address in addresses {
            match address {
                Address::Ip(address) if address.port() != 0 => set.tcp.push(address),
                Address::Unix(path) => set.unix.push(path),
                Address::Ip(_) | Address::Inherited(_) => {}
            }
        }
        set
    }
}

impl AddressSet {
    /// Whether `backend` is certainly in the set. That a name resolves to such an address shows when it is dialled.
    pub(crate) fn has_backend(&self, backend: &Backend) -> bool {
        match backend {
            Backend::Unix(path) => self.has_path(path),
            Backend::Tcp { host, port }
            | Backend::Tls { host, port }
            | Backend::StartTlsXmpp { host, port } => match host {
                Host::Address(address) => self.has_ip(SocketAddr::new(*address, *port)),
                Host::Name(_) => false,
            },
        }
    }

    /// Whether a connection to `address` would be accepted by one of these.
    pub(super) fn has_ip(&self, address: SocketAddr) -> bool {
        let ip = reached(address.ip());
        self.tcp.iter().filter(|own| own.port() == address.port()).any(|own| match own.ip().to_canonical() {
            any if any.is_unspecified() => (any.is_ipv6() || ip.is_ipv4()) && is_of_this_machine(ip),
            one => one == ip,
        })
    }

    /// Whether `path` is that of one of these sockets, links followed.
    pub(super) fn has_path(&self, path: &Path) -> bool {
        let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        !self.unix.is_empty()
            && (self.unix.iter().any(|own| own == path)
                || identity(path).is_some_and(|it| self.unix.iter().any(|own| identity(own) == Some(it))))
    }

    /// Whether one of these sockets was bound to this path.
    pub(super) fn has_bound(&self, path: Option<&Path>) -> bool {
        path.is_some_and(|path| self.unix.iter().any(|own| own == path))
    }
}

/// The addresses of the running gateway, which a reload replaces. Shared by all routes.
#[derive(Debug, Default)]
pub struct OwnAddresses(RwLock<Arc<AddressSet>>);

impl OwnAddresses {
    /// The addresses from now on.
    pub(crate) fn replace(&self, addresses: AddressSet) {
        *self.0.write() = Arc::new(addresses);
    }

    /// The addresses at this moment.
    pub(super) fn current(&self) -> Arc<AddressSet> {
        Arc::clone(&self.0.read())
    }
}

/// Whether packets to `ip` stay on this machine. For such an address, and for no other, the kernel chooses the address
/// itself as the source. Connecting a UDP socket sends nothing.
fn is_of_this_machine(ip: IpAddr) -> bool {
    const ANY_PORT: u16 = 9;
    if ip.is_loopback() {
        return true;
    }
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, ANY_PORT))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(addresses: &[&str]) -> AddressSet {
        addresses.iter().map(|address| address.parse::<Address>().unwrap()).collect()
    }

    #[test]
    fn an_address_is_compared_with_what_the_kernel_would_connect_to() {
        let own = set(&["127.0.0.1:9101", "[::1]:9102", "0.0.0.0:8443", "[::]:8444", "192.0.2.1:0"]);
        for address in [
            "127.0.0.1:9101",
            "0.0.0.0:9101",
            "[::ffff:127.0.0.1]:9101",
            "[::ffff:0.0.0.0]:9101",
            "[::1]:9102",
            "[::]:9102",
            "127.0.0.1:8443",
            "127.8.8.8:8443",
            "0.0.0.0:8443",
            "127.0.0.1:8444",
            "[::1]:8444",
        ] {
            assert!(own.has_ip(address.parse().unwrap()), "{address}");
        }
        for address in [
            "127.0.0.2:9101",
            "127.0.0.1:9102",
            "[::1]:9101",
            "[::1]:8443",
            "192.0.2.1:8443",
            "[2001:db8::1]:8444",
            "192.0.2.1:0",
        ] {
            assert!(!own.has_ip(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn every_address_of_an_interface_is_of_this_machine() {
        let connected = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            socket.connect("192.0.2.1:9")?;
            socket.local_addr()
        });
        // A machine without a route to the outside has loopback alone.
        if let Ok(source) = connected {
            assert!(is_of_this_machine(source.ip()), "{source}");
        }
        assert!(!is_of_this_machine([192, 0, 2, 1].into()));
    }

    #[test]
    fn a_link_to_a_socket_is_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let _admin = std::os::unix::net::UnixListener::bind(at("admin.sock")).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(at("other.sock")).unwrap();
        std::os::unix::fs::symlink(at("admin.sock"), at("link")).unwrap();
        fs::hard_link(at("admin.sock"), at("hard")).unwrap();
        let own: AddressSet = [Address::Unix(at("admin.sock"))].into_iter().collect();
        for name in ["admin.sock", "link", "hard", "../x/../admin.sock"] {
            let path = if name.contains("..") {
                directory.path().join("..").join(directory.path().file_name().unwrap()).join("admin.sock")
            } else {
                at(name)
            };
            assert!(own.has_path(&path), "{name}");
        }
        assert!(!own.has_path(&at("other.sock")) && !own.has_path(&at("none")));
        assert!(!AddressSet::default().has_path(&at("admin.sock")));
    }
}
