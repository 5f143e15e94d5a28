//! Load balancing: which of several backends is tried next, and which are skipped (outlier ejection, circuit breaking).
//!
//! Owns the state of the backends of one route: how many sessions each has, which have failed recently, which the
//! health checks found down. Pure: it dials nothing, and knows neither sockets nor a clock (`now` is an argument).
//!
//! Invariants: no backend has more than `max_sessions` sessions at any time, and each [`BackendPermit`] is counted
//! until it is dropped. A backend that the health checks found down is never selected. Failed dials alone never leave
//! a client without a backend: when all that are left have failed recently, they are tried again, as nginx does when
//! all have failed. A route with a single backend therefore dials at once, and reports each time why the backend
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

use parking_lot::{Mutex, MutexGuard};

use super::rendezvous::{backend_hash, client_hash, weight};
use crate::config::{Backend, Balance};

/// How long a backend is ejected after its first failure; the time doubles with each further failure in a row.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// Bounds the ejection, so that a backend that has recovered is used again within five seconds.
const LONGEST_EJECTION: Duration = Duration::from_secs(4);
/// How long a trial of an ejected backend excludes others. A dial without a result, because its client left, delays
/// the next trial by no more than this.
const TRIAL: Duration = Duration::from_secs(1);

/// The state of the backends of all routes, kept while a pool or a session refers to it. It outlives a reload of the
/// configuration: the new pool continues with the state of the previous one, and `max_sessions` holds across both.
#[derive(Debug, Default)]
pub struct BackendRegistry {
    backends: Mutex<HashMap<(String, Backend), Weak<PooledBackend>>>,
}

impl BackendRegistry {
    /// A pool of the `backends` of the route named `route`. Those that the route had before keep their state.
    pub fn pool(&self, route: &str, backends: &[Backend], settings: PoolSettings) -> Arc<Pool> {
        let mut known = self.backends.lock();
        known.retain(|_, backend| backend.strong_count() > 0);
        let pooled = |backend: &Backend| {
            let entry = known.entry((route.to_owned(), backend.clone())).or_default();
            entry.upgrade().unwrap_or_else(|| {
                let pooled = Arc::new(PooledBackend::new(backend));
                *entry = Arc::downgrade(&pooled);
                pooled
            })
        };
        let PoolSettings { balance, max_sessions, is_checked } = settings;
        Arc::new(Pool {
            balance,
            max_sessions: max_sessions.unwrap_or(usize::MAX),
            is_checked,
            turn: AtomicUsize::new(0),
            backends: backends.iter().map(pooled).collect(),
        })
    }
}

/// How a pool selects among its backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSettings {
    /// The load balancing algorithm.
    pub balance: Balance,
    /// The limit of concurrent sessions, for each backend.
    pub max_sessions: Option<usize>,
    /// Whether there are health checks. Without them, the results of earlier ones are ignored.
    pub is_checked: bool,
}

/// The backends of one route. Each is known by its index in the list that the pool was made of.
#[derive(Debug)]
pub struct Pool {
    balance: Balance,
    max_sessions: usize,
    is_checked: bool,
    /// Incremented for each selection; its remainder is the first backend of a round robin.
    turn: AtomicUsize,
    backends: Vec<Arc<PooledBackend>>,
}

/// One backend of one route, shared by all pools of that route.
#[derive(Debug)]
struct PooledBackend {
    /// The backend's hash for [`Balance::SourceIp`], of its URL.
    hash: u64,
    state: Mutex<BackendState>,
}

/// The state of a backend.
#[derive(Debug, Clone, Copy)]
struct BackendState {
    sessions: usize,
    /// The result of the health checks; true without checks.
    healthy: bool,
    /// Failed dials in a row; concurrent ones count as one.
    failures: u32,
    dial_health: DialHealth,
}

/// The result of recent dials, as in a circuit breaker: closed, open, half-open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DialHealth {
    Good,
    /// The last dial failed.
    Ejected {
        until: Instant,
    },
    /// Its ejection is over, and one dial tries whether it has recovered.
    OnTrial {
        until: Instant,
    },
}

