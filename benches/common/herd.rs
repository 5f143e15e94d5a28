//! The herd: a process whose clients all connect at the same moment, from many addresses.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    sync::watch,
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use super::{
    client::Connection,
    process::Process,
    protocol::ClientProtocol,
    request::Request,
    targets::Target,
    tls::{Handshake, connector},
};

/// The addresses of the clients, and the networks (/24) that these are spread over.
const ADDRESSES: u64 = 400;
const NETWORKS: u64 = 40;
/// The payload of an echo, in bytes.
const ECHO: usize = 64;

/// How the clients of a herd got in.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Arrival {
    /// How many did not, by error.
    pub(crate) errors: BTreeMap<String, u64>,
    /// How long each of the others took from the common start to its echo, in order.
    pub(crate) micros: Vec<u64>,
}

impl Arrival {
    pub(crate) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The time within which this part of the clients got in.
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        let last = self.micros.len().saturating_sub(1);
        Duration::from_micros(self.micros.get((last as f64 * part).round() as usize).copied().unwrap_or(0))
    }
}

/// The benchmark's handle to the process with the clients of one program under test.
pub(crate) struct Herd(Process);

impl Herd {
    pub(crate) fn start(target: &Target, certificate: &Path, handshake: Handshake) -> anyhow::Result<Self> {
        let certificate = certificate.to_str().context("the temporary directory's name is not UTF-8")?;
        let (protocol, address) = (target.protocol.to_string(), target.address.to_string());
        Ok(Self(Process::role(&["herd", &protocol, &address, certificate, &handshake.to_string()])?))
    }

    /// Lets this many clients connect at once, and returns when each has its echo or an error. They stay connected.
    pub(crate) fn arrive(&mut self, clients: u64) -> anyhow::Result<Arrival> {
        writeln!(self.0.stdin()?, "arrive {clients}")?;
        let answer = self.0.read_line()?;
        serde_json::from_str(&answer).with_context(|| answer.clone())
    }

    /// Waits until every connection has ended: the program under test was killed.
    pub(crate) fn wait_until_lost(&mut self) -> anyhow::Result<()> {
        writeln!(self.0.stdin()?, "lost")?;
        let answer = self.0.read_line()?;
        ensure!(answer == "lost", "{answer}");
        Ok(())
    }

    /// The processor time of all clients so far.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        self.0.cpu_time()
    }
}

/// The process of the clients: runs what it reads until standard input ends.
pub(super) async fn serve(
    protocol: ClientProtocol,
    address: SocketAddr,
    certificate: &Path,
    handshake: Handshake,
) -> anyhow::Result<()> {
    let connector = Arc::new(connector(certificate, handshake)?);
    let mut connections = Vec::new();
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match line.split_once(' ') {
            Some(("arrive", clients)) => {
                let (arrival, arrived) = arrive(clients.parse()?, protocol, address, &connector).await?;
                connections = arrived;
                println!("{}", serde_json::to_string(&arrival)?);
            }
            None if line == "lost" => {
                let mut ending = JoinSet::new();
                for connection in connections.drain(..) {
                    ending.spawn(Connection::ended(connection));
                }
                ending.join_all().await;
                println!("lost");
            }
            _ => bail!("unknown operation: {line}"),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

async fn arrive(
    clients: u64,
    protocol: ClientProtocol,
    address: SocketAddr,
    connector: &Arc<TlsConnector>,
) -> anyhow::Result<(Arrival, Vec<Connection>)> {
    let (start, started) = watch::channel(None);
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        let (mut started, connector) = (started.clone(), Arc::clone(connector));
        tasks.spawn(async move {
            let start: Instant = started.wait_for(Option::is_some).await?.context("a start")?;
            let mut connection = Connection::open_from(
                Some(source(number)),
                &Request::default(),
                protocol,
                address,
                &connector,
            )
            .await?;
            connection.echo(&[0x5a; ECHO]).await?;
            anyhow::Ok((connection, start.elapsed()))
        });
    }
    // All tasks wait before the clock starts.
    tokio::task::yield_now().await;
    start.send(Some(Instant::now()))?;
    let mut arrival = Arrival { errors: BTreeMap::new(), micros: Vec::new() };
    let mut connections = Vec::new();
    while let Some(client) = tasks.join_next().await {
        match client? {
            Ok((connection, took)) => {
                connections.push(connection);
                arrival.micros.push(took.as_micros() as u64);
            }
            Err(error) => *arrival.errors.entry(format!("{error:#}")).or_default() += 1,
        }
    }
    arrival.micros.sort_unstable();
    Ok((arrival, connections))
}

/// The address of a client: neighbours are in different networks.
fn source(number: u64) -> IpAddr {
    let number = number % ADDRESSES;
    IpAddr::V4(Ipv4Addr::new(127, 20, (number % NETWORKS) as u8, (1 + number / NETWORKS) as u8))
}
