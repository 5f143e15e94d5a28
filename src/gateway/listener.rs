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
    connection::{self, ListenerSettings, Shared},
    transport::{
        listener::{Backoff, InheritedSockets, ListeningSocket, listen},
        socket::Socket,
    },
};

/// How often a failing accept is logged.
const ACCEPT_WARNING: Duration = Duration::from_secs(10);

/// A socket that listens, and nobody accepts yet.
#[derive(Debug)]
pub(super) struct BoundListener {
    /// The address as it is configured.
    configured: Address,
    socket: ListeningSocket,
}

impl BoundListener {
    /// Listens on `address`, on several sockets where it is the name of several.
    pub(super) fn to(address: &Address, inherited: &InheritedSockets) -> io::Result<Vec<Self>> {
        let sockets = listen(address, inherited)?.into_iter();
        Ok(sockets.map(|socket| Self { configured: address.clone(), socket }).collect())
    }
}

/// A listener that accepts, until it is dropped.
#[derive(Debug)]
pub(super) struct OpenListener {
    /// The address as it is configured.
    pub(super) configured: Address,
    /// The address with the port that was given for port 0.
    pub(super) local: Address,
    settings: watch::Sender<Arc<ListenerSettings>>,
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

impl OpenListener {
    /// Begins to accept.
    pub(super) fn open(
        bound: BoundListener,
        settings: Arc<ListenerSettings>,
        shared: &Arc<Shared>,
        tasks: &Tasks,
    ) -> Self {
        let BoundListener { configured, socket } = bound;
        let local = socket.address();
        tracing::info!(address = %local, tls = settings.tls.is_some(), "listening");
        let (settings, newest) = watch::channel(settings);
        let closing = CancellationToken::new();
        let accept_loop =
            AcceptLoop { newest, shared: Arc::clone(shared), connections: tasks.connections.clone() };
        tasks.loops.spawn(accept_loop.accept(socket, closing.clone()));
        Self { configured, local, settings, _closes: closing.drop_guard() }
    }

    /// What new connections are led through.
    pub(super) fn settings(&self) -> Arc<ListenerSettings> {
        Arc::clone(&self.settings.borrow())
    }

    /// From now on, connections are led through this door.
    pub(super) fn update(&self, settings: Arc<ListenerSettings>) {
        self.settings.send_replace(settings);
    }
}

/// What the loop of one listener holds.
struct AcceptLoop {
    newest: watch::Receiver<Arc<ListenerSettings>>,
    shared: Arc<Shared>,
    connections: TaskTracker,
}

impl AcceptLoop {
    /// Accepts until `closing`, and then those who are waiting already.
    async fn accept(self, socket: ListeningSocket, closing: CancellationToken) {
        let mut backoff = Backoff::default();
        let mut warned: Option<Instant> = None;
        while let Some(accepted) = closing.run_until_cancelled(socket.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    backoff.reset();
                    self.spawn_connection(stream, peer);
                }
                Err(error) => {
                    self.shared.metrics.count_accept_error();
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
            self.spawn_connection(stream, peer);
        }
    }

    fn spawn_connection(&self, stream: Socket, peer: SocketAddr) {
        let settings = Arc::clone(&self.newest.borrow());
        self.connections.spawn(connection::serve(stream, peer, settings, Arc::clone(&self.shared)));
    }
}
