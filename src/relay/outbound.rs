//! Backend to WebSocket: read behind room for a header, put the header in front, write both as one.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{READS_PER_WAKE, Stop, pending::Pending, scratch};
use crate::{
    outcome::Reason,
    websocket::{CloseFrame, ControlFrame, InvalidUtf8, MAX_HEADER, Utf8Stream, data_header},
};

/// The most bytes of an unfinished code point that text holds back.
const MAX_CARRY: usize = 3;
/// Where the backend's bytes are read to: behind a header and what was held back.
const BODY: usize = MAX_HEADER + MAX_CARRY;

/// The direction from the backend to the client. Owns everything the client is sent, control frames included, so
/// that they stand between frames and never inside one.
#[derive(Debug)]
pub(super) struct Outbound {
    pending: Pending,
    /// The newest Ping that waits for its Pong.
    pong: Option<Vec<u8>>,
    ping: bool,
    close: Option<CloseFrame>,
    /// The Close is on its way: nothing follows it.
    closed: bool,
    /// Set where the route sends text: what a read left unfinished.
    text: Option<Utf8Stream>,
    blocked: bool,
    bytes: u64,
}

impl Outbound {
    pub(super) fn new(send_text: bool) -> Self {
        Self {
            pending: Pending::default(),
            pong: None,
            ping: false,
            close: None,
            closed: false,
            text: send_text.then(Utf8Stream::default),
            blocked: false,
            bytes: 0,
        }
    }

    /// Moves payload until the backend has nothing more to say or the client takes nothing more; ready when the
    /// session has to end.
    pub(super) fn poll<C, B>(&mut self, cx: &mut Context<'_>, client: &mut C, backend: &mut B) -> Poll<Stop>
    where
        C: AsyncWrite + Unpin,
        B: AsyncRead + Unpin,
    {
        for _ in 0..READS_PER_WAKE {
            if ready!(self.poll_clear(cx, client)).is_err() {
                return Poll::Ready(Stop::new(Reason::ClientGone));
            }
            let stop = scratch::with(|scratch| {
                let mut body = ReadBuf::new(&mut scratch[BODY..]);
                let stop = match ready!(Pin::new(&mut *backend).poll_read(cx, &mut body)) {
                    Err(_) => Some(Reason::BackendFailed),
                    Ok(()) => match body.filled().len() {
                        0 => Some(self.end_of_backend()),
                        len => self.send(cx, client, scratch, len).err(),
                    },
                };
                Poll::Ready(stop)
            });
            if let Some(reason) = ready!(stop) {
                return Poll::Ready(Stop::new(reason));
            }
        }
        // Others on this thread want a turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready once everything that was accepted for the client, and every control frame that waited, is on its way.
    pub(super) fn poll_clear<C>(&mut self, cx: &mut Context<'_>, client: &mut C) -> Poll<io::Result<()>>
    where
        C: AsyncWrite + Unpin,
    {
        loop {
            let flushed = self.pending.poll_flush(cx, client);
            self.blocked = flushed.is_pending();
            ready!(flushed)?;
            let Some(frame) = self.next_control() else { return Poll::Ready(Ok(())) };
            self.pending.write_or_keep(cx, client, frame.as_bytes())?;
        }
    }

    /// Answers a Ping at once where the client takes it; where it does not, only the newest is answered.
    pub(super) fn answer_ping<C>(&mut self, cx: &mut Context<'_>, client: &mut C, payload: Vec<u8>)
    where
        C: AsyncWrite + Unpin,
    {
        if self.closed {
            return;
        }
        self.pong = Some(payload);
        if self.pending.is_empty()
            && let Some(frame) = self.next_control()
        {
            // A broken connection shows again at the next write.
            let _ = self.pending.write_or_keep(cx, client, frame.as_bytes());
        }
    }

    /// Has a Ping sent.
    pub(super) fn ping(&mut self) {
        self.ping = true;
    }

    /// Has a Close sent, after everything else.
    pub(super) fn close(&mut self, close: CloseFrame) {
        self.close = Some(close);
    }

    /// Whether the client keeps this direction waiting.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// How many bytes wait here for the client.
    pub(super) fn buffered(&self) -> usize {
        self.pending.len()
    }

    /// How many bytes of payload were accepted from the backend.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn next_control(&mut self) -> Option<ControlFrame> {
        if let Some(payload) = self.pong.take() {
            return Some(ControlFrame::pong(&payload));
        }
        if std::mem::take(&mut self.ping) {
            return Some(ControlFrame::ping(b""));
        }
        let close = self.close.take()?;
        self.closed = true;
        Some(ControlFrame::close(&close))
    }

    /// Sends the `len` bytes at [`BODY`] of `scratch` as one frame, less what text holds back.
    fn send<C>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        scratch: &mut [u8],
        len: usize,
    ) -> Result<(), Reason>
    where
        C: AsyncWrite + Unpin,
    {
        let (start, end) = match &mut self.text {
            Some(text) => hold_back(text, scratch, len).map_err(|InvalidUtf8| Reason::BackendFailed)?,
            None => (BODY, BODY + len),
        };
        if start == end {
            return Ok(());
        }
        let Some((_, room)) = scratch[..start].split_last_chunk_mut() else { return Err(Reason::Internal) };
        let header = data_header(self.text.is_some(), end - start, room);
        self.bytes += (end - start) as u64;
        let frame = &scratch[start - header..end];
        self.pending.write_or_keep(cx, client, frame).map_err(|_| Reason::ClientGone)
    }

    /// A backend that ends inside a code point has broken its promise of text.
    fn end_of_backend(&self) -> Reason {
        if self.text.as_ref().is_none_or(Utf8Stream::is_complete) {
            Reason::BackendClosed
        } else {
            Reason::BackendFailed
        }
    }
}

/// Puts what was held back in front of the `len` bytes at [`BODY`], and holds back what is unfinished now. Returns
/// where whole text begins and ends.
fn hold_back(text: &mut Utf8Stream, scratch: &mut [u8], len: usize) -> Result<(usize, usize), InvalidUtf8> {
    let carry = text.unfinished();
    let start = BODY - carry.len();
    scratch[start..BODY].copy_from_slice(carry);
    text.push(&scratch[BODY..BODY + len])?;
    Ok((start, BODY + len - text.unfinished().len()))
}
