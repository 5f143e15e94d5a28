//! What an idle session costs in memory.
//!
//! `cargo bench --bench idle_memory [-- --sessions 5000] [--peers]` opens that many sessions, has each echo one small
//! message, lets them rest, and compares the gateway's proportional set size (PSS, /proc/PID/smaps_rollup) with what it
//! was before the first of them. The client and the backend are processes of their own. What the kernel holds for a
//! socket is in nobody's PSS. `--peers` does the same with the other programs that are installed.

#[allow(dead_code, unused_imports, reason = "the other benchmarks use more of it")]
mod common;

use std::{
    fs,
    io::ErrorKind,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use self::common::{Arguments, Bench, Driver, Order, Process, Target, Way};

/// How many idle sessions.
const SESSIONS: u64 = 5000;
/// The most an idle wss:// session may take, in KiB.
const BOUND: f64 = 12.0;
/// What it should take, in KiB.
const GOAL: f64 = 10.0;
/// How often memory is looked at until it rests.
const LOOK: Duration = Duration::from_millis(500);
/// How long it may take to come to rest. Less than it takes the gateway to miss a Pong.
const REST: Duration = Duration::from_secs(20);

fn main() -> anyhow::Result<()> {
    if common::play_role()? {
        return Ok(());
    }
    let arguments = Arguments::read(&["--sessions", "--peers"])?;
    let sessions = arguments.number("--sessions", SESSIONS)?;
    ensure!(sessions > 0, "--sessions 0: there must be one");
    let bench = Bench::set_up()?;
    println!("PSS in KiB, {sessions} idle sessions, each after one echo of 64 bytes");
    println!(
        "{:<24} {:>10} {:>10} {:>10} {:>12} {:>12}",
        "", "before", "with", "after", "per session", "thereof heap"
    );
    let wss = measure(&bench.portcullis(true, Way::Tcp)?, &bench, sessions)?;
    let ws = measure(&bench.portcullis(false, Way::Tcp)?, &bench, sessions)?;
    if arguments.has("--peers") {
        // A process each: thousands would not fit.
        let few = sessions.min(50);
        for (peer, sessions) in [
            (bench.raw_pipe(Way::Tcp), sessions),
            (bench.haproxy(), sessions),
            (bench.nginx(), sessions),
            (bench.lighttpd(), sessions),
            (bench.websockify(), few),
        ] {
            match peer {
                Ok(peer) => drop(measure(&peer, &bench, sessions)?),
                Err(why) => println!("skipped: {why:#}"),
            }
        }
    }
    println!("An idle wss:// session takes {wss:.1} KiB, {:.1} KiB of it for TLS.", wss - ws);
    println!("Bound: {BOUND} KiB. Goal: under {GOAL} KiB.");
    ensure!(wss <= BOUND, "an idle wss:// session takes {wss:.1} KiB, more than {BOUND} KiB");
    Ok(())
}

/// Prints a row. Returns the KiB of one session.
fn measure(target: &Target, bench: &Bench, sessions: u64) -> anyhow::Result<f64> {
    let mut driver = Driver::start(target, &bench.certificate)?;
    let before = at_rest(&target.process)?;
    driver.carry_out(Order::Open(sessions))?;
    let with = at_rest(&target.process)?;
    // Had one of them ended meanwhile, the figure would be too good.
    driver.carry_out(Order::Echo(1)).context("a session did not last")?;
    driver.carry_out(Order::Close)?;
    let after = at_rest(&target.process)?;
    let per_session = |with: u64, before: u64| (with as f64 - before as f64) / sessions as f64;
    let all = per_session(with.all, before.all);
    println!(
        "{:<24} {:>10} {:>10} {:>10} {:>12.2} {:>12.2}",
        target.name,
        before.all,
        with.all,
        after.all,
        all,
        per_session(with.anonymous, before.anonymous)
    );
    Ok(all)
}

/// Proportional set sizes of a program with all its processes, in KiB.
#[derive(Debug, Clone, Copy)]
struct Pss {
    all: u64,
    /// Heap and stacks, without what comes from files.
    anonymous: u64,
}

impl Pss {
    fn of(process: &Process) -> anyhow::Result<Self> {
        let mut pss = Self { all: 0, anonymous: 0 };
        for pid in process.tree() {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                // A child that has ended since.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| path.clone()),
            };
            let field = |name: &str| -> anyhow::Result<u64> {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
                Ok(number.with_context(|| format!("{path} has no {name}"))?.parse()?)
            };
            pss.all += field("Pss:")?;
            pss.anonymous += field("Pss_Anon:")?;
        }
        Ok(pss)
    }
}

/// The size once it has stopped changing.
fn at_rest(process: &Process) -> anyhow::Result<Pss> {
    let end = Instant::now() + REST;
    let mut last = Pss::of(process)?;
    loop {
        thread::sleep(LOOK);
        let now = Pss::of(process)?;
        if now.all.abs_diff(last.all) <= last.all / 1000 {
            return Ok(now);
        }
        ensure!(Instant::now() < end, "memory does not come to rest: {last:?}, then {now:?}");
        last = now;
    }
}
