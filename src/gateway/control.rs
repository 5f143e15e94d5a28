//! How a running gateway is steered: reload, drain, and what it says of itself.
//!
//! Owns what changes while the process lives: the listeners, and the terms of new connections. Invariants: a reload
//! prepares everything, listening included, before it changes anything, and then changes all of it in one step that cannot
//! fail; a session goes on under the terms it was opened with; there is one drain, and no reload after it has begun.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{
    drain::close_sessions,
    listener::{OpenListener, Tasks},
    prepared::{Carryover, Prepared, Ready, StartError, shared, sources},
    watchers::Watchers,
};
use crate::{
    admin::control::{BackendStatus, BoxFuture, GatewayStatus, ListenerStatus, ProcessControl},
    backend::DialContext,
    config::{Address, Admin, Config, ConfigError},
    connection::{ConfigSnapshot, Shared},
    service::{
        logging::{LogError, Logging},
        systemd,
    },
    transport::listener::InheritedSockets,
};

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Something that it names, or an address.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Where the log is to go.
    #[error("{file}: {cause}")]
    Log {
        /// The configuration file.
        file: String,
        /// What is wrong.
        cause: LogError,
    },
    /// There will be no new connections.
    #[error("the gateway is draining and takes no new connections; start it again instead")]
    Draining,
    /// A panic, whose own line stands in the log.
    #[error("loading the configuration failed unexpectedly; the log has a line that begins with \"panic\"")]
    Panicked,
}

/// The one who steers a running gateway. Clones steer the same gateway.
#[derive(Debug, Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The configuration file, as it was named.
    file: PathBuf,
    shared: Arc<Shared>,
    /// Kept open for the life of the process, whoever listens on them now.
    inherited: InheritedSockets,
    tasks: Tasks,
    /// Held for the length of a reload: one at a time.
    reloading: sync::Mutex<()>,
    state: Mutex<GatewayState>,
    /// Cancelled when a drain is over.
    drained: CancellationToken,
    /// Where the operator comes in, since the start.
    admin: Option<Admin>,
    /// The log, if it is ours to change.
    logging: OnceLock<Logging>,
}

/// What the newest configuration has made of the gateway.
#[derive(Debug)]
struct GatewayState {
    listeners: Vec<OpenListener>,
    snapshot: Arc<ConfigSnapshot>,
    context: DialContext,
    watchers: Watchers,
    loaded: SystemTime,
    reloads: (u64, u64),
    draining: bool,
}

impl Control {
    pub(super) fn new(ready: Ready, inherited: InheritedSockets) -> Self {
        let Ready { file, listeners, snapshot, limits, admin, context, .. } = ready;
        let (shared, tasks) = (Arc::new(shared(&limits)), Tasks::default());
        let mut opened = Vec::with_capacity(listeners.len());
        for (_, bound, settings) in listeners {
            for bound in bound.into_iter().flatten() {
                opened.push(OpenListener::open(bound, Arc::clone(&settings), &shared, &tasks));
            }
        }
        let listeners = opened;
        let watchers = Watchers::default().over(&snapshot, &listeners);
        let (loaded, reloads) = (SystemTime::now(), (0, 0));
        let state = GatewayState { listeners, snapshot, context, watchers, loaded, reloads, draining: false };
        let (reloading, drained) = (sync::Mutex::default(), CancellationToken::new());
        let (state, logging) = (Mutex::new(state), OnceLock::new());
        let inner = Inner { file, shared, inherited, tasks, reloading, state, drained, admin, logging };
        Self { inner: Arc::new(inner) }
    }

    /// From now on, this log follows what is steered. Only the first one does.
    pub fn log_by(&self, logging: Logging) {
        let _ = self.inner.logging.set(logging);
    }

    /// What the connections of this gateway share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    /// The configuration file that a reload reads.
    pub fn file(&self) -> &Path {
        &self.inner.file
    }

    /// The addresses listened on, in the order of the configuration; with the port that was given for port 0.
    pub fn addresses(&self) -> Vec<Address> {
        self.state().listeners.iter().map(|listener| listener.local.clone()).collect()
    }

    /// Ready when a drain is over: all sessions have ended, or its time has.
    pub async fn drained(&self) {
        self.inner.drained.cancelled().await;
    }

    /// Takes over a configuration as a reload does.
    ///
    /// # Errors
    /// Something is wrong, and nothing has changed.
    pub async fn apply(&self, config: Config) -> Result<String, ReloadError> {
        let _turn = self.inner.reloading.lock().await;
        self.take_over(move || Ok(config)).await
    }

