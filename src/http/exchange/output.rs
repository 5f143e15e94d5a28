//! The output of an exchange: what is suppressed, how much was written, and when a response is sent.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::response::Body;

/// A stream that discards what is written before the first response of ours: hyper responds to an invalid head without an
/// explanation, or not at all.
pub(super) struct SuppressedOutput<'a, S> {
    pub(super) stream: &'a mut S,
    pub(super) progress: Arc<Progress>,
}

/// How far the output has come. hyper does not report when a response is written: it drops the body when it has read all of
/// it, and flushes the stream when its own buffer is empty.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Nothing is written yet.
    pub(super) suppressed: AtomicBool,
    /// The body of the last response was read to its end, or is not needed.
    pub(super) body_read: AtomicBool,
    /// The last response was written and flushed.
    pub(super) sent: AtomicBool,
    /// All bytes that were written.
    pub(super) written: AtomicU64,
}

/// The body of a response, which reports that it is dropped.
pub(super) struct WatchedBody {
    pub(super) body: Body,
    pub(super) progress: Arc<Progress>,
}

impl hyper::body::Body for WatchedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.progress.body_read.store(true, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SuppressedOutput<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SuppressedOutput<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.progress.suppressed.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut *self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = written {
            self.progress.written.fetch_add(written as u64, Ordering::Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut *self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) && self.progress.body_read.load(Ordering::Relaxed) {
            self.progress.sent.store(true, Ordering::Relaxed);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}
