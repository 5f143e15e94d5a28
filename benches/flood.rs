//! The latency of live sessions, and the time to open new ones, during a flood of TLS handshakes.
//!
//! `cargo bench --bench flood [-- --seconds 10 | --rounds 3 | --concurrency 512 | --hybrid | --two-machines | --compare PROGRAM]`
//! measures the echoes of 100 live sessions and 100 new sessions, first quietly, then while an attacker sends as many
//! ClientHellos as the gateway answers, from addresses all over 127.0.0.0/8. The gateway limits none of them, because all of
//! this network is exempt. Client, backend and attacker are processes of their own. The same is measured for HAProxy.
//!
//! The attacker needs processor time of the same machine. It has the lowest priority (nice 19), so that it takes none from
//! the program under test or from the clients that are measured. But then it only makes as many connections as that program
//! leaves time for, and no queue grows. With `--two-machines`, the program under test has one processor for itself, and
//! everything else has another one: as from afar, the attacker makes far more connections than one processor can answer.

#[allow(dead_code, unused_imports, reason = "the other benchmarks use more of it")]
mod common;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use self::common::{Arguments, Bench, Flood, Handshake, Latencies, LiveSessions, Target, Transport, median};

/// The goals: the 99th percentile may be this many times that without a flood, and so many of 100 new sessions are open
/// within a second.
const GOAL: (f64, f64) = (3.0, 95.0);
/// How long the attack lasts before the measurement begins.
const WARM_UP: Duration = Duration::from_secs(1);

fn main() -> anyhow::Result<()> {
    if common::run_role()? {
        return Ok(());
    }
    let known = ["--seconds", "--rounds", "--concurrency", "--hybrid", "--two-machines", "--compare"];
    let arguments = Arguments::read(&known)?;
    let attack = Attack {
        duration: Duration::from_secs(arguments.number("--seconds", 10)?),
        rounds: arguments.number("--rounds", 3)?,
        concurrency: arguments.number("--concurrency", 512)?,
        handshake: if arguments.has("--hybrid") { Handshake::Hybrid } else { Handshake::Full },
        two_machines: arguments.has("--two-machines"),
    };
    attack.use_processor(Side::Others)?;
    let bench = Bench::set_up()?;
    let other = arguments.path("--compare")?;
    type Start<'a> = Box<dyn Fn() -> anyhow::Result<Target> + 'a>;
    let mut targets: Vec<Start> = vec![Box::new(|| bench.portcullis(true, Transport::Tcp))];
    if let Some(program) = other {
        targets.push(Box::new(|| bench.portcullis_build(program, true, Transport::Tcp)));
    }
    targets.push(Box::new(|| bench.haproxy()));
    println!(
        "echoes of 100 sessions in µs, and how many of 100 new sessions were open within 1 s (the median in ms), without and \
         with a flood; median of {} rounds of {:?}",
        attack.rounds, attack.duration
    );
    println!(
        "\n| | | p50 | p99 | max | new sessions | handshakes/s | CPU |\n|---|---|---|---|---|---|---|---|"
    );
    for start in targets {
        attack.use_processor(Side::UnderTest)?;
        let target = start();
        attack.use_processor(Side::Others)?;
        match target {
            Ok(target) => attack.measure(&target, &bench)?,
            Err(why) => println!("skipped: {why:#}"),
        }
    }
    Ok(())
}

struct Attack {
    duration: Duration,
    rounds: u64,
    /// How many connections the attacker has at a time.
    concurrency: u64,
    handshake: Handshake,
    two_machines: bool,
}

/// Who uses which processor.
#[derive(Clone, Copy)]
enum Side {
    UnderTest,
    Others,
}

/// The measurements of one round.
struct Round {
    quiet: Latencies,
    flooded: Latencies,
    /// How many handshakes per second the program has answered.
    handshakes: f64,
    /// How many processors it has used.
    processors: f64,
}

impl Attack {
    fn measure(&self, target: &Target, bench: &Bench) -> anyhow::Result<()> {
        let mut live = LiveSessions::open(target, &bench.certificate)?;
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            let quiet = live.measure(self.duration)?;
            let mut flood = Flood::start(target, &bench.certificate, self.handshake, self.concurrency)?;
            std::thread::sleep(WARM_UP);
            let (answered, spent) = (flood.answered()?, target.process.cpu_time()?);
            let start = Instant::now();
            let flooded = live.measure(self.duration)?;
            let answered = flood.answered()? - answered;
            let spent = target.process.cpu_time()?.saturating_sub(spent);
            // More than the duration, if the last sessions opened late.
            let seconds = start.elapsed().as_secs_f64();
            rounds.push(Round {
                quiet,
                flooded,
                handshakes: answered as f64 / seconds,
                processors: spent.as_secs_f64() / seconds,
            });
        }
        print(target, &rounds);
        Ok(())
    }

    /// What this process starts from now on runs on the processor of that side.
    fn use_processor(&self, side: Side) -> anyhow::Result<()> {
        if !self.two_machines {
            return Ok(());
        }
        let processor = match side {
            Side::UnderTest => "0",
            Side::Others => "1",
        };
        let own = std::process::id().to_string();
        let done = Command::new("taskset").args(["-a", "-c", "-p", processor, &own]).output();
        let done = done.context("cannot run taskset")?;
        ensure!(done.status.success(), "taskset: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }
}

fn print(target: &Target, rounds: &[Round]) {
    let of = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value));
    for (name, flooded) in [("quiet", false), ("flood", true)] {
        let latencies = |round: &Round| if flooded { round.flooded.clone() } else { round.quiet.clone() };
        let echo = |index: usize| of(&|round| latencies(round).echo[index] as f64);
        let in_time = of(&|round| within_a_second(&latencies(round)));
        let opened = of(&|round| median(latencies(round).opened.iter().map(|micros| *micros as f64 / 1e3)));
        print!("| {} | {name} | {:.0} | {:.0} | {:.0} |", target.name, echo(0), echo(1), echo(2));
        print!(" {in_time:.0} ({opened:.1}) |");
        match flooded {
            true => println!(" {:.0} | {:.2} |", of(&|r| r.handshakes), of(&|r| r.processors)),
            false => println!(" | |"),
        }
    }
    let ratio = of(&|round| round.flooded.echo[1] as f64 / round.quiet.echo[1] as f64);
    let in_time = of(&|round| within_a_second(&round.flooded));
    let reached = if ratio <= GOAL.0 && in_time >= GOAL.1 { "reached" } else { "not reached" };
    println!("| {} | goals {reached} | | {ratio:.1} times | | {in_time:.0} | | |", target.name);
}

fn within_a_second(latencies: &Latencies) -> f64 {
    let in_time = latencies.opened.iter().filter(|micros| **micros <= 1_000_000).count();
    100.0 * in_time as f64 / latencies.opened.len() as f64
}
