//! Loads and validates everything that a configuration names, before any socket is bound.
//!
//! Owns the steps from a parsed configuration to bound listeners. Knows nothing of a running gateway except what a reload
//! hands over in [`Carryover`]. Invariant: a step that fails closes the sockets that it has opened and changes nothing else.

use std::{collections::HashSet, io, path::PathBuf, sync::Arc};

use super::{carryover::Carryover, error::StartError, listener::BoundListener};
use crate::{
    auth::{Authenticators, Credentials},
    backend::{DialContext, Upstream},
    config::{Address, Admin, Config, Events, Limits, Listener, Log, Route, SocketAccess, Web},
    connection::{ConfigSnapshot, ListenerSettings},
    events::EventSettings,
    http::{Files, KnownHosts, Routed, Routes},
    service::limits,
    transport::{certificate::world_readable_key, listener::InheritedSockets, tls::Tls, unix::has_access},
};

/// Descriptors of an open session: the client's socket and the backend's.
const DESCRIPTORS_PER_SESSION: u64 = 2;

/// Everything that a configuration names, loaded and validated.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The configuration file, as given on the command line.
    pub(super) file: PathBuf,
    pub(super) snapshot: Arc<ConfigSnapshot>,
    pub(super) limits: Limits,
    pub(super) admin: Option<Admin>,
    pub(super) credentials: Arc<Credentials>,
    /// By which the events of the snapshot are to be delivered.
    pub(super) events: Option<Arc<EventSettings>>,
    pub(super) log: Log,
    pub(super) context: DialContext,
    pub(super) warnings: Vec<String>,
}

/// A loaded configuration. No socket is bound yet.
#[derive(Debug)]
pub struct Prepared {
    loaded: Loaded,
    listeners: Vec<PreparedListener>,
}

/// A configured listener that is not bound yet.
#[derive(Debug)]
struct PreparedListener {
    address: Address,
    access: SocketAccess,
    settings: Arc<ListenerSettings>,
}

/// A loaded configuration whose listeners are bound.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) loaded: Loaded,
    pub(super) listeners: Vec<ReadyListener>,
}

/// A configured listener that can be opened, or that is open already.
#[derive(Debug)]
pub(super) struct ReadyListener {
    /// The address as it is configured.
    pub(super) configured: Address,
    /// The sockets to accept on; `None` keeps those that are open.
    pub(super) bound: Option<Vec<BoundListener>>,
    pub(super) settings: Arc<ListenerSettings>,
}

impl Prepared {
    /// Loads what the configuration names: certificates, keys, the web root.
    ///
    /// # Errors
    /// A file is missing, unreadable or invalid.
    pub fn load(config: Config) -> Result<Self, StartError> {
        Self::load_after(config, Carryover::default())
    }

    /// Like [`Prepared::load`], for a configuration that replaces another.
    pub(super) fn load_after(config: Config, mut carryover: Carryover) -> Result<Self, StartError> {
        let Config { file, listeners, routes, auth, limits, timeouts, web, admin, log, events, mut warnings } =
            config;
        let name = file.display().to_string();
        let admins = admin.iter().chain(&carryover.admin).flat_map(Admin::addresses);
        carryover.context.configured = listeners
            .iter()
            .map(|listener| listener.address.clone())
            .chain(admins.cloned().map(Address::from))
            .collect();
        if carryover.snapshot.is_none() {
            carryover.context.own.replace(carryover.context.configured.clone());
        }
        let listeners = load_tls(&name, listeners, &mut carryover, &mut warnings)?;
        let previous = carryover.snapshot.as_ref().map(|snapshot| &snapshot.authenticators);
        let authenticators =
            Authenticators::load(&auth, &routes, web.as_ref(), &carryover.credentials, previous)
                .map_err(|cause| StartError::Auth { file: name.clone(), cause: Box::new(cause) })?;
        let (routes, files) = load_routes(&name, routes, web, &carryover, &mut warnings)?;
        let event_settings = load_events(&name, events.as_ref(), &mut warnings)?;
        let events = event_settings.as_ref().map(|settings| carryover.events(settings));
        let max_requests = limits.max_requests;
        let snapshot = ConfigSnapshot { routes, files, authenticators, timeouts, max_requests, events };
        let snapshot = Arc::new(snapshot);
        let names = known_names(&listeners, &snapshot.routes);
        let listeners = listeners.into_iter().map(|(listener, tls)| {
            let hosts = KnownHosts::of(&listener, &names);
            let Listener { address, access, trusted_proxies, proxy_protocol, .. } = listener;
            let snapshot = Arc::clone(&snapshot);
            let settings =
                Arc::new(ListenerSettings { tls, trusted_proxies, proxy_protocol, hosts, snapshot });
            PreparedListener { address, access, settings }
        });
        let listeners: Vec<_> = listeners.collect();
        if carryover.snapshot.is_some() && carryover.admin != admin {
            let warning =
                "[admin] has changed, but a reload does not move the admin address; restart to apply it";
            warnings.push(warning.to_owned());
        }
        // Two listeners with the same key cause one warning.
        let mut seen = HashSet::new();
        warnings.retain(|warning| seen.insert(warning.clone()));
        let is_start = carryover.snapshot.is_none();
        let Carryover { context, credentials, .. } = carryover;
        if is_start {
            context.socket_buffer.set(limits.socket_buffer);
        }
        let events = event_settings;
        let loaded = Loaded { file, snapshot, limits, admin, credentials, events, log, context, warnings };
        let mut prepared = Self { loaded, listeners };
        prepared.loaded.warnings.extend(prepared.descriptor_warning());
        Ok(prepared)
    }

