//! Trying the targets of a route while nobody asks for them.
//!
//! Owns when a target is tried, and how many tries in a row make a difference. How one is tried is an argument, what
//! follows for the next session is the [`Pool`]'s business. Invariants: each target has a clock of its own, so that
//! one that swallows packets holds up no other; a try ends within its timeout; one line is logged when a target goes
//! down and one when it comes up, and none in between.

use std::{fmt::Display, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_util::sync::CancellationToken;

use super::balance::Pool;
use crate::config::{Backend, Health};

/// Tries every target of `pool` from now on, until `stop` is cancelled. `backends` is the list that the pool was made
/// of, and `route` the name by which the log calls the route.
///
/// `probe` takes one backend and either reaches it or says why not; it is dropped when it takes longer than
/// `settings.timeout`. The tries of several targets are spread over the interval.
pub(crate) async fn watch<P, F, E>(
    pool: Arc<Pool>,
    backends: Vec<Backend>,
    route: String,
    settings: Health,
    probe: P,
    stop: CancellationToken,
) where
    P: Fn(Backend) -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    let spread = settings.interval / u32::try_from(backends.len().max(1)).unwrap_or(u32::MAX);
    let mut loops = JoinSet::new();
    for (target, backend) in backends.into_iter().enumerate() {
        let first = Instant::now() + spread * u32::try_from(target).unwrap_or(u32::MAX);
        let checks = Checks {
            pool: Arc::clone(&pool),
            target,
            backend,
            route: route.clone(),
            settings: settings.clone(),
        };
        loops.spawn(checks.run(first, probe.clone()));
    }
    // Dropping the set ends the loops, wherever they are.
    stop.run_until_cancelled(async { while loops.join_next().await.is_some() {} }).await;
}

/// The checks of one target.
struct Checks {
    pool: Arc<Pool>,
    target: usize,
    backend: Backend,
    route: String,
    settings: Health,
}

impl Checks {
    async fn run<P, F, E>(self, first: Instant, probe: P)
    where
        P: Fn(Backend) -> F,
        F: Future<Output = Result<(), E>>,
        E: Display,
    {
        let mut streak = Streak { down: !self.pool.is_healthy(self.target), contradictions: 0 };
        let mut clock = interval_at(first, self.settings.interval.max(Duration::from_millis(1)));
        // A machine that was asleep need not make up for it.
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            let result = match timeout(self.settings.timeout, probe(self.backend.clone())).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => {
                    Err(format!("no answer within {}", humantime::format_duration(self.settings.timeout)))
                }
            };
            if let Some(healthy) = streak.count(result.is_ok(), &self.settings) {
                self.pool.mark(self.target, healthy);
                self.tell(result);
            }
        }
    }

    fn tell(&self, result: Result<(), String>) {
        let (route, backend) = (&self.route, &self.backend);
        match result {
            Ok(()) => tracing::info!(route, %backend, "backend is up again"),
            Err(detail) => tracing::warn!(
                route,
                %backend,
                detail,
                "backend is down: no session is sent there until its health checks succeed"
            ),
        }
    }
}

/// Tries in a row that contradict what is believed. At first that is what was believed before the configuration was read
/// again; and a target that nobody has tried yet is believed to be healthy: a gateway that has just been started serves at
/// once.
#[derive(Debug, Default)]
struct Streak {
    down: bool,
    contradictions: u32,
}

