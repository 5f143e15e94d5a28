//! One open listener and its accept loop.
//!
//! Knows nothing of what a connection does. While all handshake permits are in use the loop does not accept: connections
//! wait in the kernel's backlog, first come, first served, until handshakes finish or the oldest are ended. Invariants: no
//! accept error ends the loop; each connection gets the listener settings that are current when it is accepted; connections
//! that wait in the backlog are accepted before the socket is closed.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{pin, sync::watch, task::yield_now, time};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    admission::Admission,
    config::{Address, SocketAccess},
    connection::{ListenerSettings, NewConnection, Shared},
    socket_buffer::SocketBuffer,
    transport::{
        listener::{Backoff, InheritedSockets, ListeningSocket, listen},
        socket::Socket,
    },
};

/// The shortest interval between two warnings about failed accepts.
const ACCEPT_WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// After so many accepted connections the sessions have their turn, even if more connections wait.
const YIELD_AFTER: u32 = 8;
/// The longest pause until the handshakes are examined again: how long they may take depends on what other clients do.
const PERMIT_RECHECK: Duration = Duration::from_millis(100);
/// How long the connections that wait in the backlog of a socket that closes may wait for handshake permits.
const CLOSING_PAUSE: Duration = Duration::from_secs(1);

/// A bound socket without an accept loop.
#[derive(Debug)]
pub(super) struct BoundListener {
    /// The address as it is configured.
    configured: Address,
    socket: ListeningSocket,
}

impl BoundListener {
    /// Binds `address`. The name of inherited sockets can yield several.
    pub(super) fn bind(
        address: &Address,
        access: &SocketAccess,
        inherited: &InheritedSockets,
        buffer: &SocketBuffer,
    ) -> io::Result<Vec<Self>> {
        let sockets = listen(address, access, inherited, buffer)?.into_iter();
        Ok(sockets.map(|socket| Self { configured: address.clone(), socket }).collect())
    }
}

/// A listener with a running accept loop. Dropping it closes the socket.
#[derive(Debug)]
pub(super) struct OpenListener {
    /// The address as it is configured.
    pub(super) configured: Address,
    /// The address with the port that the system chose for port 0.
    pub(super) local: Address,
    settings: watch::Sender<Arc<ListenerSettings>>,
    _closes: DropGuard,
}

/// Trackers of the tasks of a gateway.
#[derive(Debug, Clone, Default)]
pub(super) struct Tasks {
    pub(super) accept_loops: TaskTracker,
    pub(super) connections: TaskTracker,
}

impl OpenListener {
    /// Spawns the accept loop.
    pub(super) fn open(
        bound: BoundListener,
        settings: Arc<ListenerSettings>,
        shared: &Arc<Shared>,
        tasks: &Tasks,
    ) -> Self {
        let BoundListener { configured, socket } = bound;
        let local = socket.address();
        tracing::info!(address = %local, tls = settings.tls.is_some(), "listening");
        let (settings, current) = watch::channel(settings);
        let closing = CancellationToken::new();
        let accept_loop = AcceptLoop {
            settings: current,
            shared: Arc::clone(shared),
            connections: tasks.connections.clone(),
        };
        tasks.accept_loops.spawn(accept_loop.run(socket, closing.clone()));
        Self { configured, local, settings, _closes: closing.drop_guard() }
    }

    /// The settings for new connections.
    pub(super) fn settings(&self) -> Arc<ListenerSettings> {
        Arc::clone(&self.settings.borrow())
    }

    /// Replaces the settings for new connections.
    pub(super) fn update(&self, settings: Arc<ListenerSettings>) {
        self.settings.send_replace(settings);
    }
}

struct AcceptLoop {
    settings: watch::Receiver<Arc<ListenerSettings>>,
    shared: Arc<Shared>,
    connections: TaskTracker,
}

impl AcceptLoop {
    /// Accepts until `closing` is cancelled, then accepts what waits in the backlog.
    async fn run(self, socket: ListeningSocket, closing: CancellationToken) {
        let mut backoff = Backoff::default();
        let mut warned: Option<Instant> = None;
        let (mut give_up, mut accepted_count) = (None, 0_u32);
        while let Some(accepted) = closing.run_until_cancelled(socket.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    backoff.reset();
                    self.serve(stream, peer, &closing, &mut give_up).await;
                    accepted_count = accepted_count.wrapping_add(1);
                    if accepted_count.is_multiple_of(YIELD_AFTER) {
                        yield_now().await;
                    }
                }
                Err(error) => {
                    self.shared.metrics.count_accept_error();
                    let Some(pause) = backoff.after(&error) else { continue };
                    if warned.is_none_or(|last| last.elapsed() >= ACCEPT_WARNING_INTERVAL) {
                        warned = Some(Instant::now());
                        tracing::warn!(%error, "cannot accept connections; open sessions continue, retrying");
                    }
                    closing.run_until_cancelled(time::sleep(pause)).await;
                }
            }
        }
        for (stream, peer) in socket.into_waiting() {
            self.serve(stream, peer, &closing, &mut give_up).await;
        }
    }

    /// Spawns the task of a connection once it has a handshake permit, at the latest when the oldest handshake is old enough
    /// to be ended. While the socket closes, it refuses connections that have none at `give_up`.
    async fn serve(
        &self,
        stream: Socket,
        peer: SocketAddr,
        closing: &CancellationToken,
        give_up: &mut Option<time::Instant>,
    ) {
        let settings = Arc::clone(&self.settings.borrow());
        let Some(connection) = NewConnection::admit(stream, peer, settings, Arc::clone(&self.shared)) else {
            return;
        };
        loop {
            let released = self.shared.handshakes.released();
            pin!(released);
            released.as_mut().enable();
            match self.shared.handshakes.admit(connection.newcomer(), time::Instant::now().into_std()) {
                Admission::Granted(permit) => {
                    self.connections.spawn(connection.serve(permit));
                    return;
                }
                Admission::Refused(exceeded) => return connection.refuse(&exceeded),
                Admission::Wait(_) if give_up.is_some_and(|give_up| time::Instant::now() >= give_up) => {
                    return connection.refuse_as_overloaded();
                }
                Admission::Wait(longest) => {
                    let retry = time::Instant::now() + longest.min(PERMIT_RECHECK);
                    let retry = give_up.map_or(retry, |give_up| give_up.min(retry));
                    tokio::select! {
                        _ = time::timeout_at(retry, released) => {}
                        () = closing.cancelled(), if give_up.is_none() => {
                            *give_up = Some(time::Instant::now() + CLOSING_PAUSE);
                        }
                    }
                }
            }
        }
    }
}