    /// What is permitted but probably a mistake: one whole sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.loaded.warnings
    }

    /// The routes and their backends.
    pub fn routes(&self) -> Routes<Arc<Upstream>> {
        self.loaded.snapshot.routes.clone()
    }

    /// The methods of authentication.
    pub(crate) fn authenticators(&self) -> Authenticators {
        self.loaded.snapshot.authenticators.clone()
    }

    /// The files of `[web] root`, if it is set.
    pub fn files(&self) -> Option<Files> {
        self.loaded.snapshot.files.clone()
    }

    /// The hosts that requests to each listener may name, in the order of the configuration.
    pub fn known_hosts(&self) -> Vec<Option<KnownHosts>> {
        self.listeners.iter().map(|listener| listener.settings.hosts.clone()).collect()
    }

    /// How many descriptors the configured limits can require.
    pub fn descriptors(&self) -> u64 {
        let limits = &self.loaded.limits;
        DESCRIPTORS_PER_SESSION * limits.max_sessions as u64
            + limits.descriptors_beside_sessions(self.listeners.len())
    }

    /// Raises the descriptor limit. Returns a warning if the configured limits can exceed it nevertheless.
    fn descriptor_warning(&self) -> Option<String> {
        match limits::raise_descriptors() {
            Ok(allowed) => limits::shortfall(self.descriptors(), allowed),
            Err(error) => Some(format!("cannot raise the descriptor limit: {error}")),
        }
    }

    /// Binds every address that is not among `kept`. Each address in `kept` stands for one open socket.
    pub(super) fn bind_listeners(
        self,
        mut kept: Vec<Address>,
        inherited: &InheritedSockets,
    ) -> Result<Ready, StartError> {
        let Self { mut loaded, listeners } = self;
        let buffer = loaded.context.socket_buffer.clone();
        let mut ready = Vec::with_capacity(listeners.len());
        for (index, listener) in listeners.into_iter().enumerate() {
            let PreparedListener { address: configured, access, settings } = listener;
            let bound = match kept.iter().position(|open| *open == configured) {
                Some(open) => {
                    kept.remove(open);
                    loaded.warnings.extend(access_warning(index + 1, &configured, &access));
                    None
                }
                None => {
                    let bound =
                        BoundListener::bind(&configured, &access, inherited, &buffer).map_err(|cause| {
                            let advice = advice(&configured, &cause, &kept);
                            let (file, address) = (loaded.file.display().to_string(), configured.clone());
                            StartError::Listen { file, number: index + 1, address, cause, advice }
                        })?;
                    Some(bound)
                }
            };
            ready.push(ReadyListener { configured, bound, settings });
        }
        Ok(Ready { loaded, listeners: ready })
    }
}

/// Loads the certificate and key of each listener that has one.
fn load_tls(
    file: &str,
    listeners: Vec<Listener>,
    carryover: &mut Carryover,
    warnings: &mut Vec<String>,
) -> Result<Vec<(Listener, Option<Tls>)>, StartError> {
    let mut loaded = Vec::with_capacity(listeners.len());
    for (index, listener) in listeners.into_iter().enumerate() {
        let previous = carryover.tls(&listener.address);
        let tls = listener.identity.as_ref().map(|identity| {
            let client_ca = listener.client_ca.as_ref();
            Tls::load(identity, client_ca, listener.min_tls, previous.as_ref()).map_err(|cause| {
                // The caller reports this failure, so the watchers of these files need not report it again.
                if let Some(previous) = &previous {
                    previous.mark_rejected(&cause, identity, client_ca);
                }
                carryover.mark_tls_rejected(&cause, identity, client_ca);
                StartError::Tls { file: file.to_owned(), number: index + 1, cause: Box::new(cause) }
            })
        });
        let tls = tls.transpose()?;
        warnings.extend(tls.iter().flat_map(Tls::warnings));
        loaded.push((listener, tls));
    }
    Ok(loaded)
}

