//! `[admin]` and `[admin.tickets]`: the address of the admin API, and one at which only tickets can be requested.
//!
//! Owns the rule that only this machine can reach them.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use toml::Spanned;

use super::address::{Address, SocketAccess};
use super::listener::access;
use super::scalar::OptionalKey;
use super::values::{Result, invalid, missing, parsed};

/// The admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens.
    pub address: AdminAddress,
    /// Where programs may request tickets that may do nothing else, if there is such an address.
    pub tickets: Option<TicketAddress>,
}

impl Admin {
    /// All addresses of the table.
    pub fn addresses(&self) -> impl Iterator<Item = &AdminAddress> {
        std::iter::once(&self.address).chain(self.tickets.as_ref().map(|tickets| &tickets.address))
    }
}

/// An address that serves the requests for tickets and no others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketAddress {
    /// Where it listens.
    pub address: AdminAddress,
    /// Who may connect, if it is a Unix socket.
    pub access: SocketAccess,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAdmin {
    address: OptionalKey<String>,
    tickets: OptionalKey<RawTickets>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTickets {
    address: OptionalKey<String>,
    mode: OptionalKey<String>,
    group: OptionalKey<String>,
}

pub(super) fn admin(raw: Spanned<RawAdmin>, base: &Path) -> Result<Admin> {
    const KEY: &str = "admin.address";
    let at = raw.span();
    let RawAdmin { address, tickets: ticket_table } = raw.into_inner();
    let Some(text) = address else {
        let advice =
            "add address = \"127.0.0.1:9101\" or \"unix:/run/portcullis/admin.sock\", or leave [admin] out";
        return Err(missing(at, KEY, advice));
    };
    let address = parsed::<AdminAddress>(KEY, &text)?.below(base);
    let tickets = ticket_table.map(|table| tickets(table, &address, base)).transpose()?;
    Ok(Admin { address, tickets })
}

fn tickets(raw: Spanned<RawTickets>, admin: &AdminAddress, base: &Path) -> Result<TicketAddress> {
    let key = |name: &str| format!("admin.tickets.{name}");
    let at = raw.span();
    let RawTickets { address, mode, group } = raw.into_inner();
    let Some(text) = address else {
        let advice = "add address = \"unix:/run/portcullis/tickets.sock\" or \"127.0.0.1:9102\"";
        return Err(missing(at, key("address"), advice));
    };
    let address = parsed::<AdminAddress>(&key("address"), &text)?.below(base);
    let is_free_port = matches!(&address, AdminAddress::Loopback(address) if address.port() == 0);
    if address == *admin && !is_free_port {
        return Err(invalid(key("address"), &text, "admin.address is the same; choose another"));
    }
    let access = access(&key, matches!(address, AdminAddress::Unix(_)), mode, group)?;
    Ok(TicketAddress { address, access })
}

/// An address that only this machine can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// A loopback address and port; port 0 lets the system choose.
    Loopback(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl AdminAddress {
    /// The same address, with a relative socket path resolved against `base`.
    #[must_use]
    pub fn below(self, base: &Path) -> Self {
        match self {
            Self::Unix(path) => Self::Unix(base.join(path)),
            loopback => loopback,
        }
    }
}

/// Why a text is not an admin address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdminAddressError {
    /// Neither an address with a port nor a socket.
    #[error(
        "not a valid address; use a loopback address with a port, such as \"127.0.0.1:9101\" or \"[::1]:9101\", or a socket, such as \"unix:/run/portcullis/admin.sock\""
    )]
    Malformed,
    /// Other machines could reach it.
    #[error(
        "not a loopback address: anyone who can reach the admin API can close every session; use \"127.0.0.1\", \"[::1]\" or \"unix:/path\", and SSH for remote access"
    )]
    Public,
    /// The path of the socket is empty, or contains a NUL character.
    #[error("not a valid socket path; use one such as \"unix:/run/portcullis/admin.sock\"")]
    Path,
}

impl FromStr for AdminAddress {
    type Err = AdminAddressError;

    fn from_str(text: &str) -> std::result::Result<Self, AdminAddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let wrong = path.is_empty() || path.ends_with('/') || path.contains('\0');
            return if wrong { Err(AdminAddressError::Path) } else { Ok(Self::Unix(path.into())) };
        }
        let address: SocketAddr = text.parse().map_err(|_| AdminAddressError::Malformed)?;
        if !address.ip().to_canonical().is_loopback() {
            return Err(AdminAddressError::Public);
        }
        Ok(Self::Loopback(address))
    }
}

impl From<AdminAddress> for Address {
    fn from(address: AdminAddress) -> Self {
        match address {
            AdminAddress::Loopback(address) => Self::Ip(address),
            AdminAddress::Unix(path) => Self::Unix(path),
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_only_this_machine_reaches_are_accepted() {
        for text in ["127.0.0.1:9101", "127.8.8.8:0", "[::1]:9101", "unix:/run/portcullis/admin.sock"] {
            assert_eq!(text.parse::<AdminAddress>().unwrap().to_string(), text);
        }
        let relative: AdminAddress = "unix:admin.sock".parse().unwrap();
        assert_eq!(relative.below(Path::new("/etc")), AdminAddress::Unix("/etc/admin.sock".into()));
    }

    #[test]
    fn other_addresses_are_refused() {
        for (text, wrong) in [
            ("0.0.0.0:9101", AdminAddressError::Public),
            ("[::]:9101", AdminAddressError::Public),
            ("192.0.2.7:9101", AdminAddressError::Public),
            ("[::ffff:192.0.2.7]:9101", AdminAddressError::Public),
            ("127.0.0.1", AdminAddressError::Malformed),
            ("localhost:9101", AdminAddressError::Malformed),
            (":9101", AdminAddressError::Malformed),
            ("", AdminAddressError::Malformed),
            ("/run/admin.sock", AdminAddressError::Malformed),
            ("unix:", AdminAddressError::Path),
            ("unix:/run/portcullis/", AdminAddressError::Path),
            ("unix:a\0b", AdminAddressError::Path),
        ] {
            assert_eq!(text.parse::<AdminAddress>(), Err(wrong), "{text:?}");
        }
    }
}
