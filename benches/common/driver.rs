//! The load: a process that opens connections to one program and does with them what it is told.

use std::{
    fmt,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use super::{
    Process,
    backend::Command,
    client::{Handshake, Line, Speech, binary, buffer, connector},
    targets::Target,
};

/// How many connections are opened at the same time.
const OPENING: u64 = 64;
/// How many short sessions run at the same time.
const SHORT: u64 = 8;
/// The payload of an echo, in bytes.
const ECHO: usize = 64;
/// About how much a client hands to TLS at a time, in bytes. What many small records add must fit into rustls' 64 KiB.
const BURST: usize = 64 * 1024;
const BURST_IN_RECORDS: usize = 32 * 1024;

/// What the driver is told to do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    /// Open so many connections, each with one echo.
    Open(u64),
    /// Close all of them.
    Close,
    /// On every connection, send so many frames of so many bytes of payload, packed into large TLS records, and wait
    /// until the backend has them.
    Upload { payload: u64, frames: u64 },
    /// The same with one TLS record for each frame.
    UploadInRecords { payload: u64, frames: u64 },
    /// On every connection, have so many bytes sent.
    Download(u64),
    /// On every connection, so many times an echo of 64 bytes, one after the other.
    Echo(u64),
    /// So many short sessions: open, one echo, close.
    Sessions(u64),
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(count) => write!(f, "open {count}"),
            Self::Close => write!(f, "close"),
            Self::Upload { payload, frames } => write!(f, "upload {payload} {frames}"),
            Self::UploadInRecords { payload, frames } => write!(f, "upload-in-records {payload} {frames}"),
            Self::Download(bytes) => write!(f, "download {bytes}"),
            Self::Echo(count) => write!(f, "echo {count}"),
            Self::Sessions(count) => write!(f, "sessions {count}"),
        }
    }
}

impl FromStr for Order {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap_or_default();
        let numbers = words.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        Ok(match (verb, &numbers[..]) {
            ("open", &[count]) => Self::Open(count),
            ("close", &[]) => Self::Close,
            ("upload", &[payload, frames]) => Self::Upload { payload, frames },
            ("upload-in-records", &[payload, frames]) => Self::UploadInRecords { payload, frames },
            ("download", &[bytes]) => Self::Download(bytes),
            ("echo", &[count]) => Self::Echo(count),
            ("sessions", &[count]) => Self::Sessions(count),
            _ => bail!("not an order: {line}"),
        })
    }
}

/// The driver of one program under test, seen from the benchmark.
pub(crate) struct Driver(Process);

impl Driver {
    pub(crate) fn start(target: &Target, certificate: &Path) -> anyhow::Result<Self> {
        Self::with(target, certificate, Handshake::Whole)
    }

    pub(crate) fn with(target: &Target, certificate: &Path, handshake: Handshake) -> anyhow::Result<Self> {
        let certificate = certificate.to_str().context("the temporary directory's name is not UTF-8")?;
        let (speech, address) = (target.speech.to_string(), target.address.to_string());
        let process = Process::role(&["driver", &speech, &address, certificate, handshake.word()])?;
        Ok(Self(process))
    }

    /// Has `order` carried out. Returns how long it took.
    pub(crate) fn carry_out(&mut self, order: Order) -> anyhow::Result<Duration> {
        writeln!(self.0.stdin()?, "{order}")?;
        let answer = self.0.line()?;
        let micros = answer.strip_prefix("done ").with_context(|| format!("{order}: {answer}"))?;
        Ok(Duration::from_micros(micros.parse()?))
    }
}

