//! What is loaded and found good before anything is bound.

use std::{io, path::PathBuf, sync::Arc, time::Instant};

use tokio_util::sync::CancellationToken;

use super::{Control, Gateway, station::Bound};
use crate::{
    admission::{Capacity, Limiter},
    backend::{Tools, Upstream, UpstreamError},
    config::{Address, Config, Limits, Listener},
    connection::{Door, House, Terms},
    http::{Files, Routed, Routes},
    transport::{
        listener::Inherited,
        tls::{IdentityError, Tls},
    },
};

/// The least number of sources the limiter remembers, per address family.
const SOURCES: usize = 65_536;
/// Descriptors that are neither a client's nor a backend's: listeners, logs, the runtime's own.
const SPARE_DESCRIPTORS: u64 = 64;

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
        address: Address,
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
    file: PathBuf,
    doors: Vec<(Address, Arc<Door>)>,
    terms: Arc<Terms>,
    limits: Limits,
}

impl Prepared {
    /// Loads what the configuration names: certificates, keys, the web root.
    ///
    /// # Errors
    /// Something is missing, unreadable or wrong.
    pub fn load(config: Config) -> Result<Self, StartError> {
        let Config { file: path, listeners, routes, limits, timeouts, web, .. } = config;
        let file = path.display().to_string();
        let mut secured = Vec::with_capacity(listeners.len());
        for (index, listener) in listeners.into_iter().enumerate() {
            let tls =
                listener.identity.as_ref().map(|identity| Tls::load(identity, listener.min_tls)).transpose();
            let tls = tls.map_err(|cause| StartError::Identity {
                file: file.clone(),
                number: index + 1,
                cause: Box::new(cause),
            })?;
            secured.push((listener, tls));
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
        let terms = Arc::new(Terms { routes, files: files.transpose()?, timeouts });
        let doors = secured.into_iter().map(|(listener, tls)| {
            let Listener { address, trusted_proxies, proxy_protocol, .. } = listener;
            (address, Arc::new(Door { tls, trusted_proxies, proxy_protocol, terms: Arc::clone(&terms) }))
        });
        Ok(Self { file: path, doors: doors.collect(), terms, limits })
    }

    /// The routes, and what they lead to.
    pub fn routes(&self) -> Routes<Arc<Upstream>> {
        self.terms.routes.clone()
    }

    /// The files of `[web] root`, if there is one.
    pub fn files(&self) -> Option<Files> {
        self.terms.files.clone()
    }

    /// How many descriptors the limits can lead to: two a session, one a handshake, and some to spare.
    pub fn descriptors(&self) -> u64 {
        let Limits { max_sessions, max_handshakes, .. } = self.limits;
        2 * max_sessions as u64 + max_handshakes as u64 + self.doors.len() as u64 + SPARE_DESCRIPTORS
    }

    /// Listens on every address, and on what was handed over.
    ///
    /// # Errors
    /// An address is in use, not ours, or not allowed, or its socket was not handed over. The ones before it are given up
    /// again.
    pub async fn bind(self, inherited: Inherited) -> Result<Gateway, StartError> {
        let file = self.file.clone();
        let (doors, terms, limits) = self.bind_beside(Vec::new(), &inherited)?;
        let control = Control::new(file, Arc::new(house(limits)), inherited, doors, terms);
        Ok(Gateway { control })
    }

    /// Listens on every address that is not among `kept`, each of which stands for one listener.
    pub(super) fn bind_beside(
        self,
        mut kept: Vec<Address>,
        inherited: &Inherited,
    ) -> Result<Bindings, StartError> {
        let Self { file, doors, terms, limits } = self;
        let mut bindings = Vec::with_capacity(doors.len());
        for (index, (address, door)) in doors.into_iter().enumerate() {
            if let Some(at) = kept.iter().position(|other| *other == address) {
                kept.swap_remove(at);
                bindings.push((address, None, door));
                continue;
            }
            let bound = Bound::to(&address, inherited).map_err(|cause| StartError::Listen {
                file: file.display().to_string(),
                number: index + 1,
                advice: advice(&address, &cause),
                address: address.clone(),
                cause,
            })?;
            bindings.push((address, Some(bound), door));
        }
        Ok((bindings, terms, limits))
    }
}

/// Listeners, each with its configured address and its sockets unless there are some already; and what belongs to them.
pub(super) type Bindings = (Vec<(Address, Option<Vec<Bound>>, Arc<Door>)>, Arc<Terms>, Limits);

/// What to do about an address that cannot be listened on.
fn advice(address: &Address, error: &io::Error) -> &'static str {
    match error.kind() {
        _ if matches!(address, Address::Inherited(_)) => {
            "start it by a socket unit with FileDescriptorName= of that name, or set ip:port"
        }
        io::ErrorKind::NotFound => "make the directory, or set another path",
        io::ErrorKind::AddrInUse => "stop the program that uses it, or set another port",
        io::ErrorKind::AddrNotAvailable => "set an address of this machine, or 0.0.0.0 for all of them",
        io::ErrorKind::PermissionDenied => "set a port from 1024 up, or start with CAP_NET_BIND_SERVICE",
        _ => "set another address",
    }
}

/// What connections share from now on.
fn house(limits: Limits) -> House {
    let sources = sources(&limits);
    House {
        limiter: Limiter::new(limits.per_ip, sources, Instant::now()),
        handshakes: Capacity::new(limits.max_handshakes),
        sessions: Capacity::new(limits.max_sessions),
        registry: Arc::default(),
        metrics: Arc::default(),
        draining: CancellationToken::new(),
    }
}

/// How many sources are remembered: live connections are never forgotten, so there must be more room than there can be
/// of them.
pub(super) fn sources(limits: &Limits) -> usize {
    SOURCES.max(2 * (limits.max_sessions + limits.max_handshakes))
}
