//! Control of a running gateway: drain, log level and status; the reload is in [`super::reload`].
//!
//! Owns what changes while the process runs: the open listeners, the current configuration snapshot and the background
//! watchers. Invariants: a session keeps the snapshot it was opened with; there is at most one drain, and no reload after
//! it has begun.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync, time};
use tokio_util::sync::CancellationToken;

use super::{
    drain::close_sessions,
    event_task::EventTask,
    listener::{OpenListener, Tasks},
    prepared::{Loaded, Ready, ReadyListener},
    watchers::Watchers,
};
use crate::{
    admin::control::{BackendStatus, BoxFuture, GatewayStatus, ListenerStatus, ProcessControl, TicketRoute},
    admission::{ConcurrencyLimit, HandshakeLimits, Handshakes, RateLimiter, TrackedSources, UserSessions},
    auth::{Authenticator, Credentials},
    backend::{DialContext, own::AddressSet},
    config::{Address, Admin, AdminAddress, Config, Limits, RoutePath},
    connection::{ConfigSnapshot, Shared},
    service::{logging::Logging, systemd},
    transport::{listener::InheritedSockets, turns::Turns},
};

/// The least number of sources that the rate limiter remembers, per address family.
const MIN_TRACKED_SOURCES: usize = 65_536;
/// The same for each size of networks.
const MIN_TRACKED_NETWORKS: usize = 16_384;
/// How many sources it remembers whose connections were refused, per address family.
const TRACKED_REFUSED: usize = 16_384;

/// A handle to a running gateway. Clones control the same gateway.
#[derive(Debug, Clone)]
pub struct Control {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    /// The configuration file, as given on the command line.
    file: PathBuf,
    pub(super) shared: Arc<Shared>,
    /// Kept open while the process runs, whether or not a listener uses them now.
    pub(super) inherited: InheritedSockets,
    pub(super) tasks: Tasks,
    /// Held during a reload, so that reloads run one at a time.
    pub(super) reloading: sync::Mutex<()>,
    state: Mutex<GatewayState>,
    /// Cancelled when a drain has finished.
    drained: CancellationToken,
    /// The admin address, fixed at the start.
    pub(super) admin: Option<Admin>,
    /// Its addresses, with the ports that the system chose for port 0.
    pub(super) admin_addresses: Vec<AdminAddress>,
    /// The log, if it belongs to the gateway and not to a program that embeds it.
    pub(super) logging: OnceLock<Logging>,
}

/// What the current configuration determines.
#[derive(Debug)]
pub(super) struct GatewayState {
    pub(super) listeners: Vec<OpenListener>,
    pub(super) snapshot: Arc<ConfigSnapshot>,
    pub(super) context: DialContext,
    pub(super) watchers: Watchers,
    pub(super) event_task: EventTask,
    /// When the configuration was loaded.
    pub(super) loaded: SystemTime,
    /// Successful and failed reloads.
    reloads: (u64, u64),
    pub(super) draining: bool,
}

