//! What a client of a simulation is to do, and what it saw of its connection.
//!
//! Owns the data that the scenario, the client and the checks share. Knows nothing of how a client does it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::payload::Received;

/// When a client sends its Close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closes {
    /// Only to answer one.
    InAnswer,
    /// After everything that it sends.
    AfterUpload,
    /// After it has received everything that it sent.
    AfterEcho,
    /// Without a Close, so long after its connection.
    Aborts(Duration),
}

/// What a client does.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) origin: &'static str,
    /// How much of the request head it sends, of 100.
    pub(super) head: usize,
    /// How many bytes it sends, and at most in one frame.
    pub(super) upload: u64,
    pub(super) frame: u64,
    /// How many bytes it sends behind its request head without waiting for the answer.
    pub(super) pipelined: u64,
    /// The longest pause between two frames, in milliseconds.
    pub(super) pause: u64,
    /// Sent after everything else.
    pub(super) last: &'static [u8],
    pub(super) closes: Closes,
    /// Whether it reads after the upgrade, and the longest pause between two reads, in milliseconds.
    pub(super) reads: bool,
    pub(super) read_pause: u64,
    /// Pings before each frame.
    pub(super) pings: usize,
}

/// What a client saw of its connection.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) plan: Plan,
    pub(super) number: u32,
    /// Its address, if it was connected.
    pub(super) address: Option<SocketAddr>,
    pub(super) socket: Option<usize>,
    /// How many bytes of payload it may have sent at most.
    pub(super) sent: u64,
    /// Whether all of them and a Close were sent.
    pub(super) sent_close: bool,
    pub(super) received: Received,
    pub(super) status: Option<u16>,
    /// When its session was open, in milliseconds since the beginning.
    pub(super) opened: Option<u64>,
    /// The code of the Close that it received.
    pub(super) close_code: Option<u16>,
    /// The gateway closed its direction in good order.
    pub(super) end: bool,
    pub(super) error: Option<String>,
}

pub(super) type SeenLog = Arc<Mutex<Vec<Seen>>>;

/// Where a client writes what it sees.
#[derive(Clone)]
pub(super) struct Record {
    pub(super) seen: SeenLog,
    pub(super) index: usize,
}

impl Record {
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        change(&mut self.seen.lock()[self.index])
    }

    pub(super) fn number(&self) -> u32 {
        self.change(|seen| seen.number)
    }
}
