//! Scenarios: the wall clock jumps, and the process stands still while time goes on.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::ledger::Accepted;
use crate::load::{Load, Steady};
use crate::scenario::{Scenario, library, setup, turn};
use crate::support::Backend;

const CLIENTS: usize = 30;
const STEADY: usize = 20;
/// The longest time that the process stands still: longer than every timeout of a session.
const LONGEST_STOP: Duration = Duration::from_secs(30);

/// The clock as the process sees it jumps: it stops for longer than its timeouts while its clients go on. Sessions whose
/// clients have answered meanwhile continue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --only chaos"]
async fn the_process_stands_still() {
    let _turn = turn().await;
    let backend = Backend::echo().await;
    let mut scenario = Scenario::start("stands_still", 90, setup(&backend)).await;
    let targets = scenario.targets("/echo");
    while let Some(time) = scenario.next_round() {
        let steady = Steady::open(STEADY, &targets, &mut scenario.random).await;
        let load = Load::start(CLIENTS, &targets, &mut scenario.random);
        let start = Instant::now();
        let mut stops = Vec::new();
        // Long ones first, and short ones while there is time.
        for part in [2, 4, 16, 16, 64, 64, 256, 256] {
            tokio::time::sleep(Duration::from_millis(500) + scenario.random.millis(1_000)).await;
            let stop = (time / part).min(LONGEST_STOP);
            scenario.gateway.signal(Signal::SIGSTOP);
            tokio::time::sleep(stop).await;
            scenario.gateway.signal(Signal::SIGCONT);
            stops.push(stop);
            if start.elapsed() > time {
                break;
            }
        }
        let stats = load.stop().await;
        let echoed = steady.close().await;
        scenario
            .settle(Accepted::Answered, &format!("stopped {stops:.1?}; {stats}; {echoed} bytes steady"))
            .await;
    }
    scenario.finish().await;
}

/// Jumps from the true time, in seconds: an hour of daylight saving, a battery that was empty, the year 2038, and back.
const JUMPS: [i64; 7] = [3_600, -3_600, -600_000_000, 86_400, 600_000_000, -86_400, 1];

/// The wall clock jumps by up to 19 years; the monotonic clock begins at the boot, as if the gateway were the first program
/// to start. A time namespace does that, but cannot change the wall clock, so libfaketime does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --only chaos"]
async fn the_wall_clock_jumps() {
    let _turn = turn().await;
    // It replaces what the C library says of the time; the offset is in a file.
    let Some(faketime) = library("faketime/libfaketimeMT.so.1") else {
        let why = "libfaketime is missing: tests/install chaos";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
        eprintln!("the_wall_clock_jumps: skipped, {why}");
        return;
    };
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("offset");
    let jump = |offset: i64| {
        let new = file.with_extension("new");
        fs::write(&new, format!("{offset:+}\n")).expect("a file of the test");
        fs::rename(new, &file).expect("a file of the test");
    };
    jump(0);
    let backend = Backend::echo().await;
    let mut setup = setup(&backend);
    let since_boot = since_boot();
    if let Some(seconds) = since_boot {
        setup = setup.through(&["unshare", "--time", &format!("--monotonic=-{seconds}")]);
    }
    let setup = setup
        .variable("FAKETIME_TIMESTAMP_FILE", file.to_str().expect("a path of text"))
        .variable("FAKETIME_NO_CACHE", "1")
        .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .variable("NO_FAKE_STAT", "1")
        .variable("LD_PRELOAD", faketime.to_str().expect("a path of text"));
    let mut scenario = Scenario::start("wall_clock", 60, setup).await;
    let targets = scenario.targets("/echo");
    while let Some(time) = scenario.next_round() {
        let steady = Steady::open(STEADY, &targets, &mut scenario.random).await;
        let load = Load::start(CLIENTS, &targets, &mut scenario.random);
        let start = Instant::now();
        let before = scenario.gateway.raw_log().lines().count();
        let mut jumps = 0;
        while start.elapsed() < time || jumps < JUMPS.len() {
            let offset = JUMPS.get(jumps).unwrap_or_else(|| scenario.random.one_of(&JUMPS));
            jump(*offset);
            jumps += 1;
            tokio::time::sleep(Duration::from_millis(200) + scenario.random.millis(800)).await;
        }
        jump(0);
        let stats = load.stop().await;
        let echoed = steady.close().await;
        // Nothing but the time stamps may have changed.
        assert_eq!(stats.failed(), 0, "{stats}");
        let years = years(&scenario.gateway.raw_log(), before);
        assert!(years.len() >= 3, "the log's time stamps do not jump: {years:?}");
        let boot = since_boot.map_or("", |_| "; the monotonic clock began at the start");
        scenario
            .settle(
                Accepted::All,
                &format!("{jumps} jumps, years {years:?}{boot}; {stats}; {echoed} bytes steady"),
            )
            .await;
    }
    scenario.finish().await;
}

/// How long ago the machine was booted, in whole seconds, if there are time namespaces.
fn since_boot() -> Option<u64> {
    let uptime = nix::time::ClockId::CLOCK_MONOTONIC.now().ok()?.tv_sec().unsigned_abs();
    let tried = Command::new("unshare").args(["--time", "--monotonic=-1", "true"]).output().ok()?;
    tried.status.success().then_some(uptime.saturating_sub(1))
}

/// The years in the time stamps after the first `skipped` lines.
fn years(log: &str, skipped: usize) -> std::collections::BTreeSet<String> {
    let time = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(line["timestamp"].as_str()?.get(..4)?.to_owned())
    };
    log.lines().skip(skipped).filter_map(time).collect()
}