impl Control {
    /// Opens the listeners and starts the watchers.
    pub(super) fn new(ready: Ready, inherited: InheritedSockets, admin_addresses: Vec<AdminAddress>) -> Self {
        let Ready { loaded, listeners } = ready;
        let Loaded { file, snapshot, limits, admin, credentials, events, context, .. } = loaded;
        let (shared, tasks) = (Arc::new(shared(&limits, credentials)), Tasks::default());
        let mut open = Vec::with_capacity(listeners.len());
        for ReadyListener { bound, settings, .. } in listeners {
            for bound in bound.into_iter().flatten() {
                open.push(OpenListener::open(bound, Arc::clone(&settings), &shared, &tasks));
            }
        }
        let listeners = open;
        context.own.replace(own_addresses(&listeners, &admin_addresses));
        let watchers = Watchers::default().replace(&snapshot, &listeners, &shared.registry);
        let event_task = EventTask::default().replace(snapshot.events.as_ref(), events.as_ref());
        let (loaded, reloads, draining) = (SystemTime::now(), (0, 0), false);
        let state =
            GatewayState { listeners, snapshot, context, watchers, event_task, loaded, reloads, draining };
        let (reloading, drained) = (sync::Mutex::default(), CancellationToken::new());
        let (state, logging) = (Mutex::new(state), OnceLock::new());
        let inner = Inner {
            file,
            shared,
            inherited,
            tasks,
            reloading,
            state,
            drained,
            admin,
            admin_addresses,
            logging,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Makes reloads and log level changes apply to `logging`. Only the first call has an effect.
    pub fn attach_logging(&self, logging: Logging) {
        let _ = self.inner.logging.set(logging);
    }

    /// The state that the connections of this gateway share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    /// The addresses of the listeners, in the order of the configuration, with the port that the system chose for port 0.
    pub fn addresses(&self) -> Vec<Address> {
        self.state().listeners.iter().map(|listener| listener.local.clone()).collect()
    }

    /// Waits until a drain has finished: all sessions have ended, or `timeouts.drain` has passed.
    pub async fn drained(&self) {
        self.inner.drained.cancelled().await;
    }

    /// Closes the listeners. Sessions stay open and are not notified.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.listeners.clear();
        state.watchers = Watchers::default();
        state.event_task = EventTask::default();
    }

    pub(super) fn state(&self) -> MutexGuard<'_, GatewayState> {
        self.inner.state.lock()
    }
}

impl ProcessControl for Control {
    fn reload(&self) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(async {
            let _turn = self.inner.reloading.lock().await;
            let file = self.inner.file.clone();
            systemd::reloading();
            let result = self.reload_from(move || Config::load(&file)).await;
            systemd::ready();
            match result {
                Ok(summary) => {
                    self.state().reloads.0 += 1;
                    tracing::info!("{summary}");
                    Ok(summary)
                }
                Err(error) => {
                    self.state().reloads.1 += 1;
                    tracing::warn!(detail = %error, "not reloaded: nothing has changed");
                    Err(format!("not reloaded, nothing has changed: {error}"))
                }
            }
        })
    }

    fn drain(&self) {
        let (listeners, event_task, drain) = {
            let mut state = self.state();
            if std::mem::replace(&mut state.draining, true) {
                return;
            }
            state.watchers = Watchers::default();
            let event_task = std::mem::take(&mut state.event_task);
            (std::mem::take(&mut state.listeners), event_task, state.snapshot.timeouts.drain)
        };
        drop(listeners);
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let Inner { shared, tasks, drained, .. } = &*inner;
            let end = time::Instant::now() + drain;
            tracing::info!(sessions = shared.registry.len(), "draining");
            tasks.accept_loops.close();
            tasks.accept_loops.wait().await;
            shared.draining.cancel();
            tasks.connections.close();
            tokio::select! {
                () = tasks.connections.wait() => {}
                () = close_sessions(&shared.registry, drain) => {
                    tracing::warn!(connections = tasks.connections.len(), "timeouts.drain has passed, closing the remaining connections");
                }
            }
            event_task.finish(end).await;
            drained.cancel();
        });
    }

    fn set_log_level(&self, level: tracing::Level) -> Result<(), String> {
        let not_ours = "the log belongs to the program that embeds this gateway; set its level there";
        let logging = self.inner.logging.get().ok_or(not_ours)?;
        logging.set_level(level);
        tracing::info!(%level, "log level set");
        Ok(())
    }

    fn ticket_route(&self, route: &str, target: Option<&str>) -> Result<TicketRoute, String> {
        let state = self.state();
        let ConfigSnapshot { routes, authenticators, .. } = &*state.snapshot;
        let routed = routes.iter().find(|routed| routed.route.name == route);
        let routed = routed.ok_or_else(|| format!("there is no route {route:?}"))?;
        let link = authenticators.of(route).and_then(Authenticator::ticket_link).ok_or_else(|| {
            format!("the route {route:?} accepts no tickets; add a method with kind = \"ticket\" to its auth")
        })?;
        // Targets may be tokens, which are secret: the message does not show it.
        if target.is_some_and(|target| routed.upstream.choose_target(target).is_none()) {
            return Err(format!("the route {route:?} does not have this target"));
        }
        let path = match &routed.route.path {
            RoutePath::Exact(path) | RoutePath::Prefix(path) => path.clone(),
        };
        let (parameter, base) = (link.parameter.map(str::to_owned), link.base.map(str::to_owned));
        Ok(TicketRoute { path, parameter, base })
    }

    fn status(&self) -> GatewayStatus {
        let shared = self.shared();
        let state = self.state();
        let listeners = state.listeners.iter().map(|listener| {
            let settings = listener.settings();
            ListenerStatus {
                address: listener.configured.to_string(),
                tls: settings.tls.is_some(),
                certificate_expiry: settings.tls.as_ref().and_then(|tls| tls.certificate().expiry()),
            }
        });
        let backends = state.snapshot.routes.iter().flat_map(|routed| {
            routed.upstream.status().into_iter().map(|(backend, up, sessions)| BackendStatus {
                route: routed.route.name.clone(),
                backend: backend.to_string(),
                up,
                sessions,
            })
        });
        GatewayStatus {
            ready: !state.draining && !state.listeners.is_empty(),
            draining: state.draining,
            loaded: state.loaded,
            reloads: state.reloads,
            sessions: (shared.sessions.in_use(), shared.sessions.limit()),
            handshakes: (shared.handshakes.in_use(), shared.handshakes.limit()),
            listeners: listeners.collect(),
            backends: backends.collect(),
            dropped_log_lines: self.inner.logging.get().map_or(0, Logging::dropped_lines),
            events: state.snapshot.events.as_ref().map(|events| events.stats()).unwrap_or_default(),
        }
    }
}

