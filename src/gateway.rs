//! The process: listeners, accept loops, and the way out.
//!
//! Owns what is shared by all connections and the tasks they run in. Refuses to know what a connection does. Invariants:
//! nothing is bound before everything that can be wrong with the configuration has been looked at; no accept error
//! ends a loop; after a stop, every session is told and the end comes within `timeouts.drain`.

mod goodbye;
mod prepared;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::goodbye::say_goodbye;
pub use self::prepared::{Prepared, StartError};
use crate::{
    config::{Address, Config},
    connection::{self, Door, House, Terms},
    metrics::Metrics,
    transport::listener::{Backoff, Inherited, Listening},
};

/// How often a failing accept is logged.
const ACCEPT_WARNING: Duration = Duration::from_secs(10);

/// A gateway that listens.
#[derive(Debug)]
pub struct Gateway {
    listeners: Vec<(Listening, Arc<Door>)>,
    /// Kept open, whoever listens on them now.
    inherited: Inherited,
    terms: Arc<Terms>,
    house: Arc<House>,
}

impl Gateway {
    /// Loads what `config` names and listens on its addresses.
    ///
    /// # Errors
    /// See [`Prepared::load`] and [`Prepared::bind`].
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        Prepared::load(config)?.bind(Inherited::default()).await
    }

    /// The addresses listened on, in the order of the configuration; with the port that was given for port 0.
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners.iter().map(|(listening, _)| listening.address()).collect()
    }

    /// What was counted so far; outlives the gateway.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.house.metrics)
    }

    /// Lets connections in until `stop`, then tells every session that the gateway goes away and waits for them, for
    /// at most `timeouts.drain`. Dropping the future instead cuts everything at once.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listeners, inherited: _inherited, terms, house } = self;
        let loops = TaskTracker::new();
        let connections = TaskTracker::new();
        // Cancels the loops also when this future is dropped.
        let accepting = CancellationToken::new();
        let _guard = accepting.clone().drop_guard();
        for (socket, door) in listeners {
            let (house, connections) = (Arc::clone(&house), connections.clone());
            loops.spawn(accepting.clone().run_until_cancelled_owned(accept(
                socket,
                door,
                house,
                connections,
            )));
        }
        let watching = CancellationToken::new();
        let _watch_guard = watching.clone().drop_guard();
        for routed in terms.routes.iter() {
            let upstream = Arc::clone(&routed.upstream);
            tokio::spawn(upstream.watch(routed.route.name.clone(), watching.clone()));
        }
        stop.await;
        tracing::info!(sessions = house.registry.len(), "draining");
        accepting.cancel();
        loops.close();
        loops.wait().await;
        house.draining.cancel();
        connections.close();
        tokio::select! {
            () = connections.wait() => {}
            () = say_goodbye(&house.registry, terms.timeouts.drain) => {
                tracing::warn!(connections = connections.len(), "drain time is over, cutting what is left");
            }
        }
    }
}

/// Accepts for one listener, for ever.
async fn accept(socket: Listening, door: Arc<Door>, house: Arc<House>, connections: TaskTracker) {
    let mut backoff = Backoff::default();
    let mut warned: Option<Instant> = None;
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => {
                backoff.reset();
                connections.spawn(connection::live(stream, peer, Arc::clone(&door), Arc::clone(&house)));
            }
            Err(error) => {
                house.metrics.count_accept_error();
                let Some(pause) = backoff.after(&error) else { continue };
                if warned.is_none_or(|last| last.elapsed() >= ACCEPT_WARNING) {
                    warned = Some(Instant::now());
                    tracing::warn!(%error, "cannot accept connections; sessions go on, trying again");
                }
                time::sleep(pause).await;
            }
        }
    }
}
