//! The session registry: every open session, its metadata and progress, and requests to end it.
//!
//! Owns the [`Registry`], the entry of each session, and the guard ([`Session`]) that a session holds while it is open.
//! Knows nothing of how a session works: a session reports its progress here and receives the request to end.
//! Invariants: an entry is registered exactly as long as its [`Session`] exists; at every moment the payload of a
//! session is counted for its route exactly once.

mod connection_id;
mod identity;
#[cfg(all(test, feature = "loom"))]
mod loom_tests;
#[cfg(test)]
mod race_tests;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

pub(crate) use self::{
    connection_id::{ConnectionId, ConnectionIds},
    identity::{CredentialId, Identity, TokenDigest},
};
use crate::{
    outcome::Reason,
    sync::{
        AtomicWaker, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

/// Every open session of the process, by number.
#[derive(Debug, Default)]
pub struct Registry {
    /// The source of request IDs for all connections, with or without a session.
    pub(crate) connection_ids: ConnectionIds,
    last_id: AtomicU64,
    state: Mutex<RegistryState>,
}

#[derive(Debug, Default)]
struct RegistryState {
    sessions: HashMap<u64, Arc<RegistryEntry>>,
    /// Every route that ever had a session, with the payload of its ended sessions.
    routes: HashMap<Arc<str>, Payload>,
}

/// The metadata of a session, known when it is opened.
#[derive(Debug, Clone)]
pub(crate) struct SessionInfo<'a> {
    pub peer: SocketAddr,
    /// The name of its route.
    pub route: &'a str,
    pub since: SystemTime,
    /// Who opened it, if its route requires a credential.
    pub identity: Option<Identity>,
}

/// Payload in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Payload {
    /// Accepted from clients.
    pub bytes_in: u64,
    /// Accepted from backends.
    pub bytes_out: u64,
}

impl Payload {
    #[must_use]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self { bytes_in: self.bytes_in + other.bytes_in, bytes_out: self.bytes_out + other.bytes_out }
    }
}

/// The state of an open session at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionSnapshot {
    pub id: u64,
    pub peer: SocketAddr,
    /// The name of its route.
    pub route: Arc<str>,
    /// The name of its user, if there is one.
    pub user: Option<Box<str>>,
    /// The backend it is connected to; `None` while dialling, or if no backend was reached.
    pub backend: Option<Arc<str>>,
    pub since: SystemTime,
    /// The payload accepted so far.
    pub payload: Payload,
    /// The time from the last Ping to its Pong, in whole microseconds; `None` before the first Pong.
    pub round_trip: Option<Duration>,
    /// Bytes accepted from one side that the other has not accepted yet.
    pub buffered: u32,
}

impl Registry {
    /// Registers a new session under the next number.
    pub(crate) fn open(self: &Arc<Self>, info: SessionInfo<'_>) -> Session {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let mut state = self.state.lock();
        let route = state.route(info.route);
        let entry = Arc::new(RegistryEntry {
            peer: info.peer,
            route,
            since: info.since,
            identity: info.identity.map(Box::new),
            backend: OnceLock::new(),
            request_end: OnceLock::new(),
            killed: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            round_trip: AtomicU32::new(0),
            buffered: AtomicU32::new(0),
        });
        state.sessions.insert(id, Arc::clone(&entry));
        drop(state);
        Session { id, entry, registry: Arc::clone(self) }
    }

    /// The numbers of the open sessions, oldest first.
    pub(crate) fn ids(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.state.lock().sessions.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// A snapshot of the open sessions, oldest first.
    pub(crate) fn snapshot(&self) -> Vec<SessionSnapshot> {
        let entries = self.state.lock().sessions.iter().map(|(id, entry)| (*id, Arc::clone(entry))).collect();
        // The entries are read outside of the lock, so that a long list blocks no session.
        let mut entries: Vec<(u64, Arc<RegistryEntry>)> = entries;
        entries.sort_unstable_by_key(|(id, _)| *id);
        entries.into_iter().map(|(id, entry)| entry.snapshot(id)).collect()
    }

    /// A snapshot of one open session.
    pub(crate) fn get(&self, id: u64) -> Option<SessionSnapshot> {
        let entry = self.state.lock().sessions.get(&id).cloned();
        entry.map(|entry| entry.snapshot(id))
    }

    /// The payload of each route's sessions, ended and open. Never decreases.
    pub(crate) fn payload(&self) -> BTreeMap<Arc<str>, Payload> {
        let state = self.state.lock();
        let mut routes: BTreeMap<_, _> =
            state.routes.iter().map(|(route, payload)| (Arc::clone(route), *payload)).collect();
        let entries: Vec<Arc<RegistryEntry>> = state.sessions.values().cloned().collect();
        drop(state);
        // A session that ends from here on is not yet in the totals of ended sessions, but its entry is in `entries`.
        for entry in entries {
            let route = routes.entry(Arc::clone(&entry.route)).or_default();
            *route = route.plus(entry.payload());
        }
        routes
    }

    /// The number of sessions opened since the process started.
    pub(crate) fn opened(&self) -> u64 {
        self.last_id.load(Ordering::Relaxed)
    }

    /// The number of open sessions.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().sessions.len()
    }

