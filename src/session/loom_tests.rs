//! The registry in every order that its threads can have.

use std::{future::poll_fn, sync::Arc, time::SystemTime};

use loom::{future::block_on, thread};

use super::{Payload, Registry, Session, SessionInfo, SessionProgress};
use crate::outcome::Reason;

fn open(registry: &Arc<Registry>) -> Session {
    let peer = ([192, 0, 2, 7], 4711).into();
    registry.open(SessionInfo { peer, route: "desk", since: SystemTime::UNIX_EPOCH, identity: None })
}

/// Loom reports a deadlock if the task waits and no thread wakes it.
#[test]
fn an_order_to_end_always_wakes_the_session() {
    loom::model(|| {
        let registry = Arc::new(Registry::default());
        let session = open(&registry);
        let operator = {
            let (registry, id) = (Arc::clone(&registry), session.id());
            thread::spawn(move || registry.end(id, Reason::Killed))
        };
        let reason = block_on(poll_fn(|cx| session.poll_end(cx).map(|end| end.reason)));
        assert_eq!(reason, Reason::Killed);
        assert!(session.is_killed());
        assert!(operator.join().unwrap(), "the session was open");
    });
}

#[test]
fn the_first_of_two_orders_stays_and_a_kill_is_noticed_in_any_case() {
    loom::model(|| {
        let registry = Arc::new(Registry::default());
        let session = open(&registry);
        let id = session.id();
        let orders = [Reason::Killed, Reason::Draining].map(|reason| {
            let registry = Arc::clone(&registry);
            thread::spawn(move || registry.end(id, reason))
        });
        let first = block_on(poll_fn(|cx| session.poll_end(cx).map(|end| end.reason)));
        for order in orders {
            order.join().unwrap();
        }
        let later = block_on(poll_fn(|cx| session.poll_end(cx).map(|end| end.reason)));
        assert_eq!(first, later);
        assert!(session.is_killed());
    });
}

#[test]
fn an_order_to_a_session_that_ends_is_either_heard_or_refused() {
    loom::model(|| {
        let registry = Arc::new(Registry::default());
        let session = open(&registry);
        let id = session.id();
        let operator = {
            let registry = Arc::clone(&registry);
            thread::spawn(move || registry.end(id, Reason::Draining))
        };
        drop(session);
        operator.join().unwrap();
        assert!(!registry.end(id, Reason::Draining), "the session has ended");
        assert_eq!(registry.len(), 0);
    });
}

#[test]
fn the_payload_of_an_ending_session_is_counted_exactly_once() {
    loom::model(|| {
        let registry = Arc::new(Registry::default());
        let session = open(&registry);
        let payload = Payload { bytes_in: 3, bytes_out: 5 };
        session.record(SessionProgress { payload, buffered: 0 });
        let ending = thread::spawn(move || drop(session));
        assert_eq!(registry.payload().get("desk"), Some(&payload));
        ending.join().unwrap();
        assert_eq!(registry.payload().get("desk"), Some(&payload));
    });
}
