//! Which failures are a lack of resources on this machine, rather than a fault of the backend.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
};

/// Whether a system call failed for a lack that affects every address (EMFILE, ENFILE, ENOMEM, ENOBUFS).
pub(super) fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24 | 105)) || error.kind() == io::ErrorKind::OutOfMemory
}

/// Whether this machine has a local address from which to reach another one. EADDRNOTAVAIL means that all local ports
/// are in use, but also that there is no such address, as for IPv6 where that is disabled. UDP does not run out of
/// ports here, and connecting a UDP socket sends nothing.
pub(super) fn has_local_address_for(address: SocketAddr) -> bool {
    let any = if address.is_ipv4() { IpAddr::from([0; 4]) } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address)).is_ok()
}
