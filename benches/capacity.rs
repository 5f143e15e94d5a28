//! The costs of sessions that docs/capacity.md is based on.
//!
//! `cargo bench --bench capacity [-- --sessions 4000]` measures the processor time of opening and closing a session by the
//! kind of its TLS handshake, and the kernel's memory for idle sessions (slab and socket buffers of the whole machine:
//! meaningful only on an otherwise idle one). On loopback both ends of every connection are local, so the gateway's share
//! is half.

#[allow(dead_code, unused_imports, reason = "the other benchmarks use more of it")]
mod common;

use std::fs;

use anyhow::{Context, ensure};

use self::common::{Arguments, Bench, Driver, Handshake, Operation, Target, Transport, median};

/// The default number of idle sessions.
const SESSIONS: u64 = 4000;
/// How many sessions are opened and closed in one round, and the number of rounds.
const SHORT_SESSIONS: u64 = 1500;
const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    if common::run_role()? {
        return Ok(());
    }
    let arguments = Arguments::read(&["--sessions"])?;
    let sessions = arguments.number("--sessions", SESSIONS)?;
    ensure!(sessions > 0, "--sessions 0: at least one is needed");
    let bench = Bench::set_up()?;
    let (wss, ws) = (bench.portcullis(true, Transport::Tcp)?, bench.portcullis(false, Transport::Tcp)?);
    println!(
        "CPU µs of one session (open, upgrade, echo, close), median of {ROUNDS} rounds of {SHORT_SESSIONS}"
    );
    let none = cost_of_session(&ws, &bench, Handshake::Full)?;
    println!("{:<32} {none:>8.0}", "ws://");
    for (name, handshake) in [
        ("wss://, X25519", Handshake::Full),
        ("wss://, X25519MLKEM768", Handshake::Hybrid),
        ("wss://, resumed, X25519MLKEM768", Handshake::Resumed),
    ] {
        let cost = cost_of_session(&wss, &bench, handshake)?;
        println!("{name:<32} {cost:>8.0}   of it TLS {:>8.0}", cost - none);
    }
    println!("kernel memory of {sessions} idle sessions, KiB each, the gateway's half");
    let mut driver = Driver::start(&ws, &bench.certificate)?;
    let before = KernelMemory::now()?;
    driver.run(Operation::Open(sessions))?;
    let with = KernelMemory::now()?;
    driver.run(Operation::Close)?;
    let half = |with: u64, before: u64| (with as f64 - before as f64) / sessions as f64 / 2.0;
    println!(
        "slab {:.2}, socket buffers {:.2}",
        half(with.slab, before.slab),
        half(with.buffers, before.buffers)
    );
    Ok(())
}

/// The processor time of one short session, in µs.
fn cost_of_session(target: &Target, bench: &Bench, handshake: Handshake) -> anyhow::Result<f64> {
    let mut driver = Driver::with(target, &bench.certificate, handshake)?;
    // The warm-up; it also gets the first session tickets.
    driver.run(Operation::Sessions(SHORT_SESSIONS / 4))?;
    let mut costs = Vec::new();
    for _ in 0..ROUNDS {
        let before = target.process.cpu_time()?;
        driver.run(Operation::Sessions(SHORT_SESSIONS))?;
        let spent = target.process.cpu_time()?.saturating_sub(before);
        costs.push(spent.as_secs_f64() * 1e6 / SHORT_SESSIONS as f64);
    }
    Ok(median(costs.into_iter()))
}

/// The kernel's memory, in KiB.
struct KernelMemory {
    slab: u64,
    buffers: u64,
}

impl KernelMemory {
    fn now() -> anyhow::Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let slab = meminfo.lines().find_map(|line| line.strip_prefix("Slab:"));
        let slab =
            slab.and_then(|line| line.trim().strip_suffix(" kB")).context("/proc/meminfo has no Slab")?;
        let sockstat = fs::read_to_string("/proc/net/sockstat")?;
        let tcp = sockstat
            .lines()
            .find(|line| line.starts_with("TCP:"))
            .context("/proc/net/sockstat has no TCP")?;
        let pages = tcp.rsplit(' ').next().context("no pages")?;
        // Assumes pages of 4 KiB.
        Ok(Self { slab: slab.trim().parse()?, buffers: 4 * pages.parse::<u64>()? })
    }
}
