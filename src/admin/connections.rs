//! The open connections of the admin address.
//!
//! Owns how many there can be, and which one is closed for a new one: the one that has waited longest for its client.
//! Knows nothing of what is sent over them. Invariants: a connection is not closed while its request is being answered; one
//! that is being closed counts until its socket is.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The open connections, in the order in which they were accepted.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    open: Mutex<Vec<Arc<ConnectionState>>>,
    /// Notified when a connection is closed or begins to wait.
    released: Notify,
    /// Orders what happens on all connections.
    clock: AtomicU64,
}

#[derive(Debug)]
struct ConnectionState {
    /// When it began to wait for its client.
    waits_since: AtomicU64,
    close: CancellationToken,
}

/// Instead of a time: a request is being answered.
const ANSWERS: u64 = u64::MAX;

/// One open connection; it counts until it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    connections: Arc<Connections>,
    state: Arc<ConnectionState>,
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Answering<'a>(&'a Connection);

impl Connections {
    pub(super) fn new(most: usize) -> Self {
        Self { most, open: Mutex::default(), released: Notify::new(), clock: AtomicU64::new(0) }
    }

    /// Adds a connection. If there are as many as there can be, the one that has waited longest is closed first; if none
    /// waits, this does until one does. To be called by one task.
    pub(super) async fn open(self: &Arc<Self>) -> Connection {
        loop {
            let released = self.released.notified();
            if let Some(state) = self.try_open() {
                return Connection { connections: Arc::clone(self), state };
            }
            released.await;
        }
    }

    /// Adds a connection if fewer than `most` are open. Otherwise closes the one that has waited longest, if one waits and
    /// none is being closed already.
    fn try_open(&self) -> Option<Arc<ConnectionState>> {
        let mut open = self.open.lock();
        if open.len() < self.most {
            let waits_since = AtomicU64::new(self.now());
            let state = Arc::new(ConnectionState { waits_since, close: CancellationToken::new() });
            open.push(Arc::clone(&state));
            return Some(state);
        }
        if open.iter().all(|state| !state.close.is_cancelled()) {
            let waits = |state: &&Arc<ConnectionState>| state.waits_since.load(Ordering::Relaxed);
            let oldest = open.iter().min_by_key(waits).filter(|state| waits(state) != ANSWERS);
            oldest.inspect(|state| state.close.cancel());
        }
        None
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }
}

impl Connection {
    /// Completes when the connection is to be closed for another one.
    pub(super) async fn closed(&self) {
        self.state.close.cancelled().await;
    }

    /// From now on a request is being answered.
    pub(super) fn answering(&self) -> Answering<'_> {
        self.state.waits_since.store(ANSWERS, Ordering::Relaxed);
        Answering(self)
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        let Connection { connections, state } = self.0;
        state.waits_since.store(connections.now(), Ordering::Relaxed);
        connections.released.notify_one();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock();
        open.retain(|state| !Arc::ptr_eq(state, &self.state));
        drop(open);
        self.connections.released.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_closed(connection: &Connection) -> bool {
        connection.state.close.is_cancelled()
    }

    #[tokio::test]
    async fn the_one_that_has_waited_longest_is_closed() {
        let connections = Arc::new(Connections::new(3));
        let [first, second, third] =
            [connections.open().await, connections.open().await, connections.open().await];
        // It has been answered since, so it has waited for a shorter time than the second.
        drop(first.answering());
        let mut fourth = Box::pin(connections.open());
        assert!(fourth.as_mut().now_or_never().is_none(), "there are four");
        assert_eq!([&first, &second, &third].map(is_closed), [false, true, false]);
        drop(second);
        let fourth = fourth.await;
        let _answering = third.answering();
        let mut fifth = Box::pin(connections.open());
        assert!(fifth.as_mut().now_or_never().is_none(), "there are four");
        assert_eq!([&first, &third, &fourth].map(is_closed), [true, false, false]);
        drop(first);
        let _fifth = fifth.await;
        assert_eq!(connections.open.lock().len(), 3);
    }

    #[tokio::test]
    async fn while_all_requests_are_being_answered_a_new_connection_waits() {
        let connections = Arc::new(Connections::new(1));
        let first = connections.open().await;
        let answering = first.answering();
        let mut second = Box::pin(connections.open());
        assert!(second.as_mut().now_or_never().is_none());
        assert!(!is_closed(&first));
        drop(answering);
        assert!(second.as_mut().now_or_never().is_none(), "there are two");
        assert!(is_closed(&first));
        drop(first);
        second.await;
    }
}
