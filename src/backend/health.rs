//! Active health checks of the backends of a route.
//!
//! Owns when a backend is checked, and how many results in a row change its state. How one is checked is an argument;
//! what follows for the next session is decided by the [`Pool`]. Invariants: each backend has a timer of its own, so
//! that one that drops packets does not delay the checks of others; a check ends within its timeout; one line is
//! logged when a backend goes down and one when it comes up, and none in between.

use std::{fmt::Display, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_util::sync::CancellationToken;

use super::balance::Pool;
use crate::config::{Backend, Health};

/// Checks every backend of `pool` until `stop` is cancelled. `backends` is the list that the pool was made of, and
/// `route` the name of the route in log lines.
///
/// `probe` connects to a backend or returns why it cannot; it is dropped after `settings.timeout`. The checks of
/// several backends are spread over the interval.
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
    for (index, backend) in backends.into_iter().enumerate() {
        let first = Instant::now() + spread * u32::try_from(index).unwrap_or(u32::MAX);
        let checks = Checks {
            pool: Arc::clone(&pool),
            index,
            backend,
            route: route.clone(),
            settings: settings.clone(),
        };
        loops.spawn(checks.run(first, probe.clone()));
    }
    // Dropping the set cancels the loops.
    stop.run_until_cancelled(async { while loops.join_next().await.is_some() {} }).await;
}

