//! Which of several targets is tried next.
//!
//! Owns what is known of the targets of one route: how many sessions each holds, which have failed lately, which
//! the health checks found down. Pure: it dials nothing, knows no sockets and no clock (`now` is an argument).
//!
//! Invariants: no target holds more than `max_sessions`, not even for a moment, and each [`BackendPermit`] is counted
//! exactly as long as it lives. A target that the health checks found down is never named. Failed dials alone
//! never leave a client without a target: when all that are left have failed lately, they are tried again, as
//! nginx does when all have failed. A route with a single target therefore never waits, and says each time why it
//! cannot be reached.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    admission::canonical,
    config::{Backend, Balance},
};
use parking_lot::{Mutex, MutexGuard};

/// How long a target is left alone after its first failure; twice as long after each one more in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A target that has come back is used again before its users have given up: within five seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// How long only one dial at a time tries a target that has failed before. A dial that ends without a word, because
/// its client left, holds the next one up for no longer.
const TRIAL: Duration = Duration::from_secs(1);

/// The targets of all routes, as far as anybody still needs them: what is known of one outlives the list that named it, so
/// that the next list goes on where the last one was, and `max_sessions` stays true whatever is reloaded.
#[derive(Debug, Default)]
pub struct BackendRegistry {
    targets: Mutex<HashMap<(String, Backend), Weak<PooledBackend>>>,
}

impl BackendRegistry {
    /// A pool of the `backends` of the route named `route`, in which those that the route had before are what they were.
    pub fn pool(&self, route: &str, backends: &[Backend], settings: PoolSettings) -> Arc<Pool> {
        let mut targets = self.targets.lock();
        targets.retain(|_, target| target.strong_count() > 0);
        let target = |backend: &Backend| {
            let entry = targets.entry((route.to_owned(), backend.clone())).or_default();
            entry.upgrade().unwrap_or_else(|| {
                let target = Arc::new(PooledBackend::new(backend));
                *entry = Arc::downgrade(&target);
                target
            })
        };
        Arc::new(Pool::of(backends.iter().map(target).collect(), settings))
    }
}

/// How a pool deals with its targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSettings {
    /// Which is next.
    pub balance: Balance,
    /// Sessions at the same time, for each target.
    pub max_sessions: Option<usize>,
    /// Whether there are health checks. Without them, it does not matter what they said when there were some.
    pub is_checked: bool,
}

/// The targets of one route. A target is its index in the list that the pool was made of.
#[derive(Debug)]
pub struct Pool {
    balance: Balance,
    max_sessions: usize,
    is_checked: bool,
    /// How many orders were given.
    turn: AtomicUsize,
    targets: Vec<Arc<PooledBackend>>,
}

/// One target of one route, over all lists that name it.
#[derive(Debug)]
struct PooledBackend {
    /// What the target is to [`Balance::SourceIp`]: a hash of how it is written.
    seed: u64,
    state: Mutex<BackendState>,
}

/// What is known of a target at one moment.
#[derive(Debug, Clone, Copy)]
struct BackendState {
    sessions: usize,
    /// What the health checks say. Without checks nobody says otherwise.
    healthy: bool,
    /// Failed dials in a row, those of one ejection counted as one.
    failures: u32,
    dial_health: DialHealth,
}

/// What dials have shown of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DialHealth {
    Good,
    /// The last dial failed.
    Ejected {
        until: Instant,
    },
    /// Its ejection is over, and one dial finds out whether it is back.
    OnTrial {
        until: Instant,
    },
}

impl Pool {
    /// A pool of `backends`, all of them healthy and free. `max_sessions` is for each.
    pub fn new(backends: &[Backend], balance: Balance, max_sessions: Option<usize>) -> Arc<Self> {
        let targets = backends.iter().map(|backend| Arc::new(PooledBackend::new(backend))).collect();
        Arc::new(Self::of(targets, PoolSettings { balance, max_sessions, is_checked: true }))
    }

    fn of(targets: Vec<Arc<PooledBackend>>, settings: PoolSettings) -> Self {
        let PoolSettings { balance, max_sessions, is_checked } = settings;
        let max_sessions = max_sessions.unwrap_or(usize::MAX);
        Self { balance, max_sessions, is_checked, turn: AtomicUsize::new(0), targets }
    }

