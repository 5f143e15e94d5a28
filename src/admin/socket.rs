//! The listening socket of the admin address.
//!
//! Owns the error messages when it cannot be opened. Knows nothing of the protocol on it.

use std::io;

use crate::{
    config::{Address, AdminAddress, SocketAccess},
    socket_buffer::SocketBuffer,
    transport::listener::{InheritedSockets, ListeningSocket, listen},
};

/// Why the admin address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another program listens there.
    #[error("another program listens there; stop it, or set another address")]
    InUse,
    /// The path exists and is not a socket.
    #[error("the file there is not a socket; remove it, or set another path")]
    NotASocket,
    #[error("{0}; {advice}", advice = advice(.0))]
    System(io::Error),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            "set a loopback address of this machine, such as \"127.0.0.1:9101\""
        }
        io::ErrorKind::NotFound => "create the directory, or set another path",
        io::ErrorKind::PermissionDenied => {
            "allow the user who runs Portcullis to write to the directory, or set another path"
        }
        _ => "set another address",
    }
}

/// Listens on `address`; `access` is for a Unix socket. A stale Unix socket, which no process listens on, is replaced.
pub(super) fn bind(address: &AdminAddress, access: &SocketAccess) -> Result<ListeningSocket, SocketError> {
    let (inherited, buffer) = (InheritedSockets::default(), SocketBuffer::default());
    let bound = listen(&address.clone().into(), access, &inherited, &buffer)
        .and_then(|sockets| sockets.into_iter().next().ok_or(io::ErrorKind::AddrNotAvailable.into()));
    bound.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => SocketError::NotASocket,
        io::ErrorKind::AddrInUse => SocketError::InUse,
        _ => SocketError::System(error),
    })
}

/// The local address, with the port that the system chose for port 0. `None` for a Unix socket.
pub(super) fn address_of(listening: &ListeningSocket) -> Option<AdminAddress> {
    match listening.address() {
        Address::Ip(address) => Some(AdminAddress::Loopback(address)),
        Address::Unix(_) | Address::Inherited(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::listener::OWNER_ONLY;

    fn unix(path: &std::path::Path) -> AdminAddress {
        AdminAddress::Unix(path.to_owned())
    }

    #[tokio::test]
    async fn bind_errors_include_advice() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere =
            bind(&unix(&directory.path().join("no/admin.sock")), &OWNER_ONLY).unwrap_err().to_string();
        assert!(nowhere.contains("create the directory"), "{nowhere}");
        let long = bind(&unix(&directory.path().join("x".repeat(108))), &OWNER_ONLY).unwrap_err().to_string();
        assert!(long.contains("set a shorter"), "{long}");
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(bind(&unix(&file), &OWNER_ONLY), Err(SocketError::NotASocket)));
        let path = directory.path().join("admin.sock");
        let first = bind(&unix(&path), &OWNER_ONLY).unwrap();
        assert!(matches!(bind(&unix(&path), &OWNER_ONLY), Err(SocketError::InUse)));
        assert_eq!(address_of(&first), None, "a Unix socket keeps its configured path");
        let first = bind(&"127.0.0.1:0".parse().unwrap(), &OWNER_ONLY).unwrap();
        let second = bind(&address_of(&first).unwrap(), &OWNER_ONLY);
        assert!(matches!(second, Err(SocketError::InUse)), "{second:?}");
    }
}