/// Carries out orders until standard input ends.
pub(super) async fn serve(
    speech: Speech,
    address: SocketAddr,
    certificate: &Path,
    handshake: Handshake,
) -> anyhow::Result<()> {
    let resumes = handshake == Handshake::Resumed;
    let target = Front { speech, address, connector: connector(certificate, handshake)?, resumes };
    let mut lines = Vec::new();
    let mut orders = BufReader::new(stdin()).lines();
    while let Some(order) = orders.next_line().await? {
        let started = Instant::now();
        match target.carry_out(order.parse()?, &mut lines).await {
            Ok(()) => println!("done {}", started.elapsed().as_micros()),
            Err(error) => println!("failed: {error:#}"),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

#[derive(Clone)]
struct Front {
    speech: Speech,
    address: SocketAddr,
    connector: TlsConnector,
    /// Whether every session but the first of a worker must begin with a ticket.
    resumes: bool,
}

impl Front {
    async fn carry_out(&self, order: Order, lines: &mut Vec<Line>) -> anyhow::Result<()> {
        match order {
            Order::Open(count) => {
                for share in in_shares(self, count, OPENING, Self::open_some).await? {
                    lines.extend(share);
                }
            }
            Order::Close => {
                let mut closing = JoinSet::new();
                for line in lines.drain(..) {
                    closing.spawn(line.close());
                }
                while let Some(closed) = closing.join_next().await {
                    closed??;
                }
            }
            Order::Upload { payload, frames } => {
                let upload = Upload::new(self.speech, payload, frames, false);
                on_every(lines, |line| upload.clone().run(line)).await?;
            }
            Order::UploadInRecords { payload, frames } => {
                let upload = Upload::new(self.speech, payload, frames, true);
                on_every(lines, |line| upload.clone().run(line)).await?;
            }
            Order::Download(bytes) => on_every(lines, |line| download(line, bytes)).await?,
            Order::Echo(count) => on_every(lines, |line| echo(line, count)).await?,
            Order::Sessions(count) => {
                in_shares(self, count, SHORT, Self::live_some).await?;
            }
        }
        Ok(())
    }

    async fn open_some(self, count: u64) -> anyhow::Result<Vec<Line>> {
        let mut lines = Vec::new();
        for _ in 0..count {
            let mut line = Line::open(self.speech, self.address, &self.connector).await?;
            line.greet(&[0x5a; ECHO]).await?;
            lines.push(line);
        }
        Ok(lines)
    }

    async fn live_some(self, count: u64) -> anyhow::Result<()> {
        for number in 0..count {
            let mut line = Line::open(self.speech, self.address, &self.connector).await?;
            ensure!(number == 0 || line.is_resumed() == self.resumes, "this handshake is of the other kind");
            line.greet(&[0x5a; ECHO]).await?;
            line.close().await?;
        }
        Ok(())
    }
}

/// Has `count` shared out to at most `workers` tasks.
async fn in_shares<T, F>(
    front: &Front,
    count: u64,
    workers: u64,
    work: impl Fn(Front, u64) -> F,
) -> anyhow::Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for worker in 0..workers {
        let share = count / workers + u64::from(worker < count % workers);
        tasks.spawn(work(front.clone(), share));
    }
    let mut done = Vec::new();
    while let Some(share) = tasks.join_next().await {
        done.push(share??);
    }
    Ok(done)
}

/// Does `work` on every connection at the same time.
async fn on_every<F>(lines: &mut Vec<Line>, work: impl Fn(Line) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<Line>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for line in lines.drain(..) {
        tasks.spawn(work(line));
    }
    while let Some(line) = tasks.join_next().await {
        lines.push(line??);
    }
    Ok(())
}

/// Frames that are made once and sent many times.
#[derive(Clone)]
struct Upload {
    bytes: Vec<u8>,
    frame: usize,
    frames: u64,
    /// What the backend will see.
    total: u64,
    in_records: bool,
}

impl Upload {
    fn new(speech: Speech, payload: u64, frames: u64, in_records: bool) -> Self {
        let frame = binary(&vec![0x5a; payload as usize]);
        let seen = if speech == Speech::Tls { frame.len() as u64 } else { payload };
        let burst = if in_records { BURST_IN_RECORDS } else { BURST };
        let bytes = frame.repeat((burst / frame.len()).max(1));
        Self { bytes, frame: frame.len(), frames, total: seen * frames, in_records }
    }

    async fn run(self, mut line: Line) -> anyhow::Result<Line> {
        line.send(&Command::Sink(self.total).encode()).await?;
        let mut left = self.frames as usize * self.frame;
        while left > 0 {
            let burst = &self.bytes[..left.min(self.bytes.len())];
            if self.in_records {
                line.send_in_records(burst, self.frame).await?;
            } else {
                line.send_raw(burst).await?;
            }
            left -= burst.len();
        }
        line.receive(1, &mut [0; 1024]).await?;
        Ok(line)
    }
}

async fn download(mut line: Line, bytes: u64) -> anyhow::Result<Line> {
    line.send(&Command::Source(bytes).encode()).await?;
    line.receive(bytes, &mut buffer()).await?;
    Ok(line)
}

async fn echo(mut line: Line, count: u64) -> anyhow::Result<Line> {
    line.send(&Command::Echo(count * ECHO as u64).encode()).await?;
    for _ in 0..count {
        line.send(&[0x5a; ECHO]).await?;
        line.receive(ECHO as u64, &mut [0; 1024]).await?;
    }
    Ok(line)
}
