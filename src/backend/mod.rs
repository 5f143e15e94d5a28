//! Connections to backends.
//!
//! Owns the backends of a route ([`Upstream`]): load balancing, health checks, outlier ejection, name resolution,
//! Happy Eyeballs, the PROXY protocol header, STARTTLS and TLS. Knows nothing of what is sent over a connection.
//! Invariants: a dial ends within its deadline, which covers all backends and addresses together; a client never
//! names a backend, only a token for one.

pub(crate) mod allowed;
pub(crate) mod balance;
pub(crate) mod connector;
mod exhaustion;
pub(crate) mod happy_eyeballs;
pub(crate) mod health;
pub(crate) mod own;
pub(crate) mod proxy_header;
mod rendezvous;
pub(crate) mod resolve;
pub(crate) mod starttls;
pub(crate) mod stream;
pub(crate) mod targets;
#[cfg(test)]
mod test_log;
pub(crate) mod tls;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::{
    balance::{BackendPermit, Pool, PoolSettings},
    targets::{TargetRules, TargetsError, TokenTable, token_of},
    tls::TlsConfigError,
};
pub(crate) use self::{
    connector::{ConnectError, Connector, DialContext},
    own::AddressSet,
    proxy_header::ClientInfo,
    stream::BackendStream,
};
use crate::{
    config::{Backend, Destinations, Health, RoutePath, Secret, UpstreamConfig},
    outcome::Reason,
    session::{Registry, TokenDigest},
};

/// Why the backends of a route cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// A certificate or key for TLS with backends.
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
    #[error(transparent)]
    Targets(#[from] TargetsError),
}

/// Why no backend was reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// All are down or have `max_sessions` sessions.
    #[error("no backend is available: all are down or have max_sessions sessions")]
    NoneHealthy,
    /// The last one tried.
    #[error("cannot reach {backend}: {cause}")]
    Unreached {
        backend: Backend,
        /// Why it was not reached.
        cause: ConnectError,
    },
}

impl DialError {
    /// The reason that the session ends with.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoneHealthy => Reason::NoHealthyBackend,
            Self::Unreached { cause, .. } => cause.reason(),
        }
    }

    /// The backend that was tried last.
    pub fn backend(&self) -> Option<&Backend> {
        match self {
            Self::NoneHealthy => None,
            Self::Unreached { backend, .. } => Some(backend),
        }
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub struct Connected {
    pub stream: BackendStream,
    pub backend: Backend,
    /// The session's share of the backend's `max_sessions`; `None` for one that a token selected.
    pub permit: Option<BackendPermit>,
}

/// The backend that a request selects: any of the route, or the one of its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendChoice {
    /// The next one by load balancing.
    Any,
    /// This one, selected by a token or by a credential.
    This {
        backend: Backend,
        /// The line of the token file that selected it, if the session ends with it.
        line: Option<TokenDigest>,
    },
}

impl BackendChoice {
    /// The line of the token file that selected it, if the session ends with it.
    pub(crate) fn line(&self) -> Option<TokenDigest> {
        match self {
            Self::Any => None,
            Self::This { line, .. } => *line,
        }
    }
}

/// The backends of one route.
#[derive(Debug)]
pub struct Upstream {
    backend_set: BackendSet,
    connector: Connector,
    health: Option<Health>,
}

#[derive(Debug)]
enum BackendSet {
    Pool { pool: Arc<Pool>, backends: Vec<Backend> },
    Tokens(Arc<TokenTable>),
}

impl Upstream {
    /// Loads the backends of the route named `route`, with certificates and token file. Backends that the registry in
    /// `context` knows keep their session counts and their health.
    ///
    /// # Errors
    /// Something is missing, unreadable or wrong.
    pub fn load(route: &str, config: &UpstreamConfig, context: &DialContext) -> Result<Self, UpstreamError> {
        let backend_set = match &config.destinations {
            Destinations::Fixed(backends) => {
                let is_checked = config.health.is_some();
                let settings =
                    PoolSettings { balance: config.balance, max_sessions: config.max_sessions, is_checked };
                BackendSet::Pool {
                    pool: context.registry.pool(route, backends, settings),
                    backends: backends.clone(),
                }
            }
            Destinations::Tokens(file) => {
                let rules = TargetRules::new(file, connector::allowed(config, context));
                BackendSet::Tokens(TokenTable::open(file, rules, &context.configured, &context.token_key)?)
            }
        };
        Ok(Self { backend_set, connector: Connector::load(config, context)?, health: config.health.clone() })
    }

    /// The first backend, in the configuration or in the token file, that is one of `addresses`.
    pub(crate) fn first_of(&self, addresses: &AddressSet) -> Option<Backend> {
        self.backends().into_iter().find(|backend| addresses.has_backend(backend))
    }

    /// The failure of a reload because of the token file was reported: do not report it again.
    pub fn mark_rejected(&self) {
        if let BackendSet::Tokens(table) = &self.backend_set {
            table.mark_rejected();
        }
    }

    /// Whether loading `config` reads no file, so that equal configurations give equal results.
    pub fn is_all_of(config: &UpstreamConfig) -> bool {
        match &config.destinations {
            Destinations::Fixed(backends) => !backends.iter().any(Backend::is_encrypted),
            Destinations::Tokens(_) => false,
        }
    }

