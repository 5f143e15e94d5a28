//! The end of a session: each side is closed in its own order and time, and nothing that was accepted is lost.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Instant,
};

use super::{Ended, Link, READS_PER_WAKE, Relay, Stop, clocks::Stall, scratch};
use crate::outcome::Reason;

/// How far a session has got with its end.
#[derive(Debug)]
pub(super) struct Farewell {
    reason: Reason,
    close_code: Option<u16>,
    client: ClientSide,
    client_stall: Stall,
    backend: BackendSide,
    backend_stall: Stall,
}

/// What is still to be done for the client.
#[derive(Debug, Clone, Copy)]
enum ClientSide {
    /// Deliver what was accepted for it, and the Close. `listen`: it may still speak, and owes us a Close.
    Deliver { listen: bool },
    /// Wait for its Close: cut earlier, a page sees an unclean end.
    Await { until: Instant },
    /// Close our direction: TLS close_notify and FIN.
    Shutdown { until: Instant },
    /// Read on until it has closed its own: a socket closed with unread bytes is reset, and the Close is lost.
    Linger { until: Instant },
}

/// What is still to be done for the backend.
#[derive(Debug, Clone, Copy)]
enum BackendSide {
    /// The client may still speak: payload goes on.
    Forward,
    /// Deliver what was accepted for it.
    Deliver,
    /// Close our direction.
    Shutdown { until: Instant },
    /// Read and discard what it still says: a socket closed with unread bytes is reset, and the backend loses what
    /// it had not read.
    Discard { until: Instant },
}

impl<C: Link, B: Link> Relay<'_, C, B> {
    /// Decides who is still to be heard, and gives up what cannot be.
    pub(super) fn begin_farewell(&mut self, stop: Stop) {
        let Stop { reason, close } = stop;
        let close_code = close.as_ref().and_then(|close| close.code);
        if let Some(close) = close {
            self.outbound.close(close);
        }
        // The client has said its last, or what it says makes no sense.
        let deaf = matches!(
            reason,
            Reason::ClientClosed | Reason::ProtocolError | Reason::TextRefused | Reason::InvalidText
        );
        match reason {
            Reason::ClientGone | Reason::PongTimeout | Reason::ClientStalled => self.client = None,
            Reason::BackendFailed | Reason::BackendStalled => self.backend = None,
            _ => {}
        }
        self.farewell = Some(Farewell {
            reason,
            close_code,
            client: ClientSide::Deliver { listen: !deaf },
            client_stall: Stall::default(),
            backend: BackendSide::Forward,
            backend_stall: Stall::default(),
        });
    }

    /// Goes on with the end. Returns when to look again, or how the session ended.
    pub(super) fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Result<Option<Instant>, Ended> {
        let now = Instant::now();
        let client_until = self.poll_client_side(cx, now);
        let backend_until = self.poll_backend_side(cx, now);
        if self.client.is_some() || self.backend.is_some() {
            return Ok(client_until.into_iter().chain(backend_until).min());
        }
        let (reason, close_code) = self
            .farewell
            .as_ref()
            .map_or((Reason::Internal, None), |farewell| (farewell.reason, farewell.close_code));
        Err(Ended { reason, close_code, bytes_in: self.inbound.bytes(), bytes_out: self.outbound.bytes() })
    }

    /// Takes the client's side as far as it goes; drops the client when it is done or out of time. Returns when to
    /// look again.
    fn poll_client_side(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<Instant> {
        let farewell = self.farewell.as_mut()?;
        loop {
            let client = self.client.as_mut()?;
            let until = match farewell.client {
                ClientSide::Deliver { mut listen } => {
                    if listen
                        && let Poll::Ready(stop) =
                            self.inbound.poll(cx, client, self.backend.as_mut(), &mut self.outbound)
                    {
                        if stop.reason == Reason::ClientGone {
                            self.client = None;
                            return None;
                        }
                        listen = false;
                        farewell.client = ClientSide::Deliver { listen };
                    }
                    match self.outbound.poll_clear(cx, client) {
                        Poll::Ready(Ok(())) => {
                            let until = now + self.rules.close;
                            farewell.client = if listen {
                                ClientSide::Await { until }
                            } else {
                                ClientSide::Shutdown { until }
                            };
                            continue;
                        }
                        Poll::Ready(Err(_)) => None,
                        Poll::Pending => {
                            farewell.client_stall.watch(now, true, client.taken());
                            farewell.client_stall.deadline(self.rules.stall.unwrap_or(self.rules.close))
                        }
                    }
                }
                ClientSide::Await { until } => {
                    match self.inbound.poll(cx, client, self.backend.as_mut(), &mut self.outbound) {
                        Poll::Ready(stop) if stop.reason == Reason::ClientGone => None,
                        Poll::Ready(_) => {
                            farewell.client = ClientSide::Shutdown { until };
                            continue;
                        }
                        Poll::Pending if now >= until => {
                            // It will not answer; it is still told that TLS and TCP end here.
                            let _ = Pin::new(client).poll_shutdown(cx);
                            None
                        }
                        Poll::Pending => Some(until),
                    }
                }
                ClientSide::Shutdown { until } => {
                    if Pin::new(client).poll_shutdown(cx).is_ready() {
                        farewell.client = ClientSide::Linger { until };
                        continue;
                    }
                    Some(until)
                }
                ClientSide::Linger { until } => poll_discard(cx, client).is_pending().then_some(until),
            };
            let until = until.filter(|until| *until > now);
            if until.is_none() {
                self.client = None;
            }
            return until;
        }
    }

    /// Takes the backend's side as far as it goes; drops the backend when it is done or out of time. Returns when
    /// to look again.
    fn poll_backend_side(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<Instant> {
        let farewell = self.farewell.as_mut()?;
        loop {
            let backend = self.backend.as_mut()?;
            let until = match farewell.backend {
                BackendSide::Forward => {
                    if self.client.is_some()
                        && matches!(
                            farewell.client,
                            ClientSide::Deliver { listen: true } | ClientSide::Await { .. }
                        )
                    {
                        // The client's side has a deadline, and comes back here.
                        return None;
                    }
                    farewell.backend = BackendSide::Deliver;
                    continue;
                }
                BackendSide::Deliver => {
                    if self.inbound.poll_deliver(cx, Some(backend)).is_ready() {
                        farewell.backend = BackendSide::Shutdown { until: now + self.rules.close };
                        continue;
                    }
                    farewell.backend_stall.watch(now, true, backend.taken());
                    farewell.backend_stall.deadline(self.rules.stall.unwrap_or(self.rules.close))
                }
                BackendSide::Shutdown { until } => {
                    if Pin::new(backend).poll_shutdown(cx).is_ready() {
                        farewell.backend = BackendSide::Discard { until };
                        continue;
                    }
                    Some(until)
                }
                BackendSide::Discard { until } => poll_discard(cx, backend).is_pending().then_some(until),
            };
            let until = until.filter(|until| *until > now);
            if until.is_none() {
                self.backend = None;
            }
            return until;
        }
    }
}

/// Ready at the end of the stream; what it says until then is thrown away.
fn poll_discard<S>(cx: &mut Context<'_>, stream: &mut S) -> Poll<()>
where
    S: AsyncRead + Unpin,
{
    for _ in 0..READS_PER_WAKE {
        let ended = scratch::with(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer));
            Poll::Ready(read.is_err() || buffer.filled().is_empty())
        });
        if ready!(ended) {
            return Poll::Ready(());
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}
