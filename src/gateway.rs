//! The process: listeners, accept loops, and the way out.
//!
//! Owns what is shared by all connections and the tasks they run in. Refuses to know what a connection does. Invariants:
//! nothing is bound before everything that can be wrong with the configuration has been looked at; no accept error
//! ends a loop; after a stop, every session is told and the end comes within `timeouts.drain`.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::TcpListener,
    time::{self, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::{Capacity, Limiter},
    backend::{Tools, Upstream, UpstreamError},
    config::{Config, Listener},
    connection::{self, Door, House},
    http::{Files, Routed, Routes},
    metrics::Metrics,
    outcome::Reason,
    session::Registry,
    transport::{
        listener::{Backoff, listen},
        tls::{IdentityError, Tls},
    },
};

/// The least number of sources the limiter remembers, per address family.
const SOURCES: usize = 65_536;
/// How often a draining gateway tells some sessions.
const DRAIN_TICK: Duration = Duration::from_millis(100);
/// How many sessions it tells at a time at least: a handful need not wait.
const DRAIN_BATCH: usize = 16;
/// Descriptors that are neither a client's nor a backend's: listeners, logs, the runtime's own.
const SPARE_DESCRIPTORS: u64 = 64;
/// How often a failing accept is logged.
const ACCEPT_WARNING: Duration = Duration::from_secs(10);

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A certificate or key is missing, unreadable or wrong.
    #[error("{file}: listener {number}: {cause}")]
    Identity {
        /// The configuration file.
        file: String,
        /// Which listener, counted from 1.
        number: usize,
        /// What is wrong.
        cause: Box<IdentityError>,
    },
    /// What a route says of its servers.
    #[error("{file}: route {route:?}: {cause}")]
    Upstream {
        /// The configuration file.
        file: String,
        /// Which route.
        route: String,
        /// What is wrong.
        cause: Box<UpstreamError>,
    },
    /// The web root cannot be served.
    #[error("{file}: web.root: cannot open {root}: {cause}; check the path and its permissions")]
    Web {
        /// The configuration file.
        file: String,
        /// The directory.
        root: String,
        /// What the system said.
        cause: io::Error,
    },
    /// An address cannot be listened on.
    #[error("{file}: listener {number}: address {address}: cannot listen on it: {cause}; {advice}")]
    Listen {
        /// The configuration file.
        file: String,
        /// Which listener, counted from 1.
        number: usize,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
        /// What to do.
        advice: &'static str,
    },
}

impl StartError {
    /// Whether the configuration is at fault, rather than the machine.
    pub fn is_config(&self) -> bool {
        !matches!(self, Self::Listen { .. })
    }
}

/// Everything a gateway needs, loaded and found good; nothing is bound yet.
#[derive(Debug)]
pub struct Prepared {
    file: String,
    doors: Vec<(SocketAddr, Arc<Door>)>,
    house: Arc<House>,
}

impl Prepared {
    /// Loads what the configuration names: certificates, keys, the web root.
    ///
    /// # Errors
    /// Something is missing, unreadable or wrong.
    pub fn load(config: Config) -> Result<Self, StartError> {
        let Config { file, listeners, routes, limits, timeouts, web, .. } = config;
        let file = file.display().to_string();
        let mut doors = Vec::with_capacity(listeners.len());
        for (index, listener) in listeners.into_iter().enumerate() {
            let Listener { address, identity, min_tls, trusted_proxies, proxy_protocol } = listener;
            let tls = identity.map(|identity| Tls::load(&identity, min_tls)).transpose();
            let tls = tls.map_err(|cause| StartError::Identity {
                file: file.clone(),
                number: index + 1,
                cause: Box::new(cause),
            })?;
            doors.push((address, Arc::new(Door { tls, trusted_proxies, proxy_protocol })));
        }
        let files = web.map(|web| {
            let root = web.root.display().to_string();
            Files::new(&web.root).map_err(|cause| StartError::Web { file: file.clone(), root, cause })
        });
        let tools = Tools::default();
        let routes = routes.into_iter().map(|route| {
            let upstream = Upstream::load(&route.upstream, &tools).map_err(|cause| StartError::Upstream {
                file: file.clone(),
                route: route.name.clone(),
                cause: Box::new(cause),
            })?;
            Ok(Routed { route, upstream: Arc::new(upstream) })
        });
        let routes = Routes::new(routes.collect::<Result<Vec<_>, StartError>>()?);
        // Live connections are never forgotten, so there must be more room than there can be of them.
        let sources = SOURCES.max(2 * (limits.max_sessions + limits.max_handshakes));
        let house = House {
            routes,
            files: files.transpose()?,
            timeouts,
            limiter: Limiter::new(limits.per_ip, sources, Instant::now()),
            handshakes: Capacity::new(limits.max_handshakes),
            sessions: Capacity::new(limits.max_sessions),
            registry: Arc::default(),
            metrics: Arc::default(),
            draining: CancellationToken::new(),
        };
        Ok(Self { file, doors, house: Arc::new(house) })
    }