    /// The backend that a request for this route selects; `None` if its token is unknown or missing.
    pub fn choose(&self, route: &RoutePath, path: &str, query: Option<&str>) -> Option<BackendChoice> {
        match &self.backend_set {
            BackendSet::Pool { .. } => Some(BackendChoice::Any),
            BackendSet::Tokens(table) => table.choose(&token_of(route, path, query)?),
        }
    }

    /// The backend that a credential selects: the one of this token, or the one with this URL. `None` if there is none.
    pub(crate) fn choose_target(&self, target: &str) -> Option<BackendChoice> {
        match &self.backend_set {
            BackendSet::Pool { backends, .. } => {
                let backend = backends.iter().find(|backend| backend.to_string() == target).cloned()?;
                Some(BackendChoice::This { backend, line: None })
            }
            BackendSet::Tokens(table) => table.choose(&Secret::new(target)),
        }
    }

    /// Whether the token file still has the line of a choice. To be asked after the session is registered: then a removal
    /// either finds the session, or is found here.
    pub(crate) fn has_line(&self, line: TokenDigest) -> bool {
        match &self.backend_set {
            BackendSet::Pool { .. } => false,
            BackendSet::Tokens(table) => table.has(line),
        }
    }

    /// The backends in the configuration or, at this moment, in the token file.
    pub fn backends(&self) -> Vec<Backend> {
        match &self.backend_set {
            BackendSet::Pool { backends, .. } => backends.clone(),
            BackendSet::Tokens(table) => table.backends(),
        }
    }

    /// The backends in the configuration: whether they get sessions, and how many they have, those being dialled
    /// included. Empty for a token file.
    pub fn status(&self) -> Vec<(Backend, bool, usize)> {
        let BackendSet::Pool { pool, backends } = &self.backend_set else { return Vec::new() };
        let now = Instant::now().into_std();
        let status = |(index, backend): (usize, &Backend)| {
            (backend.clone(), pool.is_up(index, now), pool.sessions(index))
        };
        backends.iter().enumerate().map(status).collect()
    }

    /// Dials the backends of this route.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Connects to the selected backend, or to the first of several that answers, within `limit`. Each of several
    /// gets an equal share of the time that is left.
    ///
    /// # Errors
    /// None was reached, or none is available.
    pub async fn connect(
        &self,
        choice: &BackendChoice,
        client_info: &ClientInfo<'_>,
        limit: Duration,
    ) -> Result<Connected, DialError> {
        let deadline = Instant::now() + limit;
        let (pool, backends) = match (&self.backend_set, choice) {
            (BackendSet::Pool { pool, backends }, BackendChoice::Any) => (pool, backends),
            (_, BackendChoice::This { backend, .. }) => {
                let connected = self.connector.connect(backend, Some(client_info), deadline).await;
                let backend = backend.clone();
                return match connected {
                    Ok(stream) => Ok(Connected { stream, backend, permit: None }),
                    Err(cause) => Err(DialError::Unreached { backend, cause }),
                };
            }
            (BackendSet::Tokens(_), BackendChoice::Any) => return Err(DialError::NoneHealthy),
        };
        let order = pool.order(Instant::now().into_std(), client_info.client.ip());
        let mut last = DialError::NoneHealthy;
        for (position, &index) in order.iter().enumerate() {
            let Some(permit) = pool.try_acquire(index) else { continue };
            let backend = backends[index].clone();
            let left = u32::try_from(order.len() - position).unwrap_or(u32::MAX);
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match self.connector.connect(&backend, Some(client_info), Instant::now() + share).await {
                Ok(stream) => {
                    if pool.succeeded(index) {
                        tracing::info!(%backend, "backend answers again");
                    }
                    return Ok(Connected { stream, backend, permit: Some(permit) });
                }
                Err(cause) => {
                    // A lack of resources on this machine is not the backend's fault. The next one may still be
                    // reached: local ports are counted per destination.
                    let is_backend_fault = cause.reason() != Reason::Overloaded;
                    // Only the first failure is logged: clients must not be able to flood the log.
                    if is_backend_fault
                        && let Some(away) = pool.failed(index, Instant::now().into_std())
                        && backends.len() > 1
                    {
                        tracing::warn!(%backend, error = %cause, ?away, "backend does not answer, using the others");
                    }
                    last = DialError::Unreached { backend, cause };
                }
            }
        }
        Err(last)
    }

    /// Runs the background tasks of the route until `stop`: health checks, or reloading the token file when it changes, which
    /// can end sessions.
    pub(crate) async fn watch(
        self: Arc<Self>,
        route: String,
        sessions: Arc<Registry>,
        stop: CancellationToken,
    ) {
        match (&self.backend_set, self.health.clone()) {
            (BackendSet::Tokens(table), _) => Arc::clone(table).watch(route, sessions, stop).await,
            // Results of an earlier configuration's health checks must not outlive them.
            (BackendSet::Pool { pool, backends }, None) => (0..backends.len()).for_each(|index| {
                pool.mark(index, true);
            }),
            (BackendSet::Pool { pool, backends }, Some(health)) => {
                let (upstream, limit) = (Arc::clone(&self), health.timeout);
                let probe = move |backend: Backend| {
                    let upstream = Arc::clone(&upstream);
                    async move {
                        upstream.connector.connect(&backend, None, Instant::now() + limit).await.map(drop)
                    }
                };
                health::watch(Arc::clone(pool), backends.clone(), route, health, probe, stop).await;
            }
        }
    }
}
