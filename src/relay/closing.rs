//! The end of a session: the WebSocket closing handshake (RFC 6455 §7), half-close and lingering close.
//!
//! Owns the order in which each side is closed, and its deadlines. The client: deliver, send Close, await its Close,
//! shut down our direction (TLS close_notify and FIN: a half-close), then read until it closes its own. The backend:
//! forward and deliver, shut down our direction, then read until it closes its own. Invariants: everything that was
//! accepted is delivered, unless its receiver is gone or stalled; each stage has a deadline.
//!
//! An end that the gateway orders (`killed`, a lifetime that is over) differs in two ways: from then on nothing of the
//! client reaches the backend, even if the client answers no Close; and one deadline, `timeouts.close`, bounds all
//! stages together.

mod step;

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::Instant;

use self::step::{ClosingStep, deliver, poll_discard};
use super::{Relay, RelayStream, SessionEnd, Stop, clocks::StallClock};
use crate::{outcome::Reason, session::Session};

/// How far a session has got with its end.
#[derive(Debug)]
pub(super) struct Closing {
    reason: Reason,
    close_code: Option<u16>,
    client: ClientSide,
    client_stall: StallClock,
    backend: BackendSide,
    backend_stall: StallClock,
    /// When everything must be over, if the gateway ordered the end.
    deadline: Option<Instant>,
    /// When the session's lifetime is over, which orders the end.
    lifetime: Option<Instant>,
}

/// Whether the gateway ordered the end, in contrast to one that a peer caused. A drain is no order: it lets clients
/// finish, and has a deadline of its own.
fn is_ordered(reason: Reason) -> bool {
    use Reason::{CredentialExpired, IdleTimeout, Killed, LifetimeReached};
    matches!(reason, CredentialExpired | IdleTimeout | Killed | LifetimeReached)
}

/// The stage of the client's side.
#[derive(Debug, Clone, Copy)]
enum ClientSide {
    /// Deliver what was accepted for it, and the Close. `read`: its data is still forwarded, and its Close awaited.
    Deliver { read: bool },
    /// Wait for its Close: if we disconnect before, the web page reports an unclean close.
    Await { until: Instant },
    /// Half-close: shut down our direction with TLS close_notify and FIN.
    Shutdown { until: Instant },
    /// Lingering close: read until the client has closed its direction. A socket closed with unread bytes is reset,
    /// and the client may lose the Close.
    Linger { until: Instant },
}

impl ClientSide {
    /// Whether the client's data is still read, and forwarded unless the end was ordered.
    fn is_read(self) -> bool {
        matches!(self, Self::Deliver { read: true } | Self::Await { .. })
    }
}

/// The stage of the backend's side.
#[derive(Debug, Clone, Copy)]
enum BackendSide {
    /// Payload of the client is still forwarded.
    Forward,
    /// Deliver what was accepted for it.
    Deliver,
    /// Half-close: shut down our direction.
    Shutdown { until: Instant },
    /// Lingering close: read and discard until the backend has closed its direction. A socket closed with unread bytes
    /// is reset, and the backend loses what it had not read.
    Linger { until: Instant },
}

impl<C: RelayStream, B: RelayStream> Relay<'_, C, B> {
    /// Starts to close: queues the Close, and drops the side that is gone or stalled.
    pub(super) fn begin_closing(&mut self, stop: Stop) {
        let Stop { reason, close } = stop;
        let close_code = close.as_ref().and_then(|close| close.code);
        if let Some(close) = close {
            self.outbound.close(close);
        }
        // After its Close a client sends nothing, and after a violation nothing that can be decoded.
        let read = !matches!(
            reason,
            Reason::ClientClosed | Reason::ProtocolError | Reason::TextRefused | Reason::InvalidText
        );
        match reason {
            Reason::ClientGone | Reason::PongTimeout | Reason::ClientStalled => self.client = None,
            Reason::BackendFailed | Reason::BackendStalled => self.backend = None,
            _ => {}
        }
        let mut closing = Box::new(Closing {
            reason,
            close_code,
            client: ClientSide::Deliver { read },
            client_stall: StallClock::default(),
            backend: BackendSide::Forward,
            backend_stall: StallClock::default(),
            deadline: None,
            lifetime: self.clocks.end_of_lifetime(self.settings),
        });
        if is_ordered(reason) {
            closing.order(Instant::now(), self);
        }
        self.closing = Some(closing);
    }
}

impl Closing {
    /// The gateway orders the end: nothing more of the client is forwarded, and everything must be over within
    /// `timeouts.close`. What was accepted for the backend before is still delivered. Only the first order counts.
    fn order<C: RelayStream, B: RelayStream>(&mut self, now: Instant, relay: &mut Relay<'_, C, B>) {
        if self.deadline.is_none() {
            self.deadline = Some(now + relay.settings.close);
            relay.inbound.discard();
        }
    }

