//! What carrying bytes costs in processor time.
//!
//! `cargo bench --bench relay [-- --quick | --rounds 7 | --backends]` measures the whole-process CPU time (user and system) of the gateway, of a
//! raw TLS pipe made of the same libraries, and of the other programs that are installed, in turns, several rounds, on
//! the same work. CPU time, not time on the wall: it says the same on a busy machine. The client and the backend are
//! processes of their own and do not count.
//!
//! With `--backends`, the gateway and the raw pipe carry bulk to and from a backend that is reached by TCP, by a Unix
//! socket and by TLS: what the way there costs a session that is established.

#[allow(dead_code, unused_imports, reason = "the other benchmarks use more of it")]
mod common;

use std::time::Duration;

use anyhow::Context;

use self::common::{Arguments, Bench, Driver, Order, Target, Way, median};

/// Connections that carry bulk at the same time.
const BULK: u64 = 4;
/// Connections that echo at the same time.
const ECHOES: u64 = 64;
/// The name that ratios refer to.
const YARDSTICK: &str = "raw rustls pipe";

/// One kind of work.
#[derive(Clone, Copy)]
struct Work {
    name: &'static str,
    unit: &'static str,
    /// How many connections are open.
    lines: u64,
    /// What to do for an amount of work.
    order: fn(u64) -> Order,
    /// How many units an amount is: what CPU seconds are divided by.
    units: fn(u64) -> f64,
}

const GIGA: f64 = 1e9;

const UPLOAD: Work = Work {
    name: "client to backend, frames of 16 KiB",
    unit: "CPU s/GB",
    lines: BULK,
    order: |amount| Order::Upload { payload: 16 * 1024, frames: amount },
    units: |amount| (amount * BULK * 16 * 1024) as f64 / GIGA,
};

const DOWNLOAD: Work = Work {
    name: "backend to client",
    unit: "CPU s/GB",
    lines: BULK,
    order: |amount| Order::Download(amount * 1024),
    units: |amount| (amount * BULK * 1024) as f64 / GIGA,
};

const WORK: [Work; 6] = [
    UPLOAD,
    Work {
        name: "client to backend, frames of 64 B",
        unit: "CPU s/GB",
        lines: BULK,
        order: |amount| Order::Upload { payload: 64, frames: amount },
        units: |amount| (amount * BULK * 64) as f64 / GIGA,
    },
    Work {
        name: "the same, a TLS record each",
        unit: "CPU s/GB",
        lines: BULK,
        order: |amount| Order::UploadInRecords { payload: 64, frames: amount },
        units: |amount| (amount * BULK * 64) as f64 / GIGA,
    },
    DOWNLOAD,
    Work {
        name: "echo of 64 B, 64 sessions",
        unit: "CPU µs each",
        lines: ECHOES,
        order: Order::Echo,
        units: |amount| (amount * ECHOES) as f64 / 1e6,
    },
    Work {
        name: "session: TLS, upgrade, echo, close",
        unit: "CPU µs each",
        lines: 0,
        order: Order::Sessions,
        units: |amount| amount as f64 / 1e6,
    },
];

fn main() -> anyhow::Result<()> {
    if common::play_role()? {
        return Ok(());
    }
    let arguments = Arguments::read(&["--quick", "--rounds", "--backends"])?;
    let (rounds, slice) = if arguments.has("--quick") { (3, 120) } else { (7, 350) };
    let (rounds, slice) = (arguments.number("--rounds", rounds)?, Duration::from_millis(slice));
    let bench = Bench::set_up()?;
    if arguments.has("--backends") {
        let mut runners = Vec::new();
        for way in Way::ALL {
            runners.push(Runner::new(bench.portcullis(true, way)?, &bench)?);
            runners.push(Runner::new(bench.raw_pipe(way)?, &bench)?);
        }
        let works = [UPLOAD, DOWNLOAD];
        run(&mut runners, &works, rounds, slice)?;
        print_ways(&runners, &works, rounds);
        return Ok(());
    }
    let mut runners = Vec::new();
    for target in [
        bench.portcullis(true, Way::Tcp),
        bench.raw_pipe(Way::Tcp),
        bench.haproxy(),
        bench.nginx(),
        bench.lighttpd(),
        bench.websockify(),
    ] {
        match target {
            Ok(target) => runners.push(Runner::new(target, &bench)?),
            Err(why) => println!("skipped: {why:#}"),
        }
    }
    run(&mut runners, &WORK, rounds, slice)?;
    print_table(&runners, rounds);
    Ok(())
}