    /// Requests that a session ends for `reason`. Returns whether it is open.
    pub(crate) fn end(&self, id: u64, reason: Reason) -> bool {
        self.end_with_message(id, reason, None)
    }

    /// Requests that the sessions that were opened with a credential end, because it is revoked. Returns how many there are.
    pub(crate) fn end_credential(&self, credential: &CredentialId) -> usize {
        let mut entries = self.opened_with_credentials(|_| true);
        entries.retain(|entry| entry.credential().is_some_and(|own| own.includes(credential)));
        for entry in &entries {
            entry.revoke();
        }
        entries.len()
    }

    /// Requests that the sessions of a route, or of all, end whose credential is revoked. Returns how many had not been
    /// requested to end.
    pub(crate) fn end_revoked(
        &self,
        route: Option<&str>,
        is_revoked: impl Fn(&CredentialId) -> bool,
    ) -> usize {
        let entries = self.opened_with_credentials(|entry| route.is_none_or(|route| &*entry.route == route));
        let is_its = |entry: &&Arc<RegistryEntry>| entry.credential().is_some_and(|own| own.any(&is_revoked));
        entries.iter().filter(is_its).filter(|entry| entry.revoke()).count()
    }

    /// The sessions that have a credential, and are wanted. Credentials are looked at outside of the lock, so that many of them
    /// block no session.
    fn opened_with_credentials(&self, wanted: impl Fn(&RegistryEntry) -> bool) -> Vec<Arc<RegistryEntry>> {
        let is_candidate = |entry: &&Arc<RegistryEntry>| entry.credential().is_some() && wanted(entry);
        self.state.lock().sessions.values().filter(is_candidate).cloned().collect()
    }

    /// Requests that a session ends for `reason`, with `message` for its client. Returns whether it is open.
    pub(crate) fn end_with_message(&self, id: u64, reason: Reason, message: Option<&str>) -> bool {
        let entry = self.state.lock().sessions.get(&id).cloned();
        entry.map(|entry| entry.request_end(EndRequest { reason, message: message.map(Box::from) })).is_some()
    }
}

impl RegistryState {
    /// The name of a route, allocated once for all its sessions.
    fn route(&mut self, name: &str) -> Arc<str> {
        if let Some((known, _)) = self.routes.get_key_value(name) {
            return Arc::clone(known);
        }
        let new: Arc<str> = Arc::from(name);
        self.routes.insert(Arc::clone(&new), Payload::default());
        new
    }
}

/// A request that a session ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndRequest {
    pub reason: Reason,
    message: Option<Box<str>>,
}

impl EndRequest {
    /// The message for the client.
    pub(crate) fn message(&self) -> &str {
        self.message.as_deref().unwrap_or(self.reason.explanation())
    }
}

/// How far a session has got.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SessionProgress {
    /// The payload accepted so far.
    pub payload: Payload,
    /// Bytes accepted from one side that the other has not accepted yet.
    pub buffered: usize,
}

/// The guard of an open session: dropping it removes the session from the registry.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    entry: Arc<RegistryEntry>,
    registry: Arc<Registry>,
}

impl Session {
    /// The session's number, unique for the lifetime of the process.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Records the backend that the session is connected to. Only the first call has an effect.
    pub(crate) fn set_backend(&self, backend: &str) {
        let _ = self.entry.backend.set(Arc::from(backend));
    }

    /// Records the progress of the session. Called at the end of every poll, so it costs only three stores.
    pub(crate) fn record(&self, progress: SessionProgress) {
        let Payload { bytes_in, bytes_out } = progress.payload;
        self.entry.bytes_in.store(bytes_in, Ordering::Relaxed);
        self.entry.bytes_out.store(bytes_out, Ordering::Relaxed);
        let buffered = u32::try_from(progress.buffered).unwrap_or(u32::MAX);
        self.entry.buffered.store(buffered, Ordering::Relaxed);
    }

    /// Records the time from a Ping to its Pong.
    pub(crate) fn record_round_trip(&self, round_trip: Duration) {
        // 0 stands for "not measured".
        let micros = u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX).max(1);
        self.entry.round_trip.store(micros, Ordering::Relaxed);
    }

    /// Ready once the session is requested to end. Wakes the task that polled last.
    pub(crate) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<&EndRequest> {
        // Registered before the check, so that a request in between wakes the task.
        self.entry.waker.register(cx.waker());
        match self.entry.request_end.get() {
            Some(request_end) => Poll::Ready(request_end),
            None => Poll::Pending,
        }
    }

    /// Whether it was requested to kill the session, at first or later. A later request wakes the task too.
    pub(crate) fn is_killed(&self) -> bool {
        self.entry.killed.load(Ordering::Acquire)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Under one lock, so that the payload is counted either as that of an open or as that of an ended session.
        let mut state = self.registry.state.lock();
        state.sessions.remove(&self.id);
        let route = state.routes.entry(Arc::clone(&self.entry.route)).or_default();
        *route = route.plus(self.entry.payload());
    }
}

