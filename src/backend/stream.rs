//! An established connection to a backend: TCP, Unix socket or TLS.
//!
//! Owns the differences between the three, so that callers need not know them. Knows nothing of how the connection was
//! established. Invariant: reads and writes go straight to the stream underneath, without a buffer in between.
//!
//! A TLS connection that ends without `close_notify` (RFC 8446 §6.1) is an error, not an end of stream: otherwise
//! truncation by an attacker would look like a regular end.

use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::counting_stream::{CountingStream, delegate_io};
#[cfg(test)]
use crate::simulation::Stream;

/// A connection to a backend.
#[derive(Debug)]
pub enum BackendStream {
    /// `tcp://`
    Tcp(CountingStream<TcpStream>),
    /// `unix:`
    Unix(CountingStream<UnixStream>),
    /// `tls://`, and `starttls+xmpp://` after the handshake. Boxed, so that sessions without TLS do not pay for its
    /// size.
    Tls(Box<TlsStream<CountingStream<TcpStream>>>),
    /// `tcp://` in a simulated network.
    #[cfg(test)]
    Simulated(CountingStream<Stream>),
}

impl BackendStream {
    /// Bytes written to the socket so far, TLS overhead included.
    pub fn bytes_written(&self) -> u64 {
        match self {
            Self::Tcp(stream) => stream.bytes_written(),
            Self::Unix(stream) => stream.bytes_written(),
            Self::Tls(stream) => stream.get_ref().0.bytes_written(),
            #[cfg(test)]
            Self::Simulated(stream) => stream.bytes_written(),
        }
    }

    /// The next write that would wait for the socket to be reported as writable is tried on the socket itself, once.
    pub(crate) fn force_write(&mut self) {
        match self {
            Self::Tcp(stream) => stream.force_write(),
            Self::Unix(stream) => stream.force_write(),
            Self::Tls(stream) => stream.get_mut().0.force_write(),
            #[cfg(test)]
            Self::Simulated(stream) => stream.force_write(),
        }
    }
}

delegate_io!(BackendStream {
    Tcp,
    Unix,
    Tls,
    #[cfg(test)]
    Simulated
});

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

    use super::*;

    /// Writes in every way there is and shuts down; the other end must receive just that, and the bytes must be
    /// counted.
    async fn exercise(mut stream: BackendStream, mut other: impl AsyncRead + AsyncWrite + Unpin) {
        assert!(stream.is_write_vectored());
        stream.write_all(b"one ").await.unwrap();
        let buffers = [IoSlice::new(b"two "), IoSlice::new(b"three")];
        assert_eq!(stream.write_vectored(&buffers).await.unwrap(), 9);
        stream.flush().await.unwrap();
        assert_eq!(stream.bytes_written(), 13);
        stream.shutdown().await.unwrap();
        let mut received = String::new();
        other.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "one two three");
        other.write_all(b"four").await.unwrap();
        drop(other);
        let mut received = String::new();
        stream.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "four", "half-close: one direction is closed, the other is not");
    }

    #[tokio::test]
    async fn tcp_is_passed_through() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (other, _) = listener.accept().await.unwrap();
        exercise(BackendStream::Tcp(CountingStream::new(stream)), other).await;
    }

    #[tokio::test]
    async fn unix_socket_is_passed_through() {
        let (stream, other) = UnixStream::pair().unwrap();
        exercise(BackendStream::Unix(CountingStream::new(stream)), other).await;
    }
}
