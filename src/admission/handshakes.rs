//! Handshakes: the connections that are not sessions yet, and which of them gives way when there are too many.
//!
//! Owns a permit for each of them, ordered by network and age. Knows nothing of clocks (`now` is an argument), of sockets,
//! and of what a handshake consists of.
//!
//! When all permits are in use, a newcomer is not refused. It takes the permit of a connection that only waits for another
//! request. If there is none, it waits while handshakes are young, because then most of them are about to finish. After
//! that it takes the permit of a client that has sent nothing, or that of the oldest handshake, in either case of the
//! network that has most. So clients that all return at once are served one after the other, and addresses that hold their
//! handshakes open lose them.
//!
//! Invariants: there are never more permits than the limit, except after it was lowered; a permit that was taken away
//! counts no longer.

mod by_network;
mod state;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};
use tokio_util::sync::CancellationToken;

use self::{
    by_network::Key,
    state::{Group, NotAdmitted, State},
};
use super::limits::LimitExceeded;

/// The limits on handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HandshakeLimits {
    /// Of all sources together. 0 counts as 1.
    pub total: usize,
    /// Of one source.
    pub per_ip: usize,
    /// Of one network.
    pub per_network: usize,
}

/// The connections that are not sessions yet.
#[derive(Debug)]
pub struct Handshakes {
    state: Mutex<State>,
    released: Notify,
}

/// A connection that asks for a permit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Newcomer {
    pub address: IpAddr,
    /// Whether the limits of its source and its network apply.
    pub limited: bool,
    /// How long its handshake may take at most.
    pub deadline: Duration,
}

/// The answer to a [`Newcomer`].
#[derive(Debug)]
pub(crate) enum Admission {
    Granted(HandshakePermit),
    /// All permits are in use by handshakes that are too young to be ended. Ask again when one is released, at the latest
    /// after this time.
    Wait(Duration),
    Refused(LimitExceeded),
}

impl Handshakes {
    pub(crate) fn new(limits: HandshakeLimits) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::new(limits)), released: Notify::new() })
    }

    /// Asks for a permit. Never waits.
    pub(crate) fn admit(self: &Arc<Self>, newcomer: Newcomer, now: Instant) -> Admission {
        let mut state = self.state.lock();
        match state.admit(newcomer, now) {
            Ok((key, taken_away)) => Admission::Granted(HandshakePermit {
                key,
                waiting: false,
                taken_away,
                handshakes: Arc::clone(self),
            }),
            Err(NotAdmitted::Full(wait)) => Admission::Wait(wait),
            Err(NotAdmitted::Exceeded(exceeded)) => Admission::Refused(exceeded),
        }
    }

    /// Ready when a permit has been released. Enable it before asking for a permit, and no release is missed. Those who
    /// wait are served in their order.
    pub(crate) fn released(&self) -> Notified<'_> {
        self.released.notified()
    }

    /// The number of permits in use.
    pub(crate) fn in_use(&self) -> usize {
        self.state.lock().len()
    }

    pub(crate) fn limit(&self) -> usize {
        self.state.lock().limits.total
    }

    /// Changes the limits. Permits in use stay valid.
    pub(crate) fn set_limits(&self, limits: HandshakeLimits) {
        self.state.lock().limits = limits;
        self.released.notify_waiters();
    }
}

/// The permit of one connection that is not a session yet; dropping it releases it.
#[derive(Debug)]
#[must_use = "dropping the permit releases it"]
pub(crate) struct HandshakePermit {
    key: Key,
    waiting: bool,
    taken_away: CancellationToken,
    handshakes: Arc<Handshakes>,
}

impl HandshakePermit {
    /// Ready when the permit was given to a newcomer. The connection must end.
    pub(crate) fn taken_away(&self) -> impl Future<Output = ()> + use<> {
        self.taken_away.clone().cancelled_owned()
    }

    /// The client has sent something.
    pub(crate) fn set_heard(&mut self, now: Instant) {
        self.handshakes.state.lock().set_heard(self.key, now);
    }

    /// From now on the connection waits for another request, and is the first to give way.
    pub(crate) fn wait(&mut self) {
        self.waiting = true;
        self.handshakes.state.lock().move_to(self.key, Group::Waiting);
        self.handshakes.released.notify_one();
    }

    /// The connection works on a request again.
    pub(crate) fn resume(&mut self) {
        self.waiting = false;
        self.handshakes.state.lock().move_to(self.key, Group::Active);
    }

    /// Whether the connection waits for another request.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Counts the connection for the client that a proxy names.
    ///
    /// # Errors
    /// The client or its network has as many handshakes as it may.
    pub(crate) fn set_client(&mut self, address: IpAddr, limited: bool) -> Result<(), LimitExceeded> {
        self.key = self.handshakes.state.lock().set_client(self.key, address, limited)?;
        Ok(())
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.handshakes.state.lock().remove(self.key);
        self.handshakes.released.notify_one();
    }
}

#[cfg(test)]
mod tests;
