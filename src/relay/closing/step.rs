//! One step of closing one side of a session.
//!
//! Owns what follows from a poll of a stage: the next stage, waiting, or the end of the side. Knows nothing of the stages
//! and their order. Invariant: a side waits no longer than until its deadline.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Instant,
};

use crate::relay::{READS_PER_WAKE, RelaySettings, clocks::StallClock, scratch};

/// What to do with a side after its current stage was polled.
pub(super) enum ClosingStep<Side> {
    Next(Side),
    /// Wait, but drop the side at `until`; poll it again at `poll_at`, whatever happens.
    Wait {
        until: Option<Instant>,
        poll_at: Option<Instant>,
    },
    Done,
}

impl<Side> ClosingStep<Side> {
    pub(super) fn wait(until: Instant) -> Self {
        Self::Wait { until: Some(until), poll_at: None }
    }

    /// Enters the next stage, or drops the peer if its side is done. Returns when to poll again if it is to wait.
    pub(super) fn apply<S>(self, now: Instant, side: &mut Side, peer: &mut Option<S>) -> Option<Instant> {
        match self {
            Self::Next(next) => *side = next,
            Self::Wait { until: Some(until), poll_at } if until > now => {
                return Some(poll_at.map_or(until, |at| at.min(until)));
            }
            Self::Wait { .. } | Self::Done => *peer = None,
        }
        None
    }
}

/// Waits for a peer to read what was accepted for it: as long as it does not stall, and not beyond `deadline`.
pub(super) fn deliver<Side>(
    stall: &mut StallClock,
    now: Instant,
    written: u64,
    settings: &RelaySettings,
    deadline: Option<Instant>,
) -> ClosingStep<Side> {
    stall.update(now, settings.stall, true, written);
    let stalled = stall.deadline(settings.stall.unwrap_or(settings.close));
    ClosingStep::Wait { until: stalled.into_iter().chain(deadline).min(), poll_at: stall.retry_at() }
}

/// Reads and discards; ready at the end of the stream or on an error.
pub(super) fn poll_discard<S>(cx: &mut Context<'_>, stream: &mut S) -> Poll<()>
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