    /// Advances both sides. Returns the next deadline, or how the session ended. `session` can order the end of a
    /// session that is closing for another reason.
    pub(super) fn poll<C: RelayStream, B: RelayStream>(
        &mut self,
        cx: &mut Context<'_>,
        relay: &mut Relay<'_, C, B>,
        session: &Session,
    ) -> Result<Option<Instant>, SessionEnd> {
        let now = Instant::now();
        // A kill orders the end even of a session that was requested to end for a drain.
        let requested = self.deadline.is_none()
            && (matches!(session.poll_end(cx), Poll::Ready(request) if is_ordered(request.reason))
                || session.is_killed());
        if requested || self.lifetime.is_some_and(|lifetime| lifetime <= now) {
            self.order(now, relay);
        }
        let client_until = self.poll_client(cx, now, relay);
        let backend_until = self.poll_backend(cx, now, relay);
        if relay.client.is_some() || relay.backend.is_some() {
            let lifetime = self.lifetime.filter(|_| self.deadline.is_none());
            return Ok([client_until, backend_until, lifetime].into_iter().flatten().min());
        }
        Err(SessionEnd {
            reason: self.reason,
            close_code: self.close_code,
            bytes_in: relay.inbound.bytes(),
            bytes_out: relay.outbound.bytes(),
        })
    }

    /// Advances the client's side as far as possible; drops the client when it is closed or its time is over. Returns
    /// the next deadline.
    fn poll_client<C: RelayStream, B: RelayStream>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        relay: &mut Relay<'_, C, B>,
    ) -> Option<Instant> {
        let Relay { client: slot, backend, inbound, outbound, settings, .. } = relay;
        let in_time = self.deadline.unwrap_or(now + settings.close);
        loop {
            let client = slot.as_mut()?;
            let step = match self.client {
                ClientSide::Deliver { read } => {
                    if self.client_stall.take_retry(now, settings.stall) {
                        client.force_write();
                    }
                    let received = match read {
                        true => inbound.poll(cx, client, backend.as_mut(), outbound),
                        false => Poll::Pending,
                    };
                    match (received, outbound.poll_deliver(cx, client)) {
                        (Poll::Ready(stop), _) if stop.reason == Reason::ClientGone => ClosingStep::Done,
                        (_, Poll::Ready(Err(_))) => ClosingStep::Done,
                        (Poll::Ready(_), _) => ClosingStep::Next(ClientSide::Deliver { read: false }),
                        (Poll::Pending, Poll::Ready(Ok(()))) => ClosingStep::Next(if read {
                            ClientSide::Await { until: in_time }
                        } else {
                            ClientSide::Shutdown { until: in_time }
                        }),
                        (Poll::Pending, Poll::Pending) => {
                            let written = client.bytes_written();
                            deliver(&mut self.client_stall, now, written, settings, self.deadline)
                        }
                    }
                }
                ClientSide::Await { until } => match inbound.poll(cx, client, backend.as_mut(), outbound) {
                    Poll::Ready(stop) if stop.reason == Reason::ClientGone => ClosingStep::Done,
                    Poll::Ready(_) => ClosingStep::Next(ClientSide::Shutdown { until }),
                    Poll::Pending if until <= now => {
                        // No Close came in time; TLS and TCP are shut down in good order all the same.
                        let _ = Pin::new(client).poll_shutdown(cx);
                        ClosingStep::Done
                    }
                    Poll::Pending => ClosingStep::wait(until),
                },
                ClientSide::Shutdown { until } => match Pin::new(client).poll_shutdown(cx) {
                    Poll::Ready(_) => ClosingStep::Next(ClientSide::Linger { until }),
                    Poll::Pending => ClosingStep::wait(until),
                },
                ClientSide::Linger { until } => match poll_discard(cx, client) {
                    Poll::Ready(()) => ClosingStep::Done,
                    Poll::Pending => ClosingStep::wait(until),
                },
            };
            if let Some(until) = step.apply(now, &mut self.client, slot) {
                return Some(until);
            }
        }
    }

    /// Advances the backend's side as far as possible; drops the backend when it is closed or its time is over.
    /// Returns the next deadline.
    fn poll_backend<C: RelayStream, B: RelayStream>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        relay: &mut Relay<'_, C, B>,
    ) -> Option<Instant> {
        let Relay { client, backend: slot, inbound, settings, .. } = relay;
        let in_time = self.deadline.unwrap_or(now + settings.close);
        let forwards = client.is_some() && self.client.is_read() && self.deadline.is_none();
        loop {
            let backend = slot.as_mut()?;
            let step = match self.backend {
                // The client's side has a deadline, after which this is polled again.
                BackendSide::Forward if forwards => return None,
                BackendSide::Forward => ClosingStep::Next(BackendSide::Deliver),
                BackendSide::Deliver => {
                    if self.backend_stall.take_retry(now, settings.stall) {
                        backend.force_write();
                    }
                    match inbound.poll_deliver(cx, Some(backend)) {
                        Poll::Ready(()) => ClosingStep::Next(BackendSide::Shutdown { until: in_time }),
                        Poll::Pending => {
                            let written = backend.bytes_written();
                            deliver(&mut self.backend_stall, now, written, settings, self.deadline)
                        }
                    }
                }
                BackendSide::Shutdown { until } => match Pin::new(backend).poll_shutdown(cx) {
                    Poll::Ready(_) => ClosingStep::Next(BackendSide::Linger { until }),
                    Poll::Pending => ClosingStep::wait(until),
                },
                BackendSide::Linger { until } => match poll_discard(cx, backend) {
                    Poll::Ready(()) => ClosingStep::Done,
                    Poll::Pending => ClosingStep::wait(until),
                },
            };
            if let Some(until) = step.apply(now, &mut self.backend, slot) {
                return Some(until);
            }
        }
    }
}
