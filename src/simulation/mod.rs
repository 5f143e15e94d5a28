//! The whole gateway in a simulated network, with clients and backends around it, in one process and under tokio's paused
//! clock. Compiled for tests only.
//!
//! Owns the network ([`Network`]), the scenario that a seed determines, and what must hold after it. The gateway is the
//! real one, from its configuration text to its access log; only its sockets are simulated: [`Stream`] takes the place of
//! a TCP connection, [`Listener`] that of a listening socket.
//!
//! The crate `turmoil` is not used: a segment that it drops is never sent again, so that a connection does not survive a
//! loss or a partition; a host that crashes closes its connections instead of falling silent; and every host has a clock
//! that advances in fixed steps, of which a minute under 20 hosts has too many. `turmoil-net` sends again, but counts steps
//! instead of time, and its hosts cannot fail.
//!
//! `PORTCULLIS_SIMULATION_SEEDS` is the number of seeds, `PORTCULLIS_SIMULATION_FIRST` the first one. A failure prints the
//! command that runs its seed alone, with all events.

mod backends;
mod certificate;
mod checks;
mod clients;
mod endpoint;
mod faults;
mod link;
mod log;
mod network;
mod outcome;
mod packet;
mod payload;
mod plan;
mod run;
mod scenario;
mod stream;
mod world;

use std::{
    env,
    panic::catch_unwind,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

pub(crate) use self::{
    network::Network,
    stream::{Listener, Stream},
};
use self::{outcome::Outcome, run::run};

/// In a usual run of the tests.
const SEEDS: u64 = 200;
const THREADS: u64 = 2;
/// How many failing seeds are reported.
const REPORTED: usize = 5;

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// What was seen of a seed that failed.
fn report(seed: u64, outcome: &Outcome) -> String {
    let mut report = format!(
        "seed {seed}: {} problems; to run it alone:\n  PORTCULLIS_SIMULATION_FIRST={seed} PORTCULLIS_SIMULATION_SEEDS=1 \
         cargo test --lib simulation::every_seed -- --nocapture\n",
        outcome.problems.len()
    );
    outcome.problems.iter().for_each(|problem| report += &format!("  {problem}\n"));
    report
}

#[test]
fn every_seed_ends_well() {
    let first = number("PORTCULLIS_SIMULATION_FIRST").unwrap_or(0);
    let seeds = number("PORTCULLIS_SIMULATION_SEEDS").unwrap_or(SEEDS);
    assert!(seeds > 0, "no seed is run");
    let next = AtomicU64::new(0);
    let simulate = || {
        let (mut reports, mut connections) = (Vec::new(), 0);
        while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < seeds) {
            let Ok(outcome) = catch_unwind(|| run(first + seed)) else {
                let problems = vec!["it panicked".to_owned()];
                reports.push(report(first + seed, &Outcome { problems, ..Outcome::default() }));
                continue;
            };
            connections += outcome.lines.len();
            if seeds == 1 {
                outcome.events.iter().for_each(|event| println!("{event:?}"));
                outcome.lines.iter().for_each(|line| println!("{line:?}"));
            }
            if !outcome.problems.is_empty() {
                reports.push(report(first + seed, &outcome));
            }
        }
        (reports, connections)
    };
    let results: Vec<(Vec<String>, usize)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(simulate)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let connections: usize = results.iter().map(|(_, connections)| connections).sum();
    let reports: Vec<String> = results.into_iter().flat_map(|(reports, _)| reports).collect();
    println!("{seeds} seeds from {first}: {connections} connections, {} seeds failed", reports.len());
    assert!(connections as u64 > seeds, "only {connections} connections in {seeds} seeds");
    let shown = &reports[..reports.len().min(REPORTED)];
    assert!(reports.is_empty(), "{} of {seeds} seeds failed\n{}", reports.len(), shown.join("\n"));
}

#[test]
fn a_seed_determines_every_event() {
    let mut compared = 0;
    // TLS draws random numbers of its own.
    for seed in 0..12 {
        let (one, other) = (run(seed), run(seed));
        if one.tls {
            continue;
        }
        let events = one.events.iter().zip(&other.events);
        if let Some((one, other)) = events.into_iter().find(|(one, other)| one != other) {
            panic!("seed {seed}: once {one:?}, then {other:?}");
        }
        assert_eq!(one.events.len(), other.events.len(), "seed {seed}");
        assert_eq!(one.lines, other.lines, "seed {seed}");
        compared += one.events.len();
    }
    assert!(compared > 1000, "only {compared} events");
}