/// The addresses on which the gateway itself listens.
pub(super) fn own_addresses(listeners: &[OpenListener], admin: &[AdminAddress]) -> AddressSet {
    let listeners = listeners.iter().map(|listener| listener.local.clone());
    listeners.chain(admin.iter().cloned().map(Address::from)).collect()
}

/// The state that all connections share while the process runs.
fn shared(limits: &Limits, credentials: Arc<Credentials>) -> Shared {
    credentials.tickets.set_limit(limits.max_tickets);
    Shared {
        credentials,
        limiter: RateLimiter::new(
            limits.per_ip.clone(),
            &limits.per_network,
            limits.penalties,
            tracked_sources(limits),
            time::Instant::now().into_std(),
        ),
        handshakes: Handshakes::new(handshake_limits(limits)),
        turns: Turns::default(),
        sessions: ConcurrencyLimit::new(limits.max_sessions),
        users: UserSessions::new(limits.sessions_per_user),
        registry: Arc::default(),
        metrics: Arc::default(),
        draining: CancellationToken::new(),
    }
}

/// How many sources the rate limiter remembers. It never evicts a source with an open connection, so it needs more entries
/// than there can be connections.
pub(super) fn tracked_sources(limits: &Limits) -> TrackedSources {
    let least = 2 * (limits.max_sessions + limits.max_handshakes);
    TrackedSources {
        sources: least.max(MIN_TRACKED_SOURCES),
        networks: least.max(MIN_TRACKED_NETWORKS),
        refused: TRACKED_REFUSED,
    }
}

pub(super) fn handshake_limits(limits: &Limits) -> HandshakeLimits {
    HandshakeLimits {
        total: limits.max_handshakes,
        per_ip: limits.per_ip.handshakes.get() as usize,
        per_network: limits.per_network.handshakes.get() as usize,
    }
}

#[cfg(test)]
mod tests {
    use std::{io, net::SocketAddr, path::Path, time::Duration};

