//! One listener while it is open.
//!
//! Owns the accept loop. Refuses to know what a connection does. Invariants: no accept error ends the loop; each
//! connection is led through the door that is newest at the moment it is accepted; a socket that is closed has first been
//! asked for those who had already come.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    connection::{self, Door, House},
    transport::listener::{BACKLOG, Backoff, listen},
};

/// How often a failing accept is logged.
const ACCEPT_WARNING: Duration = Duration::from_secs(10);

/// A socket that listens, and nobody accepts yet.
#[derive(Debug)]
pub(super) struct Bound {
    /// The address as it is configured.
    configured: SocketAddr,
    /// The address with the port that was given for port 0.
    local: SocketAddr,
    socket: TcpListener,
}

impl Bound {
    /// Listens on `address`.
    pub(super) fn to(address: SocketAddr) -> io::Result<Self> {
        let socket = listen(address)?;
        Ok(Self { configured: address, local: socket.local_addr()?, socket })
    }
}

/// A listener that accepts, until it is dropped.
#[derive(Debug)]
pub(super) struct Station {
    /// The address as it is configured.
    pub(super) configured: SocketAddr,
    /// The address with the port that was given for port 0.
    pub(super) local: SocketAddr,
    door: watch::Sender<Arc<Door>>,
    _closes: DropGuard,
}

/// Where the tasks of a gateway live.
#[derive(Debug, Clone, Default)]
pub(super) struct Tasks {
    /// The accept loops.
    pub(super) loops: TaskTracker,
    /// The connections.
    pub(super) connections: TaskTracker,
}

impl Station {
    /// Begins to accept.
    pub(super) fn open(bound: Bound, door: Arc<Door>, house: &Arc<House>, tasks: &Tasks) -> Self {
        let Bound { configured, local, socket } = bound;
        tracing::info!(address = %local, tls = door.tls.is_some(), "listening");
        let (door, newest) = watch::channel(door);
        let closing = CancellationToken::new();
        let hall = Hall { newest, house: Arc::clone(house), connections: tasks.connections.clone() };
        tasks.loops.spawn(hall.accept(socket, closing.clone()));
        Self { configured, local, door, _closes: closing.drop_guard() }
    }

    /// What new connections are led through.
    pub(super) fn door(&self) -> Arc<Door> {
        Arc::clone(&self.door.borrow())
    }

    /// From now on, connections are led through this door.
    pub(super) fn lead_through(&self, door: Arc<Door>) {
        self.door.send_replace(door);
    }
}

/// What the loop of one listener holds.
struct Hall {
    newest: watch::Receiver<Arc<Door>>,
    house: Arc<House>,
    connections: TaskTracker,
}

impl Hall {
    /// Accepts until `closing`, and then those who are waiting already.
    async fn accept(self, socket: TcpListener, closing: CancellationToken) {
        let mut backoff = Backoff::default();
        let mut warned: Option<Instant> = None;
        while let Some(accepted) = closing.run_until_cancelled(socket.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    backoff.reset();
                    self.welcome(stream, peer);
                }
                Err(error) => {
                    self.house.metrics.count_accept_error();
                    let Some(pause) = backoff.after(&error) else { continue };
                    if warned.is_none_or(|last| last.elapsed() >= ACCEPT_WARNING) {
                        warned = Some(Instant::now());
                        tracing::warn!(%error, "cannot accept connections; sessions go on, trying again");
                    }
                    closing.run_until_cancelled(time::sleep(pause)).await;
                }
            }
        }
        // Not through the runtime, which may not have heard of the newest. What fails now cannot be helped.
        let Ok(socket) = socket.into_std() else { return };
        for _ in 0..BACKLOG {
            let Ok((stream, peer)) = socket.accept() else { return };
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                self.welcome(stream, peer);
            }
        }
    }

    fn welcome(&self, stream: TcpStream, peer: SocketAddr) {
        let door = Arc::clone(&self.newest.borrow());
        self.connections.spawn(connection::live(stream, peer, door, Arc::clone(&self.house)));
    }
}
