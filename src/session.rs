//! What is alive.
//!
//! Owns the [`Registry`] of sessions, what is known of each, and the guard a session holds while it lives. Refuses to
//! know how a session works: it can only be told to end, and tells how far it has got. Invariants: an entry lives
//! exactly as long as its [`Session`]; the payload of a session is counted for its route at every moment, and once.

mod connection_id;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use atomic_waker::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};

pub(crate) use self::connection_id::{ConnectionId, ConnectionIds};
use crate::outcome::Reason;

/// Every session of the process, by number.
#[derive(Debug, Default)]
pub struct Registry {
    /// The names of connections, be they sessions or not.
    pub connections: ConnectionIds,
    last: AtomicU64,
    live: Mutex<RegistryState>,
}

#[derive(Debug, Default)]
struct RegistryState {
    sessions: HashMap<u64, Arc<Entry>>,
    /// Every route that ever had a session, and what those that have ended carried.
    routes: HashMap<Arc<str>, Payload>,
}

/// What is known of a session when it begins.
#[derive(Debug, Clone, Copy)]
pub struct SessionInfo<'a> {
    /// The client.
    pub peer: SocketAddr,
    /// The name of its route.
    pub route: &'a str,
    /// When it began.
    pub since: SystemTime,
}

/// Payload in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Payload {
    /// Accepted from clients.
    pub bytes_in: u64,
    /// Accepted from backends.
    pub bytes_out: u64,
}

impl Payload {
    /// This and more of it.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { bytes_in: self.bytes_in + other.bytes_in, bytes_out: self.bytes_out + other.bytes_out }
    }
}

/// A living session, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSnapshot {
    /// Its number.
    pub id: u64,
    /// The client.
    pub peer: SocketAddr,
    /// The name of its route.
    pub route: Arc<str>,
    /// The server it reached; none while it is being dialled, or if none was reached.
    pub backend: Option<Arc<str>>,
    /// When it began.
    pub since: SystemTime,
    /// What it has carried so far.
    pub payload: Payload,
    /// How long the client took to answer the last Ping, to the microsecond; none before the first answer.
    pub round_trip: Option<Duration>,
    /// Bytes accepted from one side that the other has not taken yet.
    pub buffered: u32,
}

impl Registry {
    /// Enters a new session under the next number.
    pub fn open(self: &Arc<Self>, facts: SessionInfo<'_>) -> Session {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut live = self.live();
        let route = live.route(facts.route);
        let entry = Arc::new(Entry {
            peer: facts.peer,
            route,
            since: facts.since,
            backend: OnceLock::new(),
            request_end: OnceLock::new(),
            waker: AtomicWaker::new(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            round_trip: AtomicU32::new(0),
            buffered: AtomicU32::new(0),
        });
        live.sessions.insert(id, Arc::clone(&entry));
        drop(live);
        Session { id, entry, registry: Arc::clone(self) }
    }

    /// The numbers of the living sessions, oldest first.
    pub fn ids(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.live().sessions.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The living sessions, oldest first.
    pub fn snapshot(&self) -> Vec<SessionSnapshot> {
        let entries = self.live().sessions.iter().map(|(id, entry)| (*id, Arc::clone(entry))).collect();
        // What they say is read outside of the lock: nobody waits for a long list.
        let mut entries: Vec<(u64, Arc<Entry>)> = entries;
        entries.sort_unstable_by_key(|(id, _)| *id);
        entries.into_iter().map(|(id, entry)| entry.snapshot(id)).collect()
    }

    /// One living session.
    pub fn get(&self, id: u64) -> Option<SessionSnapshot> {
        let entry = self.live().sessions.get(&id).cloned();
        entry.map(|entry| entry.snapshot(id))
    }

    /// What the sessions of each route have carried, living ones included. Never less than before.
    pub fn payload(&self) -> BTreeMap<Arc<str>, Payload> {
        let live = self.live();
        let mut routes: BTreeMap<_, _> =
            live.routes.iter().map(|(route, payload)| (Arc::clone(route), *payload)).collect();
        let entries: Vec<Arc<Entry>> = live.sessions.values().cloned().collect();
        drop(live);
        // What ends from here on is not among those that had ended, and still among these.
        for entry in entries {
            let route = routes.entry(Arc::clone(&entry.route)).or_default();
            *route = route.plus(entry.payload());
        }
        routes
    }

    /// How many sessions there have been, living ones included.
    pub fn opened(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// How many sessions live.
    pub fn len(&self) -> usize {
        self.live().sessions.len()
    }

    /// Whether no session lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells one session to end for `reason`. Returns whether it lives.
    pub fn end(&self, id: u64, reason: Reason) -> bool {
        self.end_with_message(id, reason, None)
    }

    /// Tells one session to end for `reason`, and its client why in these words. Returns whether it lives.
    pub fn end_with_message(&self, id: u64, reason: Reason, message: Option<&str>) -> bool {
        let entry = self.live().sessions.get(&id).cloned();
        entry.map(|entry| entry.request_end(EndRequest { reason, message: message.map(Box::from) })).is_some()
    }

    fn live(&self) -> MutexGuard<'_, RegistryState> {
        self.live.lock()
    }
}

impl RegistryState {
    /// The name of a route, one text for all its sessions.
    fn route(&mut self, name: &str) -> Arc<str> {
        if let Some((known, _)) = self.routes.get_key_value(name) {
            return Arc::clone(known);
        }
        let new: Arc<str> = Arc::from(name);
        self.routes.insert(Arc::clone(&new), Payload::default());
        new
    }
}

/// That a session has to end, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndRequest {
    /// The end it comes to.
    pub reason: Reason,
    message: Option<Box<str>>,
}

impl EndRequest {
    /// What the client is told.
    pub fn message(&self) -> &str {
        self.message.as_deref().unwrap_or(self.reason.explanation())
    }
}

/// How far a session has got.
#[derive(Debug, Clone, Copy, Default)]
pub struct SessionProgress {
    /// What it has carried so far.
    pub payload: Payload,
    /// Bytes accepted from one side that the other has not taken yet.
    pub buffered: usize,
}

/// A session's place in the registry; leaves it when dropped.
#[derive(Debug)]
pub struct Session {
    id: u64,
    entry: Arc<Entry>,
    registry: Arc<Registry>,
}

impl Session {
    /// The session's number, unique in the life of the process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Notes which server was reached. The first one stands.
    pub fn reached(&self, backend: &str) {
        let _ = self.entry.backend.set(Arc::from(backend));
    }