impl Pool {
    /// The backends to try for one dial, the best first, each once. Empty if the health checks found all of them
    /// down, or all have `max_sessions` sessions.
    ///
    /// Backends that failed recently are left out while another is left. When an ejection is over, the backend takes
    /// part in the selection again, but the first dial that would begin with it is a trial: while it lasts, and for
    /// at most a second, other dials still skip the backend. Otherwise every client would wait for a backend that
    /// drops packets, each time its ejection ends.
    pub fn order(&self, now: Instant, client: IpAddr) -> Vec<usize> {
        let states: Vec<BackendState> = self.backends.iter().map(|backend| *backend.state()).collect();
        let (mut ready, mut ejected): (Vec<_>, Vec<_>) = (0..states.len())
            .filter(|&index| self.is_healthy_in(&states[index]) && states[index].sessions < self.max_sessions)
            .partition(|&index| states[index].ejected_until(now).is_none());
        if !ready.is_empty() {
            self.sort(&mut ready, &states, client);
        }
        // Another dial may have begun a trial, or failed one, since the states were copied.
        while let Some(&first) = ready.first()
            && !self.backends[first].state().try_begin_dial(now)
        {
            ejected.push(ready.remove(0));
        }
        if ready.is_empty() {
            ejected.sort_by_cached_key(|&index| self.backends[index].state().ejected_until(now));
            return ejected;
        }
        ready
    }

    /// Sorts the ready backends, at least one, the best first.
    fn sort(&self, ready: &mut [usize], states: &[BackendState], client: IpAddr) {
        match self.balance {
            Balance::First => {}
            Balance::RoundRobin => self.rotate(ready),
            // Round robin among those with equally few sessions.
            Balance::LeastSessions => {
                self.rotate(ready);
                ready.sort_by_key(|&index| states[index].sessions);
            }
            Balance::SourceIp => {
                let client = client_hash(client);
                ready.sort_by_key(|&index| Reverse(weight(self.backends[index].hash, client)));
            }
        }
    }

    /// Moves the next in turn to the front. Only ready backends take turns: if all did, the one behind a backend that
    /// is down would get twice its share.
    fn rotate(&self, ready: &mut [usize]) {
        ready.rotate_left(self.turn.fetch_add(1, Ordering::Relaxed) % ready.len());
    }

    /// A permit for one session with the backend, or `None` if it has `max_sessions`. Acquire it before the dial:
    /// dials in progress count for [`Balance::LeastSessions`] too, so that concurrent clients do not all choose the
    /// same backend.
    pub fn try_acquire(&self, index: usize) -> Option<BackendPermit> {
        let mut state = self.backends[index].state();
        if state.sessions >= self.max_sessions {
            return None;
        }
        state.sessions += 1;
        Some(BackendPermit { backend: Arc::clone(&self.backends[index]), index })
    }

    /// Records a failed dial: the backend is ejected for one second, then two, then four each time. Returns how long,
    /// or `None` if it was ejected already: concurrent dials fail together, and count once.
    pub fn failed(&self, index: usize, now: Instant) -> Option<Duration> {
        let mut state = self.backends[index].state();
        if matches!(state.dial_health, DialHealth::Ejected { until } if now < until) {
            return None;
        }
        let ejection = FIRST_EJECTION.saturating_mul(1 << state.failures.min(8)).min(LONGEST_EJECTION);
        state.failures = state.failures.saturating_add(1);
        state.dial_health = DialHealth::Ejected { until: now + ejection };
        Some(ejection)
    }

    /// Records a successful dial, which resets the failures. Returns whether there were any.
    pub fn succeeded(&self, index: usize) -> bool {
        let mut state = self.backends[index].state();
        let was_good = state.dial_health == DialHealth::Good;
        state.reset_failures();
        !was_good
    }

    /// Records the result of the health checks. Returns whether it differs from the previous one. A backend that
    /// becomes healthy has its failed dials reset too.
    pub fn mark(&self, index: usize, healthy: bool) -> bool {
        let mut state = self.backends[index].state();
        let is_changed = state.healthy != healthy;
        state.healthy = healthy;
        if is_changed && healthy {
            state.reset_failures();
        }
        is_changed
    }

    /// How many permits of the backend are held now.
    pub fn sessions(&self, index: usize) -> usize {
        self.backends[index].state().sessions
    }

