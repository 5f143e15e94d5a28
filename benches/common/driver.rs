//! The load generator: a process that opens connections to one program and runs operations on them.

use std::{
    fmt,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use super::{
    client::{Connection, binary, buffer},
    process::Process,
    protocol::{ClientProtocol, Command},
    request::{Request, Requests},
    targets::Target,
    tls::{Handshake, connector},
};

/// How many connections are opened concurrently.
const CONCURRENT_OPENS: u64 = 64;
/// How many short sessions run concurrently.
const CONCURRENT_SESSIONS: u64 = 8;
/// The payload of an echo, in bytes.
const ECHO: usize = 64;
/// How much a client passes to TLS at a time, in bytes. With many small records, their headers must fit into rustls'
/// buffer of 64 KiB as well.
const BURST: usize = 64 * 1024;
const BURST_IN_RECORDS: usize = 32 * 1024;
/// What the line before the requests begins with; their number follows.
const PRESENT: &str = "present ";

/// What the driver does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    /// Open this many connections, with one echo on each.
    Open(u64),
    /// Close all of them.
    Close,
    /// On every connection, send this many frames of this payload size, packed into large TLS records, and wait until
    /// the backend has received them.
    Upload { payload: u64, frames: u64 },
    /// The same, with one TLS record for each frame.
    UploadInRecords { payload: u64, frames: u64 },
    /// On every connection, receive this many bytes.
    Download(u64),
    /// On every connection, this many echoes of 64 bytes, one after the other.
    Echo(u64),
    /// This many short sessions: open, one echo, close.
    Sessions(u64),
}

impl fmt::Display for Operation {
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

impl FromStr for Operation {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let mut fields = line.split_whitespace();
        let verb = fields.next().unwrap_or_default();
        let numbers = fields.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        Ok(match (verb, &numbers[..]) {
            ("open", &[count]) => Self::Open(count),
            ("close", &[]) => Self::Close,
            ("upload", &[payload, frames]) => Self::Upload { payload, frames },
            ("upload-in-records", &[payload, frames]) => Self::UploadInRecords { payload, frames },
            ("download", &[bytes]) => Self::Download(bytes),
            ("echo", &[count]) => Self::Echo(count),
            ("sessions", &[count]) => Self::Sessions(count),
            _ => bail!("unknown operation: {line}"),
        })
    }
}

/// The benchmark's handle to the driver process of one program under test.
pub(crate) struct Driver(Process);

impl Driver {
    pub(crate) fn start(target: &Target, certificate: &Path) -> anyhow::Result<Self> {
        Self::with(target, certificate, Handshake::Full)
    }

    pub(crate) fn with(target: &Target, certificate: &Path, handshake: Handshake) -> anyhow::Result<Self> {
        let certificate = certificate.to_str().context("the temporary directory's name is not UTF-8")?;
        let (protocol, address) = (target.protocol.to_string(), target.address.to_string());
        let process = Process::role(&["driver", &protocol, &address, certificate, &handshake.to_string()])?;
        Ok(Self(process))
    }

    /// From now on, sessions open with these requests, in turn.
    pub(crate) fn present(&mut self, requests: &[Request]) -> anyhow::Result<()> {
        let lines: String = requests.iter().map(|request| format!("{request}\n")).collect();
        write!(self.0.stdin()?, "{PRESENT}{}\n{lines}", requests.len())?;
        Ok(())
    }

    /// Runs `operation`. Returns how long it took.
    pub(crate) fn run(&mut self, operation: Operation) -> anyhow::Result<Duration> {
        writeln!(self.0.stdin()?, "{operation}")?;
        let answer = self.0.read_line()?;
        let micros = answer.strip_prefix("done ").with_context(|| format!("{operation}: {answer}"))?;
        Ok(Duration::from_micros(micros.parse()?))
    }
}

