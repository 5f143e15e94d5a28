//! What is loaded and found good before anything is bound.

use std::{collections::HashSet, io, path::PathBuf, sync::Arc, time::Instant};

use tokio_util::sync::CancellationToken;

use super::{Control, Gateway, listener::BoundListener};
use crate::{
    admin::{server::AdminSocket, socket::SocketError},
    admission::{ConcurrencyLimit, RateLimiter},
    backend::{DialContext, Upstream, UpstreamError},
    config::{Address, Admin, AdminAddress, Config, Limits, Listener, Log, Route},
    connection::{ConfigSnapshot, ListenerSettings, Shared},
    http::{Files, Routed, Routes},
    service::limits,
    transport::{
        certificate::world_readable_key,
        listener::InheritedSockets,
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
    /// The admin address cannot be listened on.
    #[error("{file}: admin.address {address}: cannot listen on it: {cause}")]
    Admin {
        /// The configuration file.
        file: String,
        /// The address.
        address: AdminAddress,
        /// What is wrong.
        cause: SocketError,
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
        !matches!(self, Self::Listen { .. } | Self::Admin { .. })
    }
}

/// What a reading of the configuration takes over from the one before it.
#[derive(Debug)]
pub(super) struct Carryover {
    pub(super) context: DialContext,
    pub(super) listeners: Vec<(Address, Arc<ListenerSettings>)>,
    pub(super) snapshot: Option<Arc<ConfigSnapshot>>,
    pub(super) admin: Option<Admin>,
}

impl Carryover {
    fn none() -> Self {
        Self { context: DialContext::default(), listeners: Vec::new(), snapshot: None, admin: None }
    }

    /// What led to the same servers in the same way, if that is all there is to it.
    fn upstream(&self, route: &Route) -> Option<Arc<Upstream>> {
        let mut before = self.snapshot.iter().flat_map(|snapshot| snapshot.routes.iter());
        let before = before.find(|before| before.route.name == route.name)?;
        let is_same = before.route.upstream == route.upstream && Upstream::is_all_of(&route.upstream);
        is_same.then(|| Arc::clone(&before.upstream))
    }

    /// The TLS side of the listener that had this address. Of several, each has one heir.
    fn tls(&mut self, address: &Address) -> Option<Tls> {
        let at = self.listeners.iter().position(|(before, _)| before == address)?;
        self.listeners.remove(at).1.tls.clone()
    }
}

/// Everything a gateway needs, loaded and found good; nothing is bound yet.
#[derive(Debug)]
pub struct Prepared {
    file: PathBuf,
    listeners: Vec<(Address, Arc<ListenerSettings>)>,
    snapshot: Arc<ConfigSnapshot>,
    limits: Limits,
    admin: Option<Admin>,
    log: Log,
    context: DialContext,
    warnings: Vec<String>,
}

impl Prepared {
    /// Loads what the configuration names: certificates, keys, the web root.
    ///
    /// # Errors
    /// Something is missing, unreadable or wrong.
    pub fn load(config: Config) -> Result<Self, StartError> {
        Self::load_after(config, Carryover::none())
    }

    /// The same for one that takes the place of another.
    pub(super) fn load_after(config: Config, mut carryover: Carryover) -> Result<Self, StartError> {
        let Config { file: path, listeners, routes, limits, timeouts, web, admin, log, mut warnings } =
            config;
        let file = path.display().to_string();
        let mut secured = Vec::with_capacity(listeners.len());
        for (index, listener) in listeners.into_iter().enumerate() {
            let before = carryover.tls(&listener.address);
            let tls = listener.identity.as_ref().map(|identity| {
                Tls::load(identity, listener.min_tls, before.as_ref()).map_err(|cause| {
                    // It is said now; whoever looks after the files need not say it once more.
                    if let Some(before) = &before {
                        before.certificate().mark_rejected(identity);
                    }
                    StartError::Identity { file: file.clone(), number: index + 1, cause: Box::new(cause) }
                })
            });
            let tls = tls.transpose()?;
            warnings.extend(tls.iter().flat_map(|tls| tls.certificate().warnings()));
            secured.push((listener, tls));
        }
        let files = web.map(|web| {
            let root = web.root.display().to_string();
            Files::new(&web.root).map_err(|cause| StartError::Web { file: file.clone(), root, cause })
        });
        let mut routed = Vec::with_capacity(routes.len());
        for route in routes {
            let client = route.upstream.tls.client.as_ref();
            warnings.extend(client.and_then(|(_, key)| world_readable_key("tls.client_key", key)));
            let upstream = match carryover.upstream(&route) {
                Some(upstream) => upstream,
                None => Arc::new(Upstream::load(&route.name, &route.upstream, &carryover.context).map_err(
                    |cause| StartError::Upstream {
                        file: file.clone(),
                        route: route.name.clone(),
                        cause: Box::new(cause),
                    },
                )?),
            };
            routed.push(Routed { route, upstream });
        }
        let snapshot =
            Arc::new(ConfigSnapshot { routes: Routes::new(routed), files: files.transpose()?, timeouts });
        let listeners = secured.into_iter().map(|(listener, tls)| {
            let Listener { address, trusted_proxies, proxy_protocol, .. } = listener;
            (
                address,
                Arc::new(ListenerSettings {
                    tls,
                    trusted_proxies,
                    proxy_protocol,
                    snapshot: Arc::clone(&snapshot),
                }),
            )
        });
        if carryover.snapshot.is_some() && carryover.admin != admin {
            let sentence = "[admin] has changed; its address moves at the next start, and not by a reload";
            warnings.push(sentence.to_owned());
        }
        // The same key for two listeners is one warning.
        let mut said = HashSet::new();
        warnings.retain(|warning| said.insert(warning.clone()));
        let (listeners, context) = (listeners.collect(), carryover.context);
        let mut prepared = Self { file: path, listeners, snapshot, limits, admin, log, context, warnings };
        prepared.warnings.extend(prepared.descriptor_warning());
        Ok(prepared)
    }

    /// What is permitted but probably not meant: one whole sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The routes, and what they lead to.
    pub fn routes(&self) -> Routes<Arc<Upstream>> {
        self.snapshot.routes.clone()
    }

    /// The files of `[web] root`, if there is one.
    pub fn files(&self) -> Option<Files> {
        self.snapshot.files.clone()
    }

    /// How many descriptors the limits can lead to: two a session, one a handshake, and some to spare.
    pub fn descriptors(&self) -> u64 {
        let Limits { max_sessions, max_handshakes, .. } = self.limits;
        2 * max_sessions as u64 + max_handshakes as u64 + self.listeners.len() as u64 + SPARE_DESCRIPTORS
    }

    /// Raises the descriptor limit; says so if the configured limits still do not fit.
    fn descriptor_warning(&self) -> Option<String> {
        match limits::raise_descriptors() {
            Ok(allowed) => limits::shortfall(self.descriptors(), allowed),
            Err(error) => Some(format!("cannot raise the descriptor limit: {error}")),
        }
    }

    /// Listens on every address, and on what was handed over.
    ///
    /// # Errors
    /// An address is in use, not ours, or not allowed, or its socket was not handed over. The ones before it are given up
    /// again.
    pub async fn bind(self, inherited: InheritedSockets) -> Result<Gateway, StartError> {
        let ready = self.bind_beside(Vec::new(), &inherited)?;
        let admin = ready.admin.as_ref().map(|Admin { address }| {
            AdminSocket::bind(address).map_err(|cause| StartError::Admin {
                file: ready.file.display().to_string(),
                address: address.clone(),
                cause,
            })
        });
        let admin = admin.transpose()?;
        let control = Control::new(ready, inherited);
        let admin = admin.map(|socket| {
            let Shared { registry, metrics, .. } = &**control.shared();
            socket.serve(Arc::new(control.clone()), Arc::clone(registry), Arc::clone(metrics))
        });
        Ok(Gateway { control, admin })
    }

    /// Listens on every address that is not among `kept`, each of which stands for one socket.
    pub(super) fn bind_beside(
        self,
        mut kept: Vec<Address>,
        inherited: &InheritedSockets,
    ) -> Result<Ready, StartError> {
        let Self { file, listeners, snapshot, limits, admin, log, context, warnings } = self;
        let mut bound_listeners = Vec::with_capacity(listeners.len());
        for (index, (address, settings)) in listeners.into_iter().enumerate() {
            if let Some(at) = kept.iter().position(|other| *other == address) {
                kept.remove(at);
                bound_listeners.push((address, None, settings));
                continue;
            }
            let bound = BoundListener::to(&address, inherited).map_err(|cause| StartError::Listen {
                file: file.display().to_string(),
                number: index + 1,
                advice: advice(&address, &cause, &kept),
                address: address.clone(),
                cause,
            })?;
            bound_listeners.push((address, Some(bound), settings));
        }
        Ok(Ready { file, listeners: bound_listeners, snapshot, limits, admin, log, context, warnings })
    }
}

/// Everything a gateway needs, listening included.
#[derive(Debug)]
pub(super) struct Ready {
    /// The configuration file, as it was named.
    pub(super) file: PathBuf,
    /// Each listener's configured address, its sockets unless there are some already, and what it leads through.
    pub(super) listeners: Vec<(Address, Option<Vec<BoundListener>>, Arc<ListenerSettings>)>,
    pub(super) snapshot: Arc<ConfigSnapshot>,
    pub(super) limits: Limits,
    pub(super) admin: Option<Admin>,
    pub(super) log: Log,
    pub(super) context: DialContext,
    pub(super) warnings: Vec<String>,
}

/// What to do about an address that cannot be listened on while the gateway listens on `ours`, which a reload gives up
/// last.
fn advice(address: &Address, error: &io::Error, ours: &[Address]) -> &'static str {
    let port = |address: &Address| match address {
        Address::Ip(address) => Some(address.port()),
        _ => None,
    };
    let is_our_port = port(address).is_some() && ours.iter().any(|other| port(other) == port(address));
    match error.kind() {
        _ if matches!(address, Address::Inherited(_)) => {
            "start it by a socket unit with FileDescriptorName= of that name, or set ip:port"
        }
        io::ErrorKind::NotFound => "make the directory, or set another path",
        io::ErrorKind::AddrInUse if is_our_port => {
            "the gateway itself holds that port until the reload is done; set another port, or start it anew"
        }
        io::ErrorKind::AddrInUse => "stop the program that uses it, or set another port",
        io::ErrorKind::AddrNotAvailable => "set an address of this machine, or 0.0.0.0 for all of them",
        io::ErrorKind::PermissionDenied => "set a port from 1024 up, or start with CAP_NET_BIND_SERVICE",
        _ => "set another address",
    }
}

/// What connections share for as long as the process lives.
pub(super) fn shared(limits: &Limits) -> Shared {
    Shared {
        limiter: RateLimiter::new(limits.per_ip.clone(), sources(limits), Instant::now()),
        handshakes: ConcurrencyLimit::new(limits.max_handshakes),
        sessions: ConcurrencyLimit::new(limits.max_sessions),
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
