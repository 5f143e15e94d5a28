//! Everything in a network: hosts, the links between them, and the packets that are under way.
//!
//! Owns when a packet arrives, and what it does there. Knows nothing of runtimes, of what the bytes mean, and of why a link
//! or a host fails.
//!
//! TCP as its users see it: a connection delivers bytes in order although packets are delayed, overtake each other and
//! get lost; lost packets are sent again after a growing pause; a receiver that does not read stops its sender; a
//! socket that is closed with unread bytes, or that receives more after it was closed, resets the connection, and the
//! other end loses what it has not read. A host that fails sends nothing, not even that.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    endpoint::Endpoint,
    link::{Conditions, LinkState, link},
    packet::{Event, Kind, Packet, Segment},
};
use crate::random::Random;

/// The pause before a packet is sent again, which doubles each time.
const FIRST_RETRY: u64 = 200;
const LONGEST_RETRY: u64 = 6400;
/// After so many attempts the sender gives up: 51 s.
const ATTEMPTS: u32 = 12;
/// How many connections wait to be accepted; more are not answered.
const BACKLOG: usize = 64;

/// A socket is known by its index.
pub(super) struct World {
    pub(super) random: Random,
    pub(super) conditions: Conditions,
    pub(super) gateway: IpAddr,
    pub(super) sockets: Vec<Endpoint>,
    pub(super) listeners: BTreeMap<SocketAddr, Backlog>,
    /// How many connections each address has accepted.
    pub(super) accepted: BTreeMap<SocketAddr, u64>,
    pub(super) events: Vec<Event>,
    start: Instant,
    pub(super) packets: BTreeMap<(Instant, u64), Packet>,
    sent: u64,
    pub(super) links: BTreeMap<(IpAddr, IpAddr), LinkState>,
    pub(super) held: Vec<Packet>,
    pub(super) down: BTreeSet<IpAddr>,
    next_port: u16,
}

#[derive(Default)]
pub(super) struct Backlog {
    pub(super) waiting: VecDeque<usize>,
    pub(super) waker: Option<Waker>,
}

impl World {
    pub(super) fn new(random: Random, gateway: IpAddr, conditions: Conditions) -> Self {
        Self {
            random,
            conditions,
            gateway,
            sockets: Vec::new(),
            listeners: BTreeMap::new(),
            accepted: BTreeMap::new(),
            events: Vec::new(),
            start: Instant::now(),
            packets: BTreeMap::new(),
            sent: 0,
            links: BTreeMap::new(),
            held: Vec::new(),
            down: BTreeSet::new(),
            next_port: 1024,
        }
    }

    /// The time since the beginning, in milliseconds.
    pub(super) fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    pub(super) fn record(&mut self, from: SocketAddr, to: SocketAddr, what: &'static str, len: usize) {
        let event = Event { at: self.now(), from, to, what, len };
        self.events.push(event);
    }

    /// A new socket that connects.
    pub(super) fn open(&mut self, from: IpAddr, to: SocketAddr) -> usize {
        self.next_port += 1;
        self.sockets.push(Endpoint::new(SocketAddr::new(from, self.next_port), to, None));
        let socket = self.sockets.len() - 1;
        self.transmit(socket, Kind::Syn);
        socket
    }

    /// Sends a packet from a socket to its peer.
    pub(super) fn transmit(&mut self, from: usize, kind: Kind) {
        let sent = Instant::now();
        let mut delay = self.random.between(self.conditions.delay.0, self.conditions.delay.1);
        let mut retry = FIRST_RETRY;
        while self.random.per_mille(self.conditions.loss) {
            if matches!(kind, Kind::Reset) {
                return;
            }
            delay += retry;
            retry = (2 * retry).min(LONGEST_RETRY);
        }
        self.schedule(Packet { from, kind, attempts: 0, sent }, delay);
    }

    pub(super) fn schedule(&mut self, packet: Packet, delay: u64) {
        self.sent += 1;
        self.packets.insert((Instant::now() + Duration::from_millis(delay), self.sent), packet);
    }

    pub(super) fn deliver_due(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.packets.first_entry()
            && entry.key().0 <= now
        {
            let packet = entry.remove();
            self.arrive(packet);
        }
    }

