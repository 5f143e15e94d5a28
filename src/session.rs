//! What is alive.
//!
//! Owns the [`Registry`] of sessions and the guard a session holds while it lives. Refuses to know how a session
//! works: it can only be told to end. Invariant: an entry lives exactly as long as its [`Session`].

mod connection_id;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use atomic_waker::AtomicWaker;

pub use self::connection_id::{ConnectionId, ConnectionIds};
use crate::outcome::Reason;

/// Every session of the process, by number.
#[derive(Debug, Default)]
pub struct Registry {
    /// The names of connections, be they sessions or not.
    pub connections: ConnectionIds,
    last: AtomicU64,
    live: Mutex<HashMap<u64, Arc<Entry>>>,
}

impl Registry {
    /// Enters a new session under the next number.
    pub fn open(self: &Arc<Self>) -> Session {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let entry = Arc::new(Entry::default());
        self.live().insert(id, Arc::clone(&entry));
        Session { id, entry, registry: Arc::clone(self) }
    }

    /// The numbers of the living sessions, oldest first.
    pub fn ids(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.live().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// How many sessions live.
    pub fn len(&self) -> usize {
        self.live().len()
    }

    /// Whether no session lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells one session to end for `reason`. Returns whether it lives.
    pub fn end(&self, id: u64, reason: Reason) -> bool {
        let entry = self.live().get(&id).cloned();
        entry.map(|entry| entry.order(reason)).is_some()
    }

    fn live(&self) -> MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        // The map is whole between any two statements, so a panic elsewhere leaves it usable.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

    /// Ready with the reason once somebody has told this session to end. Wakes the last task that asked.
    pub fn poll_end(&self, cx: &mut Context<'_>) -> Poll<Reason> {
        // Registered before looking, so that an order given in between wakes us.
        self.entry.waker.register(cx.waker());
        match self.entry.ordered() {
            Some(reason) => Poll::Ready(reason),
            None => Poll::Pending,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.registry.live().remove(&self.id);
    }
}

/// What the registry and the session share.
#[derive(Debug, Default)]
struct Entry {
    /// 0, or one more than the reason's place in the table.
    order: AtomicU8,
    waker: AtomicWaker,
}

impl Entry {
    /// The first order stands; a later one changes nothing.
    fn order(&self, reason: Reason) {
        let _ = self.order.compare_exchange(0, reason as u8 + 1, Ordering::Release, Ordering::Relaxed);
        self.waker.wake();
    }

    fn ordered(&self) -> Option<Reason> {
        let place = self.order.load(Ordering::Acquire).checked_sub(1)?;
        Reason::ALL.get(usize::from(place)).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::*;

    #[test]
    fn a_session_leaves_the_registry_when_dropped() {
        let registry = Arc::new(Registry::default());
        let (first, second) = (registry.open(), registry.open());
        assert_eq!(registry.ids(), [first.id(), second.id()]);
        drop(first);
        assert_eq!(registry.ids(), [second.id()]);
        assert!(!registry.end(1, Reason::Draining), "the first session is gone");
    }

    #[tokio::test]
    async fn an_order_wakes_the_session_and_the_first_one_stands() {
        let registry = Arc::new(Registry::default());
        let session = registry.open();
        let id = session.id();
        assert!(session.poll_end(&mut Context::from_waker(Waker::noop())).is_pending());
        let waiting = tokio::spawn(async move { poll_fn(|cx| session.poll_end(cx)).await });
        tokio::task::yield_now().await;
        assert!(registry.end(id, Reason::Draining));
        registry.end(id, Reason::Internal);
        assert_eq!(waiting.await.unwrap(), Reason::Draining);
    }
}