    async fn take_over(
        &self,
        read: impl FnOnce() -> Result<Config, ConfigError> + Send + 'static,
    ) -> Result<String, ReloadError> {
        let carryover = self.carryover()?;
        // Files can be far away.
        let loading = spawn_blocking(move || Ok::<_, ReloadError>(Prepared::load_after(read()?, carryover)?));
        let prepared = loading.await.map_err(|_| ReloadError::Panicked)??;
        let kept = self.state().listeners.iter().map(|listener| listener.configured.clone()).collect();
        let ready = prepared.bind_beside(kept, &self.inner.inherited)?;
        if let Some(logging) = self.inner.logging.get() {
            logging
                .reconfigure(&ready.log)
                .map_err(|cause| ReloadError::Log { file: ready.file.display().to_string(), cause })?;
        }
        let warnings = ready.warnings.clone();
        let done = self.commit(ready)?;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        Ok(match warnings.len() {
            0 => done,
            number => format!("{done}; {number} warning(s), which the log has"),
        })
    }

    /// What the next configuration takes over from this one.
    fn carryover(&self) -> Result<Carryover, ReloadError> {
        let state = self.state();
        if state.draining {
            return Err(ReloadError::Draining);
        }
        let listeners =
            state.listeners.iter().map(|listener| (listener.configured.clone(), listener.settings()));
        Ok(Carryover {
            context: state.context.for_reload(),
            listeners: listeners.collect(),
            snapshot: Some(Arc::clone(&state.snapshot)),
            admin: self.inner.admin.clone(),
        })
    }

    /// The one step. Nothing in here can fail but for a drain that has begun meanwhile.
    fn commit(&self, ready: Ready) -> Result<String, ReloadError> {
        let Inner { shared, tasks, .. } = &*self.inner;
        let Ready { listeners, snapshot, limits, context, .. } = ready;
        let mut state = self.state();
        if state.draining {
            return Err(ReloadError::Draining);
        }
        shared.handshakes.set_limit(limits.max_handshakes);
        shared.sessions.set_limit(limits.max_sessions);
        let sources = sources(&limits);
        shared.limiter.set_limits(limits.per_ip, sources);
        let mut before = std::mem::take(&mut state.listeners);
        let (listener_count, route_count) = (listeners.len(), snapshot.routes.iter().count());
        for (configured, bound, settings) in listeners {
            if let Some(bound) = bound {
                let open = |bound| OpenListener::open(bound, Arc::clone(&settings), shared, tasks);
                state.listeners.extend(bound.into_iter().map(open));
                continue;
            }
            while let Some(at) = before.iter().position(|listener| listener.configured == configured) {
                let listener = before.remove(at);
                listener.update(Arc::clone(&settings));
                state.listeners.push(listener);
                // The name of what was handed over can be that of several sockets; an address is that of one.
                if !matches!(configured, Address::Inherited(_)) {
                    break;
                }
            }
        }
        for listener in before {
            tracing::info!(address = %listener.local, "no longer listening");
        }
        state.watchers = std::mem::take(&mut state.watchers).over(&snapshot, &state.listeners);
        (state.snapshot, state.context, state.loaded) = (snapshot, context, SystemTime::now());
        Ok(format!("reloaded: {listener_count} listener(s), {route_count} route(s)"))
    }

    /// Closes the listeners, and tells nobody.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.listeners.clear();
        state.watchers = Watchers::default();
    }

    fn state(&self) -> MutexGuard<'_, GatewayState> {
        self.inner.state.lock()
    }
}

