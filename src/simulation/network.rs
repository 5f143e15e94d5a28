//! A network within the process, under tokio's paused clock: the handle that programs and faults use.
//!
//! Owns which network a thread is in, and when its packets are delivered. Knows nothing of what a packet does ([`World`]),
//! nor of what the bytes mean. Invariant: all randomness comes from one seed, and the world changes only when a task of the
//! runtime acts or a packet is due, so the same seed gives the same events.

use std::{cell::RefCell, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{link::Conditions, world::World};
use crate::random::Random;

/// Far more than a simulation lasts.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

thread_local! {
    static CURRENT: RefCell<Option<Network>> = const { RefCell::new(None) };
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
