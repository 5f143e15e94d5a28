//! The relay: forwards bytes in both directions between a WebSocket client and a backend until the session ends.
//!
//! Owns a session from the 101 response to its end: two directions (inbound and outbound), the timeouts (clocks) and
//! the closing handshake. Knows nothing of what the streams are made of, how the session was admitted and who requests
//! its end. One task, one `poll_fn`, no buffer while idle.
//!
//! Backpressure: a side is read only once everything read from it before has been written to the other side. A side
//! that stops reading thus stops the reads from its peer, and TCP flow control does the rest.
//!
//! Invariants: a stalled direction buffers at most 64 KiB; data accepted from one side is delivered to the other
//! before the session ends in good order; a session ends with exactly one [`Reason`].

mod clocks;
mod closing;
mod inbound;
#[cfg(test)]
mod model_tests;
mod outbound;
mod pending;
mod scratch;
#[cfg(test)]
mod tests;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, Empty},
    time::{Instant, Sleep, sleep_until},
};

use self::{
    clocks::{Activity, ClockEvent, Clocks},
    closing::Closing,
    inbound::Inbound,
    outbound::Outbound,
};
use crate::{
    outcome::Reason,
    session::{Payload, Session, SessionProgress},
    websocket::{CloseFrame, Violation},
};

/// How many times one direction reads before it yields to other tasks of the thread.
const READS_PER_WAKE: usize = 8;
/// Stands for "no deadline": a year.
const NEVER: Duration = Duration::from_secs(31_536_000);

/// One side of a session: the client or the backend.
pub(crate) trait RelayStream: AsyncRead + AsyncWrite + Unpin {
    /// Bytes that the socket below TLS has accepted so far: tells a slow peer from a stalled one.
    fn bytes_written(&self) -> u64;

    /// The next write for which the socket is not reported as writable is tried nevertheless, once.
    fn force_write(&mut self);
}

/// The settings of a session. A timeout that is `None` is off.
#[derive(Debug, Clone)]
pub(crate) struct RelaySettings {
    /// Whether text frames are accepted; their payload is forwarded as bytes.
    pub accept_text: bool,
    /// Whether the backend's bytes are sent in text frames.
    pub send_text: bool,
    /// Wait this long for the client's Close, and for a closing peer to end its side (lingering close).
    pub close: Duration,
    /// Close the session if a peer reads nothing for this long while data is pending for it.
    pub stall: Option<Duration>,
    /// Send a Ping if the client has been silent for this long.
    pub ping: Option<Duration>,
    /// Close the session if nothing arrives from the client for this long after a Ping.
    pub pong: Option<Duration>,
    /// Close the session if no payload flows in either direction for this long.
    pub idle: Option<Duration>,
    /// Close the session at this age.
    pub lifetime: Option<Duration>,
    /// Close the session at this time, because its credential expires.
    pub expires: Option<Instant>,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionEnd {
    pub reason: Reason,
    /// The code of the Close frame that was sent to the client, if one with a code was sent.
    pub close_code: Option<u16>,
    /// Payload accepted from the client.
    pub bytes_in: u64,
    /// Payload accepted from the backend.
    pub bytes_out: u64,
}

/// Forwards bytes between `client` and `backend` until the session ends and both are closed. `pipelined` is what the
/// client sent right after its request head.
pub(crate) fn relay<'a, C: RelayStream, B: RelayStream>(
    client: C,
    pipelined: Bytes,
    backend: B,
    settings: &'a RelaySettings,
    session: &'a Session,
) -> impl Future<Output = SessionEnd> + use<'a, C, B> {
    run(Relay::new(client, pipelined, Some(backend), settings), session)
}

/// Ends a session that has no backend, with a Close frame that gives the web page the reason.
pub(crate) fn refuse<'a, C: RelayStream>(
    client: C,
    pipelined: Bytes,
    reason: Reason,
    settings: &'a RelaySettings,
    session: &'a Session,
) -> impl Future<Output = SessionEnd> + use<'a, C> {
    let mut relay = Relay::<C, Empty>::new(client, pipelined, None, settings);
    relay.begin_closing(Stop::new(reason));
    run(relay, session)
}

#[expect(clippy::manual_async_fn, reason = "the future of an async fn would store its arguments twice")]
fn run<'a, C: RelayStream, B: RelayStream>(
    mut relay: Relay<'a, C, B>,
    session: &'a Session,
) -> impl Future<Output = SessionEnd> + use<'a, C, B> {
    async move {
        let mut timer = pin!(sleep_until(Instant::now() + NEVER));
        poll_fn(|cx| relay.poll(cx, timer.as_mut(), session)).await
    }
}

/// Why a session must end, and the Close frame to send for it.
#[derive(Debug)]
struct Stop {
    reason: Reason,
    close: Option<CloseFrame>,
}

impl Stop {
    fn new(reason: Reason) -> Self {
        Self::with_message(reason, reason.explanation())
    }

