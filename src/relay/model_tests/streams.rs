//! Streams that do what a script says: any read size, any acceptance, errors and ends.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::relay::RelayStream;

#[derive(Debug, Clone, Copy)]
pub(super) enum InputEnd {
    Eof,
    /// As after a reset: what was not read yet is lost.
    Error,
}

/// One side of the session, as the script and the relay see it.
#[derive(Debug, Default)]
pub(super) struct Side {
    /// Everything that it will ever send, and how much of that it has sent so far.
    pub(super) input: Vec<u8>,
    pub(super) sent: usize,
    pub(super) read: usize,
    pub(super) input_end: Option<InputEnd>,
    pub(super) end_was_read: bool,
    /// What has arrived there, and how much more it takes.
    pub(super) output: Vec<u8>,
    pub(super) window: usize,
    /// As in a TLS stream: accepted, but on its way only as far as the window allows, and complete only after a flush.
    pub(super) buffer: Vec<u8>,
    pub(super) buffer_size: usize,
    /// The most that one call reads or writes.
    pub(super) max_read: usize,
    pub(super) max_write: usize,
    pub(super) write_fails: bool,
    pub(super) shut: bool,
    pub(super) dropped: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    /// How many calls have changed something.
    pub(super) events: u64,
}

impl Side {
    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    pub(super) fn send(&mut self, len: usize) {
        if self.input_end.is_none() {
            self.sent = self.input.len().min(self.sent + len);
            self.wake_reader();
        }
    }

    pub(super) fn end_input(&mut self, end: InputEnd) {
        if self.input_end.is_none() {
            self.input_end = Some(end);
            self.wake_reader();
        }
    }

    pub(super) fn take(&mut self, len: usize) {
        self.window = self.window.saturating_add(len);
        self.wake_writer();
    }

    pub(super) fn fail_writes(&mut self) {
        self.write_fails = true;
        self.wake_writer();
    }

    /// Moves as much of the buffer to the output as the window allows.
    fn drain_buffer(&mut self) {
        let len = self.buffer.len().min(self.window);
        if len > 0 {
            self.output.extend(self.buffer.drain(..len));
            self.window -= len;
            self.events += 1;
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.reader = None;
        let len = (self.sent - self.read).min(self.max_read).min(buf.remaining());
        match self.input_end {
            Some(InputEnd::Error) => {
                self.events += u64::from(!std::mem::replace(&mut self.end_was_read, true));
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
            _ if len > 0 => {
                buf.put_slice(&self.input[self.read..self.read + len]);
                self.read += len;
                self.events += 1;
                Poll::Ready(Ok(()))
            }
            Some(InputEnd::Eof) => {
                self.events += u64::from(!std::mem::replace(&mut self.end_was_read, true));
                Poll::Ready(Ok(()))
            }
            None => {
                self.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        assert!(!self.shut, "a write after the shutdown");
        assert!(!bytes.is_empty(), "an empty write");
        self.writer = None;
        if self.write_fails {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.drain_buffer();
        let space = if self.buffer_size > 0 { self.buffer_size - self.buffer.len() } else { self.window };
        let len = space.min(self.max_write).min(bytes.len());
        if len == 0 {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.events += 1;
        if self.buffer_size > 0 {
            self.buffer.extend(&bytes[..len]);
            self.drain_buffer();
        } else {
            self.output.extend(&bytes[..len]);
            self.window -= len;
        }
        Poll::Ready(Ok(len))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer = None;
        // A socket has nothing to flush, so a flush alone shows no failure.
        if self.write_fails && !self.buffer.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.drain_buffer();
        if self.buffer.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// The relay's end of a side.
pub(super) struct Near(pub(super) Rc<RefCell<Side>>);

impl AsyncRead for Near {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Near {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut side = self.0.borrow_mut();
        let flushed = side.poll_flush(cx);
        if let Poll::Ready(Ok(())) = flushed {
            side.events += u64::from(!std::mem::replace(&mut side.shut, true));
        }
        flushed
    }
}

impl RelayStream for Near {
    fn bytes_written(&self) -> u64 {
        self.0.borrow().output.len() as u64
    }

    /// Scripted streams report honestly when they accept bytes.
    fn force_write(&mut self) {}
}

impl Drop for Near {
    fn drop(&mut self) {
        let mut side = self.0.borrow_mut();
        side.dropped = true;
        side.events += 1;
    }
}
