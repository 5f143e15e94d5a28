//! The order to end a session against the session's registration of its waker, on threads that meet in every round.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Wake, Waker},
    thread,
    time::SystemTime,
};

use super::{Registry, Session, SessionInfo};
use crate::outcome::Reason;

const ROUNDS: u64 = 200_000;

#[derive(Debug, Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn open(registry: &Arc<Registry>) -> Session {
    let peer = ([192, 0, 2, 7], 4711).into();
    registry.open(SessionInfo { peer, route: "race", since: SystemTime::UNIX_EPOCH, identity: None })
}

/// A poll finds the order, or has registered a waker that the order wakes.
#[test]
fn no_order_to_end_is_lost() {
    let registry = Arc::new(Registry::default());
    // The rounds that have begun and ended. The threads spin: a barrier would let one run long before the other.
    let (begun, ended) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut lost = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            for id in 1..=ROUNDS {
                spin_until(|| begun.load(Ordering::Acquire) == id);
                registry.end(id, Reason::Killed);
                ended.store(id, Ordering::Release);
            }
        });
        for id in 1..=ROUNDS {
            let session = open(&registry);
            let flag = Arc::new(Flag::default());
            let waker = Waker::from(Arc::clone(&flag));
            begun.store(id, Ordering::Release);
            // A little later in every round, so that the two meet in every order.
            for _ in 0..id % 256 {
                std::hint::spin_loop();
            }
            let found = session.poll_end(&mut Context::from_waker(&waker)).is_ready();
            spin_until(|| ended.load(Ordering::Acquire) == id);
            // Asserted after the rounds: a thread that panics would leave the other one waiting.
            lost += usize::from(!found && !flag.0.load(Ordering::SeqCst));
        }
    });
    assert_eq!((lost, registry.len()), (0, 0), "orders lost in {ROUNDS} rounds, and sessions left");
}

/// Waits without sleeping, and lets other threads run if that takes long.
fn spin_until(reached: impl Fn() -> bool) {
    for turn in 1_u32.. {
        if reached() {
            return;
        }
        if turn % 1024 == 0 {
            thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// Of any number of orders at the same moment, one is the session's, whole.
#[test]
fn one_of_many_orders_wins() {
    const THREADS: usize = 4;
    let registry = Arc::new(Registry::default());
    let meet = Barrier::new(THREADS + 1);
    let mut changed = 0;
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (registry, meet) = (&registry, &meet);
            let reason = [Reason::Killed, Reason::Draining][thread % 2];
            scope.spawn(move || {
                for id in 1..=1000 {
                    meet.wait();
                    registry.end_with_message(id, reason, Some(&thread.to_string()));
                    meet.wait();
                }
            });
        }
        for _ in 0..1000 {
            let session = open(&registry);
            meet.wait();
            let mut context = Context::from_waker(Waker::noop());
            let early = session.poll_end(&mut context).map(Clone::clone);
            meet.wait();
            let late = session.poll_end(&mut context).map(Clone::clone);
            changed += usize::from(late.is_pending() || early.is_ready() && early != late);
        }
    });
    assert_eq!(changed, 0, "orders that were replaced by a later one, or lost");
}