    /// The targets to try for one dial, the best first, each once. None, when all of them are down by their health
    /// checks or hold as many sessions as they may.
    ///
    /// Targets that failed lately are left out, as long as another is left. An ejection that is over makes a target
    /// one of many again, but the first dial that would begin with it goes ahead alone: while it lasts, and for at
    /// most a second, others still pass the target by. Otherwise every client would wait for a target that swallows
    /// packets, each time its ejection ends.
    pub fn order(&self, now: Instant, client_info: IpAddr) -> Vec<usize> {
        let states: Vec<BackendState> = self.targets.iter().map(|target| *target.state()).collect();
        let (mut ready, mut ejected): (Vec<_>, Vec<_>) = (0..states.len())
            .filter(|&index| self.is_healthy_in(&states[index]) && states[index].sessions < self.max_sessions)
            .partition(|&index| states[index].ejected_until(now).is_none());
        if !ready.is_empty() {
            self.sort(&mut ready, &states, client_info);
        }
        // Somebody else may have begun a trial, or ended one badly, since we looked.
        while let Some(&first) = ready.first()
            && !self.targets[first].state().try_begin_dial(now)
        {
            ejected.push(ready.remove(0));
        }
        if ready.is_empty() {
            ejected.sort_by_cached_key(|&index| self.targets[index].state().ejected_until(now));
            return ejected;
        }
        ready
    }

    /// Sorts those that are ready, at least one, the best first.
    fn sort(&self, ready: &mut [usize], states: &[BackendState], client_info: IpAddr) {
        match self.balance {
            Balance::First => {}
            Balance::RoundRobin => self.rotate(ready),
            // Of those that have equally few, each in turn.
            Balance::LeastSessions => {
                self.rotate(ready);
                ready.sort_by_key(|&index| states[index].sessions);
            }
            Balance::SourceIp => {
                let client_info = hash_of(client_info);
                ready.sort_by_key(|&index| Reverse(mix(self.targets[index].seed ^ client_info)));
            }
        }
    }

    /// Moves the next in turn to the front. The turn goes round those that are ready: were it to go round all, the
    /// neighbour of one that is down would do the work of two.
    fn rotate(&self, ready: &mut [usize]) {
        ready.rotate_left(self.turn.fetch_add(1, Ordering::Relaxed) % ready.len());
    }

    /// A session's place at `target`, or `None` when it holds as many as it may. Take it before the dial: those who
    /// are on their way count for [`Balance::LeastSessions`] too, and a hundred at once do not all choose the same.
    pub fn try_acquire(&self, target: usize) -> Option<BackendPermit> {
        let mut state = self.targets[target].state();
        if state.sessions >= self.max_sessions {
            return None;
        }
        state.sessions += 1;
        Some(BackendPermit { at: Arc::clone(&self.targets[target]), target })
    }

    /// A dial failed: the target is ejected, for one second, then two, then four each time. How long, or `None` when
    /// it was ejected already: dials that were under way together fail together, and count once.
    pub fn failed(&self, target: usize, now: Instant) -> Option<Duration> {
        let mut target = self.targets[target].state();
        if matches!(target.dial_health, DialHealth::Ejected { until } if now < until) {
            return None;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << target.failures.min(8)).min(LONGEST_PAUSE);
        target.failures = target.failures.saturating_add(1);
        target.dial_health = DialHealth::Ejected { until: now + pause };
        Some(pause)
    }

    /// A dial went well: the target is as good as new. Whether it was not before.
    pub fn succeeded(&self, target: usize) -> bool {
        let mut target = self.targets[target].state();
        let was_good = target.dial_health == DialHealth::Good;
        target.forgive();
        !was_good
    }

    /// What the health checks found out. A target that is found healthy again is forgiven its failed dials too.
    /// Whether this is news.
    pub fn mark(&self, target: usize, healthy: bool) -> bool {
        let mut target = self.targets[target].state();
        let is_news = target.healthy != healthy;
        target.healthy = healthy;
        if is_news && healthy {
            target.forgive();
        }
        is_news
    }

    /// How many places at `target` are held now.
    pub fn sessions(&self, target: usize) -> usize {
        self.targets[target].state().sessions
    }

    /// What the health checks say of `target`; without checks, that it is healthy.
    pub fn is_healthy(&self, target: usize) -> bool {
        self.is_healthy_in(&self.targets[target].state())
    }

