//! Backend to WebSocket: leaves space for a header, reads behind it, and writes header and payload at once.

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

/// The most bytes of an incomplete UTF-8 code point that are held back in text mode.
const MAX_CARRY: usize = 3;
/// The offset that the backend's bytes are read to: behind the header and the bytes held back.
const BODY: usize = MAX_HEADER + MAX_CARRY;

/// The direction from the backend to the client. Owns everything that is sent to the client, control frames included,
/// so that these are written between frames and never inside one.
#[derive(Debug)]
pub(super) struct Outbound {
    pending: Pending,
    /// The payload of the newest Ping that has not been answered.
    pong: Option<Vec<u8>>,
    ping: bool,
    close: Option<CloseFrame>,
    /// The Close has been queued: nothing follows it.
    closed: bool,
    /// In text mode: the incomplete code point at the end of the last read.
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

    /// Forwards payload until the backend has sent no more or the client accepts no more (backpressure); ready when
    /// the session must end.
    pub(super) fn poll<C, B>(&mut self, cx: &mut Context<'_>, client: &mut C, backend: &mut B) -> Poll<Stop>
    where
        C: AsyncWrite + Unpin,
        B: AsyncRead + Unpin,
    {
        for _ in 0..READS_PER_WAKE {
            if ready!(self.poll_deliver(cx, client)).is_err() {
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
        // Yield to other tasks of the thread.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready once everything that was accepted for the client, and every pending control frame, is written and flushed.
    pub(super) fn poll_deliver<C>(&mut self, cx: &mut Context<'_>, client: &mut C) -> Poll<io::Result<()>>
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

    /// Answers a Ping at once if nothing is pending; otherwise only the newest Ping is answered, later.
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
            // The next write reports a broken connection again.
            let _ = self.pending.write_or_keep(cx, client, frame.as_bytes());
        }
    }

    pub(super) fn ping(&mut self) {
        self.ping = true;
    }

    /// Requests a Close, to be sent after everything else.
    pub(super) fn close(&mut self, close: CloseFrame) {
        self.close = Some(close);
    }

    /// Whether data is pending for the client.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Bytes that wait to be written to the client.
    pub(super) fn buffered(&self) -> usize {
        self.pending.len()
    }

    /// Payload bytes accepted from the backend.
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

    /// Sends the `len` bytes at [`BODY`] of `scratch` as one frame, without the bytes that text mode holds back.
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
        let header = data_header(self.text.is_some(), end - start, &mut scratch[..start]);
        self.bytes += (end - start) as u64;
        let frame = &scratch[start - header..end];
        self.pending.write_or_keep(cx, client, frame).map_err(|_| Reason::ClientGone)
    }

    /// The reason when the backend has closed: in text mode, an incomplete code point at the end is a failure.
    fn end_of_backend(&self) -> Reason {
        if self.text.as_ref().is_none_or(Utf8Stream::is_complete) {
            Reason::BackendClosed
        } else {
            Reason::BackendFailed
        }
    }
}

/// Puts the bytes held back before in front of the `len` bytes at [`BODY`], and holds back the code point that is
/// incomplete now. Returns the range of complete text.
fn hold_back(text: &mut Utf8Stream, scratch: &mut [u8], len: usize) -> Result<(usize, usize), InvalidUtf8> {
    let carry = text.incomplete();
    let start = BODY - carry.len();
    scratch[start..BODY].copy_from_slice(carry);
    text.push(&scratch[BODY..BODY + len])?;
    Ok((start, BODY + len - text.incomplete().len()))
}