    /// Notes how far the session has got. Costs three stores: called at the end of every poll.
    pub fn record(&self, progress: SessionProgress) {
        let Payload { bytes_in, bytes_out } = progress.payload;
        self.entry.bytes_in.store(bytes_in, Ordering::Relaxed);
        self.entry.bytes_out.store(bytes_out, Ordering::Relaxed);
        let buffered = u32::try_from(progress.buffered).unwrap_or(u32::MAX);
        self.entry.buffered.store(buffered, Ordering::Relaxed);
    }

    /// Notes how long the client took to answer a Ping.
    pub fn record_round_trip(&self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        self.entry.round_trip.store(micros, Ordering::Relaxed);
    }

    /// Ready once somebody has told this session to end. Wakes the last task that asked.
    pub fn poll_end(&self, cx: &mut Context<'_>) -> Poll<&EndRequest> {
        // Registered before looking, so that an order given in between wakes us.
        self.entry.waker.register(cx.waker());
        match self.entry.request_end.get() {
            Some(request_end) => Poll::Ready(request_end),
            None => Poll::Pending,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut live = self.registry.live();
        // Under one lock, so that its payload is counted among the living or among the dead.
        if let Some(entry) = live.sessions.remove(&self.id) {
            let route = live.routes.entry(Arc::clone(&entry.route)).or_default();
            *route = route.plus(entry.payload());
        }
    }
}

/// What the registry and the session share.
#[derive(Debug)]
struct Entry {
    peer: SocketAddr,
    route: Arc<str>,
    since: SystemTime,
    backend: OnceLock<Arc<str>>,
    /// The first order stands; a later one changes nothing.
    request_end: OnceLock<Box<EndRequest>>,
    waker: AtomicWaker,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// In microseconds; 0 before the first answer.
    round_trip: AtomicU32,
    buffered: AtomicU32,
}

impl Entry {
    fn request_end(&self, request_end: EndRequest) {
        let _ = self.request_end.set(Box::new(request_end));
        self.waker.wake();
    }

    fn payload(&self) -> Payload {
        let (bytes_in, bytes_out) = (&self.bytes_in, &self.bytes_out);
        Payload { bytes_in: bytes_in.load(Ordering::Relaxed), bytes_out: bytes_out.load(Ordering::Relaxed) }
    }

