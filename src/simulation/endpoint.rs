//! One end of a simulated connection.
//!
//! Owns what it has received, what it has in flight, and who waits for it. Knows nothing of packets, links and the other end.
//! Invariant: once it has failed, nothing can be read from it.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use super::packet::Segment;

/// One end of a connection.
pub(super) struct Endpoint {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) peer: Option<usize>,
    pub(super) connected: bool,
    pub(super) failed: Option<io::ErrorKind>,
    /// Whether a program has the socket open.
    pub(super) open: bool,
    /// Its host has failed.
    pub(super) crashed: bool,
    pub(super) received: VecDeque<u8>,
    /// Segments that arrived before an earlier one, or are about to be received.
    pub(super) early: BTreeMap<u64, (Instant, Segment)>,
    pub(super) expected: u64,
    pub(super) read_closed: bool,
    pub(super) next_segment: u64,
    pub(super) in_flight: usize,
    pub(super) held_back: Vec<u8>,
    pub(super) write_closed: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    /// The longest time from sending a segment to its reception in order.
    pub(super) longest_delay: Duration,
}

impl Endpoint {
    pub(super) fn new(local: SocketAddr, remote: SocketAddr, peer: Option<usize>) -> Self {
        Self {
            local,
            remote,
            peer,
            connected: peer.is_some(),
            failed: None,
            open: true,
            crashed: false,
            received: VecDeque::new(),
            early: BTreeMap::new(),
            expected: 0,
            read_closed: false,
            next_segment: 0,
            in_flight: 0,
            held_back: Vec::new(),
            write_closed: false,
            reader: None,
            writer: None,
            longest_delay: Duration::ZERO,
        }
    }

    pub(super) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// The connection is lost, with what has not been read.
    pub(super) fn fail(&mut self, kind: io::ErrorKind) {
        if self.failed.is_none() {
            self.failed = Some(kind);
            self.received.clear();
            self.early.clear();
            self.wake();
        }
    }
}
