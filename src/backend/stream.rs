//! What a backend is reached by, once it is reached.
//!
//! Owns the differences between a TCP socket, a Unix socket and TLS, so that nobody above sees them. Refuses to know how
//! any of them came about. Invariant: bytes go straight through to the stream underneath, never through a buffer of this
//! room's own.
//!
//! A TLS backend that is cut off without `close_notify` (RFC 8446 §6.1) is a broken stream, not a closed one: nobody
//! else can tell the end of what it had to say from an end that was forced upon it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

use crate::metered::Metered;

/// A connection to a backend.
#[derive(Debug)]
pub enum BackendStream {
    /// `tcp://`
    Tcp(Metered<TcpStream>),
    /// `unix:`
    Unix(Metered<UnixStream>),
    /// `tls://`, and `starttls+xmpp://` once TLS is there. Boxed: a plain session need not carry the room for it.
    Tls(Box<TlsStream<Metered<TcpStream>>>),
}

impl BackendStream {
    /// Bytes the socket has taken so far, TLS included.
    pub fn taken(&self) -> u64 {
        match self {
            Self::Tcp(stream) => stream.taken(),
            Self::Unix(stream) => stream.taken(),
            Self::Tls(stream) => stream.get_ref().0.taken(),
        }
    }
}

impl AsyncRead for BackendStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for BackendStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Writes in every way there is and shuts down; the other end must see just that, and the meter must have counted.
    async fn exercise(mut stream: BackendStream, mut other: impl AsyncRead + AsyncWrite + Unpin) {
        assert!(stream.is_write_vectored());
        stream.write_all(b"one ").await.unwrap();
        let pieces = [IoSlice::new(b"two "), IoSlice::new(b"three")];
        assert_eq!(stream.write_vectored(&pieces).await.unwrap(), 9);
        stream.flush().await.unwrap();
        assert_eq!(stream.taken(), 13);
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
        exercise(BackendStream::Tcp(Metered::new(stream)), other).await;
    }

    #[tokio::test]
    async fn a_unix_socket_goes_straight_through() {
        let (stream, other) = UnixStream::pair().unwrap();
        exercise(BackendStream::Unix(Metered::new(stream)), other).await;
    }
}
