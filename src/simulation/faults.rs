//! The faults of a simulated network: links that lose or hold packets, hosts that fail.
//!
//! Owns what a fault does to the world. Knows nothing of when one happens. Invariant: what is held is delivered once the link
//! no longer holds it.

use std::{io, net::IpAddr};

use super::{
    link::{LinkState, link},
    packet::Packet,
    world::World,
};

impl World {
    pub(super) fn set_link(&mut self, one: IpAddr, other: IpAddr, state: Option<LinkState>) {
        let link = link(one, other);
        match state {
            Some(state) => self.links.insert(link, state),
            None => self.links.remove(&link),
        };
        let is_of_link = |packet: &mut Packet| {
            let from = &self.sockets[packet.from];
            super::link::link(from.local.ip(), from.remote.ip()) == link
        };
        for packet in self.held.extract_if(.., is_of_link).collect::<Vec<_>>() {
            let delay = self.random.between(self.conditions.delay.0, self.conditions.delay.1);
            self.schedule(packet, delay);
        }
    }

    /// A host loses its power: its connections are gone, and the other ends do not learn of it.
    pub(super) fn crash(&mut self, host: IpAddr) {
        self.down.insert(host);
        self.listeners.retain(|address, _| address.ip() != host);
        for endpoint in self.sockets.iter_mut().filter(|endpoint| endpoint.local.ip() == host) {
            endpoint.crashed = true;
            endpoint.fail(io::ErrorKind::ConnectionAborted);
        }
    }

    /// A host is back, without any of its connections.
    pub(super) fn restart(&mut self, host: IpAddr) {
        self.down.remove(&host);
    }
}
