//! The packets of a simulated network.
//!
//! Owns what a packet can be, and the record of its arrival. Knows nothing of when and where it arrives.

use std::net::SocketAddr;

use tokio::time::Instant;

#[derive(Debug, Clone)]
pub(super) enum Segment {
    Data(Vec<u8>),
    Fin,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Syn,
    SynAck,
    Segment(u64, Segment),
    /// The receiver has read so many bytes.
    Ack(usize),
    Reset,
}

#[derive(Debug)]
pub(super) struct Packet {
    pub(super) from: usize,
    pub(super) kind: Kind,
    pub(super) attempts: u32,
    pub(super) sent: Instant,
}

/// What happened in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    /// In milliseconds since the beginning.
    pub(super) at: u64,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) what: &'static str,
    pub(super) len: usize,
}
