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

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};
use tokio_util::sync::CancellationToken;

use self::by_network::{ByNetwork, Entry, Key};
use super::{rate::LimitExceeded, source::Source};

/// The handshakes of a network are disproportionate if they are more than this part of the limit beyond twice those of the
/// newcomer's network.
const DISPROPORTIONATE: usize = 32;
/// The least of that margin, for small limits.
const LEAST_MARGIN: usize = 8;
/// The part of its deadline that a handshake is given in any case, unless its client is silent and all others are as well. A
/// handshake takes a few round trips, and clients speak first.
const SUSPECT: u32 = 10;
/// That part if all clients are silent.
const ALL_SILENT: u32 = 20;
/// The part that is given to a client that speaks and whose network has no more than its share.
const SLOW: u32 = 2;

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
        let mut state = self.handshakes.state.lock();
        state.last_heard = Some(now);
        state.move_to(self.key, Group::Active);
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    /// The client has sent nothing yet.
    Silent,
    /// In the middle of TLS or of the first request, or served.
    Active,
    /// Between two requests.
    Waiting,
}

enum NotAdmitted {
    Full(Duration),
    Exceeded(LimitExceeded),
}

#[derive(Debug)]
struct State {
    limits: HandshakeLimits,
    last_number: u64,
    /// When a client was last heard for the first time.
    last_heard: Option<Instant>,
    silent: ByNetwork,
    active: ByNetwork,
    waiting: ByNetwork,
    /// The limited handshakes of each source, without those that wait.
    sources: HashMap<Source, usize>,
}

impl State {
    fn new(limits: HandshakeLimits) -> Self {
        let (silent, active, waiting) = Default::default();
        Self { limits, last_number: 0, last_heard: None, silent, active, waiting, sources: HashMap::new() }
    }

    fn len(&self) -> usize {
        self.silent.entries.len() + self.active.entries.len() + self.waiting.entries.len()
    }

    /// The handshakes of a network, without those that wait.
    fn count(&self, network: Source) -> usize {
        self.silent.count(network) + self.active.count(network)
    }

    fn admit(&mut self, newcomer: Newcomer, now: Instant) -> Result<(Key, CancellationToken), NotAdmitted> {
        let Newcomer { address, limited, deadline } = newcomer;
        let source = Source::of(address);
        let network = source.network();
        if limited {
            self.check(source).map_err(NotAdmitted::Exceeded)?;
        }
        while self.len() >= self.limits.total.max(1) {
            let key = self.to_take_away(network, now).map_err(NotAdmitted::Full)?;
            if let Some((entry, _)) = self.remove(key) {
                entry.taken_away.cancel();
            }
        }
        self.last_number += 1;
        let key = Key { network, number: self.last_number };
        let taken_away = CancellationToken::new();
        let entry = Entry { source, limited, since: now, deadline, taken_away: taken_away.clone() };
        self.insert(key, entry, Group::Silent);
        Ok((key, taken_away))
    }

    /// Checks the limits of a source and of its network.
    fn check(&self, source: Source) -> Result<(), LimitExceeded> {
        if self.sources.get(&source).is_some_and(|count| *count >= self.limits.per_ip) {
            return Err(LimitExceeded::Handshakes);
        }
        if self.count(source.network()) >= self.limits.per_network {
            return Err(LimitExceeded::NetworkHandshakes);
        }
        Ok(())
    }

    /// The connection that gives way to one from `network`, or how long it takes until there is one.
    fn to_take_away(&self, network: Source, now: Instant) -> Result<Key, Duration> {
        let longest_waiting = self.waiting.largest().find_map(|(_, largest)| self.waiting.oldest(largest));
        if let Some((key, _)) = longest_waiting {
            return Ok(key);
        }
        // For how long has no client been heard? If none ever was, for longer than any deadline.
        let quiet = self.last_heard.map_or(Duration::MAX, |last| now.saturating_duration_since(last));
        let silent = self.silent.to_take_away(now, |_, deadline| match deadline / ALL_SILENT {
            least if quiet >= least => least,
            _ => deadline / SUSPECT,
        });
        let Err(soonest) = silent else { return silent };
        let margin = (self.limits.total / DISPROPORTIONATE).max(LEAST_MARGIN);
        let fair = 2 * self.count(network) + margin;
        let active = self.active.to_take_away(now, |largest, deadline| match self.count(largest) {
            count if count >= fair => deadline / SUSPECT,
            _ => deadline / SLOW,
        });
        active.map_err(|soon| soon.min(soonest))
    }

