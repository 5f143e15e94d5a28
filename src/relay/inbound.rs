//! WebSocket to backend: read, decode, unmask in place, write what is payload.

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
    /// What the client sent right behind its request head. Goes first.
    pipelined: Bytes,
    pending: Pending,
    /// The backend takes nothing more. What it has said may still be on its way, so the other direction decides
    /// what that means; until then payload goes nowhere.
    refused: bool,
    blocked: bool,
    heard: bool,
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
            refused: false,
            blocked: false,
            heard: false,
            pong: false,
            bytes: 0,
        }
    }

    /// Moves payload until the client has nothing more to say or the backend takes nothing more; ready when the
    /// session has to end. Without a backend, payload is discarded.
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
            ready!(self.poll_deliver(cx, backend.as_deref_mut()));
            let stop = scratch::with(|scratch| {
                let filled = match ready!(self.poll_fill(cx, client, scratch)) {
                    Ok(0) | Err(_) => return Poll::Ready(Some(Stop::new(Reason::ClientGone))),
                    Ok(filled) => filled,
                };
                self.heard = true;
                let (payload, stop) = self.decode(cx, client, outbound, &mut scratch[..filled]);
                self.forward(cx, backend.as_deref_mut(), &scratch[payload]);
                Poll::Ready(stop)
            });
            if let Some(stop) = ready!(stop) {
                return Poll::Ready(stop);
            }
        }
        // Others on this thread want a turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready once the backend has taken everything that was accepted for it, or takes nothing more.
    pub(super) fn poll_deliver<B>(&mut self, cx: &mut Context<'_>, backend: Option<&mut B>) -> Poll<()>
    where
        B: AsyncWrite + Unpin,
    {
        if let Some(backend) = backend
            && !self.refused
        {
            let flushed = self.pending.poll_flush(cx, backend);
            self.blocked = flushed.is_pending();
            self.refused = ready!(flushed).is_err();
        }
        self.pending.clear();
        self.blocked = false;
        Poll::Ready(())
    }

    /// Whether the backend keeps this direction waiting.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether a frame header has begun and not ended.
    pub(super) fn in_header(&self) -> bool {
        self.decoder.in_header()
    }

    /// Whether the client said anything since the last call.
    pub(super) fn take_heard(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }

    /// Whether the client sent a Pong since the last call.
    pub(super) fn take_pong(&mut self) -> bool {
        std::mem::take(&mut self.pong)
    }

    /// How many bytes wait here for the backend, or to be looked at.
    pub(super) fn buffered(&self) -> usize {
        self.pipelined.len() + self.pending.len()
    }

    /// How many bytes of payload were accepted from the client.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads what is there, as much as `buffer` holds: many small records become one write.
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
                // An end or an error shows again at the next read, after what came before it.
                _ if before > 0 => break,
                other => return other.map_ok(|()| 0),
            }
        }
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Decodes `input` and gathers its payload in one run; control frames are dealt with on the way. Whatever
    /// follows a stop is ignored.
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
        self.bytes += payload.len() as u64;
        if let Some(backend) = backend
            && !self.refused
        {
            self.refused = self.pending.write_or_keep(cx, backend, payload).is_err();
        }
    }
}