/// The state shared by the registry and the session.
#[derive(Debug)]
struct RegistryEntry {
    peer: SocketAddr,
    route: Arc<str>,
    since: SystemTime,
    identity: Option<Box<Identity>>,
    backend: OnceLock<Arc<str>>,
    /// The first request; later ones are ignored.
    request_end: OnceLock<Box<EndRequest>>,
    /// Whether any of the requests was to kill it.
    killed: AtomicBool,
    waker: AtomicWaker,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// In microseconds; 0 before the first Pong.
    round_trip: AtomicU32,
    buffered: AtomicU32,
}

impl RegistryEntry {
    fn credential(&self) -> Option<&CredentialId> {
        self.identity.as_ref().and_then(|identity| identity.credential.as_ref())
    }

    /// Requests the end, because the credential is revoked. Returns whether it is the first request.
    fn revoke(&self) -> bool {
        self.request_end(EndRequest { reason: Reason::CredentialExpired, message: None })
    }

    /// Returns whether it is the first request.
    fn request_end(&self, request_end: EndRequest) -> bool {
        if matches!(request_end.reason, Reason::Killed | Reason::CredentialExpired) {
            self.killed.store(true, Ordering::Release);
        }
        let is_first = self.request_end.set(Box::new(request_end)).is_ok();
        self.waker.wake();
        is_first
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
            user: self.identity.as_ref().and_then(|identity| identity.user.clone()),
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

    fn info(route: &str) -> SessionInfo<'_> {
        SessionInfo {
            peer: ([192, 0, 2, 7], 4711).into(),
            route,
            since: SystemTime::UNIX_EPOCH,
            identity: None,
        }
    }

    fn payload(bytes_in: u64, bytes_out: u64) -> Payload {
        Payload { bytes_in, bytes_out }
    }

    #[test]
    fn dropping_a_session_removes_it() {
        let registry = Arc::new(Registry::default());
        let (first, second) = (registry.open(info("a")), registry.open(info("a")));
        assert_eq!(registry.ids(), [first.id(), second.id()]);
        drop(first);
        assert_eq!(registry.ids(), [second.id()]);
        assert!(!registry.end(1, Reason::Draining), "the first session has ended");
        assert_eq!(registry.get(1), None);
    }

    #[tokio::test]
    async fn end_request_wakes_the_session_and_the_first_one_wins() {
        let registry = Arc::new(Registry::default());
        let session = registry.open(info("a"));
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
    fn end_request_without_message_uses_the_explanation_of_its_reason() {
        let registry = Arc::new(Registry::default());
        let session = registry.open(info("a"));
        registry.end(session.id(), Reason::Draining);
        let Poll::Ready(request_end) = session.poll_end(&mut Context::from_waker(Waker::noop())) else {
            panic!("no end request")
        };
        assert_eq!(request_end.message(), Reason::Draining.explanation());
    }

    #[test]
    fn snapshot_shows_metadata_and_progress() {
        let registry = Arc::new(Registry::default());

        let (session, other) = (registry.open(info("desk")), registry.open(info("chat")));
        session.set_backend("tcp://127.0.0.1:5900");
        session.set_backend("tcp://127.0.0.1:1");
        session.record(SessionProgress { payload: payload(3, 5), buffered: 7 });
        session.record_round_trip(Duration::from_nanos(1));
        let snapshot = registry.snapshot();
        assert_eq!(snapshot, [registry.get(session.id()).unwrap(), registry.get(other.id()).unwrap()]);
        let expected = SessionSnapshot {
            id: session.id(),
            peer: ([192, 0, 2, 7], 4711).into(),
            route: "desk".into(),
            user: None,
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
    fn payload_is_counted_once_for_open_and_ended_sessions() {
        let registry = Arc::new(Registry::default());
        let first = registry.open(info("a"));
        let second = registry.open(info("a"));
        let other = registry.open(info("b"));
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
    fn registry_entry_is_small() {
        assert!(size_of::<RegistryEntry>() <= 184, "{} bytes", size_of::<RegistryEntry>());
    }

    #[test]
    fn sessions_are_counted_while_open_and_since_the_start() {
        let registry = Arc::new(Registry::default());
        assert_eq!((registry.opened(), registry.len()), (0, 0));
        let (first, _second) = (registry.open(info("a")), registry.open(info("a")));
        assert_eq!((registry.opened(), registry.len()), (2, 2));
        drop(first);
        assert_eq!((registry.opened(), registry.len()), (2, 1));
    }

    #[test]
    fn only_a_request_to_kill_it_kills_a_session() {
        let registry = Arc::new(Registry::default());
        let session = registry.open(info("a"));
        assert!(registry.end(session.id(), Reason::Draining) && !session.is_killed());
        assert!(registry.end(session.id(), Reason::Killed) && session.is_killed());
    }

    #[test]
    fn an_id_is_written_with_twelve_digits_of_its_process() {
        assert_eq!(ConnectionId::new(0xab, 42).to_string(), "0000000000ab-42");
    }
}