    fn with_message(reason: Reason, message: &str) -> Self {
        Self { reason, close: reason.close_code().map(|code| CloseFrame::new(code, message)) }
    }

    fn violation(violation: Violation) -> Self {
        Self::with_message(violation.reason(), &violation.to_string())
    }

    /// A client's Close is answered with the same code (RFC 6455 §5.5.1).
    fn client_closed(close: CloseFrame) -> Self {
        let echo = CloseFrame { code: close.code, reason: String::new() };
        Self { reason: Reason::ClientClosed, close: Some(echo) }
    }
}

struct Relay<'a, C, B> {
    client: Option<C>,
    backend: Option<B>,
    inbound: Inbound,
    outbound: Outbound,
    clocks: Clocks,
    /// Boxed, so that an open session does not reserve memory for its closing handshake.
    closing: Option<Box<Closing>>,
    settings: &'a RelaySettings,
}

impl<'a, C: RelayStream, B: RelayStream> Relay<'a, C, B> {
    fn new(client: C, pipelined: Bytes, backend: Option<B>, settings: &'a RelaySettings) -> Self {
        Self {
            client: Some(client),
            backend,
            inbound: Inbound::new(pipelined, settings.accept_text),
            outbound: Outbound::new(settings.send_text),
            clocks: Clocks::new(Instant::now()),
            closing: None,
            settings,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>, session: &Session) -> Poll<SessionEnd> {
        let end = self.advance(cx, timer, session);
        session.record(SessionProgress {
            payload: Payload { bytes_in: self.inbound.bytes(), bytes_out: self.outbound.bytes() },
            buffered: self.inbound.buffered() + self.outbound.buffered(),
        });
        end
    }

    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Sleep>,
        session: &Session,
    ) -> Poll<SessionEnd> {
        loop {
            let next = match self.closing.take() {
                None => match self.poll_open(cx, session) {
                    Ok(next) => next,
                    Err(stop) => {
                        self.begin_closing(stop);
                        continue;
                    }
                },
                Some(mut closing) => match closing.poll(cx, self, session) {
                    Ok(next) => {
                        self.closing = Some(closing);
                        next
                    }
                    Err(end) => return Poll::Ready(end),
                },
            };
            if poll_timer(cx, timer.as_mut(), next).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Forwards what can be forwarded now. Returns the next deadline, or why the session must end.
    fn poll_open(&mut self, cx: &mut Context<'_>, session: &Session) -> Result<Option<Instant>, Stop> {
        // Only closing drops a side, and a relay that has no backend starts out closing.
        let (Some(client), Some(backend)) = (&mut self.client, &mut self.backend) else {
            return Err(Stop::new(Reason::Internal));
        };
        if let Poll::Ready(request) = session.poll_end(cx) {
            return Err(Stop::with_message(request.reason, request.message()));
        }
        if self.outbound.is_blocked() || self.inbound.is_blocked() {
            let (retry_client, retry_backend) = self.clocks.take_retries(Instant::now(), self.settings);
            if retry_client {
                client.force_write();
            }
            if retry_backend {
                backend.force_write();
            }
        }
        if let Poll::Ready(stop) = self.inbound.poll(cx, client, Some(backend), &mut self.outbound) {
            return Err(stop);
        }
        loop {
            if let Poll::Ready(stop) = self.outbound.poll(cx, client, backend) {
                return Err(stop);
            }
            let activity = Activity {
                received: self.inbound.take_received(),
                in_header: self.inbound.in_header(),
                payload: self.inbound.bytes() + self.outbound.bytes(),
                client_blocked: self.outbound.is_blocked(),
                client_written: client.bytes_written(),
                backend_blocked: self.inbound.is_blocked(),
                backend_written: backend.bytes_written(),
            };
            let now = Instant::now();
            if self.inbound.take_pong()
                && let Some(round_trip) = self.clocks.round_trip(now)
            {
                session.record_round_trip(round_trip);
            }
            match self.clocks.check(now, activity, self.settings) {
                ClockEvent::Wait(next) => return Ok(next),
                ClockEvent::Ping => self.outbound.ping(),
                ClockEvent::End(reason) => return Err(Stop::new(reason)),
            }
        }
    }
}

/// Ready once the deadline `next` is reached. The timer is reset only if it would fire too late or has fired, so that
/// a deadline that every byte postpones costs nothing.
fn poll_timer(cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>, next: Option<Instant>) -> Poll<()> {
    let next = next.unwrap_or_else(|| Instant::now() + NEVER);
    if timer.is_elapsed() || next < timer.deadline() {
        timer.as_mut().reset(next);
    }
    timer.poll(cx)
}

/// Takes the place of the backend in a session that has none.
impl RelayStream for Empty {
    fn bytes_written(&self) -> u64 {
        0
    }

    fn force_write(&mut self) {}
}
