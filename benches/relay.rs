//! The processor time of relaying bytes.
//!
//! `cargo bench --bench relay [-- --quick | --rounds 7 | --backends | --compare PROGRAM]` measures the CPU time (user and system) of all
//! processes of the gateway, of a raw TLS pipe built from the same libraries, and of the other programs that are
//! installed. They run the same workloads in turns, for several rounds. CPU time, unlike wall-clock time, does not depend
//! on how busy the machine is. The client and the backend are processes of their own and do not count.
//!
//! With `--backends`, the gateway and the raw pipe relay bulk data to and from a backend over TCP, a Unix socket and TLS,
//! to measure what the transport to the backend costs an established session.
//!
//! With `--compare`, another build of the gateway, such as that of an earlier commit, takes part instead of the other
//! programs.

#[allow(dead_code, unused_imports, reason = "the other benchmarks use more of it")]
mod common;

use std::time::Duration;

use anyhow::Context;

use self::common::{Arguments, BASELINE, Bench, Driver, Operation, Target, Transport, median};

/// Concurrent connections of the bulk workloads.
const BULK: u64 = 4;
/// Concurrent connections of the echo workload.
const ECHOES: u64 = 64;

#[derive(Clone, Copy)]
struct Workload {
    name: &'static str,
    unit: &'static str,
    /// How many connections are open.
    connections: u64,
    /// The operation for an amount of work.
    operation: fn(u64) -> Operation,
    /// How many units an amount of work is: CPU seconds are divided by it.
    units: fn(u64) -> f64,
}

const GIGA: f64 = 1e9;

const UPLOAD: Workload = Workload {
    name: "client to backend, frames of 16 KiB",
    unit: "CPU s/GB",
    connections: BULK,
    operation: |amount| Operation::Upload { payload: 16 * 1024, frames: amount },
    units: |amount| (amount * BULK * 16 * 1024) as f64 / GIGA,
};

const DOWNLOAD: Workload = Workload {
    name: "backend to client",
    unit: "CPU s/GB",
    connections: BULK,
    operation: |amount| Operation::Download(amount * 1024),
    units: |amount| (amount * BULK * 1024) as f64 / GIGA,
};

const WORKLOADS: [Workload; 6] = [
    UPLOAD,
    Workload {
        name: "client to backend, frames of 64 B",
        unit: "CPU s/GB",
        connections: BULK,
        operation: |amount| Operation::Upload { payload: 64, frames: amount },
        units: |amount| (amount * BULK * 64) as f64 / GIGA,
    },
    Workload {
        name: "the same, one TLS record per frame",
        unit: "CPU s/GB",
        connections: BULK,
        operation: |amount| Operation::UploadInRecords { payload: 64, frames: amount },
        units: |amount| (amount * BULK * 64) as f64 / GIGA,
    },
    DOWNLOAD,
    Workload {
        name: "echo of 64 B, 64 sessions",
        unit: "CPU µs each",
        connections: ECHOES,
        operation: Operation::Echo,
        units: |amount| (amount * ECHOES) as f64 / 1e6,
    },
    Workload {
        name: "session: TLS, upgrade, echo, close",
        unit: "CPU µs each",
        connections: 0,
        operation: Operation::Sessions,
        units: |amount| amount as f64 / 1e6,
    },
];

fn main() -> anyhow::Result<()> {
    if common::run_role()? {
        return Ok(());
    }
    let arguments = Arguments::read(&["--quick", "--rounds", "--backends", "--compare"])?;
    let (rounds, round_time) = if arguments.has("--quick") { (3, 120) } else { (7, 350) };
    let (rounds, round_time) = (arguments.number("--rounds", rounds)?, Duration::from_millis(round_time));
    let bench = Bench::set_up()?;
    if arguments.has("--backends") {
        let mut runners = Vec::new();
        for transport in Transport::ALL {
            runners.push(Runner::new(bench.portcullis(true, transport)?, &bench)?);
            runners.push(Runner::new(bench.raw_pipe(transport)?, &bench)?);
        }
        let workloads = [UPLOAD, DOWNLOAD];
        run(&mut runners, &workloads, rounds, round_time)?;
        print_transports(&runners, &workloads, rounds);
        return Ok(());
    }
    let mut runners = Vec::new();
    let mut targets = vec![bench.portcullis(true, Transport::Tcp), bench.raw_pipe(Transport::Tcp)];
    if let Some(program) = arguments.path("--compare")? {
        targets.push(Ok(bench.portcullis_build(program, true, Transport::Tcp)?));
    } else {
        targets.extend([
            bench.haproxy(),
            bench.haproxy_tuned(),
            bench.nginx(),
            bench.lighttpd(),
            bench.websockify(),
        ]);
    }
    for target in targets {
        match target {
            Ok(target) => runners.push(Runner::new(target, &bench)?),
            Err(why) => println!("skipped: {why:#}"),
        }
    }
    run(&mut runners, &WORKLOADS, rounds, round_time)?;
    print_table(&runners, rounds);
    Ok(())
}