impl Streak {
    /// Counts one try. What is believed from now on, if that is new.
    fn count(&mut self, succeeded: bool, settings: &Health) -> Option<bool> {
        if succeeded != self.down {
            self.contradictions = 0;
            return None;
        }
        self.contradictions += 1;
        if self.contradictions < if self.down { settings.rise } else { settings.fall } {
            return None;
        }
        *self = Self { down: !self.down, contradictions: 0 };
        Some(!self.down)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        net::{IpAddr, Ipv4Addr},
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use tokio::time::{sleep, sleep_until};

    use super::{super::test_log::Log, *};
    use crate::config::Balance;

    const RULES: Health =
        Health { interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 2, fall: 3 };

    fn backends(number: usize) -> Vec<Backend> {
        (0..number).map(|index| format!("tcp://10.0.0.{index}:5900").parse().unwrap()).collect()
    }

    fn open(pool: &Pool) -> Vec<usize> {
        let mut order = pool.order(std::time::Instant::now(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        order.sort_unstable();
        order
    }

    /// A watch over backends whose first one can be taken down.
    struct Fixture {
        pool: Arc<Pool>,
        down: Arc<AtomicBool>,
        tries: Arc<AtomicUsize>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    impl Fixture {
        fn start(number: usize) -> Self {
            let pool = Pool::new(&backends(number), Balance::RoundRobin, None);
            let (down, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
            let stop = CancellationToken::new();
            let probe = {
                let (down, tries) = (Arc::clone(&down), Arc::clone(&tries));
                move |backend: Backend| {
                    let is_first = backend == backends(1)[0];
                    tries.fetch_add(usize::from(is_first), Ordering::SeqCst);
                    let refuses = is_first && down.load(Ordering::SeqCst);
                    async move { if refuses { Err("connection refused") } else { Ok(()) } }
                }
            };
            let watch =
                watch(Arc::clone(&pool), backends(number), "desk".to_owned(), RULES, probe, stop.clone());
            Self { pool, down, tries, stop, task: tokio::spawn(watch) }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn fall_tries_take_a_target_down_and_rise_tries_bring_it_up() {
        let (log, _guard) = Log::capture();
        let start = Instant::now();
        let watched = Fixture::start(2);
        let at = |millis| sleep_until(start + Duration::from_millis(millis));
        at(100).await;
        assert_eq!(watched.tries.load(Ordering::SeqCst), 1, "the first try is at once");
        watched.down.store(true, Ordering::SeqCst);
        // Tries fail at 2, 4 and 6 seconds.
        at(5900).await;
        assert_eq!(open(&watched.pool), [0, 1]);
        assert_eq!(log.take(), [""; 0]);
        at(6100).await;
        assert_eq!(open(&watched.pool), [1]);
        at(11_900).await;
        assert_eq!(
            log.take(),
            [
                "WARN backend is down: no session is sent there until its health checks succeed route=\"desk\" backend=tcp://10.0.0.0:5900 detail=\"connection refused\""
            ]
        );
        watched.down.store(false, Ordering::SeqCst);
        // Tries succeed at 12 and 14 seconds.
        at(13_900).await;
        assert_eq!(open(&watched.pool), [1]);
        at(14_100).await;
        assert_eq!(open(&watched.pool), [0, 1]);
        at(30_000).await;
        assert_eq!(log.take(), ["INFO backend is up again route=\"desk\" backend=tcp://10.0.0.0:5900"]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_it_is_told_to() {
        let watched = Fixture::start(3);
        sleep(Duration::from_millis(9900)).await;
        let tries = watched.tries.load(Ordering::SeqCst);
        assert_eq!(tries, 5, "at 0, 2, 4, 6 and 8 seconds");
        watched.stop.cancel();
        watched.task.await.unwrap();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(watched.tries.load(Ordering::SeqCst), tries);
        assert_eq!(Arc::strong_count(&watched.pool), 1, "somebody still holds the pool");
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_swallows_packets_holds_up_no_other() {
        let (log, _guard) = Log::capture();
        let pool = Pool::new(&backends(2), Balance::RoundRobin, None);
        let tries = Arc::new(AtomicUsize::new(0));
        let probe = {
            let tries = Arc::clone(&tries);
            move |backend: Backend| {
                let swallows = backend == backends(1)[0];
                tries.fetch_add(usize::from(!swallows), Ordering::SeqCst);
                async move { if swallows { pending().await } else { Ok::<(), String>(()) } }
            }
        };
        let stop = CancellationToken::new();
        let task =
            tokio::spawn(watch(Arc::clone(&pool), backends(2), "desk".into(), RULES, probe, stop.clone()));
        // The third try begins after four seconds and is given up a second later.
        sleep(Duration::from_millis(4900)).await;
        assert_eq!(open(&pool), [0, 1]);
        sleep(Duration::from_millis(200)).await;
        assert_eq!(open(&pool), [1]);
        let lines = log.take();
        assert!(lines[0].ends_with("detail=\"no answer within 1s\""), "{lines:?}");
        // At 1, 3 and 5 seconds: in the middle of the other's interval.
        assert_eq!(tries.load(Ordering::SeqCst), 3);
        // In the middle of a try.
        stop.cancel();
        task.await.unwrap();
    }

    #[test]
    fn only_tries_in_a_row_count() {
        let mut streak = Streak::default();
        let tries = [false, false, true, false, false, false, false, true, false, true, true, true];
        let news: Vec<_> = tries.iter().map(|&succeeded| streak.count(succeeded, &RULES)).collect();
        let mut expected = vec![None; tries.len()];
        expected[5] = Some(false);
        expected[10] = Some(true);
        assert_eq!(news, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_follows_another_goes_on_from_what_that_one_found() {
        let (log, _guard) = Log::capture();
        let watched = Fixture::start(2);
        // As an earlier watch of the same targets has left it.
        watched.pool.mark(0, false);
        sleep(RULES.interval + RULES.interval / 2).await;
        assert_eq!(open(&watched.pool), [0, 1], "the tries at 0 and 2 seconds bring it up");
        assert_eq!(log.take(), ["INFO backend is up again route=\"desk\" backend=tcp://10.0.0.0:5900"]);
        watched.stop.cancel();
        watched.task.await.unwrap();
    }

    #[test]
    fn one_may_be_enough() {
        let settings = Health { rise: 1, fall: 1, ..RULES };
        let mut streak = Streak::default();
        let news = [false, false, true, true].map(|succeeded| streak.count(succeeded, &settings));
        assert_eq!(news, [Some(false), None, Some(true), None]);
    }
}
