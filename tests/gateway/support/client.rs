//! The client's end of a connection: plain or TLS, and how to misuse it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection to the gateway. Dropping it closes the socket without a Close frame or a close_notify.
pub(crate) enum ClientStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl ClientStream {
    /// The underlying socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// The client's own address, which the gateway logs as the peer.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.socket().local_addr().expect("a connected socket")
    }

    /// Closes with a TCP reset instead of a FIN.
    pub(crate) fn reset(self) {
        self.socket().set_zero_linger().expect("SO_LINGER");
    }
}

macro_rules! either {
    ($connection:expr, $stream:ident => $call:expr) => {
        match $connection.get_mut() {
            ClientStream::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            ClientStream::Tls(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
        }
    };
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

/// Writes at most a few bytes at a time, and flushes each write; the sizes repeat in a cycle.
pub(crate) struct SmallWrites<S> {
    stream: S,
    sizes: Vec<usize>,
    turn: usize,
    flushing: bool,
}

impl<S> SmallWrites<S> {
    pub(crate) fn new(stream: S, sizes: Vec<usize>) -> Self {
        assert!(sizes.iter().all(|&size| size > 0) && !sizes.is_empty(), "every size is above zero");
        Self { stream, sizes, turn: 0, flushing: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SmallWrites<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SmallWrites<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // Flush the previous write before accepting more, or TLS would combine them in one record.
        if self.flushing {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.flushing = false;
        }
        let size = self.sizes[self.turn % self.sizes.len()].min(buf.len());
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &buf[..size]))?;
        self.turn += 1;
        self.flushing = true;
        Poll::Ready(Ok(written))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