    fn arrive(&mut self, packet: Packet) {
        let from = &self.sockets[packet.from];
        let (local, remote, peer) = (from.local, from.remote, from.peer);
        let is_reset = matches!(packet.kind, Kind::Reset);
        if !is_reset && (from.crashed || from.failed.is_some()) || self.down.contains(&local.ip()) {
            return;
        }
        match self.links.get(&link(local.ip(), remote.ip())).copied() {
            Some(LinkState::Held) => return self.held.push(packet),
            Some(LinkState::Partitioned) => return self.retry(packet),
            None if self.down.contains(&remote.ip()) => return self.retry(packet),
            None => {}
        }
        let (what, len) = match &packet.kind {
            Kind::Syn => ("connect", 0),
            Kind::SynAck => ("connected", 0),
            Kind::Segment(_, Segment::Data(bytes)) => ("data", bytes.len()),
            Kind::Segment(_, Segment::Fin) => ("fin", 0),
            Kind::Ack(len) => ("ack", *len),
            Kind::Reset => ("reset", 0),
        };
        self.record(local, remote, what, len);
        match (packet.kind, peer) {
            (Kind::Syn, None) => self.accept(packet.from),
            (_, None) => {}
            (Kind::Syn, Some(_)) => {}
            (Kind::SynAck, Some(peer)) => self.connected(peer),
            (Kind::Ack(len), Some(peer)) => {
                let peer = &mut self.sockets[peer];
                peer.in_flight -= len;
                peer.writer.take().into_iter().for_each(Waker::wake);
            }
            (Kind::Segment(number, segment), Some(peer)) => self.receive(peer, number, packet.sent, segment),
            (Kind::Reset, Some(peer)) => {
                let peer = &mut self.sockets[peer];
                let refused = !peer.connected;
                let kind =
                    if refused { io::ErrorKind::ConnectionRefused } else { io::ErrorKind::ConnectionReset };
                peer.fail(kind);
            }
        }
    }

    fn retry(&mut self, mut packet: Packet) {
        if matches!(packet.kind, Kind::Reset) {
            return;
        }
        packet.attempts += 1;
        if packet.attempts > ATTEMPTS {
            return self.sockets[packet.from].fail(io::ErrorKind::TimedOut);
        }
        let delay = self.random.between(self.conditions.delay.0, self.conditions.delay.1);
        let pause = (FIRST_RETRY << (packet.attempts - 1)).min(LONGEST_RETRY);
        self.schedule(packet, pause + delay);
    }

    /// A connection arrives at the host it is for.
    fn accept(&mut self, client: usize) {
        let Endpoint { local: peer, remote: address, .. } = self.sockets[client];
        let Some(backlog) = self.listeners.get_mut(&address) else {
            // There is no socket that could reset it.
            return self.sockets[client].fail(io::ErrorKind::ConnectionRefused);
        };
        if backlog.waiting.len() >= BACKLOG {
            return self.retry(Packet { from: client, kind: Kind::Syn, attempts: 0, sent: Instant::now() });
        }
        let socket = self.sockets.len();
        backlog.waiting.push_back(socket);
        backlog.waker.take().into_iter().for_each(Waker::wake);
        self.sockets.push(Endpoint::new(address, peer, Some(client)));
        self.sockets[client].peer = Some(socket);
        self.transmit(socket, Kind::SynAck);
    }

    fn connected(&mut self, socket: usize) {
        let endpoint = &mut self.sockets[socket];
        if endpoint.crashed || !endpoint.open {
            return self.transmit(socket, Kind::Reset);
        }
        endpoint.connected = true;
        endpoint.wake();
    }

    fn receive(&mut self, socket: usize, number: u64, sent: Instant, segment: Segment) {
        let endpoint = &mut self.sockets[socket];
        let is_data = matches!(segment, Segment::Data(_));
        if endpoint.crashed || endpoint.failed.is_some() || !endpoint.open && is_data {
            endpoint.fail(io::ErrorKind::ConnectionReset);
            return self.transmit(socket, Kind::Reset);
        }
        endpoint.early.insert(number, (sent, segment));
        while let Some((sent, segment)) = endpoint.early.remove(&endpoint.expected) {
            endpoint.expected += 1;
            endpoint.longest_delay = endpoint.longest_delay.max(sent.elapsed());
            match segment {
                Segment::Data(bytes) => endpoint.received.extend(bytes),
                Segment::Fin => endpoint.read_closed = true,
            }
        }
        endpoint.reader.take().into_iter().for_each(Waker::wake);
    }

    /// A program closes its socket.
    pub(super) fn close(&mut self, socket: usize) {
        let endpoint = &mut self.sockets[socket];
        endpoint.open = false;
        if endpoint.crashed || endpoint.failed.is_some() || !endpoint.connected {
            return;
        }
        if !endpoint.received.is_empty() || !endpoint.early.is_empty() {
            endpoint.fail(io::ErrorKind::ConnectionReset);
            return self.transmit(socket, Kind::Reset);
        }
        self.shut_down(socket);
    }

    /// Sends what was held back.
    pub(super) fn flush(&mut self, socket: usize, incomplete: bool) {
        let segment = self.conditions.segment;
        loop {
            let endpoint = &mut self.sockets[socket];
            let len = endpoint.held_back.len().min(segment);
            if len == 0 || len < segment && !incomplete {
                return;
            }
            let bytes = endpoint.held_back.drain(..len).collect();
            endpoint.in_flight += len;
            self.send_segment(socket, Segment::Data(bytes));
        }
    }

    /// Sends what was held back and closes the direction.
    pub(super) fn shut_down(&mut self, socket: usize) {
        self.flush(socket, true);
        if !std::mem::replace(&mut self.sockets[socket].write_closed, true) {
            self.send_segment(socket, Segment::Fin);
        }
    }

    fn send_segment(&mut self, socket: usize, segment: Segment) {
        let endpoint = &mut self.sockets[socket];
        let number = endpoint.next_segment;
        endpoint.next_segment += 1;
        self.transmit(socket, Kind::Segment(number, segment));
    }
}
