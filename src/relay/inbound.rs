//! WebSocket to backend: reads and decodes frames, unmasks their payload in place and writes it to the backend.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{READS_PER_WAKE, Stop, outbound::Outbound, pending::Pending, scratch};
use crate::{
    outcome::Reason,
    websocket::{DecodeProgress, Decoder, Event, Utf8Stream},
};

/// The direction from the client to the backend.
#[derive(Debug)]
pub(super) struct Inbound {
    decoder: Decoder,
    text: Utf8Stream,
    accept_text: bool,
    /// What the client sent right after its request head; decoded before anything is read.
    pipelined: Bytes,
    pending: Pending,
    /// A write to the backend failed. Data from the backend may still be unread, so the other direction decides how
    /// the session ends; until then payload for the backend is discarded.
    write_failed: bool,
    /// Payload is decoded, but goes nowhere: the gateway has ordered the end.
    discards: bool,
    blocked: bool,
    received: bool,
    pong: bool,
    bytes: u64,
}

impl Inbound {
    pub(super) fn new(pipelined: Bytes, accept_text: bool) -> Self {
        Self {
            decoder: Decoder::default(),
            text: Utf8Stream::default(),
            accept_text,
            pipelined,
            pending: Pending::default(),
            write_failed: false,
            discards: false,
            blocked: false,
            received: false,
            pong: false,
            bytes: 0,
        }
    }

    /// Forwards payload until the client has sent no more or the backend accepts no more (backpressure); ready when
    /// the session must end. Without a backend, payload is discarded.
    pub(super) fn poll<C, B>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        mut backend: Option<&mut B>,
        outbound: &mut Outbound,
    ) -> Poll<Stop>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        B: AsyncWrite + Unpin,
    {
        for _ in 0..READS_PER_WAKE {
            // What is discarded needs not wait for the backend.
            if !self.discards {
                ready!(self.poll_deliver(cx, backend.as_deref_mut()));
            }
            let stop = scratch::with(|scratch| {
                let filled = match ready!(self.poll_fill(cx, client, scratch)) {
                    Ok(0) | Err(_) => return Poll::Ready(Some(Stop::new(Reason::ClientGone))),
                    Ok(filled) => filled,
                };
                self.received = true;
                let (payload, stop) = self.decode(cx, client, outbound, &mut scratch[..filled]);
                self.forward(cx, backend.as_deref_mut(), &scratch[payload]);
                Poll::Ready(stop)
            });
            if let Some(stop) = ready!(stop) {
                return Poll::Ready(stop);
            }
        }
        // Yield to other tasks of the thread.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// From now on payload is discarded; what was accepted before is still to be delivered.
    pub(super) fn discard(&mut self) {
        self.discards = true;
    }

    /// Ready once everything that was accepted for the backend is written and flushed, or a write has failed.
    pub(super) fn poll_deliver<B>(&mut self, cx: &mut Context<'_>, backend: Option<&mut B>) -> Poll<()>
    where
        B: AsyncWrite + Unpin,
    {
        if let Some(backend) = backend
            && !self.write_failed
        {
            let flushed = self.pending.poll_flush(cx, backend);
            self.blocked = flushed.is_pending();
            self.write_failed = ready!(flushed).is_err();
        }
        self.pending.clear();
        self.blocked = false;
        Poll::Ready(())
    }

    /// Whether data is pending for the backend.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether a frame header has been received in part.
    pub(super) fn in_header(&self) -> bool {
        self.decoder.in_header()
    }

    /// Whether bytes arrived from the client since the last call.
    pub(super) fn take_received(&mut self) -> bool {
        std::mem::take(&mut self.received)
    }

    /// Whether a Pong arrived since the last call.
    pub(super) fn take_pong(&mut self) -> bool {
        std::mem::take(&mut self.pong)
    }

    /// Bytes that wait to be decoded or to be written to the backend.
    pub(super) fn buffered(&self) -> usize {
        self.pipelined.len() + self.pending.len()
    }

    /// Payload bytes accepted from the client.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads what is available until `buffer` is full, so that many small TLS records become one write.
    fn poll_fill<C>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>>
    where
        C: AsyncRead + Unpin,
    {
        if !self.pipelined.is_empty() {
            let len = self.pipelined.len().min(buffer.len());
            self.pipelined.copy_to_slice(&mut buffer[..len]);
            if self.pipelined.is_empty() {
                self.pipelined = Bytes::new();
            }
            return Poll::Ready(Ok(len));
        }
        let mut buffer = ReadBuf::new(buffer);
        while buffer.remaining() > 0 {
            let before = buffer.filled().len();
            match Pin::new(&mut *client).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
                // The next read reports the end or the error again, after the bytes before it are forwarded.
                _ if before > 0 => break,
                other => return other.map_ok(|()| 0),
            }
        }
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Decodes `input`, collects its payload in one contiguous range and handles control frames on the way. Bytes
    /// after a [`Stop`] are ignored.
    fn decode<C>(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut C,
        outbound: &mut Outbound,
        input: &mut [u8],
    ) -> (Range<usize>, Option<Stop>)
    where
        C: AsyncWrite + Unpin,
    {
        let mut progress = DecodeProgress::default();
        let stop = loop {
            match self.decoder.decode(input, &mut progress) {
                Ok(None) => break None,
                Ok(Some(Event::Text { range, last })) => {
                    if let Err(reason) = self.check_text(&input[range.clone()], last) {
                        progress.payload.end = range.start;
                        break Some(Stop::new(reason));
                    }
                }
                Ok(Some(Event::Ping(payload))) => outbound.answer_ping(cx, client, payload),
                Ok(Some(Event::Pong)) => self.pong = true,
                Ok(Some(Event::Close(close))) => break Some(Stop::client_closed(close)),
                Err(violation) => break Some(Stop::violation(violation)),
            }
        };
        (progress.payload, stop)
    }

    fn check_text(&mut self, piece: &[u8], last: bool) -> Result<(), Reason> {
        if !self.accept_text {
            return Err(Reason::TextRefused);
        }
        self.text.push(piece).map_err(|_| Reason::InvalidText)?;
        if last && !self.text.is_complete() { Err(Reason::InvalidText) } else { Ok(()) }
    }

    fn forward<B>(&mut self, cx: &mut Context<'_>, backend: Option<&mut B>, payload: &[u8])
    where
        B: AsyncWrite + Unpin,
    {
        if self.discards {
            return;
        }
        self.bytes += payload.len() as u64;
        if let Some(backend) = backend
            && !self.write_failed
        {
            self.write_failed = self.pending.write_or_keep(cx, backend, payload).is_err();
        }
    }
}