impl ProcessControl for Control {
    fn reload(&self) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(async {
            let _turn = self.inner.reloading.lock().await;
            let file = self.inner.file.clone();
            systemd::reloading();
            let done = self.take_over(move || Config::load(&file)).await;
            systemd::ready();
            match done {
                Ok(done) => {
                    self.state().reloads.0 += 1;
                    tracing::info!("{done}");
                    Ok(done)
                }
                Err(error) => {
                    self.state().reloads.1 += 1;
                    tracing::warn!(detail = %error, "not reloaded: everything is as it was");
                    Err(format!("not reloaded, everything is as it was: {error}"))
                }
            }
        })
    }

    fn drain(&self) {
        let (listeners, drain) = {
            let mut state = self.state();
            if std::mem::replace(&mut state.draining, true) {
                return;
            }
            state.watchers = Watchers::default();
            (std::mem::take(&mut state.listeners), state.snapshot.timeouts.drain)
        };
        drop(listeners);
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let Inner { shared, tasks, drained, .. } = &*inner;
            tracing::info!(sessions = shared.registry.len(), "draining");
            tasks.loops.close();
            tasks.loops.wait().await;
            shared.draining.cancel();
            tasks.connections.close();
            tokio::select! {
                () = tasks.connections.wait() => {}
                () = close_sessions(&shared.registry, drain) => {
                    tracing::warn!(connections = tasks.connections.len(), "drain time is over, cutting what is left");
                }
            }
            drained.cancel();
        });
    }

    fn set_log_level(&self, level: tracing::Level) -> Result<(), String> {
        let foreign = "the log belongs to the program that this gateway is a part of; set its level there";
        let logging = self.inner.logging.get().ok_or(foreign)?;
        logging.set_level(level);
        tracing::info!(%level, "log level set");
        Ok(())
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
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, net::SocketAddr, time::Duration};

    use futures_util::StreamExt;
    use tokio::{
        net::{TcpListener, TcpStream},
        time::timeout,
    };
    use tokio_tungstenite::{
        WebSocketStream,
        tungstenite::{ClientRequestBuilder, Message},
    };

    use super::{super::Gateway, *};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A server that takes connections and keeps them.
    async fn server() -> SocketAddr {
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

    fn route(path: &str, server: SocketAddr) -> String {
        format!("[[route]]\nname = \"desk\"\npath = \"{path}\"\nbackend = \"tcp://{server}\"\n")
    }

    async fn connect(to: SocketAddr, path: &str) -> io::Result<Option<WebSocketStream<TcpStream>>> {
        let socket = TcpStream::connect(to).await?;
        let uri = format!("ws://{to}{path}").parse().unwrap();
        let request = ClientRequestBuilder::new(uri).with_header("Origin", format!("http://{to}"));
        let opened = timeout(PATIENCE, tokio_tungstenite::client_async(request, socket)).await.unwrap();
        Ok(opened.ok().map(|(session, _)| session))
    }

    fn only_address(gateway: &Gateway) -> SocketAddr {
        match gateway.addresses().as_slice() {
            [Address::Ip(address)] => *address,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_it_says_of_itself_is_what_is() {
        let server = server().await;
        let gateway = Gateway::bind(config(&route("/desk", server))).await.unwrap();
        let (control, address) = (gateway.control(), only_address(&gateway));
        let before = control.status();
        assert!(before.ready && !before.draining);
        assert_eq!((before.reloads, before.sessions, before.handshakes), ((0, 0), (0, 9000), (0, 1024)));
        let [listener] = before.listeners.as_slice() else { panic!("{before:?}") };
        assert_eq!((listener.address.as_str(), listener.tls), ("127.0.0.1:0", false));
        let session = connect(address, "/desk").await.unwrap().expect("a session");
        let [backend] = &control.status().backends[..] else { panic!("one server was due") };
        assert_eq!((backend.route.as_str(), backend.up, backend.sessions), ("desk", true, 1));
        assert_eq!(backend.backend, format!("tcp://{server}"));

        let limited = config(&format!("{}[limits]\nmax_sessions = 7\n", route("/other", server)));
        let done = control.apply(limited).await.unwrap();
        assert_eq!(done, "reloaded: 1 listener(s), 1 route(s)");
        let after = control.status();
        assert_eq!((after.sessions, after.backends[0].sessions), ((1, 7), 1));
        assert!(after.loaded >= before.loaded);
        assert_eq!(only_address(&gateway), address, "the listener stays");
        assert!(connect(address, "/desk").await.unwrap().is_none(), "that route has gone");
        assert!(connect(address, "/other").await.unwrap().is_some());

        // There is no such file to read again.
        let failed = control.reload().await.unwrap_err();
        assert!(failed.starts_with("not reloaded, everything is as it was: "), "{failed}");
        assert!(failed.contains("gateway.toml"), "{failed}");
        assert_eq!(control.status().reloads, (0, 1));
        drop(session);
    }

    #[tokio::test]
    async fn a_drain_ends_every_session_and_leaves_the_process() {
        let server = server().await;
        let gateway = Gateway::bind(config(&route("/desk", server))).await.unwrap();
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
            let told = timeout(PATIENCE, session.next()).await.unwrap();
            let Some(Ok(Message::Close(Some(close)))) = told else { panic!("{told:?}") };
            assert_eq!(u16::from(close.code), 1001);
            // The library answers by itself once it is asked again.
            let _ = timeout(PATIENCE, session.next()).await.unwrap();
        }
        timeout(PATIENCE, control.drained()).await.unwrap();
        let refused = connect(address, "/desk").await.err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));
        assert!(matches!(control.apply(config(&route("/desk", server))).await, Err(ReloadError::Draining)));
        // It runs on until it is told to stop, and has nothing left to wait for then.
        let mut running = Box::pin(gateway.run(std::future::pending()));
        assert!(timeout(Duration::from_millis(50), &mut running).await.is_err(), "it ended by itself");
        drop(running);
    }

    #[tokio::test]
    async fn a_stop_after_a_drain_ends_at_once() {
        let gateway = Gateway::bind(config(&route("/desk", server().await))).await.unwrap();
        gateway.control().drain();
        timeout(PATIENCE, gateway.control().drained()).await.unwrap();
        timeout(PATIENCE, gateway.run(std::future::ready(()))).await.unwrap();
    }

    #[tokio::test]
    async fn a_gateway_that_is_dropped_listens_no_more() {
        let gateway = Gateway::bind(config(&route("/desk", server().await))).await.unwrap();
        let (control, address) = (gateway.control(), only_address(&gateway));
        drop(gateway);
        assert!(!control.status().ready);
        let closed = async {
            while connect(address, "/desk").await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, closed).await.unwrap();
    }

    #[tokio::test]
    async fn a_log_that_belongs_to_somebody_else_is_not_changed() {
        let gateway = Gateway::bind(config(&route("/desk", server().await))).await.unwrap();
        let refused = gateway.control().set_log_level(tracing::Level::DEBUG).unwrap_err();
        assert!(refused.contains("set its level there"), "{refused}");
    }
}