    /// Whether sessions are led to `target`: neither its health checks nor a dial have just found it down.
    pub fn is_up(&self, target: usize, now: Instant) -> bool {
        let state = self.targets[target].state();
        self.is_healthy_in(&state) && state.ejected_until(now).is_none()
    }

    fn is_healthy_in(&self, state: &BackendState) -> bool {
        state.healthy || !self.is_checked
    }
}

impl PooledBackend {
    fn new(backend: &Backend) -> Self {
        let state = BackendState { sessions: 0, healthy: true, failures: 0, dial_health: DialHealth::Good };
        Self { seed: hash(backend.to_string().as_bytes()), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, BackendState> {
        self.state.lock()
    }
}

impl BackendState {
    fn ejected_until(&self, now: Instant) -> Option<Instant> {
        match self.dial_health {
            DialHealth::Ejected { until } | DialHealth::OnTrial { until } if now < until => Some(until),
            _ => None,
        }
    }

    /// A dial begins with this target, unless another is trying it out.
    fn try_begin_dial(&mut self, now: Instant) -> bool {
        if self.ejected_until(now).is_some() {
            return false;
        }
        if self.dial_health != DialHealth::Good {
            self.dial_health = DialHealth::OnTrial { until: now + TRIAL };
        }
        true
    }

    fn forgive(&mut self) {
        self.failures = 0;
        self.dial_health = DialHealth::Good;
    }
}

/// One session's place at a target; dropping it gives the place back.
#[derive(Debug)]
#[must_use = "the place is given back when it is dropped"]
pub struct BackendPermit {
    at: Arc<PooledBackend>,
    target: usize,
}

impl BackendPermit {
    /// The target it is at.
    pub fn target(&self) -> usize {
        self.target
    }
}

impl Drop for BackendPermit {
    fn drop(&mut self) {
        self.at.state().sessions -= 1;
    }
}

/// Rendezvous hashing (Thaler and Ravishankar, 1998): each client ranks the targets by a hash of both. When a target
/// is lost, its clients go to the next of their own rank and nobody else moves. Neither the order of the list nor
/// the process matters, so that several gateways, and one after its restart, agree. That needs hashes without a
/// secret; whoever can choose among addresses could connect from any of them anyway.
fn hash_of(client_info: IpAddr) -> u64 {
    match canonical(client_info) {
        IpAddr::V4(address) => hash(&address.octets()),
        IpAddr::V6(address) => hash(&address.octets()),
    }
}

/// FNV-1a, 64 bits.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finaliser of SplitMix64: each bit of the input changes half of the output.
fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        net::{Ipv4Addr, Ipv6Addr},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use proptest::prelude::*;

    use super::*;

    const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const SECOND: Duration = Duration::from_secs(1);
    const MOMENT: Duration = Duration::from_nanos(1);

    fn backends(number: usize) -> Vec<Backend> {
        (0..number).map(|index| format!("tcp://10.0.0.{index}:5900").parse().unwrap()).collect()
    }

    fn pool(balance: Balance, number: usize) -> Arc<Pool> {
        Pool::new(&backends(number), balance, None)
    }

    fn callers() -> impl Iterator<Item = IpAddr> {
        let v4 = (0..1000_u32).map(|index| IpAddr::from(Ipv4Addr::from_bits(0xc000_0200 + index)));
        let v6 = (0..1000_u128).map(|index| IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8 << 96) + index)));
        v4.chain(v6)
    }

    fn listed(
        registry: &BackendRegistry,
        number: usize,
        max_sessions: Option<usize>,
        is_checked: bool,
    ) -> Arc<Pool> {
        registry.pool(
            "desk",
            &backends(number),
            PoolSettings { balance: Balance::First, max_sessions, is_checked },
        )
    }

    #[test]
    fn another_list_goes_on_where_the_last_one_was() {
        let (registry, now) = (BackendRegistry::default(), Instant::now());
        let first = listed(&registry, 3, Some(2), true);
        let place = first.try_acquire(0).unwrap();
        first.failed(1, now);
        first.mark(2, false);
        let second = listed(&registry, 4, Some(1), true);
        assert_eq!((second.sessions(0), second.is_up(1, now), second.is_healthy(2)), (1, false, false));
        assert!(second.try_acquire(0).is_none(), "it has as many as the new list allows");
        assert_eq!(second.order(now, NOBODY), [3]);
        // Whoever still asks the old list meets the same targets.
        let other = first.try_acquire(0).unwrap();
        assert!(first.try_acquire(0).is_none());
        drop((place, other));
        assert_eq!(second.sessions(0), 0);
        let elsewhere = registry.pool(
            "vnc",
            &backends(1),
            PoolSettings { balance: Balance::First, max_sessions: None, is_checked: true },
        );
        let _place = elsewhere.try_acquire(0).unwrap();
        assert_eq!(second.sessions(0), 0, "the same server of another route is another target");
    }

    #[test]
    fn a_target_is_remembered_for_as_long_as_a_session_is_there() {
        let registry = BackendRegistry::default();
        let place = listed(&registry, 1, Some(1), true).try_acquire(0).unwrap();
        // It is in no list now, and then in one again.
        assert!(listed(&registry, 1, Some(1), true).try_acquire(0).is_none());
        drop(place);
        assert!(listed(&registry, 1, Some(1), true).try_acquire(0).is_some());
        drop(listed(&registry, 5, None, true));
        listed(&registry, 1, None, true).failed(0, Instant::now());
        assert!(listed(&registry, 1, None, true).is_up(0, Instant::now()), "nobody held it meanwhile");
        assert_eq!(registry.targets.lock().len(), 1, "targets that nobody needs are forgotten");
    }

    #[test]
    fn what_checks_have_found_counts_only_while_there_are_checks() {
        let (registry, now) = (BackendRegistry::default(), Instant::now());
        let checked = listed(&registry, 2, None, true);
        checked.mark(0, false);
        assert_eq!(checked.order(now, NOBODY), [1]);
        let unchecked = listed(&registry, 2, None, false);
        assert_eq!(unchecked.order(now, NOBODY), [0, 1]);
        assert!(unchecked.is_up(0, now));
    }

    #[test]
    fn each_has_its_turn() {
        let (pool, now) = (pool(Balance::RoundRobin, 3), Instant::now());
        let orders: Vec<_> = (0..4).map(|_| pool.order(now, NOBODY)).collect();
        assert_eq!(orders, [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
    }

    #[test]
    fn the_work_of_one_that_is_down_is_shared_by_all_others() {
        let (pool, now) = (pool(Balance::RoundRobin, 4), Instant::now());
        pool.failed(0, now);
        let mut firsts = [0; 4];
        for _ in 0..300 {
            firsts[pool.order(now, NOBODY)[0]] += 1;
        }
        assert_eq!(firsts, [0, 100, 100, 100]);
    }

    #[test]
    fn the_first_is_first_until_it_fails_or_is_full() {
        let now = Instant::now();
        let pool = Pool::new(&backends(3), Balance::First, Some(1));
        assert_eq!(pool.order(now, NOBODY), [0, 1, 2]);
        assert_eq!(pool.order(now, NOBODY), [0, 1, 2]);
        let place = pool.try_acquire(0).unwrap();
        assert_eq!((place.target(), pool.order(now, NOBODY)), (0, vec![1, 2]));
        pool.failed(1, now);
        assert_eq!(pool.order(now, NOBODY), [2]);
        drop(place);
        assert_eq!(pool.order(now, NOBODY), [0, 2]);
    }

    #[test]
    fn sessions_even_out() {
        let (pool, now) = (pool(Balance::LeastSessions, 3), Instant::now());
        let mut places: Vec<_> =
            (0..9).map(|_| pool.try_acquire(pool.order(now, NOBODY)[0]).unwrap()).collect();
        assert_eq!([0, 1, 2].map(|target| pool.sessions(target)), [3, 3, 3]);
        places.retain(|place| place.target() != 1);
        let next: Vec<_> = (0..3).map(|_| pool.try_acquire(pool.order(now, NOBODY)[0]).unwrap()).collect();
        assert!(next.iter().all(|place| place.target() == 1), "{next:?}");
    }

    #[test]
    fn those_that_are_idle_take_turns_and_not_the_first_all() {
        let (pool, now) = (pool(Balance::LeastSessions, 3), Instant::now());
        let firsts: Vec<_> = (0..3).map(|_| pool.order(now, NOBODY)[0]).collect();
        assert_eq!(firsts, [0, 1, 2]);
    }

    #[test]
    fn an_address_keeps_its_target_over_orders_processes_and_lists() {
        let now = Instant::now();
        let one = pool(Balance::SourceIp, 5);
        let reversed: Vec<_> = backends(5).into_iter().rev().collect();
        let other = Pool::new(&reversed, Balance::SourceIp, None);
        for client_info in callers() {
            let order = one.order(now, client_info);
            assert_eq!(order, one.order(now, client_info));
            let mirrored: Vec<_> = other.order(now, client_info).iter().map(|index| 4 - index).collect();
            assert_eq!(order, mirrored, "{client_info} depends on the order of the list");
        }
        // A change of these numbers would send everybody elsewhere after an update.
        let ranks = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|ip| one.order(now, ip.parse().unwrap()));
        assert_eq!(ranks, [[2, 1, 3, 0, 4], [0, 1, 3, 4, 2], [4, 1, 0, 3, 2]]);
    }

    #[test]
    fn a_mapped_address_is_the_address_it_maps() {
        let (pool, now) = (pool(Balance::SourceIp, 5), Instant::now());
        for v4 in (0..100).map(|last| Ipv4Addr::new(192, 0, 2, last)) {
            assert_eq!(pool.order(now, v4.into()), pool.order(now, v4.to_ipv6_mapped().into()));
        }
    }

    #[test]
    fn addresses_spread_evenly() {
        let (pool, now) = (pool(Balance::SourceIp, 4), Instant::now());
        let mut firsts: HashMap<(bool, usize), usize> = HashMap::new();
        callers().for_each(|ip| *firsts.entry((ip.is_ipv4(), pool.order(now, ip)[0])).or_default() += 1);
        assert_eq!(firsts.len(), 8, "{firsts:?}");
        // 250 is fair; five standard deviations are 68.
        assert!(firsts.values().all(|clients| (182..=318).contains(clients)), "{firsts:?}");
    }

    #[test]
    fn pauses_double_up_to_four_seconds_and_a_success_forgives() {
        let pool = pool(Balance::First, 2);
        let mut now = Instant::now();
        for pause in [1, 2, 4, 4, 4].map(Duration::from_secs) {
            assert_eq!(pool.order(now, NOBODY), [0, 1]);
            assert_eq!(pool.failed(0, now), Some(pause));
            assert_eq!(pool.order(now, NOBODY), [1]);
            assert_eq!(pool.order(now + pause - MOMENT, NOBODY), [1]);
            now += pause;
        }
        assert_eq!(pool.order(now, NOBODY), [0, 1]);
        assert!(pool.succeeded(0), "it was away");
        assert!(!pool.succeeded(0), "it is back already");
        assert_eq!(pool.failed(0, now), Some(SECOND));
    }

    #[test]
    fn dials_that_fail_together_count_once() {
        let (pool, now) = (pool(Balance::First, 2), Instant::now());
        assert_eq!(pool.failed(0, now), Some(SECOND));
        for late in 0..200 {
            assert_eq!(pool.failed(0, now + MOMENT * late), None);
        }
        assert_eq!(pool.failed(0, now + SECOND), Some(2 * SECOND));
    }

    #[test]
    fn one_dial_alone_tries_a_target_that_may_be_back() {
        let (pool, now) = (pool(Balance::First, 2), Instant::now());
        pool.failed(0, now);
        let later = now + SECOND;
        assert_eq!(pool.order(later, NOBODY), [0, 1]);
        assert_eq!(pool.order(later, NOBODY), [1]);
        // That dial was cut short: another one goes ahead.
        assert_eq!(pool.order(later + TRIAL - MOMENT, NOBODY), [1]);
        assert_eq!(pool.order(later + TRIAL, NOBODY), [0, 1]);
        assert_eq!(pool.failed(0, later + TRIAL), Some(2 * SECOND));
        assert_eq!(pool.order(later + 3 * SECOND, NOBODY), [0, 1]);
        pool.succeeded(0);
        assert_eq!(pool.order(later + 3 * SECOND, NOBODY), [0, 1]);
    }

    #[test]
    fn a_trial_is_not_spent_on_a_dial_that_begins_elsewhere() {
        let (pool, now) = (pool(Balance::RoundRobin, 2), Instant::now());
        pool.failed(1, now);
        let later = now + SECOND;
        assert_eq!(pool.order(now, NOBODY), [0]);
        assert_eq!(pool.order(later, NOBODY), [1, 0]);
        pool.succeeded(1);
        pool.failed(1, later);
        let latest = later + SECOND;
        assert_eq!(pool.order(latest, NOBODY), [0, 1]);
        assert_eq!(pool.order(latest, NOBODY), [1, 0]);
        assert_eq!(pool.order(latest, NOBODY), [0]);
    }

    #[test]
    fn when_all_have_failed_they_are_tried_again() {
        let (pool, now) = (pool(Balance::RoundRobin, 3), Instant::now());
        pool.failed(1, now);
        pool.failed(0, now + MOMENT);
        pool.failed(2, now + 2 * MOMENT);
        assert_eq!(pool.order(now + 3 * MOMENT, NOBODY), [1, 0, 2]);
        pool.mark(0, false);
        assert_eq!(pool.order(now + 3 * MOMENT, NOBODY), [1, 2]);
    }

    #[test]
    fn a_single_target_is_always_tried() {
        let (pool, now) = (pool(Balance::RoundRobin, 1), Instant::now());
        for _ in 0..20 {
            assert_eq!(pool.order(now, NOBODY), [0]);
            pool.failed(0, now);
        }
    }

    #[test]
    fn what_the_checks_found_down_is_never_tried() {
        let (pool, now) = (pool(Balance::RoundRobin, 2), Instant::now());
        assert!(pool.mark(0, false));
        assert!(!pool.mark(0, false), "no news");
        assert_eq!(pool.order(now, NOBODY), [1]);
        pool.succeeded(0);
        assert!(pool.mark(1, false));
        assert!(pool.order(now, NOBODY).is_empty());
        pool.failed(1, now);
        assert!(pool.mark(1, true), "it is up, and its failed dials are forgiven");
        assert_eq!(pool.order(now, NOBODY), [1]);
        assert_eq!(pool.failed(1, now), Some(SECOND));
        pool.mark(1, true);
        assert_eq!(pool.failed(1, now), None, "being up still is no news");
    }

    #[test]
    fn full_targets_are_left_out_and_refuse_a_place() {
        let now = Instant::now();
        for balance in [Balance::RoundRobin, Balance::LeastSessions, Balance::First, Balance::SourceIp] {
            let pool = Pool::new(&backends(2), balance, Some(2));
            let places: Vec<_> =
                (0..4).filter_map(|_| pool.try_acquire(*pool.order(now, NOBODY).first()?)).collect();
            assert_eq!((places.len(), pool.sessions(0), pool.sessions(1)), (4, 2, 2), "{balance:?}");
            assert!(pool.order(now, NOBODY).is_empty(), "{balance:?}");
            assert!(pool.try_acquire(0).is_none() && pool.try_acquire(1).is_none(), "{balance:?}");
            drop(places);
            assert_eq!(pool.order(now, NOBODY).len(), 2, "{balance:?}");
        }
    }

    #[test]
    fn the_limit_holds_under_threads_and_no_place_is_lost() {
        const LIMIT: usize = 3;
        let now = Instant::now();
        let pool = Pool::new(&backends(2), Balance::LeastSessions, Some(LIMIT));
        // Counted apart from the subject, by those who are inside.
        let inside = [const { AtomicUsize::new(0) }; 2];
        let acquired = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        for target in pool.order(now, NOBODY) {
                            let Some(place) = pool.try_acquire(target) else { continue };
                            let there = inside[target].fetch_add(1, Ordering::SeqCst) + 1;
                            assert!(there <= LIMIT, "{there} at once");
                            acquired.fetch_add(1, Ordering::SeqCst);
                            inside[target].fetch_sub(1, Ordering::SeqCst);
                            drop(place);
                        }
                    }
                });
            }
        });
        assert!(acquired.into_inner() >= 5_000, "hardly anybody got in");
        assert_eq!((pool.sessions(0), pool.sessions(1)), (0, 0));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Dial(u8, bool),
        Leave(usize),
        Mark(usize, bool),
        Wait(u64),
    }

    fn a_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (any::<u8>(), any::<bool>()).prop_map(|(client_info, good)| Step::Dial(client_info, good)),
            2 => any::<usize>().prop_map(Step::Leave),
            1 => (any::<usize>(), any::<bool>()).prop_map(|(target, healthy)| Step::Mark(target, healthy)),
            1 => (0..3000_u64).prop_map(Step::Wait),
        ]
    }

    fn a_balance() -> impl Strategy<Value = Balance> {
        use Balance::{First, LeastSessions, RoundRobin, SourceIp};
        prop::sample::select(vec![RoundRobin, LeastSessions, First, SourceIp])
    }

    proptest! {
        #[test]
        fn turns_are_fair_whoever_is_down(number in 1..8_usize, down: u8, rounds in 1..20_usize) {
            let (pool, now) = (pool(Balance::RoundRobin, number), Instant::now());
            let up: Vec<_> = (0..number).filter(|index| down >> index & 1 == 0).collect();
            (0..number).filter(|index| !up.contains(index)).for_each(|index| { pool.mark(index, false); });
            let mut firsts = vec![0; number];
            for _ in 0..rounds * up.len() {
                firsts[pool.order(now, NOBODY)[0]] += 1;
            }
            prop_assert!(up.iter().all(|&index| firsts[index] == rounds), "{up:?} {firsts:?}");
            prop_assert_eq!(pool.order(now, NOBODY).is_empty(), up.is_empty());
        }

        #[test]
        fn a_lost_target_moves_none_but_its_own_clients(number in 2..8_usize, lost: usize, client_info: u32) {
            let (pool, now) = (pool(Balance::SourceIp, number), Instant::now());
            let (client_info, lost) = (IpAddr::from(Ipv4Addr::from_bits(client_info)), lost % number);
            let mut expected = pool.order(now, client_info);
            expected.retain(|&target| target != lost);
            pool.failed(lost, now);
            prop_assert_eq!(&pool.order(now, client_info), &expected);
            pool.mark(lost, false);
            prop_assert_eq!(&pool.order(now + 5 * SECOND, client_info), &expected);
        }

        #[test]
        fn no_order_is_ever_wrong(
            balance in a_balance(),
            number in 1..5_usize,
            limit in prop::option::of(1..4_usize),
            steps in prop::collection::vec(a_step(), 0..80),
        ) {
            let pool = Pool::new(&backends(number), balance, limit);
            let mut now = Instant::now();
            let mut places: Vec<BackendPermit> = Vec::new();
            let mut healthy = vec![true; number];
            for step in steps {
                let held: Vec<_> = (0..number)
                    .map(|target| places.iter().filter(|place| place.target() == target).count())
                    .collect();
                let open = |target: usize| healthy[target] && limit.is_none_or(|limit| held[target] < limit);
                match step {
                    Step::Dial(client_info, good) => {
                        let order = pool.order(now, Ipv4Addr::new(192, 0, 2, client_info).into());
                        prop_assert!(order.iter().all(|&target| open(target)), "{order:?} of {held:?}");
                        prop_assert_eq!(order.is_empty(), !(0..number).any(open), "refused without need");
                        let mut once = order.clone();
                        once.sort_unstable();
                        once.dedup();
                        prop_assert_eq!(once.len(), order.len(), "one target twice");
                        // Those that have failed are tried by themselves, whatever they hold.
                        if balance == Balance::LeastSessions && order.iter().all(|&target| {
                            pool.targets[target].state().dial_health == DialHealth::Good
                        }) {
                            prop_assert!(order.is_sorted_by_key(|&target| held[target]), "{order:?} of {held:?}");
                        }
                        let Some(&target) = order.first() else { continue };
                        if good {
                            places.push(pool.try_acquire(target).expect("a target of an order has room"));
                            pool.succeeded(target);
                        } else {
                            let pause = pool.failed(target, now).unwrap_or_default();
                            prop_assert!(pause <= LONGEST_PAUSE);
                        }
                    }
                    Step::Leave(place) if !places.is_empty() => drop(places.swap_remove(place % places.len())),
                    Step::Leave(_) => {}
                    Step::Mark(target, up) => {
                        let target = target % number;
                        prop_assert_eq!(pool.mark(target, up), healthy[target] != up);
                        healthy[target] = up;
                    }
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                }
            }
            // However it came here: five seconds later nothing is held against anybody.
            now += 5 * SECOND;
            let order = pool.order(now, NOBODY);
            drop(places);
            for target in 0..number {
                prop_assert_eq!(pool.sessions(target), 0, "a place was lost");
                prop_assert!(pool.targets[target].state().ejected_until(now + TRIAL).is_none());
            }
            prop_assert!(order.iter().all(|&target| healthy[target]));
        }
    }
}
