//! One scenario: its gateway, its time, its seed, and what must hold after each of its rounds.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use rustls::ClientConfig;
use tokio::sync::{Mutex, MutexGuard};

use crate::client::Target;
use crate::ledger::{Accepted, Ledger, Totals};
use crate::random::Random;
use crate::reloads::Reloads;
use crate::support::{Backend, Gateway, ListenerIndex, PLAIN, Setup, TLS, client_config, eventually};

/// How long all scenarios take together, in minutes; the times in each are those of this whole.
const MINUTES: f64 = 15.0;
/// The longest round, except of a short scenario: each has two rounds at least.
const LONGEST_ROUND: Duration = Duration::from_secs(40);
/// How long a client takes for one step at most.
const CLIENT_LIMIT: Duration = Duration::from_secs(10);
/// How much more memory the gateway may hold after a round than before the first: tables that have grown, such as those of
/// addresses, keep their size.
const MEMORY_TOLERANCE: u64 = 24 << 20;
/// How much more it may hold after any round than after the first.
const MEMORY_GROWTH: u64 = 6 << 20;
/// Settings of the allocator jemalloc: what is free goes back to the system at once.
const RETURN_FREE_MEMORY: &str = "dirty_decay_ms:0,muzzy_decay_ms:0";
/// How long a scenario may take at most, on a slow and busy machine too.
const DEADLINE: Duration = Duration::from_secs(1_800);
/// How long descriptors may stay open after the last session.
const DESCRIPTORS_LIMIT: Duration = Duration::from_secs(2);
/// How long a fresh client may take for TLS, upgrade and echo: the machine may be busy.
const FRESH_LIMIT: Duration = Duration::from_secs(2);

/// Timeouts so short that everything that can end does end within [`SETTLE_LIMIT`].
pub(crate) const TIMEOUTS: &str = "tls = \"3s\"\nrequest = \"3s\"\nconnect = \"2s\"\nclose = \"1s\"\nstall = \"5s\"\n\
                                   ping = \"2s\"\npong = \"5s\"";
/// How long sessions may stay open when all clients are gone, some of them without a word.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// Scenarios take turns: each needs the machine to itself.
static TURN: Mutex<()> = Mutex::const_new(());

/// Waits until no other scenario runs. To be held to the end of the test.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// A library of the system by its path below the directory of its architecture.
pub(crate) fn library(path: &str) -> Option<PathBuf> {
    let architectures = fs::read_dir("/usr/lib").ok()?;
    let paths = architectures.flatten().map(|entry| entry.path().join(path));
    paths.into_iter().find(|path| path.exists())
}

fn variable(name: &str) -> Option<f64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}: not a number")))
}

pub(crate) struct Scenario {
    name: &'static str,
    seed: u64,
    pub(crate) random: Random,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) ledger: Arc<Ledger>,
    config: Arc<ClientConfig>,
    began: Instant,
    rounds: u32,
    round: u32,
    round_time: Duration,
    reloads: Option<Reloads>,
    descriptors: usize,
    /// Before the first round, and after it.
    memory: Vec<u64>,
    /// Whether the access log file may lose lines; standard error never does.
    pub(crate) loses_lines: bool,
}

impl Scenario {
    /// Starts the gateway. `seconds` is the time of the whole scenario if all take [`MINUTES`].
    pub(crate) async fn start(name: &'static str, seconds: u32, setup: Setup) -> Self {
        let time = Duration::from_secs(seconds.into());
        let time = time.mul_f64(variable("PORTCULLIS_CHAOS_MINUTES").unwrap_or(MINUTES) / MINUTES);
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("a time after 1970").as_millis() as u64;
        let seed = variable("PORTCULLIS_CHAOS_SEED").map_or(now % 1_000_000, |seed| seed as u64);
        let rounds = (time.as_secs_f64() / LONGEST_ROUND.as_secs_f64()).ceil().max(2.0) as u32;
        eprintln!("chaos: {name}: {rounds} rounds in {:.0} s, seed {seed}", time.as_secs_f64());
        // A gateway inherits it, and raises its own limit to it.
        rlimit::increase_nofile_limit(u64::MAX).expect("descriptors");
        // The C library keeps what thousands of sessions have used for the next ones, between 60 and 110 MiB here, so that its
        // growth says nothing of a leak.
        let jemalloc = library("libjemalloc.so.2").expect("libjemalloc is missing: tests/install chaos");
        let setup = setup
            .default_variable("LD_PRELOAD", jemalloc.to_str().expect("a path of text"))
            .default_variable("MALLOC_CONF", RETURN_FREE_MEMORY);
        let gateway = Arc::new(setup.admin().deadline(DEADLINE).start().await);
        let mut scenario = Self {
            name,
            seed,
            random: Random::new(seed),
            ledger: Arc::default(),
            config: client_config(rustls::ALL_VERSIONS, &["http/1.1"]),
            began: Instant::now(),
            rounds,
            round: 0,
            round_time: time / rounds,
            reloads: None,
            descriptors: 0,
            memory: Vec::new(),
            loses_lines: false,
            gateway,
        };
        // What is created once, such as threads and tables, belongs to the baseline.
        for listener in [TLS, PLAIN] {
            scenario.fresh_client(listener).await;
        }
        let original = scenario.gateway.configuration();
        scenario.gateway.reload(&original).await.expect("the same configuration");
        scenario.settled(Accepted::All).await;
        scenario.descriptors = scenario.gateway.open_descriptors();
        scenario.memory.push(scenario.gateway.memory());
        scenario
    }

    /// Begins another round, with reloads throughout, and returns how long it lasts; `None` after the last one.
    pub(crate) fn next_round(&mut self) -> Option<Duration> {
        if self.round == self.rounds {
            return None;
        }
        self.round += 1;
        self.reloads = Some(Reloads::start(&self.gateway, self.random.fork()));
        Some(self.round_time)
    }

