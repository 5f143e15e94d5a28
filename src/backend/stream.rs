//! What a backend is reached by, once it is reached.
//!
//! Owns the differences between a TCP socket, a Unix socket and TLS, so that nobody above sees them. Refuses to know how
//! any of them came about. Invariant: bytes go straight through to the stream underneath, never through a buffer of this
//! room's own.
//!
//! A TLS backend that is cut off without `close_notify` (RFC 8446 §6.1) is a broken stream, not a closed one: nobody
//! else can tell the end of what it had to say from an end that was forced upon it.

use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::counting_stream::{CountingStream, delegate_io};

/// A connection to a backend.
#[derive(Debug)]
pub enum BackendStream {
    /// `tcp://`
    Tcp(CountingStream<TcpStream>),
    /// `unix:`
    Unix(CountingStream<UnixStream>),
    /// `tls://`, and `starttls+xmpp://` once TLS is there. Boxed: a plain session need not carry the room for it.
    Tls(Box<TlsStream<CountingStream<TcpStream>>>),
}

impl BackendStream {
    /// Bytes the socket has taken so far, TLS included.
    pub fn bytes_written(&self) -> u64 {
        match self {
            Self::Tcp(stream) => stream.bytes_written(),
            Self::Unix(stream) => stream.bytes_written(),
            Self::Tls(stream) => stream.get_ref().0.bytes_written(),
        }
    }
}

delegate_io!(BackendStream { Tcp, Unix, Tls });

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

    use super::*;

    /// Writes in every way there is and shuts down; the other end must see just that, and the meter must have counted.
    async fn exercise(mut stream: BackendStream, mut other: impl AsyncRead + AsyncWrite + Unpin) {
        assert!(stream.is_write_vectored());
        stream.write_all(b"one ").await.unwrap();
        let pieces = [IoSlice::new(b"two "), IoSlice::new(b"three")];
        assert_eq!(stream.write_vectored(&pieces).await.unwrap(), 9);
        stream.flush().await.unwrap();
        assert_eq!(stream.bytes_written(), 13);
        stream.shutdown().await.unwrap();
        let mut heard = String::new();
        other.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "one two three");
        other.write_all(b"four").await.unwrap();
        drop(other);
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "four", "one direction is closed, the other is not");
    }

    #[tokio::test]
    async fn tcp_goes_straight_through() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (other, _) = listener.accept().await.unwrap();
        exercise(BackendStream::Tcp(CountingStream::new(stream)), other).await;
    }

    #[tokio::test]
    async fn a_unix_socket_goes_straight_through() {
        let (stream, other) = UnixStream::pair().unwrap();
        exercise(BackendStream::Unix(CountingStream::new(stream)), other).await;
    }
}