/// Runs each workload with each program, in turns, for several rounds.
fn run(
    runners: &mut [Runner],
    workloads: &[Workload],
    rounds: u64,
    round_time: Duration,
) -> anyhow::Result<()> {
    for runner in runners.iter_mut() {
        for workload in workloads {
            runner
                .calibrate(workload, round_time)
                .with_context(|| format!("{}: {}", runner.target.name, workload.name))?;
        }
    }
    for _ in 0..rounds {
        for (row, workload) in workloads.iter().enumerate() {
            for runner in runners.iter_mut() {
                runner
                    .measure(row, workload)
                    .with_context(|| format!("{}: {}", runner.target.name, workload.name))?;
            }
        }
    }
    Ok(())
}

/// A program under test and its measurements.
struct Runner {
    target: Target,
    driver: Driver,
    /// For each workload: the amount of work that takes about one `round_time`.
    amounts: Vec<u64>,
    /// For each workload: the CPU time of a unit, in every round.
    costs: Vec<Vec<f64>>,
}

impl Runner {
    fn new(target: Target, bench: &Bench) -> anyhow::Result<Self> {
        let driver = Driver::start(&target, &bench.certificate)?;
        Ok(Self { target, driver, amounts: Vec::new(), costs: vec![Vec::new(); WORKLOADS.len()] })
    }

    /// Finds the amount of `workload` that takes about `round_time`. This is the warm-up, too.
    fn calibrate(&mut self, workload: &Workload, round_time: Duration) -> anyhow::Result<()> {
        self.open(workload)?;
        let mut amount = 1;
        let took = loop {
            let took = self.driver.run((workload.operation)(amount))?;
            if took >= round_time / 4 {
                break took;
            }
            amount *= 4;
        };
        self.close(workload)?;
        let share = round_time.as_secs_f64() / took.as_secs_f64();
        self.amounts.push(((amount as f64 * share) as u64).max(1));
        Ok(())
    }

    fn measure(&mut self, row: usize, workload: &Workload) -> anyhow::Result<()> {
        let amount = self.amounts[row];
        self.open(workload)?;
        let before = self.target.process.cpu_time()?;
        self.driver.run((workload.operation)(amount))?;
        let spent = self.target.process.cpu_time()?.saturating_sub(before);
        self.close(workload)?;
        self.costs[row].push(spent.as_secs_f64() / (workload.units)(amount));
        Ok(())
    }

    fn open(&mut self, workload: &Workload) -> anyhow::Result<()> {
        if workload.connections > 0 {
            self.driver.run(Operation::Open(workload.connections))?;
        }
        Ok(())
    }

    fn close(&mut self, workload: &Workload) -> anyhow::Result<()> {
        if workload.connections > 0 {
            self.driver.run(Operation::Close)?;
        }
        Ok(())
    }
}

fn print_table(runners: &[Runner], rounds: u64) {
    println!(
        "CPU time of all processes, median of {rounds} rounds; in brackets: the ratio to the raw pipe, taken round by round"
    );
    print!("\n| |");
    runners.iter().for_each(|runner| print!(" {} |", runner.target.name));
    println!("\n|---|{}", "---|".repeat(runners.len()));
    let baseline = runners.iter().find(|runner| runner.target.name == BASELINE);
    for (row, workload) in WORKLOADS.iter().enumerate() {
        print!("| {}, {} |", workload.name, workload.unit);
        for runner in runners {
            let costs = &runner.costs[row];
            let cost = median(costs.iter().copied());
            let digits = if cost < 10.0 { 2 } else { 0 };
            print!(" {cost:.digits$}");
            if let Some(baseline) = baseline {
                print!(" ({:.2})", ratio(costs, &baseline.costs[row]));
            }
            print!(" |");
        }
        println!();
    }
}

/// Prints a column for each transport. `runners` are pairs of the gateway and the raw pipe, one pair for each transport.
fn print_transports(runners: &[Runner], workloads: &[Workload], rounds: u64) {
    println!(
        "CPU time of all processes, median of {rounds} rounds; in brackets: the ratio to tcp, taken round by round"
    );
    print!("\n| |");
    Transport::ALL.iter().for_each(|transport| print!(" {transport} |"));
    println!("\n|---|{}", "---|".repeat(Transport::ALL.len()));
    for (row, workload) in workloads.iter().enumerate() {
        for program in [0, 1] {
            let by_tcp = &runners[program].costs[row];
            print!("| {}, {}, {} |", workload.name, workload.unit, runners[program].target.name);
            for pair in runners.chunks(2) {
                let costs = &pair[program].costs[row];
                print!(" {:.2} ({:.2}) |", median(costs.iter().copied()), ratio(costs, by_tcp));
            }
            println!();
        }
        print!("| {}, Portcullis to the raw pipe |", workload.name);
        for pair in runners.chunks(2) {
            print!(" {:.2} |", ratio(&pair[0].costs[row], &pair[1].costs[row]));
        }
        println!();
    }
}

/// The median of the ratios of `costs` to `others`, taken round by round.
fn ratio(costs: &[f64], others: &[f64]) -> f64 {
    median(costs.iter().zip(others).map(|(own, other)| own / other))
}