    /// A way to a route of the gateway.
    pub(crate) fn target(&self, listener: ListenerIndex, path: &str) -> Target {
        Target {
            address: self.gateway.address(listener),
            listener,
            request: self.gateway.upgrade(listener, path),
            source: None,
            ledger: Some(Arc::clone(&self.ledger)),
            config: Arc::clone(&self.config),
            limit: CLIENT_LIMIT,
        }
    }

    /// Both listeners.
    pub(crate) fn targets(&self, path: &str) -> [Target; 2] {
        [TLS, PLAIN].map(|listener| self.target(listener, path))
    }

    /// Ends a round: the disturbance is over and its clients are gone. Then there are no sessions, the descriptors of the
    /// baseline, the memory of the baseline within the tolerance, nothing in the log that is an error; metrics, access log and
    /// clients agree on every connection; and a fresh client is served at once.
    pub(crate) async fn settle(&mut self, accepted: Accepted, what: &str) -> Totals {
        let reloads = self.reloads.take().expect("a round").stop(&self.gateway).await;
        let start = Instant::now();
        self.settled(accepted).await;
        let took = start.elapsed();
        let limit = self.descriptors;
        eventually("every descriptor is released", DESCRIPTORS_LIMIT, || {
            let open = self.gateway.open_descriptors();
            (open <= limit).then_some(()).ok_or_else(|| format!("{open} are open, {limit} were at the start"))
        })
        .await;
        for listener in [TLS, PLAIN] {
            self.fresh_client(listener).await;
        }
        self.settled(accepted).await;
        let totals = self.ledger.check(&self.gateway, accepted).await;
        assert!(totals.dropped == 0 || self.loses_lines, "{} log lines were dropped", totals.dropped);
        self.check_log();
        let memory = self.check_memory();
        eprintln!(
            "chaos: {}, round {}: {what}; {reloads} reloads; {} connections, {} sessions so far, all accounted for; \
             settled in {took:.1?}; {memory}",
            self.name, self.round, totals.connections, totals.sessions
        );
        totals
    }

    /// Waits until there are no sessions and no handshakes.
    async fn settled(&self, accepted: Accepted) {
        let start = Instant::now();
        loop {
            let status = self.gateway.get_json("/api/status").await;
            let [sessions, handshakes] =
                ["sessions", "handshakes"].map(|kind| status[kind]["in_use"].as_u64());
            if (sessions, handshakes) == (Some(0), Some(0)) {
                return;
            }
            assert!(
                start.elapsed() < SETTLE_LIMIT,
                "after {SETTLE_LIMIT:?} ({accepted:?}): {sessions:?} sessions, {handshakes:?} handshakes; {:#}",
                self.gateway.get_json("/api/sessions").await
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn fresh_client(&self, listener: ListenerIndex) {
        let start = Instant::now();
        let opened = self.target(listener, "/canary").open(0).await;
        let mut client = opened.unwrap_or_else(|why| panic!("a fresh client: {why}"));
        client.echo(1_000).await.unwrap_or_else(|why| panic!("a fresh client: {why}"));
        let took = start.elapsed();
        assert!(took < FRESH_LIMIT, "a fresh client waits for {took:?}");
        client.close().await.unwrap_or_else(|why| panic!("a fresh client: {why}"));
    }

    fn check_log(&self) {
        let errors = self.gateway.lines(|line| (line["level"] == "ERROR").then(|| line.to_string()));
        assert!(errors.is_empty(), "errors in the log: {errors:#?}");
        let others = self.gateway.lines(|line| (!line.is_object()).then_some(()));
        assert!(others.is_empty(), "lines that are not JSON, such as a panic:\n{}", self.gateway.raw_log());
    }

    fn check_memory(&mut self) -> String {
        let now = self.gateway.memory();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let baseline = self.memory[0];
        assert!(now <= baseline + MEMORY_TOLERANCE, "{:.1} MiB, {:.1} at the start", mib(now), mib(baseline));
        if let Some(&first) = self.memory.get(1) {
            assert!(
                now <= first + MEMORY_GROWTH,
                "{:.1} MiB, {:.1} after the first round",
                mib(now),
                mib(first)
            );
        } else {
            self.memory.push(now);
        }
        format!("{:.1} MiB, {:.1} at the start", mib(now), mib(baseline))
    }

    /// Stops the gateway.
    pub(crate) async fn finish(self) {
        assert_eq!(self.round, self.rounds, "not all rounds were run");
        self.gateway.signal(Signal::SIGTERM);
        let status = self.gateway.exit_at_once().await;
        assert!(status.success(), "{status}");
        eprintln!("chaos: {}: passed in {:.0} s", self.name, self.began.elapsed().as_secs_f64());
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut ends: BTreeMap<String, usize> = BTreeMap::new();
            for reason in self.gateway.lines(|line| line["reason"].as_str().map(str::to_owned)) {
                *ends.entry(reason).or_default() += 1;
            }
            eprintln!("chaos: {}: connections ended, by reason: {ends:?}", self.name);
            eprintln!(
                "chaos: {}: FAILED in round {} after {:.0} s; to repeat it: PORTCULLIS_CHAOS_SEED={} cargo test --test \
                 chaos -- --ignored --nocapture {}",
                self.name,
                self.round,
                self.began.elapsed().as_secs_f64(),
                self.seed,
                self.name
            );
        }
    }
}

/// A gateway with a route `/echo` to `backend`, and with [`TIMEOUTS`].
pub(crate) fn setup(backend: &Backend) -> Setup {
    Setup::echo(backend).timeouts(TIMEOUTS)
}
