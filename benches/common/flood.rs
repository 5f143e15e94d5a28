//! The attacker: TLS handshakes that cost the server its part of the key exchange, and the client almost nothing.
//!
//! Every connection sends the same ClientHello, waits for the server's answer and resets the connection. The addresses are
//! spread over 127.0.0.0/8.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use rustls::{ClientConnection, pki_types::ServerName};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, stdin},
    net::TcpSocket,
    time::timeout,
};

use super::{
    process::Process,
    targets::Target,
    tls::{Handshake, connector},
};

/// How long an attacker waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The benchmark's handle to an attacker. Dropping it ends the attack.
pub(crate) struct Flood(Process);

impl Flood {
    pub(crate) fn start(
        target: &Target,
        certificate: &Path,
        handshake: Handshake,
        concurrency: u64,
    ) -> anyhow::Result<Self> {
        let certificate = certificate.to_str().context("the temporary directory's name is not UTF-8")?;
        let (address, concurrency) = (target.address.to_string(), concurrency.to_string());
        let role = ["flood", &address, certificate, &handshake.to_string(), &concurrency];
        Ok(Self(Process::nice_role(&role)?))
    }

    /// How many handshakes the server has answered since the start.
    pub(crate) fn answered(&mut self) -> anyhow::Result<u64> {
        writeln!(self.0.stdin()?, "count")?;
        Ok(self.0.read_line()?.parse()?)
    }
}

/// Attacks with `concurrency` connections at a time until standard input ends. Prints how many handshakes the server has
/// answered whenever it reads a line.
pub(super) async fn serve(
    address: SocketAddr,
    certificate: &Path,
    handshake: Handshake,
    concurrency: u64,
) -> anyhow::Result<()> {
    let hello: Arc<[u8]> = hello(certificate, handshake)?.into();
    let answered = Arc::new(AtomicU64::new(0));
    for worker in 0..concurrency {
        let (hello, answered) = (Arc::clone(&hello), Arc::clone(&answered));
        tokio::spawn(async move {
            for attempt in 0.. {
                if timeout(PATIENCE, attack(address, source(worker, attempt), &hello))
                    .await
                    .is_ok_and(|a| a.is_ok())
                {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    let mut lines = BufReader::new(stdin()).lines();
    while lines.next_line().await?.is_some() {
        println!("{}", answered.load(Ordering::Relaxed));
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// The first flight of a client.
fn hello(certificate: &Path, handshake: Handshake) -> anyhow::Result<Vec<u8>> {
    let config = Arc::clone(connector(certificate, handshake)?.config());
    let mut hello = Vec::new();
    ClientConnection::new(config, ServerName::try_from("localhost")?)?.write_tls(&mut hello)?;
    Ok(hello)
}

/// An address outside of 127.0.0.0/16, another one each time.
fn source(worker: u64, attempt: u64) -> IpAddr {
    // The constants of splitmix64, which spread neighbouring numbers.
    let mut bits = (worker << 40 | attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let [a, b, c, ..] = bits.to_be_bytes();
    Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254)).into()
}

async fn attack(address: SocketAddr, source: IpAddr, hello: &[u8]) -> anyhow::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    let mut stream = socket.connect(address).await?;
    // A reset leaves neither side with a socket in TIME_WAIT.
    stream.set_zero_linger()?;
    stream.write_all(hello).await?;
    anyhow::ensure!(stream.read(&mut [0; 4096]).await? > 0, "no answer");
    Ok(())
}
