//! The end of a session: each side is closed in its own order and time, and nothing that was accepted is lost.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Instant,
};

use super::{READS_PER_WAKE, Relay, RelayStream, SessionEnd, Stop, clocks::StallClock, scratch};
use crate::outcome::Reason;

/// How far a session has got with its end.
#[derive(Debug)]
pub(super) struct Closing {
    reason: Reason,
    close_code: Option<u16>,
    client: ClientSide,
    client_stall: StallClock,
    backend: BackendSide,
    backend_stall: StallClock,
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

impl ClientSide {
    /// Whether the client may still speak.
    fn listens(self) -> bool {
        matches!(self, Self::Deliver { listen: true } | Self::Await { .. })
    }
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

impl<C: RelayStream, B: RelayStream> Relay<'_, C, B> {
    /// Decides who is still to be heard, and gives up what cannot be.
    pub(super) fn begin_closing(&mut self, stop: Stop) {
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
        self.closing = Some(Box::new(Closing {
            reason,
            close_code,
            client: ClientSide::Deliver { listen: !deaf },
            client_stall: StallClock::default(),
            backend: BackendSide::Forward,
            backend_stall: StallClock::default(),
        }));
    }

    /// Goes on with the end. Returns when to look again, or how the session ended.
    pub(super) fn poll_closing(&mut self, cx: &mut Context<'_>) -> Result<Option<Instant>, SessionEnd> {
        let now = Instant::now();
        let client_until = self.poll_client_side(cx, now);
        let backend_until = self.poll_backend_side(cx, now);
        if self.client.is_some() || self.backend.is_some() {
            return Ok(client_until.into_iter().chain(backend_until).min());
        }
        let (reason, close_code) = self
            .closing
            .as_ref()
            .map_or((Reason::Internal, None), |closing| (closing.reason, closing.close_code));
        Err(SessionEnd {
            reason,
            close_code,
            bytes_in: self.inbound.bytes(),
            bytes_out: self.outbound.bytes(),
        })
    }

    /// Takes the client's side as far as it goes; drops the client when it is done or out of time. Returns when to
    /// look again.
    fn poll_client_side(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<Instant> {
        let closing = self.closing.as_mut()?;
        loop {
            let client = self.client.as_mut()?;
            let step = match closing.client {
                ClientSide::Deliver { listen } => {
                    let said = match listen {
                        true => self.inbound.poll(cx, client, self.backend.as_mut(), &mut self.outbound),
                        false => Poll::Pending,
                    };
                    match (said, self.outbound.poll_clear(cx, client)) {
                        (Poll::Ready(stop), _) if stop.reason == Reason::ClientGone => Step::Done,
                        (_, Poll::Ready(Err(_))) => Step::Done,
                        (Poll::Ready(_), _) => Step::Go(ClientSide::Deliver { listen: false }),
                        (Poll::Pending, Poll::Ready(Ok(()))) => {
                            let until = now + self.settings.close;
                            Step::Go(if listen {
                                ClientSide::Await { until }
                            } else {
                                ClientSide::Shutdown { until }
                            })
                        }
                        (Poll::Pending, Poll::Pending) => {
                            closing.client_stall.update(now, true, client.bytes_written());
                            Step::Wait(
                                closing
                                    .client_stall
                                    .deadline(self.settings.stall.unwrap_or(self.settings.close)),
                            )
                        }
                    }
                }
                ClientSide::Await { until } => {
                    match self.inbound.poll(cx, client, self.backend.as_mut(), &mut self.outbound) {
                        Poll::Ready(stop) if stop.reason == Reason::ClientGone => Step::Done,
                        Poll::Ready(_) => Step::Go(ClientSide::Shutdown { until }),
                        Poll::Pending if until <= now => {
                            // It will not answer; it is still told that TLS and TCP end here.
                            let _ = Pin::new(client).poll_shutdown(cx);
                            Step::Done
                        }
                        Poll::Pending => Step::Wait(Some(until)),
                    }
                }
                ClientSide::Shutdown { until } => match Pin::new(client).poll_shutdown(cx) {
                    Poll::Ready(_) => Step::Go(ClientSide::Linger { until }),
                    Poll::Pending => Step::Wait(Some(until)),
                },
                ClientSide::Linger { until } => match poll_discard(cx, client) {
                    Poll::Ready(()) => Step::Done,
                    Poll::Pending => Step::Wait(Some(until)),
                },
            };
            match step {
                Step::Go(side) => closing.client = side,
                Step::Wait(Some(until)) if until > now => return Some(until),
                Step::Wait(_) | Step::Done => self.client = None,
            }
        }
    }

    /// Takes the backend's side as far as it goes; drops the backend when it is done or out of time. Returns when
    /// to look again.
    fn poll_backend_side(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<Instant> {
        let closing = self.closing.as_mut()?;
        loop {
            let backend = self.backend.as_mut()?;
            let step = match closing.backend {
                // The client's side has a deadline, and comes back here.
                BackendSide::Forward if self.client.is_some() && closing.client.listens() => return None,
                BackendSide::Forward => Step::Go(BackendSide::Deliver),
                BackendSide::Deliver => match self.inbound.poll_deliver(cx, Some(backend)) {
                    Poll::Ready(()) => Step::Go(BackendSide::Shutdown { until: now + self.settings.close }),
                    Poll::Pending => {
                        closing.backend_stall.update(now, true, backend.bytes_written());
                        Step::Wait(
                            closing
                                .backend_stall
                                .deadline(self.settings.stall.unwrap_or(self.settings.close)),
                        )
                    }
                },
                BackendSide::Shutdown { until } => match Pin::new(backend).poll_shutdown(cx) {
                    Poll::Ready(_) => Step::Go(BackendSide::Discard { until }),
                    Poll::Pending => Step::Wait(Some(until)),
                },
                BackendSide::Discard { until } => match poll_discard(cx, backend) {
                    Poll::Ready(()) => Step::Done,
                    Poll::Pending => Step::Wait(Some(until)),
                },
            };
            match step {
                Step::Go(side) => closing.backend = side,
                Step::Wait(Some(until)) if until > now => return Some(until),
                Step::Wait(_) | Step::Done => self.backend = None,
            }
        }
    }
}

/// What one look at a side led to.
enum Step<Side> {
    /// To its next stage.
    Go(Side),
    /// To wait, until then at most.
    Wait(Option<Instant>),
    /// To its end.
    Done,
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
