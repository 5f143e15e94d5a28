//! An accepted socket: TCP, or Unix.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::net::{RecvFlags, recv};
use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
};

use crate::counting_stream::delegate_io;
#[cfg(test)]
use crate::simulation::Stream;

/// The address that stands for clients of a Unix socket, which are processes on this machine.
pub(crate) const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A client's socket, before TLS.
#[derive(Debug)]
pub(crate) enum Socket {
    /// A client with an address.
    Tcp(TcpStream),
    /// A process on this machine.
    Unix(UnixStream),
    /// A client in a simulated network.
    #[cfg(test)]
    Simulated(Stream),
}

impl Socket {
    /// The local address that the client connected to.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        match self {
            Self::Tcp(stream) => stream.local_addr().unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into()),
            Self::Unix(_) => LOCAL,
            #[cfg(test)]
            Self::Simulated(stream) => stream.local_addr(),
        }
    }

    /// Disables Nagle's algorithm (TCP_NODELAY): frames are small and interactive.
    pub(crate) fn set_nodelay(&self) {
        if let Self::Tcp(stream) = self {
            // If this fails, the connection works but is slower.
            let _ = stream.set_nodelay(true);
        }
    }

    /// Copies the first bytes that have arrived without consuming them (MSG_PEEK). Waits for at least one.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn peek(&self, first: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.peek(first).await,
            Self::Unix(stream) => {
                let peek = || Ok(recv(stream, &mut *first, RecvFlags::PEEK)?.0);
                stream.async_io(Interest::READABLE, peek).await
            }
            #[cfg(test)]
            Self::Simulated(stream) => stream.peek(first).await,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
            #[cfg(test)]
            Self::Simulated(stream) => stream.as_fd(),
        }
    }
}

delegate_io!(Socket {
    Tcp,
    Unix,
    #[cfg(test)]
    Simulated
});

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn peeked_bytes_can_still_be_read() {
        let (one, mut other) = UnixStream::pair().unwrap();
        let mut socket = Socket::Unix(one);
        other.write_all(b"PROXY").await.unwrap();
        let mut first = [0; 12];
        assert_eq!(socket.peek(&mut first).await.unwrap(), 5);
        let mut read = [0; 5];
        socket.read_exact(&mut read).await.unwrap();
        assert_eq!((&read, &first[..5]), (b"PROXY", b"PROXY".as_slice()));
        drop(other);
        assert_eq!(socket.peek(&mut first).await.unwrap(), 0);
    }
}
