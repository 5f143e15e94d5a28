//! A network within the process, under tokio's paused clock: hosts, the links between them, and TCP connections.
//!
//! Owns what every connection has in flight and what its ends have received, and when a packet arrives. Knows nothing of
//! what the bytes mean. All randomness comes from one seed, and the world changes only when a task of the runtime acts
//! or a packet is due, so the same seed gives the same events.
//!
//! TCP as its users see it: a connection delivers bytes in order although packets are delayed, overtake each other and
//! get lost; lost packets are sent again after a growing pause; a receiver that does not read stops its sender; a
//! socket that is closed with unread bytes, or that receives more after it was closed, resets the connection, and the
//! other end loses what it has not read. A host that fails sends nothing, not even that.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::random::Random;

/// The pause before a packet is sent again, which doubles each time.
const FIRST_RETRY: u64 = 200;
const LONGEST_RETRY: u64 = 6400;
/// After so many attempts the sender gives up: 51 s.
const ATTEMPTS: u32 = 12;
/// How many connections wait to be accepted; more are not answered.
const BACKLOG: usize = 64;
/// Far more than a simulation lasts.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

thread_local! {
    static CURRENT: RefCell<Option<Network>> = const { RefCell::new(None) };
}

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkState {
    /// Packets get lost.
    Partitioned,
    /// Packets wait.
    Held,
}

/// A handle to a network. Clones are handles to the same.
#[derive(Clone)]
pub(crate) struct Network(Arc<Inner>);

struct Inner {
    world: Mutex<World>,
    /// A packet is due earlier than the others.
    scheduled: Notify,
}

/// Uninstalls a network on drop.
pub(super) struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

impl Network {
    pub(super) fn new(random: Random, gateway: IpAddr, conditions: Conditions) -> Self {
        let world = World::new(random, gateway, conditions);
        Self(Arc::new(Inner { world: Mutex::new(world), scheduled: Notify::new() }))
    }

    /// The network that this thread is in; `None` in tests with real sockets.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Makes it the network of this thread.
    pub(super) fn install(&self) -> Installed {
        CURRENT.set(Some(self.clone()));
        Installed
    }

    /// Delivers packets when they are due, for ever.
    pub(super) async fn run(self) {
        loop {
            let next = {
                let mut world = self.world();
                world.deliver_due();
                world.packets.first_key_value().map(|((at, _), _)| *at)
            };
            let next = next.unwrap_or_else(|| Instant::now() + NEVER);
            tokio::select! {
                biased;
                () = sleep_until(next) => {}
                () = self.0.scheduled.notified() => {}
            }
        }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.0.world.lock()
    }

    /// Changes the world, and wakes [`Network::run`] if a packet is due earlier than before.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.world();
        let before = world.packets.first_key_value().map(|(key, _)| *key);
        let result = change(&mut world);
        if world.packets.first_key_value().map(|(key, _)| *key) != before {
            self.0.scheduled.notify_one();
        }
        result
    }
}

/// Everything in the network. A socket is known by its index.
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
    packets: BTreeMap<(Instant, u64), Packet>,
    sent: u64,
    links: BTreeMap<(IpAddr, IpAddr), LinkState>,
    held: Vec<Packet>,
    down: BTreeSet<IpAddr>,
    next_port: u16,
}

#[derive(Default)]
pub(super) struct Backlog {
    pub(super) waiting: VecDeque<usize>,
    pub(super) waker: Option<Waker>,
}

/// One end of a connection.
pub(super) struct Endpoint {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    peer: Option<usize>,
    pub(super) connected: bool,
    pub(super) failed: Option<io::ErrorKind>,
    /// Whether a program has the socket open.
    pub(super) open: bool,
    /// Its host has failed.
    crashed: bool,
    pub(super) received: VecDeque<u8>,
    /// Segments that arrived before an earlier one, or are about to be received.
    early: BTreeMap<u64, (Instant, Segment)>,
    expected: u64,
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
struct Packet {
    from: usize,
    kind: Kind,
    attempts: u32,
    sent: Instant,
}

impl Endpoint {
    fn new(local: SocketAddr, remote: SocketAddr, peer: Option<usize>) -> Self {
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

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// The connection is lost, with what has not been read.
    fn fail(&mut self, kind: io::ErrorKind) {
        if self.failed.is_none() {
            self.failed = Some(kind);
            self.received.clear();
            self.early.clear();
            self.wake();
        }
    }
}

impl World {
    fn new(random: Random, gateway: IpAddr, conditions: Conditions) -> Self {
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

    fn schedule(&mut self, packet: Packet, delay: u64) {
        self.sent += 1;
        self.packets.insert((Instant::now() + Duration::from_millis(delay), self.sent), packet);
    }

    fn deliver_due(&mut self) {
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

/// Faults.
impl World {
    pub(super) fn set_link(&mut self, one: IpAddr, other: IpAddr, state: Option<LinkState>) {
        let link = link(one, other);
        match state {
            Some(state) => self.links.insert(link, state),
            None => self.links.remove(&link),
        };
        let is_of_link = |packet: &mut Packet| {
            let from = &self.sockets[packet.from];
            self::link(from.local.ip(), from.remote.ip()) == link
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

fn link(one: IpAddr, other: IpAddr) -> (IpAddr, IpAddr) {
    if one < other { (one, other) } else { (other, one) }
}