/// Has each program do each kind of work, in turns, several rounds.
fn run(runners: &mut [Runner], works: &[Work], rounds: u64, slice: Duration) -> anyhow::Result<()> {
    for runner in runners.iter_mut() {
        for work in works {
            runner
                .calibrate(work, slice)
                .with_context(|| format!("{}: {}", runner.target.name, work.name))?;
        }
    }
    for _ in 0..rounds {
        for (row, work) in works.iter().enumerate() {
            for runner in runners.iter_mut() {
                runner
                    .measure(row, work)
                    .with_context(|| format!("{}: {}", runner.target.name, work.name))?;
            }
        }
    }
    Ok(())
}

/// A program under test, and what was measured.
struct Runner {
    target: Target,
    driver: Driver,
    /// Of each work: how much of it makes a slice of time.
    amounts: Vec<u64>,
    /// Of each work: the CPU time of a unit, in every round.
    costs: Vec<Vec<f64>>,
}

impl Runner {
    fn new(target: Target, bench: &Bench) -> anyhow::Result<Self> {
        let driver = Driver::start(&target, &bench.certificate)?;
        Ok(Self { target, driver, amounts: Vec::new(), costs: vec![Vec::new(); WORK.len()] })
    }

    /// Finds out how much of `work` takes about `slice`, which warms everything up, too.
    fn calibrate(&mut self, work: &Work, slice: Duration) -> anyhow::Result<()> {
        self.open(work)?;
        let mut amount = 1;
        let took = loop {
            let took = self.driver.carry_out((work.order)(amount))?;
            if took >= slice / 4 {
                break took;
            }
            amount *= 4;
        };
        self.close(work)?;
        let share = slice.as_secs_f64() / took.as_secs_f64();
        self.amounts.push(((amount as f64 * share) as u64).max(1));
        Ok(())
    }

    fn measure(&mut self, row: usize, work: &Work) -> anyhow::Result<()> {
        let amount = self.amounts[row];
        self.open(work)?;
        let before = self.target.process.cpu_time()?;
        self.driver.carry_out((work.order)(amount))?;
        let spent = self.target.process.cpu_time()?.saturating_sub(before);
        self.close(work)?;
        self.costs[row].push(spent.as_secs_f64() / (work.units)(amount));
        Ok(())
    }

    fn open(&mut self, work: &Work) -> anyhow::Result<()> {
        if work.lines > 0 {
            self.driver.carry_out(Order::Open(work.lines))?;
        }
        Ok(())
    }

    fn close(&mut self, work: &Work) -> anyhow::Result<()> {
        if work.lines > 0 {
            self.driver.carry_out(Order::Close)?;
        }
        Ok(())
    }
}

fn print_table(runners: &[Runner], rounds: u64) {
    println!(
        "CPU time of the whole process, median of {rounds} rounds; in brackets: of the raw pipe's, round by round"
    );
    print!("\n| |");
    runners.iter().for_each(|runner| print!(" {} |", runner.target.name));
    println!("\n|---|{}", "---|".repeat(runners.len()));
    let yardstick = runners.iter().find(|runner| runner.target.name == YARDSTICK);
    for (row, work) in WORK.iter().enumerate() {
        print!("| {}, {} |", work.name, work.unit);
        for runner in runners {
            let costs = &runner.costs[row];
            let cost = median(costs.iter().copied());
            let digits = if cost < 10.0 { 2 } else { 0 };
            print!(" {cost:.digits$}");
            if let Some(yardstick) = yardstick {
                print!(" ({:.2})", ratio(costs, &yardstick.costs[row]));
            }
            print!(" |");
        }
        println!();
    }
}

/// The runners are pairs, the gateway and the raw pipe, one for each way.
fn print_ways(runners: &[Runner], works: &[Work], rounds: u64) {
    println!(
        "CPU time of the whole process, median of {rounds} rounds; in brackets: of that with tcp, round by round"
    );
    print!("\n| |");
    Way::ALL.iter().for_each(|way| print!(" {way} |"));
    println!("\n|---|{}", "---|".repeat(Way::ALL.len()));
    for (row, work) in works.iter().enumerate() {
        for program in [0, 1] {
            let by_tcp = &runners[program].costs[row];
            print!("| {}, {}, {} |", work.name, work.unit, runners[program].target.name);
            for pair in runners.chunks(2) {
                let costs = &pair[program].costs[row];
                print!(" {:.2} ({:.2}) |", median(costs.iter().copied()), ratio(costs, by_tcp));
            }
            println!();
        }
        print!("| {}, Portcullis of the raw pipe's |", work.name);
        for pair in runners.chunks(2) {
            print!(" {:.2} |", ratio(&pair[0].costs[row], &pair[1].costs[row]));
        }
        println!();
    }
}

/// What some costs are of others, round by round.
fn ratio(costs: &[f64], others: &[f64]) -> f64 {
    median(costs.iter().zip(others).map(|(own, other)| own / other))
}