    use futures_util::StreamExt;
    use tokio::{
        net::{TcpListener, TcpStream},
        time::timeout,
    };
    use tokio_tungstenite::{
        WebSocketStream,
        tungstenite::{ClientRequestBuilder, Message},
    };

    use super::{
        super::{Gateway, ReloadError},
        *,
    };

    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    /// A backend that accepts connections and keeps them open.
    async fn backend() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((socket, _)) = listener.accept().await {
                held.push(socket);
            }
        });
        address
    }

    fn config(lines: &str) -> Config {
        let text = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{lines}");
        Config::parse(&text, Path::new("gateway.toml")).unwrap()
    }

    fn route(path: &str, backend: SocketAddr) -> String {
        format!("[[route]]\nname = \"desk\"\npath = \"{path}\"\nbackend = \"tcp://{backend}\"\n")
    }

    async fn connect(to: SocketAddr, path: &str) -> io::Result<Option<WebSocketStream<TcpStream>>> {
        Ok(open(TcpStream::connect(to).await?, to, path).await)
    }

    async fn open(socket: TcpStream, to: SocketAddr, path: &str) -> Option<WebSocketStream<TcpStream>> {
        let uri = format!("ws://{to}{path}").parse().unwrap();
        let request = ClientRequestBuilder::new(uri).with_header("Origin", format!("http://{to}"));
        let opened = timeout(TEST_TIMEOUT, tokio_tungstenite::client_async(request, socket)).await.unwrap();
        opened.ok().map(|(session, _)| session)
    }

    fn only_address(gateway: &Gateway) -> SocketAddr {
        match gateway.addresses().as_slice() {
            [Address::Ip(address)] => *address,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn status_reports_the_current_configuration_and_the_reloads() {
        let backend = backend().await;
        let gateway = Gateway::bind(config(&route("/desk", backend))).await.unwrap();
        let (control, address) = (gateway.control(), only_address(&gateway));
        let before = control.status();
        assert!(before.ready && !before.draining);
        assert_eq!((before.reloads, before.sessions, before.handshakes), ((0, 0), (0, 9000), (0, 1024)));
        let [listener] = before.listeners.as_slice() else { panic!("{before:?}") };
        assert_eq!((listener.address.as_str(), listener.tls), ("127.0.0.1:0", false));
        let session = connect(address, "/desk").await.unwrap().expect("a session");
        let [status] = &control.status().backends[..] else { panic!("not exactly one backend") };
        assert_eq!((status.route.as_str(), status.up, status.sessions), ("desk", true, 1));
        assert_eq!(status.backend, format!("tcp://{backend}"));

        let limits = "[limits]\nmax_sessions = 7\nmax_handshakes = 9\n";
        let limited = config(&format!("{}{limits}", route("/other", backend)));
        let done = control.apply(limited).await.unwrap();
        assert_eq!(done, "reloaded: 1 listener(s), 1 route(s)");
        let after = control.status();
        assert_eq!((after.sessions, after.backends[0].sessions), ((1, 7), 1));
        assert_eq!(after.handshakes.1, 9);
        assert!(after.loaded >= before.loaded);
        assert_eq!(only_address(&gateway), address, "the listener stays");
        assert!(connect(address, "/desk").await.unwrap().is_none(), "the route was removed");
        assert!(connect(address, "/other").await.unwrap().is_some());

        // The configuration was parsed from memory: there is no such file.
        let failed = control.reload().await.unwrap_err();
        assert!(failed.starts_with("not reloaded, nothing has changed: "), "{failed}");
        assert!(failed.contains("gateway.toml"), "{failed}");
        assert_eq!(control.status().reloads, (0, 1));
        drop(session);
    }

    #[tokio::test]
    async fn a_drain_closes_every_session_and_the_process_stays() {
        let backend = backend().await;
        let gateway = Gateway::bind(config(&route("/desk", backend))).await.unwrap();
        let (control, address) = (gateway.control(), only_address(&gateway));
        let mut sessions = Vec::new();
        for _ in 0..5 {
            sessions.push(connect(address, "/desk").await.unwrap().expect("a session"));
        }
        control.drain();
        control.drain();
        let status = control.status();
        assert!(!status.ready && status.draining && status.listeners.is_empty(), "{status:?}");
        for session in &mut sessions {
            let received = timeout(TEST_TIMEOUT, session.next()).await.unwrap();
            let Some(Ok(Message::Close(Some(close)))) = received else { panic!("{received:?}") };
            assert_eq!(u16::from(close.code), 1001);
            // Polling again makes tungstenite send its Close.
            let _ = timeout(TEST_TIMEOUT, session.next()).await.unwrap();
        }
        timeout(TEST_TIMEOUT, control.drained()).await.unwrap();
        let refused = connect(address, "/desk").await.err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));
        assert!(matches!(control.apply(config(&route("/desk", backend))).await, Err(ReloadError::Draining)));
        // The gateway runs until it is stopped; a stop then has nothing left to wait for.
        let mut running = Box::pin(gateway.run(std::future::pending()));
        assert!(timeout(Duration::from_millis(50), &mut running).await.is_err(), "it stopped without a stop");
        drop(running);
    }

    #[tokio::test]
    async fn connections_that_wait_in_the_backlog_at_a_drain_are_accepted() {
        let backend = backend().await;
        let gateway = Gateway::bind(config(&route("/desk", backend))).await.unwrap();
        let (control, address) = (gateway.control(), only_address(&gateway));
        // Nothing is awaited until the drain has begun: the accept loop, on the same thread, sees none of them before.
        let waiting: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        control.drain();
        for socket in waiting {
            socket.set_nonblocking(true).unwrap();
            let session = open(TcpStream::from_std(socket).unwrap(), address, "/desk").await;
            assert!(session.is_some(), "a connection of before the drain");
        }
        timeout(TEST_TIMEOUT, control.drained()).await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "the listener is closed");
    }

    #[tokio::test]
    async fn a_drain_that_begins_during_a_reload_prevents_it() {
        let backend = backend().await;
        let gateway = Gateway::bind(config(&route("/desk", backend))).await.unwrap();
        let control = gateway.control();
        let (draining, reloaded) = (control.clone(), config(&route("/other", backend)));
        let result = control.reload_from(move || {
            draining.state().draining = true;
            Ok(reloaded)
        });
        assert!(matches!(result.await, Err(ReloadError::Draining)));
        let snapshot = Arc::clone(&control.state().snapshot);
        let paths = snapshot.routes.iter().map(|routed| routed.route.path.to_string());
        assert_eq!(paths.collect::<Vec<_>>(), ["/desk"], "the configuration of before");
    }

    #[tokio::test]
    async fn a_stop_after_a_drain_returns_at_once() {
        let gateway = Gateway::bind(config(&route("/desk", backend().await))).await.unwrap();
        gateway.control().drain();
        timeout(TEST_TIMEOUT, gateway.control().drained()).await.unwrap();
        timeout(TEST_TIMEOUT, gateway.run(std::future::ready(()))).await.unwrap();
    }

    #[tokio::test]
    async fn dropping_the_gateway_closes_its_listeners() {
        let gateway = Gateway::bind(config(&route("/desk", backend().await))).await.unwrap();
        let (control, address) = (gateway.control(), only_address(&gateway));
        drop(gateway);
        assert!(!control.status().ready);
        let closed = async {
            while connect(address, "/desk").await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(TEST_TIMEOUT, closed).await.unwrap();
    }

    #[tokio::test]
    async fn the_log_of_an_embedding_program_is_not_changed() {
        let gateway = Gateway::bind(config(&route("/desk", backend().await))).await.unwrap();
        let refused = gateway.control().set_log_level(tracing::Level::DEBUG).unwrap_err();
        assert!(refused.contains("set its level there"), "{refused}");
    }
}