/// Loads what `[events]` names.
fn load_events(
    file: &str,
    events: Option<&Events>,
    warnings: &mut Vec<String>,
) -> Result<Option<Arc<EventSettings>>, StartError> {
    let Some(events) = events else { return Ok(None) };
    warnings.extend(world_readable_key("events.secret_file", &events.secret_file));
    let settings =
        EventSettings::load(events).map_err(|cause| StartError::Events { file: file.to_owned(), cause })?;
    Ok(Some(Arc::new(settings)))
}

/// Loads the backends of each route and opens the web root.
fn load_routes(
    file: &str,
    routes: Vec<Route>,
    web: Option<Web>,
    carryover: &Carryover,
    warnings: &mut Vec<String>,
) -> Result<(Routes<Arc<Upstream>>, Option<Files>), StartError> {
    let files = web.map(|web| {
        let root = web.root.display().to_string();
        Files::new(&web.root).map_err(|cause| StartError::Web { file: file.to_owned(), root, cause })
    });
    let files = files.transpose()?;
    let mut routed = Vec::with_capacity(routes.len());
    for route in routes {
        let client = route.upstream.tls.client.as_ref();
        warnings.extend(client.and_then(|(_, key)| world_readable_key("tls.client_key", key)));
        let upstream = match carryover.upstream(&route) {
            Some(upstream) => upstream,
            None => {
                let loaded = Upstream::load(&route.name, &route.upstream, &carryover.context);
                Arc::new(loaded.map_err(|cause| {
                    // The caller reports this failure, so the watchers of these files need not report it again.
                    carryover.mark_targets_rejected(&route);
                    let (file, route) = (file.to_owned(), route.name.clone());
                    StartError::Upstream { file, route, cause: Box::new(cause) }
                })?)
            }
        };
        if let Some(backend) = upstream.first_of(&carryover.context.configured) {
            return Err(StartError::OwnAddress { file: file.to_owned(), route: route.name, backend });
        }
        routed.push(Routed { route, upstream });
    }
    Ok((Routes::new(routed), files))
}

/// A warning if a Unix socket that stays open has another mode or group than is configured.
fn access_warning(number: usize, address: &Address, access: &SocketAccess) -> Option<String> {
    match address {
        Address::Unix(path) if !has_access(path, access) => Some(format!(
            "listener {number}: {address} stays open and keeps its mode and group; restart to apply others"
        )),
        _ => None,
    }
}

/// The names that routes and certificates have.
fn known_names(listeners: &[(Listener, Option<Tls>)], routes: &Routes<Arc<Upstream>>) -> Vec<String> {
    let of_certificates = listeners.iter().filter_map(|(_, tls)| tls.as_ref());
    let of_certificates = of_certificates.flat_map(|tls| tls.certificate().names());
    routes.iter().filter_map(|routed| routed.route.host.clone()).chain(of_certificates).collect()
}

/// What to do about an address that cannot be bound. The gateway itself listens on the addresses in `kept`, and closes them
/// only after a reload has bound the new ones.
fn advice(address: &Address, error: &io::Error, kept: &[Address]) -> &'static str {
    let port = |address: &Address| match address {
        Address::Ip(address) => Some(address.port()),
        _ => None,
    };
    let is_own_port = port(address).is_some() && kept.iter().any(|other| port(other) == port(address));
    match error.kind() {
        _ if matches!(address, Address::Inherited(_)) => {
            "start the gateway from a socket unit with that FileDescriptorName=, or set ip:port"
        }
        io::ErrorKind::NotFound => "create the directory, or set another path",
        io::ErrorKind::AddrInUse if is_own_port => {
            "the gateway itself holds that port until the reload is done; set another port, or restart it instead"
        }
        io::ErrorKind::AddrInUse => "stop the program that uses it, or set another port",
        io::ErrorKind::AddrNotAvailable => "set an address of this machine, or 0.0.0.0 for all of them",
        io::ErrorKind::PermissionDenied => "set a port from 1024 up, or start with CAP_NET_BIND_SERVICE",
        _ => "set another address",
    }
}