    fn snapshot(&self, id: u64) -> SessionSnapshot {
        let micros = self.round_trip.load(Ordering::Relaxed);
        SessionSnapshot {
            id,
            peer: self.peer,
            route: Arc::clone(&self.route),
            backend: self.backend.get().cloned(),
            since: self.since,
            payload: self.payload(),
            round_trip: (micros > 0).then(|| Duration::from_micros(micros.into())),
            buffered: self.buffered.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::*;

    fn facts(route: &str) -> SessionInfo<'_> {
        SessionInfo { peer: ([192, 0, 2, 7], 4711).into(), route, since: SystemTime::UNIX_EPOCH }
    }

    fn payload(bytes_in: u64, bytes_out: u64) -> Payload {
        Payload { bytes_in, bytes_out }
    }

    #[test]
    fn a_session_leaves_the_registry_when_dropped() {
        let registry = Arc::new(Registry::default());
        let (first, second) = (registry.open(facts("a")), registry.open(facts("a")));
        assert_eq!(registry.ids(), [first.id(), second.id()]);
        drop(first);
        assert_eq!(registry.ids(), [second.id()]);
        assert!(!registry.end(1, Reason::Draining), "the first session is gone");
        assert_eq!(registry.get(1), None);
    }

    #[tokio::test]
    async fn an_order_wakes_the_session_and_the_first_one_stands() {
        let registry = Arc::new(Registry::default());
        let session = registry.open(facts("a"));
        let id = session.id();
        assert!(session.poll_end(&mut Context::from_waker(Waker::noop())).is_pending());
        let waiting =
            tokio::spawn(async move { poll_fn(|cx| session.poll_end(cx).map(EndRequest::clone)).await });
        tokio::task::yield_now().await;
        assert!(registry.end_with_message(id, Reason::Killed, Some("lunch")));
        registry.end(id, Reason::Internal);
        let request_end = waiting.await.unwrap();
        assert_eq!((request_end.reason, request_end.message()), (Reason::Killed, "lunch"));
    }

    #[test]
    fn an_order_without_words_uses_those_of_the_table() {
        let registry = Arc::new(Registry::default());
        let session = registry.open(facts("a"));
        registry.end(session.id(), Reason::Draining);
        let Poll::Ready(request_end) = session.poll_end(&mut Context::from_waker(Waker::noop())) else {
            panic!("no order")
        };
        assert_eq!(request_end.message(), Reason::Draining.explanation());
    }

    #[test]
    fn a_look_shows_what_is_known() {
        let registry = Arc::new(Registry::default());
        let (session, other) = (registry.open(facts("desk")), registry.open(facts("chat")));
        session.reached("tcp://127.0.0.1:5900");
        session.reached("tcp://127.0.0.1:1");
        session.record(SessionProgress { payload: payload(3, 5), buffered: 7 });
        session.record_round_trip(Duration::from_nanos(1));
        let snapshot = registry.snapshot();
        assert_eq!(snapshot, [registry.get(session.id()).unwrap(), registry.get(other.id()).unwrap()]);
        let expected = SessionSnapshot {
            id: session.id(),
            peer: ([192, 0, 2, 7], 4711).into(),
            route: "desk".into(),
            backend: Some("tcp://127.0.0.1:5900".into()),
            since: SystemTime::UNIX_EPOCH,
            payload: payload(3, 5),
            round_trip: Some(Duration::from_micros(1)),
            buffered: 7,
        };
        assert_eq!(snapshot[0], expected);
        assert_eq!((&snapshot[1].backend, snapshot[1].round_trip, snapshot[1].buffered), (&None, None, 0));
    }

    #[test]
    fn payload_is_counted_once_for_the_living_and_the_dead() {
        let registry = Arc::new(Registry::default());
        let first = registry.open(facts("a"));
        let second = registry.open(facts("a"));
        let other = registry.open(facts("b"));
        first.record(SessionProgress { payload: payload(1, 10), buffered: 0 });
        second.record(SessionProgress { payload: payload(2, 20), buffered: 0 });
        other.record(SessionProgress { payload: payload(4, 40), buffered: 0 });
        let expected = BTreeMap::from([("a".into(), payload(3, 30)), ("b".into(), payload(4, 40))]);
        assert_eq!(registry.payload(), expected);
        drop(first);
        assert_eq!(registry.payload(), expected);
        drop((second, other));
        assert_eq!(registry.payload(), expected);
    }

    #[test]
    fn what_the_registry_adds_to_a_session_is_small() {
        assert!(size_of::<Entry>() <= 176, "{} bytes", size_of::<Entry>());
    }
}
