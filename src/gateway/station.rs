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

use tokio::{sync::watch, time};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    config::Address,
    connection::{self, Door, House},
    transport::{
        listener::{Backoff, Inherited, Listening, listen},
        socket::Socket,
    },
};

/// How often a failing accept is logged.
const ACCEPT_WARNING: Duration = Duration::from_secs(10);

/// A socket that listens, and nobody accepts yet.
#[derive(Debug)]
pub(super) struct Bound {
    /// The address as it is configured.
    configured: Address,
    socket: Listening,
}

impl Bound {
    /// Listens on `address`, on several sockets where it is the name of several.
    pub(super) fn to(address: &Address, inherited: &Inherited) -> io::Result<Vec<Self>> {
        let sockets = listen(address, inherited)?.into_iter();
        Ok(sockets.map(|socket| Self { configured: address.clone(), socket }).collect())
    }
}

/// A listener that accepts, until it is dropped.
#[derive(Debug)]
pub(super) struct Station {
    /// The address as it is configured.
    pub(super) configured: Address,
    /// The address with the port that was given for port 0.
    pub(super) local: Address,
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
        let Bound { configured, socket } = bound;
        let local = socket.address();
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
    async fn accept(self, socket: Listening, closing: CancellationToken) {
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
        for (stream, peer) in socket.into_waiting() {
            self.welcome(stream, peer);
        }
    }

    fn welcome(&self, stream: Socket, peer: SocketAddr) {
        let door = Arc::clone(&self.newest.borrow());
        self.connections.spawn(connection::live(stream, peer, door, Arc::clone(&self.house)));
    }
}
