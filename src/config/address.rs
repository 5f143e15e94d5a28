//! The address of a listener.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

/// The prefix of inherited sockets (socket activation).
const INHERITED: &str = "systemd:";
/// The prefix of Unix socket paths.
const UNIX: &str = "unix:";

/// The address of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// `ip:port`; port 0 lets the system choose.
    Ip(SocketAddr),
    /// `unix:/path`: a Unix socket.
    Unix(PathBuf),
    /// `systemd:NAME`: every socket of that name that the service manager passed to the process, by socket activation
    /// (`FileDescriptorName=` in a socket unit, or the unit's own name).
    Inherited(String),
}

/// Who may connect to a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketAccess {
    /// The permissions of its file.
    pub mode: u32,
    /// The group of its file; `None` leaves the one that the system chooses.
    pub group: Option<Group>,
}

impl Default for SocketAccess {
    /// The gateway's user and group.
    fn default() -> Self {
        Self { mode: 0o660, group: None }
    }
}

/// A group of users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Group {
    /// By its name.
    Name(String),
    /// By its number.
    Number(u32),
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// A text that is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "write ip:port, such as \"0.0.0.0:8443\", \"127.0.0.1:8443\" or \"[::1]:8443\"; unix:/path for a Unix socket; or \
     systemd:NAME for the sockets of a socket unit"
)]
pub struct AddressError;

impl Address {
    /// The IP address and port, if they are known before the socket is bound.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) | Self::Inherited(_) => None,
        }
    }

    /// Whether only programs on this machine can connect. An inherited socket counts as local, because its exposure was
    /// decided where it was opened.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Ip(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) | Self::Inherited(_) => true,
        }
    }

    /// Whether the two cannot be bound at the same time.
    pub fn collides_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ip(one), Self::Ip(other)) => {
                let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
                let same_family = one.is_ipv4() == other.is_ipv4();
                one.port() != 0
                    && one.port() == other.port()
                    && (one.ip() == other.ip() || everywhere && same_family)
            }
            (one, other) => one == other,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix(UNIX) {
            return if path.is_empty() || path.contains('\0') {
                Err(AddressError)
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        if let Some(name) = text.strip_prefix(INHERITED) {
            // The characters that systemd allows in FileDescriptorName= (systemd.socket(5)).
            let good = |byte: u8| byte.is_ascii_graphic() && byte != b':';
            let is_name = (1..=255).contains(&name.len()) && name.bytes().all(good);
            return if is_name { Ok(Self::Inherited(name.to_owned())) } else { Err(AddressError) };
        }
        text.parse().map(Self::Ip).map_err(|_| AddressError)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
            Self::Inherited(name) => write!(f, "{INHERITED}{name}"),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_displayed_as_it_is_written() {
        for text in
            ["127.0.0.1:0", "[::1]:8443", "unix:/run/portcullis/listener.sock", "systemd:portcullis.socket"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "8443",
            "localhost:8443",
            ":8443",
            "unix:",
            "systemd:",
            "systemd:a:b",
            "systemd:a b",
            "tcp://[::1]:1",
        ] {
            assert_eq!(text.parse::<Address>(), Err(AddressError), "{text}");
        }
    }

    #[test]
    fn addresses_that_cannot_be_bound_together_collide() {
        let collide =
            |one: &str, other: &str| one.parse::<Address>().unwrap().collides_with(&other.parse().unwrap());
        assert!(
            collide("0.0.0.0:1", "127.0.0.1:1")
                && collide("unix:/a", "unix:/a")
                && collide("systemd:a", "systemd:a")
        );
        assert!(
            !collide("127.0.0.1:0", "127.0.0.1:0")
                && !collide("unix:/a", "unix:/b")
                && !collide("[::]:1", "127.0.0.1:1")
        );
    }
}
