//! What a peer has not taken yet.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

/// Bytes accepted from one side that the other has not taken: the only memory a direction owns, and only while
/// it is stalled.
#[derive(Debug, Default)]
pub(super) struct Pending {
    bytes: Vec<u8>,
    start: usize,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many are left.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Gives the bytes up, and their memory back.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Writes as much of `bytes` as `writer` takes now and keeps the rest. Must be empty.
    pub(super) fn write_or_keep<W>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        bytes: &[u8],
    ) -> io::Result<()>
    where
        W: AsyncWrite + Unpin,
    {
        debug_assert!(self.is_empty(), "what was kept goes first");
        let mut rest = bytes;
        while !rest.is_empty() {
            match Pin::new(&mut *writer).poll_write(cx, rest)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => rest = &rest[written..],
                Poll::Pending => {
                    self.bytes = rest.to_vec();
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes what was kept, then flushes `writer`. Ready once nothing is left on this side of it.
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
