//! Where the gateway can be watched and steered.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

/// How the operator reaches the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens for him.
    pub address: AdminAddress,
}

/// An address that only this machine can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// A port of a loopback address; port 0 lets the system choose.
    Loopback(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl AdminAddress {
    /// The same address; a relative path of a socket resolved against `base`.
    #[must_use]
    pub fn below(self, base: &Path) -> Self {
        match self {
            Self::Unix(path) => Self::Unix(base.join(path)),
            loopback => loopback,
        }
    }
}

/// Why a text is no admin address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdminAddressError {
    /// It is neither an address with a port nor a socket.
    #[error(
        "no address; write a loopback address with a port, such as \"127.0.0.1:9101\" or \"[::1]:9101\", or a socket, such as \"unix:/run/portcullis/admin.sock\""
    )]
    Malformed,
    /// Others could reach it.
    #[error(
        "not a loopback address: whoever reaches it can end every session; use \"127.0.0.1\", \"[::1]\" or \"unix:/path\", and ssh to come from elsewhere"
    )]
    Public,
    /// The path of the socket is empty, or has a NUL character in it.
    #[error("no path of a socket; write one such as \"unix:/run/portcullis/admin.sock\"")]
    Path,
}

impl FromStr for AdminAddress {
    type Err = AdminAddressError;

    fn from_str(text: &str) -> Result<Self, AdminAddressError> {
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
    fn what_only_this_machine_reaches_is_an_address() {
        for text in ["127.0.0.1:9101", "127.8.8.8:0", "[::1]:9101", "unix:/run/portcullis/admin.sock"] {
            assert_eq!(text.parse::<AdminAddress>().unwrap().to_string(), text);
        }
        let relative: AdminAddress = "unix:admin.sock".parse().unwrap();
        assert_eq!(relative.below(Path::new("/etc")), AdminAddress::Unix("/etc/admin.sock".into()));
    }

    #[test]
    fn what_others_reach_is_none() {
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