    /// Whether the health checks found the backend healthy; true without checks.
    pub fn is_healthy(&self, index: usize) -> bool {
        self.is_healthy_in(&self.backends[index].state())
    }

    /// Whether the backend gets sessions: its health checks succeed, and it is not ejected.
    pub fn is_up(&self, index: usize, now: Instant) -> bool {
        let state = self.backends[index].state();
        self.is_healthy_in(&state) && state.ejected_until(now).is_none()
    }

    fn is_healthy_in(&self, state: &BackendState) -> bool {
        state.healthy || !self.is_checked
    }
}

impl PooledBackend {
    fn new(backend: &Backend) -> Self {
        let state = BackendState { sessions: 0, healthy: true, failures: 0, dial_health: DialHealth::Good };
        Self { hash: backend_hash(backend), state: Mutex::new(state) }
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

    /// Begins a dial, unless the backend is ejected or another dial is a trial of it.
    fn try_begin_dial(&mut self, now: Instant) -> bool {
        if self.ejected_until(now).is_some() {
            return false;
        }
        if self.dial_health != DialHealth::Good {
            self.dial_health = DialHealth::OnTrial { until: now + TRIAL };
        }
        true
    }

    fn reset_failures(&mut self) {
        self.failures = 0;
        self.dial_health = DialHealth::Good;
    }
}

/// One session's share of a backend's `max_sessions`; returned when dropped.
#[derive(Debug)]
#[must_use = "the permit is returned when it is dropped"]
pub struct BackendPermit {
    backend: Arc<PooledBackend>,
    index: usize,
}

impl BackendPermit {
    /// The backend it is for.
    pub fn index(&self) -> usize {
        self.index
    }
}

impl Drop for BackendPermit {
    fn drop(&mut self) {
        self.backend.state().sessions -= 1;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        collections::HashMap,
        net::{Ipv4Addr, Ipv6Addr},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use proptest::prelude::*;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const SECOND: Duration = Duration::from_secs(1);
    const MOMENT: Duration = Duration::from_nanos(1);

    fn backends(number: usize) -> Vec<Backend> {
        (0..number).map(|index| format!("tcp://10.0.0.{index}:5900").parse().unwrap()).collect()
    }

    pub(in crate::backend) fn new_pool(
        backends: &[Backend],
        balance: Balance,
        max_sessions: Option<usize>,
    ) -> Arc<Pool> {
        let settings = PoolSettings { balance, max_sessions, is_checked: true };
        BackendRegistry::default().pool("desk", backends, settings)
    }

    fn pool(balance: Balance, number: usize) -> Arc<Pool> {
        new_pool(&backends(number), balance, None)
    }

    fn clients() -> impl Iterator<Item = IpAddr> {
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
    fn pool_of_a_reload_keeps_the_state_of_its_backends() {
        let (registry, now) = (BackendRegistry::default(), Instant::now());
        let first = listed(&registry, 3, Some(2), true);
        let permit = first.try_acquire(0).unwrap();
        first.failed(1, now);
        first.mark(2, false);
        let second = listed(&registry, 4, Some(1), true);
        assert_eq!((second.sessions(0), second.is_up(1, now), second.is_healthy(2)), (1, false, false));
        assert!(second.try_acquire(0).is_none(), "it has as many sessions as the new limit allows");
        assert_eq!(second.order(now, CLIENT), [3]);
        // The old pool shares the same state.
        let other = first.try_acquire(0).unwrap();
        assert!(first.try_acquire(0).is_none());
        drop((permit, other));
        assert_eq!(second.sessions(0), 0);
        let elsewhere = registry.pool(
            "vnc",
            &backends(1),
            PoolSettings { balance: Balance::First, max_sessions: None, is_checked: true },
        );
        let _place = elsewhere.try_acquire(0).unwrap();
        assert_eq!(second.sessions(0), 0, "the same URL of another route is another backend");
    }

    #[test]
    fn state_is_kept_while_a_session_holds_a_permit() {
        let registry = BackendRegistry::default();
        let permit = listed(&registry, 1, Some(1), true).try_acquire(0).unwrap();
        // No pool has it now, and then a new one does.
        assert!(listed(&registry, 1, Some(1), true).try_acquire(0).is_none());
        drop(permit);
        assert!(listed(&registry, 1, Some(1), true).try_acquire(0).is_some());
        drop(listed(&registry, 5, None, true));
        listed(&registry, 1, None, true).failed(0, Instant::now());
        assert!(
            listed(&registry, 1, None, true).is_up(0, Instant::now()),
            "nothing referred to it meanwhile"
        );
        assert_eq!(registry.backends.lock().len(), 1, "unused backends are removed");
    }

    #[test]
    fn results_of_health_checks_count_only_with_health_checks() {
        let (registry, now) = (BackendRegistry::default(), Instant::now());
        let checked = listed(&registry, 2, None, true);
        checked.mark(0, false);
        assert_eq!(checked.order(now, CLIENT), [1]);
        let unchecked = listed(&registry, 2, None, false);
        assert_eq!(unchecked.order(now, CLIENT), [0, 1]);
        assert!(unchecked.is_up(0, now));
    }

    #[test]
    fn round_robin_takes_turns() {
        let (pool, now) = (pool(Balance::RoundRobin, 3), Instant::now());
        let orders: Vec<_> = (0..4).map(|_| pool.order(now, CLIENT)).collect();
        assert_eq!(orders, [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
    }

    #[test]
    fn share_of_a_backend_that_is_down_is_spread_over_all_others() {
        let (pool, now) = (pool(Balance::RoundRobin, 4), Instant::now());
        pool.failed(0, now);
        let mut firsts = [0; 4];
        for _ in 0..300 {
            firsts[pool.order(now, CLIENT)[0]] += 1;
        }
        assert_eq!(firsts, [0, 100, 100, 100]);
    }

    #[test]
    fn first_is_preferred_until_it_fails_or_is_full() {
        let now = Instant::now();
        let pool = new_pool(&backends(3), Balance::First, Some(1));
        assert_eq!(pool.order(now, CLIENT), [0, 1, 2]);
        assert_eq!(pool.order(now, CLIENT), [0, 1, 2]);
        let permit = pool.try_acquire(0).unwrap();
        assert_eq!((permit.index(), pool.order(now, CLIENT)), (0, vec![1, 2]));
        pool.failed(1, now);
        assert_eq!(pool.order(now, CLIENT), [2]);
        drop(permit);
        assert_eq!(pool.order(now, CLIENT), [0, 2]);
    }

    #[test]
    fn least_sessions_balances_sessions() {
        let (pool, now) = (pool(Balance::LeastSessions, 3), Instant::now());
        let mut permits: Vec<_> =
            (0..9).map(|_| pool.try_acquire(pool.order(now, CLIENT)[0]).unwrap()).collect();
        assert_eq!([0, 1, 2].map(|index| pool.sessions(index)), [3, 3, 3]);
        permits.retain(|permit| permit.index() != 1);
        let next: Vec<_> = (0..3).map(|_| pool.try_acquire(pool.order(now, CLIENT)[0]).unwrap()).collect();
        assert!(next.iter().all(|permit| permit.index() == 1), "{next:?}");
    }

    #[test]
    fn idle_backends_take_turns() {
        let (pool, now) = (pool(Balance::LeastSessions, 3), Instant::now());
        let firsts: Vec<_> = (0..3).map(|_| pool.order(now, CLIENT)[0]).collect();
        assert_eq!(firsts, [0, 1, 2]);
    }

    #[test]
    fn address_keeps_its_backend_over_processes_and_lists() {
        let now = Instant::now();
        let one = pool(Balance::SourceIp, 5);
        let reversed: Vec<_> = backends(5).into_iter().rev().collect();
        let other = new_pool(&reversed, Balance::SourceIp, None);
        for client in clients() {
            let order = one.order(now, client);
            assert_eq!(order, one.order(now, client));
            let mirrored: Vec<_> = other.order(now, client).iter().map(|index| 4 - index).collect();
            assert_eq!(order, mirrored, "{client} depends on the order of the list");
        }
        // A change of these numbers would move all clients after an upgrade.
        let ranks = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|ip| one.order(now, ip.parse().unwrap()));
        assert_eq!(ranks, [[2, 1, 3, 0, 4], [0, 1, 3, 4, 2], [4, 1, 0, 3, 2]]);
    }

    #[test]
    fn mapped_address_ranks_like_its_ipv4_address() {
        let (pool, now) = (pool(Balance::SourceIp, 5), Instant::now());
        for v4 in (0..100).map(|last| Ipv4Addr::new(192, 0, 2, last)) {
            assert_eq!(pool.order(now, v4.into()), pool.order(now, v4.to_ipv6_mapped().into()));
        }
    }

    #[test]
    fn addresses_spread_evenly() {
        let (pool, now) = (pool(Balance::SourceIp, 4), Instant::now());
        let mut firsts: HashMap<(bool, usize), usize> = HashMap::new();
        clients().for_each(|ip| *firsts.entry((ip.is_ipv4(), pool.order(now, ip)[0])).or_default() += 1);
        assert_eq!(firsts.len(), 8, "{firsts:?}");
        // 250 is fair; five standard deviations are 68.
        assert!(firsts.values().all(|clients| (182..=318).contains(clients)), "{firsts:?}");
    }

    #[test]
    fn ejection_doubles_up_to_four_seconds_and_a_success_resets_it() {
        let pool = pool(Balance::First, 2);
        let mut now = Instant::now();
        for pause in [1, 2, 4, 4, 4].map(Duration::from_secs) {
            assert_eq!(pool.order(now, CLIENT), [0, 1]);
            assert_eq!(pool.failed(0, now), Some(pause));
            assert_eq!(pool.order(now, CLIENT), [1]);
            assert_eq!(pool.order(now + pause - MOMENT, CLIENT), [1]);
            now += pause;
        }
        assert_eq!(pool.order(now, CLIENT), [0, 1]);
        assert!(pool.succeeded(0), "it was away");
        assert!(!pool.succeeded(0), "it is back already");
        assert_eq!(pool.failed(0, now), Some(SECOND));
    }

    #[test]
    fn concurrent_failures_count_once() {
        let (pool, now) = (pool(Balance::First, 2), Instant::now());
        assert_eq!(pool.failed(0, now), Some(SECOND));
        for late in 0..200 {
            assert_eq!(pool.failed(0, now + MOMENT * late), None);
        }
        assert_eq!(pool.failed(0, now + SECOND), Some(2 * SECOND));
    }

    #[test]
    fn one_dial_at_a_time_is_a_trial() {
        let (pool, now) = (pool(Balance::First, 2), Instant::now());
        pool.failed(0, now);
        let later = now + SECOND;
        assert_eq!(pool.order(later, CLIENT), [0, 1]);
        assert_eq!(pool.order(later, CLIENT), [1]);
        // That dial had no result: another one may begin.
        assert_eq!(pool.order(later + TRIAL - MOMENT, CLIENT), [1]);
        assert_eq!(pool.order(later + TRIAL, CLIENT), [0, 1]);
        assert_eq!(pool.failed(0, later + TRIAL), Some(2 * SECOND));
        assert_eq!(pool.order(later + 3 * SECOND, CLIENT), [0, 1]);
        pool.succeeded(0);
        assert_eq!(pool.order(later + 3 * SECOND, CLIENT), [0, 1]);
    }

    #[test]
    fn dial_that_begins_elsewhere_is_no_trial() {
        let (pool, now) = (pool(Balance::RoundRobin, 2), Instant::now());
        pool.failed(1, now);
        let later = now + SECOND;
        assert_eq!(pool.order(now, CLIENT), [0]);
        assert_eq!(pool.order(later, CLIENT), [1, 0]);
        pool.succeeded(1);
        pool.failed(1, later);
        let latest = later + SECOND;
        assert_eq!(pool.order(latest, CLIENT), [0, 1]);
        assert_eq!(pool.order(latest, CLIENT), [1, 0]);
        assert_eq!(pool.order(latest, CLIENT), [0]);
    }

    #[test]
    fn when_all_are_ejected_they_are_tried_again() {
        let (pool, now) = (pool(Balance::RoundRobin, 3), Instant::now());
        pool.failed(1, now);
        pool.failed(0, now + MOMENT);
        pool.failed(2, now + 2 * MOMENT);
        assert_eq!(pool.order(now + 3 * MOMENT, CLIENT), [1, 0, 2]);
        pool.mark(0, false);
        assert_eq!(pool.order(now + 3 * MOMENT, CLIENT), [1, 2]);
    }

    #[test]
    fn single_backend_is_always_tried() {
        let (pool, now) = (pool(Balance::RoundRobin, 1), Instant::now());
        for _ in 0..20 {
            assert_eq!(pool.order(now, CLIENT), [0]);
            pool.failed(0, now);
        }
    }

    #[test]
    fn unhealthy_backend_is_never_tried() {
        let (pool, now) = (pool(Balance::RoundRobin, 2), Instant::now());
        assert!(pool.mark(0, false));
        assert!(!pool.mark(0, false), "unchanged");
        assert_eq!(pool.order(now, CLIENT), [1]);
        pool.succeeded(0);
        assert!(pool.mark(1, false));
        assert!(pool.order(now, CLIENT).is_empty());
        pool.failed(1, now);
        assert!(pool.mark(1, true), "it is up, and its failed dials are reset");
        assert_eq!(pool.order(now, CLIENT), [1]);
        assert_eq!(pool.failed(1, now), Some(SECOND));
        pool.mark(1, true);
        assert_eq!(pool.failed(1, now), None, "unchanged results reset nothing");
    }

    #[test]
    fn full_backends_are_left_out_and_give_no_permit() {
        let now = Instant::now();
        for balance in [Balance::RoundRobin, Balance::LeastSessions, Balance::First, Balance::SourceIp] {
            let pool = new_pool(&backends(2), balance, Some(2));
            let permits: Vec<_> =
                (0..4).filter_map(|_| pool.try_acquire(*pool.order(now, CLIENT).first()?)).collect();
            assert_eq!((permits.len(), pool.sessions(0), pool.sessions(1)), (4, 2, 2), "{balance:?}");
            assert!(pool.order(now, CLIENT).is_empty(), "{balance:?}");
            assert!(pool.try_acquire(0).is_none() && pool.try_acquire(1).is_none(), "{balance:?}");
            drop(permits);
            assert_eq!(pool.order(now, CLIENT).len(), 2, "{balance:?}");
        }
    }

    #[test]
    fn limit_holds_under_concurrency_and_no_permit_is_lost() {
        const LIMIT: usize = 3;
        let now = Instant::now();
        let pool = new_pool(&backends(2), Balance::LeastSessions, Some(LIMIT));
        // Counted independently of the pool.
        let inside = [const { AtomicUsize::new(0) }; 2];
        let acquired = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        for index in pool.order(now, CLIENT) {
                            let Some(permit) = pool.try_acquire(index) else { continue };
                            let there = inside[index].fetch_add(1, Ordering::SeqCst) + 1;
                            assert!(there <= LIMIT, "{there} at once");
                            acquired.fetch_add(1, Ordering::SeqCst);
                            inside[index].fetch_sub(1, Ordering::SeqCst);
                            drop(permit);
                        }
                    }
                });
            }
        });
        assert!(acquired.into_inner() >= 5_000, "hardly any permit was acquired");
        assert_eq!((pool.sessions(0), pool.sessions(1)), (0, 0));
    }

    #[derive(Debug, Clone)]
    enum PoolStep {
        Dial(u8, bool),
        Leave(usize),
        Mark(usize, bool),
        Wait(u64),
    }

    fn a_step() -> impl Strategy<Value = PoolStep> {
        prop_oneof![
            4 => (any::<u8>(), any::<bool>()).prop_map(|(client, good)| PoolStep::Dial(client, good)),
            2 => any::<usize>().prop_map(PoolStep::Leave),
            1 => (any::<usize>(), any::<bool>()).prop_map(|(index, healthy)| PoolStep::Mark(index, healthy)),
            1 => (0..3000_u64).prop_map(PoolStep::Wait),
        ]
    }

    fn a_balance() -> impl Strategy<Value = Balance> {
        use Balance::{First, LeastSessions, RoundRobin, SourceIp};
        prop::sample::select(vec![RoundRobin, LeastSessions, First, SourceIp])
    }

    proptest! {
        #[test]
        fn turns_are_fair_whatever_is_down(number in 1..8_usize, down: u8, rounds in 1..20_usize) {
            let (pool, now) = (pool(Balance::RoundRobin, number), Instant::now());
            let up: Vec<_> = (0..number).filter(|index| down >> index & 1 == 0).collect();
            (0..number).filter(|index| !up.contains(index)).for_each(|index| { pool.mark(index, false); });
            let mut firsts = vec![0; number];
            for _ in 0..rounds * up.len() {
                firsts[pool.order(now, CLIENT)[0]] += 1;
            }
            prop_assert!(up.iter().all(|&index| firsts[index] == rounds), "{up:?} {firsts:?}");
            prop_assert_eq!(pool.order(now, CLIENT).is_empty(), up.is_empty());
        }

        #[test]
        fn lost_backend_moves_only_its_own_clients(number in 2..8_usize, lost: usize, client: u32) {
            let (pool, now) = (pool(Balance::SourceIp, number), Instant::now());
            let (client, lost) = (IpAddr::from(Ipv4Addr::from_bits(client)), lost % number);
            let mut expected = pool.order(now, client);
            expected.retain(|&index| index != lost);
            pool.failed(lost, now);
            prop_assert_eq!(&pool.order(now, client), &expected);
            pool.mark(lost, false);
            prop_assert_eq!(&pool.order(now + 5 * SECOND, client), &expected);
        }

        #[test]
        fn every_order_is_valid(
            balance in a_balance(),
            number in 1..5_usize,
            limit in prop::option::of(1..4_usize),
            steps in prop::collection::vec(a_step(), 0..80),
        ) {
            let pool = new_pool(&backends(number), balance, limit);
            let mut now = Instant::now();
            let mut permits: Vec<BackendPermit> = Vec::new();
            let mut healthy = vec![true; number];
            for step in steps {
                let held: Vec<_> = (0..number)
                    .map(|index| permits.iter().filter(|permit| permit.index() == index).count())
                    .collect();
                let open = |index: usize| healthy[index] && limit.is_none_or(|limit| held[index] < limit);
                match step {
                    PoolStep::Dial(client, good) => {
                        let order = pool.order(now, Ipv4Addr::new(192, 0, 2, client).into());
                        prop_assert!(order.iter().all(|&index| open(index)), "{order:?} of {held:?}");
                        prop_assert_eq!(order.is_empty(), !(0..number).any(open), "refused without reason");
                        let mut once = order.clone();
                        once.sort_unstable();
                        once.dedup();
                        prop_assert_eq!(once.len(), order.len(), "one backend twice");
                        // Ejected backends are sorted by the end of their ejection instead.
                        if balance == Balance::LeastSessions && order.iter().all(|&index| {
                            pool.backends[index].state().dial_health == DialHealth::Good
                        }) {
                            prop_assert!(order.is_sorted_by_key(|&index| held[index]), "{order:?} of {held:?}");
                        }
                        let Some(&index) = order.first() else { continue };
                        if good {
                            permits.push(pool.try_acquire(index).expect("a backend of an order has a free permit"));
                            pool.succeeded(index);
                        } else {
                            let pause = pool.failed(index, now).unwrap_or_default();
                            prop_assert!(pause <= LONGEST_EJECTION);
                        }
                    }
                    PoolStep::Leave(permit) if !permits.is_empty() => drop(permits.swap_remove(permit % permits.len())),
                    PoolStep::Leave(_) => {}
                    PoolStep::Mark(index, up) => {
                        let index = index % number;
                        prop_assert_eq!(pool.mark(index, up), healthy[index] != up);
                        healthy[index] = up;
                    }
                    PoolStep::Wait(millis) => now += Duration::from_millis(millis),
                }
            }
            // Five seconds later no backend is ejected.
            now += 5 * SECOND;
            let order = pool.order(now, CLIENT);
            drop(permits);
            for index in 0..number {
                prop_assert_eq!(pool.sessions(index), 0, "a permit was lost");
                prop_assert!(pool.backends[index].state().ejected_until(now + TRIAL).is_none());
            }
            prop_assert!(order.iter().all(|&index| healthy[index]));
        }
    }
}
