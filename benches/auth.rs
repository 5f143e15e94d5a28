//! What authentication costs.
//!
//! `cargo bench --bench auth [-- --quick | --rounds 25 | --sessions 1000 | --seconds 10 | --cost 12]` measures two things.
//!
//! The CPU time (user and system) that the gateway spends on a whole session (TLS handshake, upgrade, echo, close), on a route
//! without authentication and on routes with JWT (ES256), a ticket, a login service that admits every credential (forward), and a
//! client certificate. The routes take turns, for several rounds, and differences are taken round by round. Each session has
//! a token or a ticket of its own; they are issued between the measurements. A client certificate needs a listener that asks for
//! it, and so a gateway of its own.
//!
//! The latency of the echoes of 100 live sessions, first quietly, then while more clients log in with passwords (bcrypt) than
//! the gateway's queue holds. No user logs in twice, so that each password is hashed. In between, another process hashes
//! passwords on as many threads: what that changes is due to the machine, which has fewer processors left, not to the gateway.
//!
//! Clients, backend and login service are processes of their own.

#[allow(dead_code, unused_imports, reason = "the other benchmarks use more of it")]
mod common;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use self::common::{
    Arguments, Bench, Driver, Handshake, Hashing, Latencies, LiveSessions, Logins, Operation, Request,
    Target, median,
};

/// What a JWT and a ticket may add to the CPU time of a session, in µs.
const JWT_GOAL: f64 = 150.0;
const TICKET_GOAL: f64 = 10.0;
/// The 99th percentile of the echoes may be this many times that without logins.
const LOGINS_GOAL: f64 = 2.0;
/// How many users the password file has: more than log in.
const USERS: u64 = 20_000;
/// How long the clients that log in may take to fill the queue.
const FILL_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

fn main() -> anyhow::Result<()> {
    if common::run_role()? {
        return Ok(());
    }
    let arguments = Arguments::read(&["--quick", "--rounds", "--sessions", "--seconds", "--cost"])?;
    let quick = arguments.has("--quick");
    let rounds = arguments.number("--rounds", if quick { 3 } else { 25 })?;
    let sessions = arguments.number("--sessions", if quick { 100 } else { 1000 })?;
    let duration = Duration::from_secs(arguments.number("--seconds", if quick { 2 } else { 10 })?);
    let cost = u32::try_from(arguments.number("--cost", if quick { 8 } else { 12 })?)?;
    ensure!(rounds > 0 && sessions > 0, "--rounds and --sessions: at least one is needed");
    let bench = Bench::set_up()?;
    measure_sessions(&bench, rounds, sessions)?;
    // Such a round takes half a minute.
    measure_logins(&bench, rounds.min(3), duration, cost)
}

/// Measures the CPU time of sessions with each method, in turns.
fn measure_sessions(bench: &Bench, rounds: u64, sessions: u64) -> anyhow::Result<()> {
    let (target, issuer) = bench.portcullis_with_auth("Portcullis", true)?;
    let with_certificates = bench.portcullis_with_certificates()?;
    let certificate = |_| Ok(vec![Request::new("/certificate")]);
    let mut methods = [
        Method::new("no authentication", None, &target, bench, |_| Ok(Vec::new()))?,
        Method::new("JWT (ES256)", Some(JWT_GOAL), &target, bench, |count| issuer.tokens(count))?,
        Method::new("a ticket", Some(TICKET_GOAL), &target, bench, |count| issuer.tickets(count))?,
        Method::new("forward", None, &target, bench, |_| Ok(vec![issuer.login()]))?,
        Method {
            driver: Driver::with(&with_certificates, &bench.certificate, Handshake::Certificate)?,
            ..Method::new("a client certificate", None, &with_certificates, bench, certificate)?
        },
    ];
    let [_, in_request @ .., _] = &mut methods;
    for method in in_request {
        method.ensure_required()?;
    }
    for method in &mut methods {
        method.measure(sessions.div_ceil(4)).with_context(|| method.name)?;
        method.costs.clear();
    }
    let count = methods.len();
    for round in 0..usize::try_from(rounds)? {
        // Another one begins each time.
        for turn in 0..count {
            let method = &mut methods[(round + turn) % count];
            method.measure(sessions).with_context(|| method.name)?;
        }
    }
    print_costs(&methods, rounds, sessions);
    Ok(())
}

/// A kind of authentication, and its measurements.
struct Method<'a> {
    name: &'static str,
    /// What it may add, in µs.
    goal: Option<f64>,
    target: &'a Target,
    driver: Driver,
    /// Issues the credentials of so many sessions.
    issue: Box<dyn Fn(u64) -> anyhow::Result<Vec<Request>> + 'a>,
    /// The CPU time of a session in µs, in every round.
    costs: Vec<f64>,
}

impl<'a> Method<'a> {
    fn new(
        name: &'static str,
        goal: Option<f64>,
        target: &'a Target,
        bench: &Bench,
        issue: impl Fn(u64) -> anyhow::Result<Vec<Request>> + 'a,
    ) -> anyhow::Result<Self> {
        let driver = Driver::start(target, &bench.certificate)?;
        Ok(Self { name, goal, target, driver, issue: Box::new(issue), costs: Vec::new() })
    }

    /// Fails if the route admits a request without a credential: then it would measure nothing.
    fn ensure_required(&mut self) -> anyhow::Result<()> {
        let requests: Vec<Request> = (self.issue)(1)?.iter().map(Request::anonymous).collect();
        self.driver.present(&requests)?;
        let Err(refused) = self.driver.run(Operation::Sessions(1)) else {
            bail!("{}: a session opened without a credential", self.name)
        };
        ensure!(refused.to_string().contains(" 401 "), "{}: {refused:#}", self.name);
        Ok(())
    }

