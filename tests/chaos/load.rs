//! The sessions that run while a scenario disturbs them: short ones, which may fail, and steady ones, which may not.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Target};
use crate::random::Random;

/// The longest pause of a client between two sessions, in milliseconds.
const PAUSE: u64 = 150;
/// How long a steady session may take for one echo: longer than any disturbance that it must survive.
const STEADY_LIMIT: Duration = Duration::from_secs(60);

/// What happened to short sessions.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    tried: AtomicUsize,
    opened: AtomicUsize,
    completed: AtomicUsize,
    failures: Mutex<BTreeMap<String, usize>>,
}

impl Stats {
    /// Sessions that echoed everything and ended as their client wanted.
    pub(crate) fn completed(&self) -> usize {
        self.completed.load(Ordering::Relaxed)
    }

    /// Connections that did not become sessions, and sessions that ended early.
    pub(crate) fn failed(&self) -> usize {
        self.failures.lock().expect("no panic").values().sum()
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let (tried, opened) = (count(&self.tried), count(&self.opened));
        write!(f, "{tried} tried, {opened} opened, {} completed", self.completed())?;
        let failures = self.failures.lock().expect("no panic");
        let mut failures: Vec<_> = failures.iter().collect();
        failures.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (failure, count) in failures.iter().take(6) {
            write!(f, "; {count} × {failure}")?;
        }
        Ok(())
    }
}

/// Clients that open, use and close short sessions, one after the other.
pub(crate) struct Load {
    stop: CancellationToken,
    clients: JoinSet<()>,
    pub(crate) stats: Arc<Stats>,
}

impl Load {
    /// Starts this many clients, distributed over the targets.
    pub(crate) fn start(clients: usize, targets: &[Target], random: &mut Random) -> Self {
        let (stop, stats) = (CancellationToken::new(), Arc::new(Stats::default()));
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let target = targets[number % targets.len()].clone();
            let (stop, stats, mut random) = (stop.clone(), Arc::clone(&stats), random.fork());
            tasks.spawn(async move {
                while !stop.is_cancelled() {
                    stats.tried.fetch_add(1, Ordering::Relaxed);
                    match one_session(&target, &mut random, &stats).await {
                        Ok(()) => drop(stats.completed.fetch_add(1, Ordering::Relaxed)),
                        Err(why) => *stats.failures.lock().expect("no panic").entry(why).or_default() += 1,
                    }
                    stop.run_until_cancelled(tokio::time::sleep(random.millis(PAUSE))).await;
                }
            });
        }
        Self { stop, clients: tasks, stats }
    }

    /// Waits until every client has finished its session; fails if one has seen a wrong byte.
    pub(crate) async fn stop(mut self) -> Arc<Stats> {
        self.stop.cancel();
        while let Some(client) = self.clients.join_next().await {
            client.expect("a client saw what it must never see");
        }
        self.stats
    }
}

/// A session of a few echoes and pauses. A third of them end without a closing handshake.
async fn one_session(target: &Target, random: &mut Random, stats: &Stats) -> Result<(), String> {
    let mut client = target.open(random.below(1 << 40)).await?;
    stats.opened.fetch_add(1, Ordering::Relaxed);
    for _ in 0..random.below(6) {
        match random.below(8) {
            0 | 1 => client.rest(random.millis(400)).await?,
            2 => client.echo(1 + random.below(70_000) as usize).await?,
            _ => client.echo(1 + random.below(2_000) as usize).await?,
        }
    }
    match random.below(9) {
        way @ 0..3 => client.abandon(way).await,
        _ => client.close().await?,
    }
    Ok(())
}

/// Sessions that a disturbance must not end.
pub(crate) struct Steady {
    stop: CancellationToken,
    sessions: JoinSet<Result<u64, String>>,
}

impl Steady {
    pub(crate) async fn open(count: usize, targets: &[Target], random: &mut Random) -> Self {
        let stop = CancellationToken::new();
        let mut sessions = JoinSet::new();
        for number in 0..count {
            let target = targets[number % targets.len()].with_limit(STEADY_LIMIT);
            let mut random = random.fork();
            let client = target.open(random.below(1 << 40)).await;
            let client = client.unwrap_or_else(|why| panic!("steady session {number}: {why}"));
            sessions.spawn(talk(client, stop.clone(), random));
        }
        Self { stop, sessions }
    }

    /// Closes them. Returns how many bytes they have echoed.
    pub(crate) async fn close(mut self) -> u64 {
        self.stop.cancel();
        let mut bytes = 0;
        while let Some(session) = self.sessions.join_next().await {
            match session.expect("a steady session saw what it must never see") {
                Ok(echoed) => bytes += echoed,
                Err(why) => panic!("a steady session was disturbed: {why}"),
            }
        }
        bytes
    }
}

async fn talk(mut client: Client, stop: CancellationToken, mut random: Random) -> Result<u64, String> {
    let mut bytes = 0;
    while !stop.is_cancelled() {
        let length = 1 + random.below(1_500);
        client.echo(length as usize).await?;
        bytes += length;
        client.rest(random.millis(600)).await?;
    }
    client.close().await?;
    Ok(bytes)
}
