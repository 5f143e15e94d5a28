//! A herd: thousands of clients that connect at the same moment, and again after the gateway was killed.
//!
//! `cargo bench --bench herd [-- --clients 9000] [-- --rounds 3] [-- --program PATH]` lets that many clients from 400 addresses in 40 networks
//! connect by `wss://` at once (TLS 1.3, X25519, no resumption), upgrade, and echo a small message. Then the gateway gets
//! kill -9, is started again, and all of them connect at once again. It prints how many did not get in, and how long the
//! others took from the common start. HAProxy, which only terminates TLS, does the same work if it is installed. The clients
//! are a process of their own; their processor time is printed too, because on a machine with few processors they are slower
//! than what they measure. `--program` measures another build of the gateway. The gateway has its default limits, `limits.per_ip` and `limits.per_network` included.

#[allow(dead_code, unused_imports, reason = "the other benchmarks use more of it")]
mod common;

use std::time::Duration;

use anyhow::ensure;

use self::common::{Arguments, Arrival, Bench, Handshake, Herd, Target};

const CLIENTS: u64 = 9000;
const ROUNDS: u64 = 3;

fn main() -> anyhow::Result<()> {
    if common::run_role()? {
        return Ok(());
    }
    let arguments = Arguments::read(&["--clients", "--rounds", "--program"])?;
    let clients = arguments.number("--clients", CLIENTS)?;
    let rounds = arguments.number("--rounds", ROUNDS)?;
    ensure!(clients > 0 && rounds > 0, "at least one client and one round are needed");
    let bench = Bench::set_up()?;
    println!("{clients} clients at the same moment; times in ms from the common start; CPU in s");
    println!(
        "{:<32} {:>12} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "", "", "not in", "p50", "p99", "all in", "CPU", "clients"
    );
    let mut failed = 0;
    let program = arguments.path("--program")?;
    for _ in 0..rounds {
        let gateway = bench.portcullis_with_limits(program, None)?;
        failed +=
            round(&bench, clients, &gateway, |bench, killed| bench.portcullis_with_limits(program, killed))?;
        drop(gateway);
        match bench.haproxy_at(None) {
            Ok(peer) => drop(round(&bench, clients, &peer, Bench::haproxy_at)?),
            Err(why) => println!("skipped: {why:#}"),
        }
    }
    ensure!(failed == 0, "{failed} clients of Portcullis did not get in");
    Ok(())
}

/// Both arrivals at one program, which is started again in between. Returns how many clients did not get in.
fn round(
    bench: &Bench,
    clients: u64,
    target: &Target,
    start_again: impl Fn(&Bench, Option<&Target>) -> anyhow::Result<Target>,
) -> anyhow::Result<u64> {
    let mut herd = Herd::start(target, &bench.certificate, Handshake::Full)?;
    let mut failed = measure(target, &mut herd, clients, "first")?;
    target.process.kill()?;
    herd.wait_until_lost()?;
    let again = start_again(bench, Some(target))?;
    failed += measure(&again, &mut herd, clients, "after kill")?;
    Ok(failed)
}

/// Prints a row. Returns how many clients did not get in.
fn measure(target: &Target, herd: &mut Herd, clients: u64, when: &str) -> anyhow::Result<u64> {
    let (own, theirs) = (target.process.cpu_time()?, herd.cpu_time()?);
    let arrival = herd.arrive(clients)?;
    let spent = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64();
    let millis = |part| arrival.quantile(part).as_millis();
    println!(
        "{:<32} {:>12} {:>9} {:>8} {:>8} {:>8} {:>8.1} {:>8.1}",
        target.name,
        when,
        arrival.failed(),
        millis(0.5),
        millis(0.99),
        millis(1.0),
        spent(target.process.cpu_time()?, own),
        spent(herd.cpu_time()?, theirs)
    );
    print_errors(&arrival);
    Ok(arrival.failed())
}

fn print_errors(arrival: &Arrival) {
    for (error, count) in &arrival.errors {
        println!("    {count} × {error}");
    }
}
