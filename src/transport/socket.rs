//! The two kinds of accepted socket.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use rustix::net::{RecvFlags, recv};
use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
};

use crate::counting_stream::delegate_io;

/// What the client of a Unix socket counts as: a program of this machine.
pub(crate) const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What a client is connected by, before TLS.
#[derive(Debug)]
pub(crate) enum Socket {
    /// From an address.
    Tcp(TcpStream),
    /// From a program of this machine.
    Unix(UnixStream),
}

impl Socket {
    /// The address of ours that was called.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        match self {
            Self::Tcp(stream) => stream.local_addr().unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into()),
            Self::Unix(_) => LOCAL,
        }
    }

    /// Sends small writes at once. Frames are small and interactive: nothing is gained by waiting for more.
    pub(crate) fn set_nodelay(&self) {
        if let Self::Tcp(stream) = self {
            // A socket that cannot be told so is only slower.
            let _ = stream.set_nodelay(true);
        }
    }

    /// The first bytes that have come, without taking them; waits for one.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn peek(&self, first: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.peek(first).await,
            Self::Unix(stream) => {
                let look = || Ok(recv(stream, &mut *first, RecvFlags::PEEK)?.0);
                stream.async_io(Interest::READABLE, look).await
            }
        }
    }
}

delegate_io!(Socket { Tcp, Unix });

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_is_peeked_at_stays() {
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