    fn move_to(&mut self, key: Key, group: Group) {
        // It is absent if the permit was taken away.
        if let Some((entry, _)) = self.remove(key) {
            self.insert(key, entry, group);
        }
    }

    fn set_client(&mut self, key: Key, address: IpAddr, limited: bool) -> Result<Key, LimitExceeded> {
        let source = Source::of(address);
        if limited {
            self.check(source)?;
        }
        let moved = Key { network: source.network(), ..key };
        if let Some((entry, group)) = self.remove(key) {
            self.insert(moved, Entry { source, limited, ..entry }, group);
        }
        Ok(moved)
    }

    fn insert(&mut self, key: Key, entry: Entry, group: Group) {
        if group != Group::Waiting && entry.limited {
            *self.sources.entry(entry.source).or_default() += 1;
        }
        match group {
            Group::Silent => self.silent.insert(key, entry),
            Group::Active => self.active.insert(key, entry),
            Group::Waiting => self.waiting.insert(key, entry),
        }
    }

    fn remove(&mut self, key: Key) -> Option<(Entry, Group)> {
        if let Some(entry) = self.waiting.remove(key) {
            return Some((entry, Group::Waiting));
        }
        let silent = self.silent.remove(key).map(|entry| (entry, Group::Silent));
        let (entry, group) = silent.or_else(|| Some((self.active.remove(key)?, Group::Active)))?;
        if entry.limited
            && let Some(count) = self.sources.get_mut(&entry.source)
        {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&entry.source);
            }
        }
        Some((entry, group))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);
    const DEADLINE: Duration = Duration::from_secs(10);

    fn limits(total: usize, per_ip: usize, per_network: usize) -> HandshakeLimits {
        HandshakeLimits { total, per_ip, per_network }
    }

    /// Host `host` of network `network`.
    fn from(network: u8, host: u8) -> Newcomer {
        Newcomer { address: IpAddr::from([10, 0, network, host]), limited: true, deadline: DEADLINE }
    }

    fn granted(handshakes: &Arc<Handshakes>, newcomer: Newcomer, now: Instant) -> HandshakePermit {
        match handshakes.admit(newcomer, now) {
            Admission::Granted(permit) => permit,
            other => panic!("{newcomer:?} got {other:?}"),
        }
    }

    /// A permit of a client that has sent something.
    fn heard(handshakes: &Arc<Handshakes>, newcomer: Newcomer, now: Instant) -> HandshakePermit {
        let mut permit = granted(handshakes, newcomer, now);
        permit.set_heard(now);
        permit
    }

    fn wait(handshakes: &Arc<Handshakes>, newcomer: Newcomer, now: Instant) -> Duration {
        match handshakes.admit(newcomer, now) {
            Admission::Wait(longest) => longest,
            other => panic!("{newcomer:?} got {other:?}"),
        }
    }

    fn lost(permit: &HandshakePermit) -> bool {
        permit.taken_away.is_cancelled()
    }

    #[test]
    fn row_64_the_oldest_handshake_of_the_network_that_has_most_gives_way() {
        let now = Instant::now();
        let handshakes = Handshakes::new(limits(64, 64, 64));
        let good = heard(&handshakes, from(1, 1), now);
        let mut attack: Vec<_> = (0..63).map(|n| heard(&handshakes, from(2, n), now + MILLISECOND)).collect();
        // A tenth of the deadline is 1 s.
        assert_eq!(wait(&handshakes, from(3, 1), now + MILLISECOND), SECOND);
        let later = now + SECOND + MILLISECOND;
        let newcomer = granted(&handshakes, from(3, 1), later);
        assert!(lost(&attack[0]) && !lost(&attack[1]), "the oldest of the attack");
        assert!(!lost(&good) && !lost(&newcomer));
        assert_eq!(handshakes.in_use(), 64);
        // What was taken away releases nothing a second time.
        drop(attack.remove(0));
        assert_eq!(handshakes.in_use(), 64);
    }

    #[test]
    fn row_65_newcomers_wait_while_handshakes_are_young() {
        let now = Instant::now();
        let handshakes = Handshakes::new(limits(64, 64, 64));
        let mut herd: VecDeque<_> = (0..64).map(|n| heard(&handshakes, from(n, 1), now)).collect();
        for n in 64..127 {
            // No network has more than its share, so the wait is as long as half of the deadline.
            assert_eq!(wait(&handshakes, from(n, 1), now + 4 * SECOND), SECOND);
            drop(herd.pop_front());
            herd.push_back(heard(&handshakes, from(n, 1), now + 4 * SECOND));
        }
        assert!(herd.iter().all(|permit| !lost(permit)), "a handshake that makes progress was ended");
    }

    #[test]
    fn row_64_connections_that_wait_for_another_request_give_way_first() {
        let now = Instant::now();
        let handshakes = Handshakes::new(limits(3, 3, 3));
        let working = heard(&handshakes, from(1, 1), now);
        let (mut first, mut second) =
            (heard(&handshakes, from(2, 1), now), heard(&handshakes, from(2, 2), now));
        second.wait();
        first.wait();
        first.resume();
        first.wait();
        let mut newcomer = granted(&handshakes, from(3, 1), now);
        assert!(lost(&first) && !lost(&second) && !lost(&working), "the oldest of them");
        // A connection that works on a request again is like any other.
        second.resume();
        newcomer.set_heard(now);
        assert_eq!(wait(&handshakes, from(3, 2), now), DEADLINE / 2);
        first.resume();
        assert_eq!(handshakes.in_use(), 3, "what was taken away stays away");
    }

    #[test]
    fn row_03_silent_clients_give_way_soon() {
        let now = Instant::now();
        let handshakes = Handshakes::new(limits(200, 200, 200));
        let mut silent: Vec<_> = (0..200).map(|n| granted(&handshakes, from(n, 1), now)).collect();
        // No client says anything.
        assert_eq!(wait(&handshakes, from(201, 1), now), DEADLINE / ALL_SILENT);
        let later = now + DEADLINE / ALL_SILENT;
        let mut held: Vec<_> = (0..199).map(|n| granted(&handshakes, from(n, 2), later)).collect();
        assert_eq!(silent.iter().filter(|permit| lost(permit)).count(), 199);
        // Clients speak: there are handshakes in progress, and silent ones are given more time.
        held[0].set_heard(later);
        let mut last = silent.drain(..).find(|permit| !lost(permit)).unwrap();
        last.set_heard(later);
        assert_eq!(wait(&handshakes, from(202, 1), later), DEADLINE / SUSPECT);
        assert!(!lost(&held[0]) && !lost(&last));
        let _newcomer = granted(&handshakes, from(202, 1), later + DEADLINE / SUSPECT);
        assert!(!lost(&last), "older, but it was heard");
    }

    #[test]
    fn row_72_a_source_and_a_network_have_a_share_of_their_own() {
        let now = Instant::now();
        let handshakes = Handshakes::new(limits(100, 2, 3));
        let refused = |newcomer| match handshakes.admit(newcomer, now) {
            Admission::Refused(exceeded) => exceeded,
            other => panic!("{other:?}"),
        };
        let (mut first, second) =
            (granted(&handshakes, from(1, 1), now), granted(&handshakes, from(1, 1), now));
        assert_eq!(refused(from(1, 1)), LimitExceeded::Handshakes);
        let third = granted(&handshakes, from(1, 2), now);
        assert_eq!(refused(from(1, 3)), LimitExceeded::NetworkHandshakes);
        let _unlimited = granted(&handshakes, Newcomer { limited: false, ..from(1, 1) }, now);
        let _other = granted(&handshakes, from(2, 1), now);
        drop((second, third));
        // Waiting for another request is no handshake.
        first.wait();
        let _two = [granted(&handshakes, from(1, 1), now), granted(&handshakes, from(1, 1), now)];
        assert_eq!(refused(from(1, 1)), LimitExceeded::Handshakes);
    }

    #[test]
    fn a_client_behind_a_proxy_counts_for_itself_once_it_is_known() {
        let now = Instant::now();
        let handshakes = Handshakes::new(limits(100, 1, 100));
        let by_proxy = || granted(&handshakes, Newcomer { limited: false, ..from(9, 9) }, now);
        let (mut first, mut second) = (by_proxy(), by_proxy());
        let IpAddr::V4(client) = from(1, 1).address else { panic!("not IPv4") };
        assert_eq!(first.set_client(client.into(), true), Ok(()));
        assert_eq!(second.set_client(client.into(), true), Err(LimitExceeded::Handshakes));
        assert_eq!(handshakes.in_use(), 2);
        drop((first, second));
        assert_eq!(handshakes.in_use(), 0);
        assert!(handshakes.state.lock().sources.is_empty());
    }

    #[tokio::test]
    async fn a_release_wakes_those_who_wait_in_their_order() {
        let now = Instant::now();
        let handshakes = Handshakes::new(limits(1, 1, 1));
        let permit = granted(&handshakes, from(1, 1), now);
        let mut waiting = [Box::pin(handshakes.released()), Box::pin(handshakes.released())];
        assert!(waiting.iter_mut().all(|released| !released.as_mut().enable()));
        drop(permit);
        let [first, second] = &mut waiting;
        assert!(first.as_mut().enable(), "the first is ready");
        assert!(!second.as_mut().enable(), "one permit wakes one");
    }

    proptest! {
        #[test]
        fn permits_are_counted_exactly_and_never_exceed_the_limit(
            steps in prop::collection::vec((0_u8..8, 0_u8..4, 0_u8..4, 0_usize..8, 0_u64..3_000), 1..300),
        ) {
            const TOTAL: usize = 12;
            let handshakes = Handshakes::new(limits(TOTAL, 3, 6));
            let (mut now, mut held): (Instant, Vec<HandshakePermit>) = (Instant::now(), Vec::new());
            for (what, network, host, index, elapsed) in steps {
                now += Duration::from_millis(elapsed);
                let permit = (!held.is_empty()).then(|| index % held.len());
                match (what, permit) {
                    (0, Some(index)) => drop(held.swap_remove(index)),
                    (1, Some(index)) => held[index].wait(),
                    (2, Some(index)) => held[index].resume(),
                    (3, Some(index)) => held[index].set_heard(now),
                    _ => match handshakes.admit(from(network, host), now) {
                        Admission::Granted(permit) => held.push(permit),
                        Admission::Wait(longest) => {
                            prop_assert_eq!(handshakes.in_use(), TOTAL);
                            prop_assert!(longest > Duration::ZERO && longest <= DEADLINE / 2);
                        }
                        Admission::Refused(exceeded) => {
                            let mine = from(network, host).address;
                            let of_source = |key: &Key, entry: &Entry| {
                                (entry.source == Source::of(mine), key.network == Source::of(mine).network())
                            };
                            let state = handshakes.state.lock();
                            let entries = state.active.entries.iter().chain(&state.silent.entries);
                            let seen: Vec<_> = entries.map(|(k, e)| of_source(k, e)).collect();
                            let of_source = seen.iter().filter(|(source, _)| *source).count();
                            let of_network = seen.iter().filter(|(_, network)| *network).count();
                            prop_assert!(of_source >= 3 || of_network >= 6, "{}: {} {}", exceeded, of_source, of_network);
                        }
                    },
                }
                let live = held.iter().filter(|permit| !lost(permit)).count();
                prop_assert_eq!(handshakes.in_use(), live);
                prop_assert!(live <= TOTAL);
            }
            drop(held);
            let state = handshakes.state.lock();
            prop_assert!(state.sources.is_empty());
            for group in [&state.silent, &state.active, &state.waiting] {
                prop_assert!(group.counts.is_empty() && group.by_count.is_empty());
            }
        }
    }
}
