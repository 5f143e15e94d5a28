//! What sessions cost that docs/capacity.md counts with.
//!
//! `cargo bench --bench capacity [-- --sessions 4000]` measures the processor time of a session's beginning and end by the
//! kind of its TLS handshake, and what the kernel holds for idle sessions (Slab and socket buffers of the whole machine:
//! they say something only while it has little else to do). Loopback has both ends of every connection; the gateway's
//! share is half of it.

#[allow(dead_code, unused_imports, reason = "the other benchmarks use more of it")]
mod common;

use std::fs;

use anyhow::{Context, ensure};

use self::common::{Arguments, Bench, Driver, Handshake, Order, Target, Way, median};

/// How many idle sessions.
const SESSIONS: u64 = 4000;
/// How many sessions come and go in one round, and how many rounds there are.
const SHORT: u64 = 1500;
const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    if common::play_role()? {
        return Ok(());
    }
    let arguments = Arguments::read(&["--sessions"])?;
    let sessions = arguments.number("--sessions", SESSIONS)?;
    ensure!(sessions > 0, "--sessions 0: there must be one");
    let bench = Bench::set_up()?;
    let (wss, ws) = (bench.portcullis(true, Way::Tcp)?, bench.portcullis(false, Way::Tcp)?);
    println!("CPU µs of one session (open, upgrade, echo, close), median of {ROUNDS} rounds of {SHORT}");
    let none = short(&ws, &bench, Handshake::Whole)?;
    println!("{:<32} {none:>8.0}", "ws://");
    for (name, handshake) in [
        ("wss://, X25519", Handshake::Whole),
        ("wss://, X25519MLKEM768", Handshake::Hybrid),
        ("wss://, resumed, X25519MLKEM768", Handshake::Resumed),
    ] {
        let cost = short(&wss, &bench, handshake)?;
        println!("{name:<32} {cost:>8.0}   of it TLS {:>8.0}", cost - none);
    }
    println!("kernel memory of {sessions} idle sessions, KiB each, the gateway's half");
    let mut driver = Driver::start(&ws, &bench.certificate)?;
    let before = Kernel::now()?;
    driver.carry_out(Order::Open(sessions))?;
    let with = Kernel::now()?;
    driver.carry_out(Order::Close)?;
    let half = |with: u64, before: u64| (with as f64 - before as f64) / sessions as f64 / 2.0;
    println!(
        "slab {:.2}, socket buffers {:.2}",
        half(with.slab, before.slab),
        half(with.buffers, before.buffers)
    );
    Ok(())
}

/// The processor time of one short session, in µs.
fn short(target: &Target, bench: &Bench, handshake: Handshake) -> anyhow::Result<f64> {
    let mut driver = Driver::with(target, &bench.certificate, handshake)?;
    // Warms everything up, and brings the first tickets.
    driver.carry_out(Order::Sessions(SHORT / 4))?;
    let mut costs = Vec::new();
    for _ in 0..ROUNDS {
        let before = target.process.cpu_time()?;
        driver.carry_out(Order::Sessions(SHORT))?;
        let spent = target.process.cpu_time()?.saturating_sub(before);
        costs.push(spent.as_secs_f64() * 1e6 / SHORT as f64);
    }
    Ok(median(costs.into_iter()))
}

/// What the kernel holds, in KiB.
struct Kernel {
    slab: u64,
    buffers: u64,
}

impl Kernel {
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
        // Pages are of 4 KiB on the machines this was measured on.
        Ok(Self { slab: slab.trim().parse()?, buffers: 4 * pages.parse::<u64>()? })
    }
}