/// The health checks of one backend.
struct Checks {
    pool: Arc<Pool>,
    index: usize,
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
        let mut streak = Streak { down: !self.pool.is_healthy(self.index), contradictions: 0 };
        let mut clock = interval_at(first, self.settings.interval.max(Duration::from_millis(1)));
        // Checks that were missed while the machine was suspended are not made up for.
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
                self.pool.mark(self.index, healthy);
                self.log(result);
            }
        }
    }

    fn log(&self, result: Result<(), String>) {
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

/// The state of a backend, and the results in a row that contradict it. The initial state is that of before a reload
/// of the configuration; a backend that was never checked counts as healthy, so that a gateway serves at once when it
/// starts.
#[derive(Debug, Default)]
struct Streak {
    down: bool,
    contradictions: u32,
}

impl Streak {
    /// Counts one result. Returns the new state if it changes: whether the backend is healthy.
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

    use super::{
        super::{balance::tests::new_pool, test_log::CapturedLog},
        *,
    };
    use crate::config::Balance;

    const SETTINGS: Health =
        Health { interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 2, fall: 3 };

    fn backends(number: usize) -> Vec<Backend> {
        (0..number).map(|index| format!("tcp://10.0.0.{index}:5900").parse().unwrap()).collect()
    }

    fn open(pool: &Pool) -> Vec<usize> {
        let mut order = pool.order(std::time::Instant::now(), IpAddr::V4(Ipv4Addr::LOCALHOST));
        order.sort_unstable();
        order
    }

    /// Health checks of backends, the first of which can be taken down.
    struct HealthFixture {
        pool: Arc<Pool>,
        down: Arc<AtomicBool>,
        checks: Arc<AtomicUsize>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    impl HealthFixture {
        fn start(number: usize) -> Self {
            let pool = new_pool(&backends(number), Balance::RoundRobin, None);
            let (down, checks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
            let stop = CancellationToken::new();
            let probe = {
                let (down, checks) = (Arc::clone(&down), Arc::clone(&checks));
                move |backend: Backend| {
                    let is_first = backend == backends(1)[0];
                    checks.fetch_add(usize::from(is_first), Ordering::SeqCst);
                    let refuses = is_first && down.load(Ordering::SeqCst);
                    async move { if refuses { Err("connection refused") } else { Ok(()) } }
                }
            };
            let watch =
                watch(Arc::clone(&pool), backends(number), "desk".to_owned(), SETTINGS, probe, stop.clone());
            Self { pool, down, checks, stop, task: tokio::spawn(watch) }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn fall_failures_take_a_backend_down_and_rise_successes_bring_it_up() {
        let (log, _guard) = CapturedLog::capture();
        let start = Instant::now();
        let watched = HealthFixture::start(2);
        let at = |millis| sleep_until(start + Duration::from_millis(millis));
        at(100).await;
        assert_eq!(watched.checks.load(Ordering::SeqCst), 1, "the first check is at once");
        watched.down.store(true, Ordering::SeqCst);
        // Checks fail at 2, 4 and 6 seconds.
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
        // Checks succeed at 12 and 14 seconds.
        at(13_900).await;
        assert_eq!(open(&watched.pool), [1]);
        at(14_100).await;
        assert_eq!(open(&watched.pool), [0, 1]);
        at(30_000).await;
        assert_eq!(log.take(), ["INFO backend is up again route=\"desk\" backend=tcp://10.0.0.0:5900"]);
    }

    #[tokio::test(start_paused = true)]
    async fn checks_end_when_stopped() {
        let watched = HealthFixture::start(3);
        sleep(Duration::from_millis(9900)).await;
        let checks = watched.checks.load(Ordering::SeqCst);
        assert_eq!(checks, 5, "at 0, 2, 4, 6 and 8 seconds");
        watched.stop.cancel();
        watched.task.await.unwrap();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(watched.checks.load(Ordering::SeqCst), checks);
        assert_eq!(Arc::strong_count(&watched.pool), 1, "the pool is still referenced");
    }

    #[tokio::test(start_paused = true)]
    async fn backend_that_drops_packets_does_not_delay_others() {
        let (log, _guard) = CapturedLog::capture();
        let pool = new_pool(&backends(2), Balance::RoundRobin, None);
        let checks = Arc::new(AtomicUsize::new(0));
        let probe = {
            let checks = Arc::clone(&checks);
            move |backend: Backend| {
                let drops_packets = backend == backends(1)[0];
                checks.fetch_add(usize::from(!drops_packets), Ordering::SeqCst);
                async move { if drops_packets { pending().await } else { Ok::<(), String>(()) } }
            }
        };
        let stop = CancellationToken::new();
        let task =
            tokio::spawn(watch(Arc::clone(&pool), backends(2), "desk".into(), SETTINGS, probe, stop.clone()));
        // The third check begins after four seconds and times out a second later.
        sleep(Duration::from_millis(4900)).await;
        assert_eq!(open(&pool), [0, 1]);
        sleep(Duration::from_millis(200)).await;
        assert_eq!(open(&pool), [1]);
        let lines = log.take();
        assert!(lines[0].ends_with("detail=\"no answer within 1s\""), "{lines:?}");
        // At 1, 3 and 5 seconds: in the middle of the other's interval.
        assert_eq!(checks.load(Ordering::SeqCst), 3);
        // In the middle of a check.
        stop.cancel();
        task.await.unwrap();
    }

    #[test]
    fn only_results_in_a_row_count() {
        let mut streak = Streak::default();
        let results = [false, false, true, false, false, false, false, true, false, true, true, true];
        let news: Vec<_> = results.iter().map(|&succeeded| streak.count(succeeded, &SETTINGS)).collect();
        let mut expected = vec![None; results.len()];
        expected[5] = Some(false);
        expected[10] = Some(true);
        assert_eq!(news, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn checks_after_a_reload_continue_with_the_previous_state() {
        let (log, _guard) = CapturedLog::capture();
        let watched = HealthFixture::start(2);
        // As the health checks before a reload have left it.
        watched.pool.mark(0, false);
        sleep(SETTINGS.interval + SETTINGS.interval / 2).await;
        assert_eq!(open(&watched.pool), [0, 1], "the checks at 0 and 2 seconds bring it up");
        assert_eq!(log.take(), ["INFO backend is up again route=\"desk\" backend=tcp://10.0.0.0:5900"]);
        watched.stop.cancel();
        watched.task.await.unwrap();
    }

    #[test]
    fn one_result_is_enough_if_configured() {
        let settings = Health { rise: 1, fall: 1, ..SETTINGS };
        let mut streak = Streak::default();
        let news = [false, false, true, true].map(|succeeded| streak.count(succeeded, &settings));
        assert_eq!(news, [Some(false), None, Some(true), None]);
    }
}
