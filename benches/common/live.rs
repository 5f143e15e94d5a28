//! Live sessions whose latency is measured, and clients that open new ones meanwhile.

use std::{
    fmt,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::{
    client::Connection,
    process::Process,
    protocol::ClientProtocol,
    targets::Target,
    tls::{Handshake, connector},
};

/// The live sessions.
const SESSIONS: u32 = 100;
/// How often each of them sends.
const INTERVAL: Duration = Duration::from_millis(50);
/// How many clients open a new session during a measurement.
const NEW_SESSIONS: u32 = 100;
/// How long each of them waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// What each message carries, in bytes.
const ECHO: [u8; 64] = [0x5a; 64];

/// The result of one measurement.
#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    /// The median, the 99th percentile and the maximum of the echoes, in µs.
    pub(crate) echo: [u64; 3],
    /// How long each new session took up to its first echo, in µs and in order. [`PATIENCE`] if it took longer.
    pub(crate) opened: Vec<u64>,
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.echo.iter().chain(&self.opened).map(u64::to_string).collect();
        f.write_str(&numbers.join(" "))
    }
}

impl FromStr for Latencies {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let mut numbers = line.split(' ').map(str::parse);
        let mut next = || numbers.next().context("a number is missing")?.context("not a number");
        let echo = [next()?, next()?, next()?];
        Ok(Self { echo, opened: numbers.collect::<Result<_, _>>()? })
    }
}

/// The benchmark's handle to the process with the live sessions of one program under test.
pub(crate) struct LiveSessions(Process);

impl LiveSessions {
    pub(crate) fn open(target: &Target, certificate: &Path) -> anyhow::Result<Self> {
        let certificate = certificate.to_str().context("the temporary directory's name is not UTF-8")?;
        let (protocol, address) = (target.protocol.to_string(), target.address.to_string());
        let process = Process::role(&["live", &protocol, &address, certificate])?;
        let ready = process.read_line()?;
        ensure!(ready == "open", "{ready}");
        Ok(Self(process))
    }

    pub(crate) fn measure(&mut self, duration: Duration) -> anyhow::Result<Latencies> {
        writeln!(self.0.stdin()?, "{}", duration.as_millis())?;
        let answer = self.0.read_line()?;
        answer.parse().with_context(|| answer.clone())
    }
}

/// The process: opens the sessions, then measures for as many milliseconds as each line says.
pub(super) async fn serve(
    protocol: ClientProtocol,
    address: SocketAddr,
    certificate: &Path,
) -> anyhow::Result<()> {
    let connector = connector(certificate, Handshake::Full)?;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let mut session = Connection::open(protocol, address, &connector).await?;
        session.echo(&ECHO).await?;
        sessions.push(session);
    }
    println!("open");
    std::io::stdout().flush()?;
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let duration = Duration::from_millis(line.parse()?);
        let mut echoes = JoinSet::new();
        for (number, session) in (0..).zip(sessions.drain(..)) {
            echoes.spawn(echo(session, number, duration));
        }
        let opened = open_sessions(protocol, address, connector.clone(), duration).await?;
        let mut latencies = Vec::new();
        while let Some(done) = echoes.join_next().await {
            let (session, of_session) = done??;
            sessions.push(session);
            latencies.extend(of_session);
        }
        latencies.sort_unstable();
        let at = |share: usize| latencies[(latencies.len() - 1) * share / 100];
        println!("{}", Latencies { echo: [at(50), at(99), at(100)], opened });
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Echoes on one session, out of step with the others. Returns the latencies in µs.
async fn echo(
    mut session: Connection,
    number: u32,
    duration: Duration,
) -> anyhow::Result<(Connection, Vec<u64>)> {
    let mut latencies = Vec::new();
    sleep(INTERVAL * number / SESSIONS).await;
    let (end, mut ticks) = (Instant::now() + duration, interval(INTERVAL));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while Instant::now() < end {
        ticks.tick().await;
        let start = Instant::now();
        session.echo(&ECHO).await?;
        latencies.push(start.elapsed().as_micros() as u64);
    }
    Ok((session, latencies))
}

/// New clients, spread over the duration.
async fn open_sessions(
    protocol: ClientProtocol,
    address: SocketAddr,
    connector: TlsConnector,
    duration: Duration,
) -> anyhow::Result<Vec<u64>> {
    let mut clients = JoinSet::new();
    for number in 0..NEW_SESSIONS {
        let connector = connector.clone();
        clients.spawn(async move {
            sleep(duration * number / NEW_SESSIONS).await;
            let start = Instant::now();
            let opened = timeout(PATIENCE, async {
                let mut session = Connection::open(protocol, address, &connector).await?;
                session.echo(&ECHO).await?;
                Ok::<_, anyhow::Error>(session)
            });
            let opened = opened.await.is_ok_and(|opened| opened.is_ok());
            let took = if opened { start.elapsed() } else { PATIENCE };
            took.as_micros() as u64
        });
    }
    let mut took = clients.join_all().await;
    took.sort_unstable();
    Ok(took)
}
