//! The relay: bytes both ways between a WebSocket client and a backend, until one of them ends.
//!
//! Owns a session from the 101 to its end: two directions (inbound and outbound), the clocks, and the farewell.
//! Refuses to know what the streams are made of, how the session was admitted and who asks for its end. One task, one
//! `poll_fn`, no buffer while idle. Invariants: a stalled direction owns at most 64 KiB; what was accepted from one
//! side is delivered to the other before the session ends well; a session ends with exactly one [`Reason`].

mod clocks;
mod closing;
mod inbound;
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

/// How often one direction reads before others on the thread get a turn.
const READS_PER_WAKE: usize = 8;
/// How far away a deadline is when there is none.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// One end of a session.
pub(crate) trait RelayStream: AsyncRead + AsyncWrite + Unpin {
    /// How many bytes the socket underneath has taken so far: tells a slow peer from one that takes nothing.
    fn bytes_written(&self) -> u64;
}

/// What a session is held to. A clock that is `None` is off.
#[derive(Debug, Clone)]
pub(crate) struct RelaySettings {
    /// Whether text frames are accepted (as bytes).
    pub accept_text: bool,
    /// Whether the backend's bytes are sent in text frames.
    pub send_text: bool,
    /// How long a Close is waited for, and how long a closing backend is listened to.
    pub close: Duration,
    /// How long a peer may take nothing of what waits for it.
    pub stall: Option<Duration>,
    /// How long a client may be silent before it is asked.
    pub ping: Option<Duration>,
    /// How long it may take to answer.
    pub pong: Option<Duration>,
    /// How long no payload may flow either way.
    pub idle: Option<Duration>,
    /// How old a session may become.
    pub lifetime: Option<Duration>,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionEnd {
    /// Why.
    pub reason: Reason,
    /// The code of the Close frame the client was sent, if it was sent one with a code.
    pub close_code: Option<u16>,
    /// Payload accepted from the client.
    pub bytes_in: u64,
    /// Payload accepted from the backend.
    pub bytes_out: u64,
}

/// Carries bytes between `client` and `backend` until the session ends and both are closed. `pipelined` is what the
/// client sent behind its request head.
pub(crate) fn relay<'a, C: RelayStream, B: RelayStream>(
    client: C,
    pipelined: Bytes,
    backend: B,
    settings: &'a RelaySettings,
    session: &'a Session,
) -> impl Future<Output = SessionEnd> + use<'a, C, B> {
    run(Relay::new(client, pipelined, Some(backend), settings), session)
}

/// Ends a session that never had a backend: tells the client why in a Close frame a page can show.
pub(crate) fn refuse<'a, C: RelayStream>(
    client: C,
    pipelined: Bytes,
    why: (Reason, &str),
    settings: &'a RelaySettings,
    session: &'a Session,
) -> impl Future<Output = SessionEnd> + use<'a, C> {
    let mut relay = Relay::<C, Empty>::new(client, pipelined, None, settings);
    relay.begin_closing(Stop::because(why.0, why.1));
    run(relay, session)
}

#[expect(
    clippy::manual_async_fn,
    reason = "an async fn would hold what it is given a second time once it runs"
)]
fn run<'a, C: RelayStream, B: RelayStream>(
    mut relay: Relay<'a, C, B>,
    session: &'a Session,
) -> impl Future<Output = SessionEnd> + use<'a, C, B> {
    async move {
        let mut timer = pin!(sleep_until(Instant::now() + NEVER));
        poll_fn(|cx| relay.poll(cx, timer.as_mut(), session)).await
    }
}

/// Why a session has to end, and the Close frame that says so.
#[derive(Debug)]
struct Stop {
    reason: Reason,
    close: Option<CloseFrame>,
}

impl Stop {
    fn new(reason: Reason) -> Self {
        Self::because(reason, reason.explanation())
    }

    fn because(reason: Reason, message: &str) -> Self {
        Self { reason, close: reason.close_code().map(|code| CloseFrame::new(code, message)) }
    }

    fn violation(violation: Violation) -> Self {
        Self::because(violation.reason(), &violation.to_string())
    }

    /// A client's Close is answered with its own code (RFC 6455 §5.5.1).
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
    /// Boxed: a session that goes on need not carry the room for its end.
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
        let ended = self.advance(cx, timer, session);
        session.record(SessionProgress {
            payload: Payload { bytes_in: self.inbound.bytes(), bytes_out: self.outbound.bytes() },
            buffered: self.inbound.buffered() + self.outbound.buffered(),
        });
        ended
    }

    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Sleep>,
        session: &Session,
    ) -> Poll<SessionEnd> {
        loop {
            let next = if self.closing.is_none() {
                match self.poll_open(cx, session) {
                    Ok(next) => next,
                    Err(stop) => {
                        self.begin_closing(stop);
                        continue;
                    }
                }
            } else {
                match self.poll_closing(cx) {
                    Ok(next) => next,
                    Err(ended) => return Poll::Ready(ended),
                }
            };
            if poll_timer(cx, timer.as_mut(), next).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Moves what can be moved. Returns when to look again, or why the session has to end.
    fn poll_open(&mut self, cx: &mut Context<'_>, session: &Session) -> Result<Option<Instant>, Stop> {
        let (Some(client), Some(backend)) = (&mut self.client, &mut self.backend) else {
            return Err(Stop::new(Reason::Internal));
        };
        if let Poll::Ready(request) = session.poll_end(cx) {
            return Err(Stop::because(request.reason, request.message()));
        }
        if let Poll::Ready(stop) = self.inbound.poll(cx, client, Some(backend), &mut self.outbound) {
            return Err(stop);
        }
        loop {
            if let Poll::Ready(stop) = self.outbound.poll(cx, client, backend) {
                return Err(stop);
            }
            let activity = Activity {
                heard: self.inbound.take_heard(),
                in_header: self.inbound.in_header(),
                payload: self.inbound.bytes() + self.outbound.bytes(),
                client_blocked: self.outbound.is_blocked(),
                client_written: client.bytes_written(),
                backend_blocked: self.inbound.is_blocked(),
                backend_written: backend.bytes_written(),
            };
            let now = Instant::now();
            if self.inbound.take_pong()
                && let Some(took) = self.clocks.round_trip(now)
            {
                session.record_round_trip(took);
            }
            match self.clocks.check(now, activity, self.settings) {
                ClockEvent::Wait(next) => return Ok(next),
                ClockEvent::Ping => self.outbound.ping(),
                ClockEvent::End(reason) => return Err(Stop::new(reason)),
            }
        }
    }
}

/// Ready once `next` has come. The timer is moved only when it would fire too late or has fired: a deadline that
/// moves away with every byte costs nothing.
fn poll_timer(cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>, next: Option<Instant>) -> Poll<()> {
    let next = next.unwrap_or_else(|| Instant::now() + NEVER);
    if timer.is_elapsed() || next < timer.deadline() {
        timer.as_mut().reset(next);
    }
    timer.poll(cx)
}

/// Stands where the backend would be, in a session that never had one.
impl RelayStream for Empty {
    fn bytes_written(&self) -> u64 {
        0
    }
}
