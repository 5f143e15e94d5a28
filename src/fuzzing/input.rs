//! Any bytes as a stream, and a runtime to read it in.

use std::{
    cell::OnceCell,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::{Builder, Runtime},
};

/// Runs `future` to its end. It must wait for nothing but its input.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    thread_local! {
        static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
    }
    RUNTIME.with(|runtime| {
        let runtime = runtime.get_or_init(|| {
            Builder::new_current_thread().enable_time().build().expect("a runtime needs only memory")
        });
        runtime.block_on(future)
    })
}

/// A stream that delivers `data` in pieces and then ends. What is written to it is accepted and forgotten.
#[derive(Debug)]
pub(super) struct Pieces {
    data: Vec<u8>,
    at: usize,
    size: usize,
    /// The end comes only after this many polls, so that a server has time to answer what it has read.
    patience: u8,
}

impl Pieces {
    pub(super) fn new(data: &[u8], size: usize) -> Self {
        Self { data: data.to_vec(), at: 0, size, patience: 8 }
    }

    /// How much has been read.
    pub(super) fn consumed(&self) -> usize {
        self.at
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = (self.data.len() - self.at).min(self.size).min(buf.remaining());
        buf.put_slice(&self.data[self.at..self.at + len]);
        self.at += len;
        if len == 0 && self.patience > 0 {
            self.patience -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
