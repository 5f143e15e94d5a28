//! The write buffer of one direction: bytes that its peer has not accepted yet.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

/// Bytes read from one side that the other has not accepted yet: the only buffer of a direction, and allocated only
/// while that direction is stalled.
#[derive(Debug, Default)]
pub(super) struct Pending {
    bytes: Vec<u8>,
    start: usize,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Discards the bytes and frees their memory.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Writes as much of `bytes` as `writer` accepts now and buffers the remainder. Must be empty before.
    pub(super) fn write_or_keep<W>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        bytes: &[u8],
    ) -> io::Result<()>
    where
        W: AsyncWrite + Unpin,
    {
        debug_assert!(self.is_empty(), "buffered bytes must be written first");
        let mut unwritten = bytes;
        while !unwritten.is_empty() {
            match Pin::new(&mut *writer).poll_write(cx, unwritten)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => unwritten = &unwritten[written..],
                Poll::Pending => {
                    self.bytes = unwritten.to_vec();
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes the buffered bytes, then flushes `writer`. Ready once both the buffer and the writer are flushed.
    pub(super) fn poll_flush<W>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        while self.start < self.bytes.len() {
            match ready!(Pin::new(&mut *writer).poll_write(cx, &self.bytes[self.start..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.start += written,
            }
        }
        if !self.bytes.is_empty() {
            self.clear();
        }
        Pin::new(writer).poll_flush(cx)
    }
}