/// The driver process: runs the operations it reads until standard input ends.
pub(super) async fn serve(
    protocol: ClientProtocol,
    address: SocketAddr,
    certificate: &Path,
    handshake: Handshake,
) -> anyhow::Result<()> {
    let resumes = handshake == Handshake::Resumed;
    let connector = connector(certificate, handshake)?;
    let mut endpoint = Endpoint { protocol, address, connector, requests: Arc::default(), resumes };
    let mut connections = Vec::new();
    let mut operations = BufReader::new(stdin()).lines();
    while let Some(operation) = operations.next_line().await? {
        if let Some(count) = operation.strip_prefix(PRESENT) {
            let mut requests = Vec::new();
            for _ in 0..count.parse()? {
                requests.push(operations.next_line().await?.context("a request is missing")?.parse()?);
            }
            endpoint.requests = Arc::new(Requests::new(requests));
            continue;
        }
        let started = Instant::now();
        match endpoint.run(operation.parse()?, &mut connections).await {
            Ok(()) => println!("done {}", started.elapsed().as_micros()),
            Err(error) => println!("failed: {error:#}"),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

#[derive(Clone)]
struct Endpoint {
    protocol: ClientProtocol,
    address: SocketAddr,
    connector: TlsConnector,
    requests: Arc<Requests>,
    /// Whether every session must be resumed, except the first of each worker.
    resumes: bool,
}

impl Endpoint {
    async fn run(&self, operation: Operation, connections: &mut Vec<Connection>) -> anyhow::Result<()> {
        match operation {
            Operation::Open(count) => {
                for share in distribute(self, count, CONCURRENT_OPENS, Self::open_connections).await? {
                    connections.extend(share);
                }
            }
            Operation::Close => {
                let mut closing = JoinSet::new();
                for connection in connections.drain(..) {
                    closing.spawn(connection.close());
                }
                while let Some(closed) = closing.join_next().await {
                    closed??;
                }
            }
            Operation::Upload { payload, frames } => {
                let upload = Upload::new(self.protocol, payload, frames, false);
                on_every_connection(connections, |connection| upload.clone().run(connection)).await?;
            }
            Operation::UploadInRecords { payload, frames } => {
                let upload = Upload::new(self.protocol, payload, frames, true);
                on_every_connection(connections, |connection| upload.clone().run(connection)).await?;
            }
            Operation::Download(bytes) => {
                on_every_connection(connections, |connection| download(connection, bytes)).await?
            }
            Operation::Echo(count) => {
                on_every_connection(connections, |connection| echo(connection, count)).await?
            }
            Operation::Sessions(count) => {
                distribute(self, count, CONCURRENT_SESSIONS, Self::run_sessions).await?;
            }
        }
        Ok(())
    }

    async fn open(&self) -> anyhow::Result<Connection> {
        let request = self.requests.next();
        Connection::open_from(None, &request, self.protocol, self.address, &self.connector).await
    }

    async fn open_connections(self, count: u64) -> anyhow::Result<Vec<Connection>> {
        let mut connections = Vec::new();
        for _ in 0..count {
            let mut connection = self.open().await?;
            connection.echo(&[0x5a; ECHO]).await?;
            connections.push(connection);
        }
        Ok(connections)
    }

    async fn run_sessions(self, count: u64) -> anyhow::Result<()> {
        for number in 0..count {
            let mut connection = self.open().await?;
            ensure!(
                number == 0 || connection.is_resumed() == self.resumes,
                "expected resumed: {}, got {}",
                self.resumes,
                connection.is_resumed()
            );
            connection.echo(&[0x5a; ECHO]).await?;
            connection.close().await?;
        }
        Ok(())
    }
}

/// Distributes `count` evenly over `workers` tasks.
async fn distribute<T, F>(
    endpoint: &Endpoint,
    count: u64,
    workers: u64,
    work: impl Fn(Endpoint, u64) -> F,
) -> anyhow::Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for worker in 0..workers {
        let share = count / workers + u64::from(worker < count % workers);
        tasks.spawn(work(endpoint.clone(), share));
    }
    let mut done = Vec::new();
    while let Some(share) = tasks.join_next().await {
        done.push(share??);
    }
    Ok(done)
}

/// Runs `work` on all connections concurrently.
async fn on_every_connection<F>(
    connections: &mut Vec<Connection>,
    work: impl Fn(Connection) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<Connection>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for connection in connections.drain(..) {
        tasks.spawn(work(connection));
    }
    while let Some(connection) = tasks.join_next().await {
        connections.push(connection??);
    }
    Ok(())
}

/// An upload whose frames are built once and sent many times.
#[derive(Clone)]
struct Upload {
    bytes: Vec<u8>,
    frame: usize,
    frames: u64,
    /// How many bytes the backend receives.
    total: u64,
    in_records: bool,
}

impl Upload {
    fn new(protocol: ClientProtocol, payload: u64, frames: u64, in_records: bool) -> Self {
        let frame = binary(&vec![0x5a; payload as usize]);
        let received = if protocol == ClientProtocol::Tls { frame.len() as u64 } else { payload };
        let burst = if in_records { BURST_IN_RECORDS } else { BURST };
        let bytes = frame.repeat((burst / frame.len()).max(1));
        Self { bytes, frame: frame.len(), frames, total: received * frames, in_records }
    }

    async fn run(self, mut connection: Connection) -> anyhow::Result<Connection> {
        connection.send(&Command::Sink(self.total).encode()).await?;
        let mut left = self.frames as usize * self.frame;
        while left > 0 {
            let burst = &self.bytes[..left.min(self.bytes.len())];
            if self.in_records {
                connection.send_in_records(burst, self.frame).await?;
            } else {
                connection.send_raw(burst).await?;
            }
            left -= burst.len();
        }
        connection.receive(1, &mut [0; 1024]).await?;
        Ok(connection)
    }
}

async fn download(mut connection: Connection, bytes: u64) -> anyhow::Result<Connection> {
    connection.send(&Command::Source(bytes).encode()).await?;
    connection.receive(bytes, &mut buffer()).await?;
    Ok(connection)
}

async fn echo(mut connection: Connection, count: u64) -> anyhow::Result<Connection> {
    connection.send(&Command::Echo(count * ECHO as u64).encode()).await?;
    for _ in 0..count {
        connection.send(&[0x5a; ECHO]).await?;
        connection.receive(ECHO as u64, &mut [0; 1024]).await?;
    }
    Ok(connection)
}
