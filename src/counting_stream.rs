//! The counting stream below every connection, and the delegation of I/O from an enum to its variants.
//!
//! Owns the count of bytes written to a socket, from which the relay tells a slow peer from a stalled one. Knows
//! nothing of what the bytes mean. Invariant: reads and writes go straight to the inner stream, without a buffer of its
//! own.
//!
//! Linux reports a socket as writable only once about a third of its send buffer is free, which a slow peer may take
//! minutes to read; but it accepts bytes as soon as the peer has acknowledged any. [`CountingStream::force_write`]
//! makes use of that.

use std::{
    io::{self, IoSlice},
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
};

use rustix::{
    io::Errno,
    net::{SendAncillaryBuffer, SendFlags, sendmsg},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Implements `AsyncRead` and `AsyncWrite` for an enum whose variants hold one stream each, by delegation to the
/// variant. Every stream must support vectored writes. A variant for tests is written with its `#[cfg(test)]`.
macro_rules! delegate_io {
    ($name:ident { $($(#[$attribute:meta])* $variant:ident),+ }) => {
        impl tokio::io::AsyncRead for $name {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $($(#[$attribute])* Self::$variant(stream) => std::pin::Pin::new(stream).poll_read(cx, buf),)+
                }
            }
        }

        impl tokio::io::AsyncWrite for $name {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self.get_mut() {
                    $($(#[$attribute])* Self::$variant(stream) => std::pin::Pin::new(stream).poll_write(cx, buf),)+
                }
            }

            fn poll_write_vectored(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self.get_mut() {
                    $($(#[$attribute])* Self::$variant(stream) => std::pin::Pin::new(stream).poll_write_vectored(cx, bufs),)+
                }
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $($(#[$attribute])* Self::$variant(stream) => std::pin::Pin::new(stream).poll_flush(cx),)+
                }
            }

            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $($(#[$attribute])* Self::$variant(stream) => std::pin::Pin::new(stream).poll_shutdown(cx),)+
                }
            }
        }
    };
}

pub(crate) use delegate_io;

/// A stream that counts the bytes written to it.
#[derive(Debug)]
pub struct CountingStream<S> {
    inner: S,
    bytes_written: u64,
    /// See [`CountingStream::force_write`].
    force_write: bool,
}

impl<S> CountingStream<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, bytes_written: 0, force_write: false }
    }

    pub(crate) fn bytes_written(&self) -> u64 {
        self.bytes_written
    }

    /// The next write that would wait for the socket to be reported as writable is tried on the socket itself, once.
    pub(crate) fn force_write(&mut self) {
        self.force_write = true;
    }

    pub(crate) fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CountingStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsFd> CountingStream<S> {
    /// Counts what was written. If the runtime waits for the socket, tries to send `bufs` if that is wanted; the waker
    /// stays registered.
    fn count(&mut self, written: Poll<io::Result<usize>>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = match written {
            Poll::Pending if std::mem::take(&mut self.force_write) => self.send(bufs),
            written => written,
        };
        if let Poll::Ready(Ok(len)) = written {
            self.bytes_written += len as u64;
        }
        written
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(&self.inner, bufs, &mut SendAncillaryBuffer::default(), flags) {
            Ok(len) => Poll::Ready(Ok(len)),
            Err(Errno::AGAIN | Errno::INTR) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for CountingStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.count(written, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.count(written, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
