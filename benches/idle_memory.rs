//! The memory of an idle session.
//!
//! `cargo bench --bench idle_memory [-- --sessions 5000] [--peers]` opens that many sessions, echoes one small message on
//! each, waits until memory use has settled, and compares the gateway's proportional set size (PSS,
//! /proc/PID/smaps_rollup) with its value before the first session. The client and the backend are processes of their
//! own. The kernel's memory for sockets is not part of any PSS. `--peers` measures the other programs that are installed,
//! too; `--compare PROGRAM` measures another build of the gateway, such as that of an earlier commit. `--user` measures
//! a gateway with `auth`, too, on a route without it and on a route with it: there each session has a user and the time of its
//! end, from a JWT of its own.

#[allow(dead_code, unused_imports, reason = "the other benchmarks use more of it")]
mod common;

use std::{
    fs, io, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use nix::errno::Errno;

use self::common::{Arguments, Bench, Driver, Operation, Process, Request, Target, Transport};

/// The default number of idle sessions.
const SESSIONS: u64 = 5000;
/// The limit for an idle wss:// session, in KiB: beyond it the benchmark fails.
const LIMIT: f64 = 12.0;
/// The goal for an idle wss:// session, in KiB.
const GOAL: f64 = 10.0;
/// The goal for what a user adds to it, in KiB.
const USER_GOAL: f64 = 0.2;
/// The interval of samples until memory has settled.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// How long memory may take to settle. Shorter than the gateway's Pong timeout.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

fn main() -> anyhow::Result<()> {
    if common::run_role()? {
        return Ok(());
    }
    let arguments = Arguments::read(&["--sessions", "--peers", "--compare", "--user"])?;
    let sessions = arguments.number("--sessions", SESSIONS)?;
    ensure!(sessions > 0, "--sessions 0: at least one is needed");
    let bench = Bench::set_up()?;
    println!("PSS in KiB, {sessions} idle sessions, each after one echo of 64 bytes");
    println!(
        "{:<32} {:>10} {:>10} {:>10} {:>12} {:>12}",
        "", "before", "with", "after", "per session", "thereof heap"
    );
    let wss = measure(&bench.portcullis(true, Transport::Tcp)?, &bench, sessions, &[])?;
    let ws = measure(&bench.portcullis(false, Transport::Tcp)?, &bench, sessions, &[])?;
    let users = match arguments.has("--user") {
        true => Some((measure_user(&bench, sessions, true)?, measure_user(&bench, sessions, false)?)),
        false => None,
    };
    if let Some(program) = arguments.path("--compare")? {
        for tls in [true, false] {
            measure(&bench.portcullis_build(program, tls, Transport::Tcp)?, &bench, sessions, &[])?;
        }
    }
    if arguments.has("--peers") {
        // It runs a process for each session: thousands would not fit.
        let few = sessions.min(50);
        for (peer, sessions) in [
            (bench.raw_pipe(Transport::Tcp), sessions),
            (bench.haproxy(), sessions),
            (bench.haproxy_tuned(), sessions),
            (bench.nginx(), sessions),
            (bench.lighttpd(), sessions),
            (bench.websockify(), few),
        ] {
            match peer {
                Ok(peer) => drop(measure(&peer, &bench, sessions, &[])?),
                Err(why) => println!("skipped: {why:#}"),
            }
        }
    }
    println!("An idle wss:// session takes {wss:.1} KiB, {:.1} KiB of it for TLS.", wss - ws);
    if let Some((wss, ws)) = users {
        println!("A user adds {wss:.2} KiB to an idle wss:// session, {ws:.2} KiB to a ws:// one.");
        println!("Goal: at most {USER_GOAL} KiB.");
    }
    println!("Limit: {LIMIT} KiB. Goal: under {GOAL} KiB.");
    ensure!(wss <= LIMIT, "an idle wss:// session takes {wss:.1} KiB, more than {LIMIT} KiB");
    Ok(())
}

/// Prints rows for sessions without and with a user, of gateways that are configured in the same way. Returns the KiB that a user
/// adds.
fn measure_user(bench: &Bench, sessions: u64, tls: bool) -> anyhow::Result<f64> {
    let (target, _issuer) = bench.portcullis_with_auth("Portcullis, auth, no users", tls)?;
    let without = measure(&target, bench, sessions, &[])?;
    // A new process: memory that the sessions before have left would not be counted.
    drop(target);
    let (target, issuer) = bench.portcullis_with_auth("Portcullis, auth, users", tls)?;
    Ok(measure(&target, bench, sessions, &issuer.tokens(sessions)?)? - without)
}

/// Prints a row. The sessions open with `requests`, or without credentials if there are none. Returns the KiB of one session.
fn measure(target: &Target, bench: &Bench, sessions: u64, requests: &[Request]) -> anyhow::Result<f64> {
    let mut driver = Driver::start(target, &bench.certificate)?;
    driver.present(requests)?;
    let before = settled(&target.process)?;
    driver.run(Operation::Open(sessions))?;
    let with = settled(&target.process)?;
    // If a session had ended meanwhile, the figure would be too low.
    driver.run(Operation::Echo(1)).context("a session ended early")?;
    driver.run(Operation::Close)?;
    let after = settled(&target.process)?;
    let per_session = |with: u64, before: u64| (with as f64 - before as f64) / sessions as f64;
    let all = per_session(with.all, before.all);
    println!(
        "{:<32} {:>10} {:>10} {:>10} {:>12.2} {:>12.2}",
        target.name,
        before.all,
        with.all,
        after.all,
        all,
        per_session(with.anonymous, before.anonymous)
    );
    Ok(all)
}

/// The proportional set sizes of all processes of a program, in KiB.
#[derive(Debug, Clone, Copy)]
struct Pss {
    all: u64,
    /// Heap and stacks, without memory-mapped files.
    anonymous: u64,
}

impl Pss {
    fn of(process: &Process) -> anyhow::Result<Self> {
        let mut pss = Self { all: 0, anonymous: 0 };
        for (index, pid) in process.tree().into_iter().enumerate() {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = match fs::read_to_string(&path) {
                // A child that has exited meanwhile: a zombie has no memory, and its file cannot be read.
                Ok(text) if index > 0 && text.is_empty() => continue,
                Err(error) if index > 0 && has_exited(&error) => continue,
                text => text.with_context(|| path.clone())?,
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

/// Whether reading a file of /proc/PID failed because there is no such process any more.
fn has_exited(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

/// The size after it has stopped changing.
fn settled(process: &Process) -> anyhow::Result<Pss> {
    let end = Instant::now() + SETTLE_TIMEOUT;
    let mut last = Pss::of(process)?;
    loop {
        thread::sleep(SAMPLE_INTERVAL);
        let now = Pss::of(process)?;
        if now.all.abs_diff(last.all) <= last.all / 1000 {
            return Ok(now);
        }
        ensure!(Instant::now() < end, "memory does not settle: {last:?}, then {now:?}");
        last = now;
    }
}