    /// The routes, and what they lead to.
    pub fn routes(&self) -> Routes<Arc<Upstream>> {
        self.house.routes.clone()
    }

    /// The files of `[web] root`, if there is one.
    pub fn files(&self) -> Option<Files> {
        self.house.files.clone()
    }

    /// How many descriptors the limits can lead to: two a session, one a handshake, and some to spare.
    pub fn descriptors(&self) -> u64 {
        let House { sessions, handshakes, .. } = &*self.house;
        2 * sessions.limit() as u64 + handshakes.limit() as u64 + self.doors.len() as u64 + SPARE_DESCRIPTORS
    }

    /// Listens on every address.
    ///
    /// # Errors
    /// An address is in use, not ours, or not allowed. The ones before it are given up again.
    pub async fn bind(self) -> Result<Gateway, StartError> {
        let Self { file, doors, house } = self;
        let mut listeners = Vec::with_capacity(doors.len());
        for (index, (address, door)) in doors.into_iter().enumerate() {
            let bound = listen(address).and_then(|socket| Ok((socket.local_addr()?, socket)));
            let (address, socket) = bound.map_err(|cause| StartError::Listen {
                file: file.clone(),
                number: index + 1,
                address,
                advice: advice(&cause),
                cause,
            })?;
            tracing::info!(%address, tls = door.tls.is_some(), "listening");
            listeners.push((address, socket, door));
        }
        Ok(Gateway { listeners, house })
    }
}

/// What to do about an address that cannot be listened on.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop the program that uses it, or set another port",
        io::ErrorKind::AddrNotAvailable => "set an address of this machine, or 0.0.0.0 for all of them",
        io::ErrorKind::PermissionDenied => "set a port from 1024 up, or start with CAP_NET_BIND_SERVICE",
        _ => "set another address",
    }
}

/// A gateway that listens.
#[derive(Debug)]
pub struct Gateway {
    listeners: Vec<(SocketAddr, TcpListener, Arc<Door>)>,
    house: Arc<House>,
}

impl Gateway {
    /// Loads what `config` names and listens on its addresses.
    ///
    /// # Errors
    /// See [`Prepared::load`] and [`Prepared::bind`].
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        Prepared::load(config)?.bind().await
    }

    /// The addresses listened on, in the order of the configuration; with the port that was given for port 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|(address, ..)| *address).collect()
    }

    /// What was counted so far; outlives the gateway.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.house.metrics)
    }

    /// Lets connections in until `stop`, then tells every session that the gateway goes away and waits for them, for
    /// at most `timeouts.drain`. Dropping the future instead cuts everything at once.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listeners, house } = self;
        let loops = TaskTracker::new();
        let connections = TaskTracker::new();
        // Cancels the loops also when this future is dropped.
        let accepting = CancellationToken::new();
        let _guard = accepting.clone().drop_guard();
        for (_, socket, door) in listeners {
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
        for routed in house.routes.iter() {
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
            () = say_goodbye(&house.registry, house.timeouts.drain) => {
                tracing::warn!(connections = connections.len(), "drain time is over, cutting what is left");
            }
        }
    }
}

/// Accepts for one listener, for ever.
async fn accept(socket: TcpListener, door: Arc<Door>, house: Arc<House>, connections: TaskTracker) {
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

/// Tells all sessions that the gateway goes away, spread over the first half of `drain` so that their clients do not
/// come back all at once; then waits for the rest of it.
async fn say_goodbye(registry: &Registry, drain: Duration) {
    let end = time::Instant::now() + drain;
    let ticks = (drain / 2).div_duration_f64(DRAIN_TICK).max(1.0);
    let batch = DRAIN_BATCH.max((registry.len() as f64 / ticks).ceil() as usize);
    let mut ticker = time::interval(DRAIN_TICK);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // Numbers only grow, so a session that began after the last look is found by the next.
    let mut told = 0;
    while time::Instant::now() < end {
        tokio::select! {
            _ = ticker.tick() => {}
            () = time::sleep_until(end) => break,
        }
        let last = told;
        for id in registry.ids().into_iter().filter(|id| *id > last).take(batch) {
            registry.end(id, Reason::Draining);
            told = id;
        }
    }
}
