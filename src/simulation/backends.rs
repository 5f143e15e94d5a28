//! The backends of a simulation: TCP servers that behave well or badly, on hosts of their own.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use super::{
    network::Network,
    payload::{self, Received},
    stream::Stream,
};
use crate::random::Random;

/// What the servers of a route do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// Sends back what it receives.
    Echo,
    /// Reads until the end.
    Sink,
    /// Sends so many bytes, closes its direction and reads until the end.
    Source(u64),
    /// Reads up to so many bytes and closes the socket, which resets the connection if there are more.
    Closing(u64),
    /// Never reads.
    Deaf,
    /// Does not listen.
    Refusing,
    /// Its host does not answer.
    Dead,
}

/// What a backend saw of one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Served {
    pub(super) received: Received,
    /// The number of the stream it sends, if it is a source.
    pub(super) number: Option<u32>,
    pub(super) sent: u64,
    /// It has sent everything it had to send.
    pub(super) finished: bool,
    /// The other end closed its direction in good order.
    pub(super) end: bool,
    /// Its socket in the network.
    pub(super) socket: usize,
}

/// All connections to backends, in the order of their acceptance.
pub(super) type ServedLog = Arc<Mutex<Vec<Served>>>;

/// Streams of backends have numbers from here on.
const FIRST_NUMBER: u32 = 1_000_000;

/// Serves connections for ever.
pub(super) async fn serve(
    network: Network,
    address: SocketAddr,
    server: Server,
    served: ServedLog,
    mut random: Random,
) {
    let Ok(listener) = network.listen(address) else { return };
    let mut connections = JoinSet::new();
    loop {
        let stream = listener.accept().await;
        let index = {
            let mut served = served.lock();
            served.push(Served { socket: stream.socket(), ..Served::default() });
            served.len() - 1
        };
        let connection = Connection { stream, served: Arc::clone(&served), index, random: random.fork() };
        connections.spawn(connection.run(server));
    }
}

struct Connection {
    stream: Stream,
    served: ServedLog,
    index: usize,
    random: Random,
}

impl Connection {
    async fn run(mut self, server: Server) {
        match server {
            Server::Echo => self.echo().await,
            Server::Sink => self.drain(u64::MAX).await,
            Server::Source(len) => self.source(len).await,
            Server::Closing(len) => {
                let len = self.random.between(0, len);
                self.drain(len).await;
            }
            Server::Deaf => std::future::pending().await,
            Server::Refusing | Server::Dead => {}
        }
    }

    fn record(&self, change: impl FnOnce(&mut Served)) {
        change(&mut self.served.lock()[self.index]);
    }

    /// Reads a piece; `None` at the end and on errors.
    async fn read(&mut self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; self.random.between(1, 8192) as usize];
        let len = self.stream.read(&mut buffer).await.ok()?;
        buffer.truncate(len);
        self.record(|served| {
            served.received.push(&buffer);
            served.end = len == 0;
        });
        (len > 0).then_some(buffer)
    }

    async fn drain(&mut self, most: u64) {
        let mut len = 0;
        while len < most
            && let Some(bytes) = self.read().await
        {
            len += bytes.len() as u64;
        }
    }

    async fn echo(&mut self) {
        while let Some(bytes) = self.read().await {
            if self.stream.write_all(&bytes).await.is_err() {
                return;
            }
            self.record(|served| served.sent += bytes.len() as u64);
        }
        let _ = self.stream.shutdown().await;
    }

    async fn source(&mut self, len: u64) {
        let number = FIRST_NUMBER + self.index as u32;
        self.record(|served| served.number = Some(number));
        let mut sent = 0;
        while sent < len {
            let piece = self.random.between(1, 20_000).min(len - sent);
            let bytes = payload::bytes(number, sent, piece as usize);
            // Counted before, because a part of it may arrive.
            sent += piece;
            self.record(|served| served.sent = sent);
            if self.stream.write_all(&bytes).await.is_err() {
                return;
            }
        }
        if self.stream.shutdown().await.is_ok() {
            self.record(|served| served.finished = true);
            self.drain(u64::MAX).await;
        }
    }
}
