//! How much the kernel buffers for a TCP connection.
//!
//! Owns the setting of the process and how it is applied to a socket. Knows nothing of who uses the socket. Invariant:
//! a change applies to sockets that are configured afterwards; connections keep what they have.
//!
//! The receive buffer is fixed, so a peer that sends cannot make it grow. The send buffer still grows with the path,
//! because data in flight must be kept until it is acknowledged, but what is not yet sent is bounded: a peer that reads
//! nothing costs [`UNSENT_FACTOR`] times this much, a long path with a high bandwidth is not slowed down.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use socket2::SockRef;

/// `limits.socket_buffer` if it is not set, in bytes.
pub(crate) const DEFAULT_SOCKET_BUFFER: u32 = 512 * 1024;

/// How many times `limits.socket_buffer` may wait in the kernel to be sent. The kernel reports a socket writable when half
/// of that is free: with once instead of four times as much, a client that downloads at full speed costs 7 % more
/// processor time, because each wake-up moves less.
const UNSENT_FACTOR: u32 = 4;

/// `limits.socket_buffer` in bytes. Clones share the value, so that a reload can change it.
#[derive(Debug, Clone)]
pub struct SocketBuffer(Arc<AtomicU32>);

impl Default for SocketBuffer {
    fn default() -> Self {
        Self(Arc::new(AtomicU32::new(DEFAULT_SOCKET_BUFFER)))
    }
}

impl SocketBuffer {
    pub(crate) fn set(&self, bytes: u32) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Configures a TCP socket before it connects or listens; accepted sockets inherit it.
    ///
    /// # Errors
    /// The system refuses. It does not refuse a size above its maximum (`net.core.rmem_max`), but uses the maximum.
    pub(crate) fn apply<S: AsFd>(&self, socket: &S) -> io::Result<()> {
        let bytes = self.get();
        set_socket_recv_buffer_size(socket, bytes as usize)?;
        SockRef::from(socket).set_tcp_notsent_lowat(bytes.saturating_mul(UNSENT_FACTOR))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn accepted_sockets_inherit_the_size() {
        let buffer = SocketBuffer::default();
        buffer.clone().set(100_000);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        buffer.apply(&listener).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        // The kernel doubles the size, for its own overhead.
        assert_eq!(accepted.recv_buffer_size().unwrap(), 200_000);
        assert_eq!(accepted.tcp_notsent_lowat().unwrap(), 400_000);
    }
}
