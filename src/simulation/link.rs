//! The links of a simulated network.
//!
//! Owns what a link can do to packets: what all links have in common, and the state of one. Knows nothing of packets.

use std::net::IpAddr;

/// What all links and connections of a network have in common.
#[derive(Debug, Clone)]
pub(super) struct Conditions {
    /// The least and the greatest delay of a packet, in milliseconds.
    pub(super) delay: (u64, u64),
    /// How many packets of 1000 are lost.
    pub(super) loss: u64,
    /// The most bytes of a packet.
    pub(super) segment: usize,
    /// The most bytes that a connection has in flight in one direction, those included that the receiver has not read.
    pub(super) window: usize,
    /// Whether reads and writes may be shorter than possible.
    pub(super) short: bool,
    /// The host whose sockets send an incomplete segment only when they are flushed, as TLS does.
    pub(super) holds_back: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkState {
    /// Packets get lost.
    Partitioned,
    /// Packets wait.
    Held,
}

/// The key of the link between two hosts.
pub(super) fn link(one: IpAddr, other: IpAddr) -> (IpAddr, IpAddr) {
    if one < other { (one, other) } else { (other, one) }
}