    fn measure(&mut self, sessions: u64) -> anyhow::Result<()> {
        self.driver.present(&(self.issue)(sessions)?)?;
        let before = self.target.process.cpu_time()?;
        self.driver.run(Operation::Sessions(sessions))?;
        let spent = self.target.process.cpu_time()?.saturating_sub(before);
        self.costs.push(spent.as_secs_f64() * 1e6 / sessions as f64);
        Ok(())
    }
}

fn print_costs(methods: &[Method], rounds: u64, sessions: u64) {
    println!(
        "CPU time of the gateway for a session, median of {rounds} rounds of {sessions} sessions; differences round by round"
    );
    println!("\n| | µs | ratio | adds, µs | first to third quartile |\n|---|---|---|---|---|");
    let Some((baseline, others)) = methods.split_first() else { return };
    println!("| {} | {:.0} | | | |", baseline.name, median(baseline.costs.iter().copied()));
    let pairs = |method: &Method| -> Vec<(f64, f64)> {
        method.costs.iter().copied().zip(baseline.costs.iter().copied()).collect()
    };
    for method in others {
        let ratio = median(pairs(method).iter().map(|(own, without)| own / without));
        let mut added: Vec<f64> = pairs(method).iter().map(|(own, without)| own - without).collect();
        added.sort_by(f64::total_cmp);
        let quartile = |share: usize| added[((added.len() - 1) * share + 2) / 4];
        println!(
            "| {} | {:.0} | {ratio:.2} | {:.1} | {:.1} to {:.1} |",
            method.name,
            median(method.costs.iter().copied()),
            median(added.iter().copied()),
            quartile(1),
            quartile(3)
        );
    }
    println!();
    for method in others {
        let added = median(pairs(method).iter().map(|(own, without)| own - without));
        let goal = method.goal.map_or_else(String::new, |goal| {
            format!(" (goal: under {goal} µs, {})", if added < goal { "reached" } else { "not reached" })
        });
        println!("{} adds {added:.1} µs{goal}", method.name);
    }
}

/// What one round with logins has shown.
struct LoginRound {
    quiet: Latencies,
    /// While another process hashes on as many threads.
    hashing: Latencies,
    loaded: Latencies,
    /// How many logins per second were admitted and refused.
    admitted: f64,
    refused: f64,
}

/// Measures the echoes of live sessions without and with logins.
fn measure_logins(bench: &Bench, rounds: u64, duration: Duration, cost: u32) -> anyhow::Result<()> {
    let target = bench.portcullis_with_passwords(USERS, cost)?;
    let mut live = LiveSessions::open(&target, &bench.certificate)?;
    let mut logins = Logins::new(&target, &bench.certificate, USERS)?;
    let mut measured = Vec::new();
    for _ in 0..rounds {
        let quiet = live.measure(duration)?;
        let elsewhere = Hashing::start(cost)?;
        let hashing = live.measure(duration)?;
        drop(elsewhere);
        fill_queue(&mut logins)?;
        let (before, start) = (logins.counts()?, Instant::now());
        let loaded = live.measure(duration)?;
        let (after, seconds) = (logins.counts()?, start.elapsed().as_secs_f64());
        logins.stop()?;
        ensure!(
            after.admitted > before.admitted,
            "no login was admitted in {duration:?}; try a lower --cost"
        );
        ensure!(after.refused > before.refused, "no login was refused: the queue was not full");
        let rate = |after: u64, before: u64| (after - before) as f64 / seconds;
        measured.push(LoginRound {
            quiet,
            hashing,
            loaded,
            admitted: rate(after.admitted, before.admitted),
            refused: rate(after.refused, before.refused),
        });
    }
    print_logins(&measured, duration, cost);
    Ok(())
}

/// Starts the logins, and waits until one is refused because the queue is full.
fn fill_queue(logins: &mut Logins) -> anyhow::Result<()> {
    let (before, end) = (logins.counts()?, Instant::now() + FILL_TIMEOUT);
    logins.start()?;
    while logins.counts()?.refused == before.refused {
        ensure!(Instant::now() < end, "the queue is not full after {FILL_TIMEOUT:?}; try a higher --cost");
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

fn print_logins(rounds: &[LoginRound], duration: Duration, cost: u32) {
    let of = |value: &dyn Fn(&LoginRound) -> f64| median(rounds.iter().map(value));
    println!(
        "\nechoes of 100 sessions in µs, without and with logins at the limit of the queue (bcrypt, cost {cost}), median of \
         {} rounds of {duration:?}",
        rounds.len()
    );
    println!("\n| | p50 | p99 | max | logins/s | refused/s |\n|---|---|---|---|---|---|");
    let row = |name: &str, latencies: fn(&LoginRound) -> &Latencies, rates: &str| {
        let echo = |index: usize| of(&|round| latencies(round).echo[index] as f64);
        println!("| {name} | {:.0} | {:.0} | {:.0} | {rates} |", echo(0), echo(1), echo(2));
    };
    row("quiet", |round| &round.quiet, "|");
    row("hashing in another process", |round| &round.hashing, "|");
    let rates = format!("{:.1} | {:.1}", of(&|round| round.admitted), of(&|round| round.refused));
    row("logins", |round| &round.loaded, &rates);
    let times = |other: fn(&LoginRound) -> &Latencies| {
        of(&|round| round.loaded.echo[1] as f64 / other(round).echo[1] as f64)
    };
    let ratio = times(|round| &round.quiet);
    let reached = if ratio <= LOGINS_GOAL { "reached" } else { "not reached" };
    println!(
        "\nWith logins, the p99 of the echoes is {ratio:.2} times that without (goal: at most {LOGINS_GOAL}, {reached}),"
    );
    println!("and {:.2} times that with the same hashing in another process.", times(|round| &round.hashing));
}
