//! Clients that log in with passwords, more of them than the gateway compares and keeps waiting.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::Path,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, available_parallelism},
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::TlsConnector;

use super::{
    auth::{PASSWORD, user},
    client::{Connection, Refused},
    process::Process,
    protocol::ClientProtocol,
    request::Request,
    targets::Target,
    tls::{Handshake, connector},
};

/// How many clients log in at the same time. The gateway compares the passwords of at most 4, and 64 wait.
const CLIENTS: u32 = 84;
/// How long a client waits before it tries again when there is no place for it.
const PAUSE: Duration = Duration::from_secs(1);
/// What each session carries before it ends, in bytes.
const ECHO: [u8; 64] = [0x5a; 64];

/// How the logins have fared since the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoginCounts {
    /// Those whose password was compared.
    pub(crate) admitted: u64,
    /// Those that found no place in the queue.
    pub(crate) refused: u64,
}

impl FromStr for LoginCounts {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let (admitted, refused) = line.split_once(' ').with_context(|| line.to_owned())?;
        let number = |text: &str| text.parse().with_context(|| line.to_owned());
        Ok(Self { admitted: number(admitted)?, refused: number(refused)? })
    }
}

/// The benchmark's handle to the clients. None of the users in `users` logs in twice.
pub(crate) struct Logins(Process);

impl Logins {
    pub(crate) fn new(target: &Target, certificate: &Path, users: u64) -> anyhow::Result<Self> {
        let certificate = certificate.to_str().context("the temporary directory's name is not UTF-8")?;
        let role = ["logins", &target.address.to_string(), certificate, &users.to_string()];
        Ok(Self(Process::role(&role)?))
    }

    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        self.command("start").map(drop)
    }

    pub(crate) fn counts(&mut self) -> anyhow::Result<LoginCounts> {
        self.command("count")
    }

    /// Lets those that wait finish.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        self.command("stop").map(drop)
    }

    fn command(&mut self, command: &str) -> anyhow::Result<LoginCounts> {
        writeln!(self.0.stdin()?, "{command}")?;
        self.0.read_line()?.parse().context("the clients that log in failed")
    }
}

/// The hashing alone, in a process of its own. Dropping it ends it.
pub(crate) struct Hashing(#[expect(dead_code, reason = "it runs until it is dropped")] Process);

impl Hashing {
    pub(crate) fn start(cost: u32) -> anyhow::Result<Self> {
        let process = Process::role(&["hashing", &cost.to_string()])?;
        process.read_line()?;
        Ok(Self(process))
    }
}

/// The process: hashes passwords on as many threads as the gateway does, until it is killed. Prints a line first.
pub(super) fn hash(cost: u32) -> anyhow::Result<()> {
    let threads = (available_parallelism()?.get() / 2).clamp(1, 4);
    println!("hashing");
    std::io::stdout().flush()?;
    let workers: Vec<_> =
        (0..threads).map(|_| thread::spawn(move || while bcrypt::hash(PASSWORD, cost).is_ok() {})).collect();
    for worker in workers {
        worker.join().map_err(|_| anyhow!("a thread has panicked"))?;
    }
    bail!("bcrypt with cost {cost} fails")
}

/// The process: starts and stops the clients, and prints the counts after each line.
pub(super) async fn serve(address: SocketAddr, certificate: &Path, users: u64) -> anyhow::Result<()> {
    let connector = connector(certificate, Handshake::Full)?;
    let state = Arc::new(State { users, ..State::default() });
    let mut clients = JoinSet::new();
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        state.stops.store(line == "stop", Ordering::Relaxed);
        if line == "start" {
            for _ in 0..CLIENTS {
                clients.spawn(log_in(address, connector.clone(), Arc::clone(&state)));
            }
        }
        let mut failed = None;
        while let Some(ended) =
            if line == "stop" { clients.join_next().await } else { clients.try_join_next() }
        {
            failed = ended?.err().or(failed);
        }
        match failed {
            Some(error) => println!("{error:#}"),
            None => println!(
                "{} {}",
                state.admitted.load(Ordering::Relaxed),
                state.refused.load(Ordering::Relaxed)
            ),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// What the clients share.
#[derive(Default)]
struct State {
    users: u64,
    next: AtomicU64,
    admitted: AtomicU64,
    refused: AtomicU64,
    stops: AtomicBool,
}

/// One client: logs in as one user after the other.
async fn log_in(address: SocketAddr, connector: TlsConnector, state: Arc<State>) -> anyhow::Result<()> {
    loop {
        let number = state.next.fetch_add(1, Ordering::Relaxed);
        ensure!(number < state.users, "all {} users have logged in; use more, or a higher cost", state.users);
        let credentials = BASE64_STANDARD.encode(format!("{}:{PASSWORD}", user(number)));
        let request = Request::new("/password").with_authorization(&format!("Basic {credentials}"));
        loop {
            if state.stops.load(Ordering::Relaxed) {
                return Ok(());
            }
            let opened = Connection::open_from(None, &request, ClientProtocol::Wss, address, &connector);
            match opened.await {
                Ok(mut session) => {
                    state.admitted.fetch_add(1, Ordering::Relaxed);
                    session.echo(&ECHO).await?;
                    session.close().await?;
                    break;
                }
                Err(error) if error.downcast_ref().is_some_and(Refused::is_unavailable) => {
                    state.refused.fetch_add(1, Ordering::Relaxed);
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
