//! The way to a backend: the one room that knows how to get a byte stream to a target.
//!
//! Owns what a route leads to ([`Upstream`]): which of its servers is next, how its name becomes an address, how that is
//! dialled, what it is told about the caller, and how TLS begins. Refuses to know what is carried. Invariants: a dial ends
//! within its deadline, all servers and addresses together; a client never names a server, only a token for one.

pub(crate) mod allowed;
pub(crate) mod balance;
pub(crate) mod connector;
mod exhaustion;
pub(crate) mod happy_eyeballs;
pub(crate) mod health;
pub(crate) mod proxy_header;
pub(crate) mod resolve;
pub(crate) mod starttls;
pub(crate) mod stream;
pub(crate) mod targets;
#[cfg(test)]
mod test_log;
pub(crate) mod tls;

use std::{
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::{
    balance::{BackendPermit, Pool, PoolSettings},
    targets::{TargetsError, TokenTable, token_of},
    tls::TlsConfigError,
};
pub(crate) use self::{
    connector::{ConnectError, Connector, DialContext},
    proxy_header::ClientInfo,
    stream::BackendStream,
};
use crate::{
    config::{Backend, Destinations, Health, RoutePath, UpstreamConfig},
    outcome::Reason,
};

/// Why what a route leads to cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Its certificates or keys.
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
    /// Its token file.
    #[error(transparent)]
    Targets(#[from] TargetsError),
}

/// Why no server was reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// All are down, away or full.
    #[error("no server is available: all are down or have their max_sessions")]
    NoneHealthy,
    /// The last one tried.
    #[error("cannot reach {backend}: {source}")]
    Unreached {
        /// Which.
        backend: Backend,
        /// Why.
        source: ConnectError,
    },
}

impl DialError {
    /// The end this leads to.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoneHealthy => Reason::NoHealthyBackend,
            Self::Unreached { source, .. } => source.reason(),
        }
    }

    /// The server that was tried last.
    pub fn backend(&self) -> Option<&Backend> {
        match self {
            Self::NoneHealthy => None,
            Self::Unreached { backend, .. } => Some(backend),
        }
    }
}

/// A server that answered.
#[derive(Debug)]
pub struct Connected {
    /// The way to it.
    pub stream: BackendStream,
    /// Which one it is.
    pub backend: Backend,
    /// Its place among the sessions of its server.
    pub permit: Option<BackendPermit>,
}

/// What a request asks for: any server of the route, or the one its token names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendChoice {
    /// Whichever is next.
    Any,
    /// This one.
    This(Backend),
}

/// What one route leads to.
#[derive(Debug)]
pub struct Upstream {
    servers: Servers,
    connector: Connector,
    health: Option<Health>,
}

#[derive(Debug)]
enum Servers {
    Pool { pool: Arc<Pool>, backends: Vec<Backend> },
    Tokens(Arc<TokenTable>),
}

impl Upstream {
    /// Loads what the route named `route` says of its servers: certificates, token file. Servers that the route had
    /// before, as far as the ledger among the tools knows, keep their sessions and what was found out about them.
    ///
    /// # Errors
    /// Something is missing, unreadable or wrong.
    pub fn load(route: &str, config: &UpstreamConfig, context: &DialContext) -> Result<Self, UpstreamError> {
        let servers = match &config.destinations {
            Destinations::Fixed(backends) => {
                let is_checked = config.health.is_some();
                let settings =
                    PoolSettings { balance: config.balance, max_sessions: config.max_sessions, is_checked };
                Servers::Pool {
                    pool: context.registry.pool(route, backends, settings),
                    backends: backends.clone(),
                }
            }
            Destinations::Tokens(file) => Servers::Tokens(TokenTable::open(file)?),
        };
        Ok(Self { servers, connector: Connector::load(config, context)?, health: config.health.clone() })
    }

    /// Whether what is loaded for `config` depends on nothing but `config`, no file included.
    pub fn is_all_of(config: &UpstreamConfig) -> bool {
        match &config.destinations {
            Destinations::Fixed(backends) => !backends.iter().any(Backend::is_encrypted),
            Destinations::Tokens(_) => false,
        }
    }

    /// What a request for this route asks for; `None` if its token names nothing.
    pub fn choose(&self, route: &RoutePath, path: &str, query: Option<&str>) -> Option<BackendChoice> {
        match &self.servers {
            Servers::Pool { .. } => Some(BackendChoice::Any),
            Servers::Tokens(table) => table.find(&token_of(route, path, query)?).map(BackendChoice::This),
        }
    }

    /// The servers that are named in the configuration or, now, in the token file.
    pub fn backends(&self) -> Vec<Backend> {
        match &self.servers {
            Servers::Pool { backends, .. } => backends.clone(),
            Servers::Tokens(table) => table.backends(),
        }
    }

    /// The servers that are named in the configuration: whether sessions are led there, and how many are there or on
    /// their way. None where tokens lead.
    pub fn status(&self) -> Vec<(Backend, bool, usize)> {
        let Servers::Pool { pool, backends } = &self.servers else { return Vec::new() };
        let now = StdInstant::now();
        let stands = |(target, backend): (usize, &Backend)| {
            (backend.clone(), pool.is_up(target, now), pool.sessions(target))
        };
        backends.iter().enumerate().map(stands).collect()
    }

    /// How its servers are reached.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Connects to the server wished for, within `limit`. Several servers share the time that is left.
    ///
    /// # Errors
    /// None could be reached, or none may be tried.
    pub async fn connect(
        &self,
        choose: &BackendChoice,
        client_info: &ClientInfo,
        limit: Duration,
    ) -> Result<Connected, DialError> {
        let deadline = Instant::now() + limit;
        let (pool, backends) = match (&self.servers, choose) {
            (Servers::Pool { pool, backends }, BackendChoice::Any) => (pool, backends),
            (_, BackendChoice::This(backend)) => {
                let reached = self.connector.connect(backend, Some(client_info), deadline).await;
                let backend = backend.clone();
                return match reached {
                    Ok(stream) => Ok(Connected { stream, backend, permit: None }),
                    Err(source) => Err(DialError::Unreached { backend, source }),
                };
            }
            (Servers::Tokens(_), BackendChoice::Any) => return Err(DialError::NoneHealthy),
        };
        let order = pool.order(StdInstant::now(), client_info.client.ip());
        let mut last = DialError::NoneHealthy;
        for (index, &target) in order.iter().enumerate() {
            let Some(permit) = pool.try_acquire(target) else { continue };
            let backend = backends[target].clone();
            let left = u32::try_from(order.len() - index).unwrap_or(u32::MAX);
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match self.connector.connect(&backend, Some(client_info), Instant::now() + share).await {
                Ok(stream) => {
                    if pool.succeeded(target) {
                        tracing::info!(%backend, "backend answers again");
                    }
                    return Ok(Connected { stream, backend, permit: Some(permit) });
                }
                Err(source) => {
                    // What this machine has run out of, the server could not help. The next one may still do: local
                    // ports are counted for each server.
                    let is_to_blame = source.reason() != Reason::Overloaded;
                    // Only the first of a row of failures is news; what a stranger can repeat is not.
                    if is_to_blame
                        && let Some(away) = pool.failed(target, StdInstant::now())
                        && backends.len() > 1
                    {
                        tracing::warn!(%backend, error = %source, ?away, "backend does not answer, using the others");
                    }
                    last = DialError::Unreached { backend, source };
                }
            }
        }
        Err(last)
    }

    /// Looks after the servers until `stop`: checks their health, reads their token file again when it changes.
    pub async fn watch(self: Arc<Self>, route: String, stop: CancellationToken) {
        match (&self.servers, self.health.clone()) {
            (Servers::Tokens(table), _) => Arc::clone(table).watch(stop).await,
            // What checks of an earlier configuration have found is of no use to those of a later one.
            (Servers::Pool { pool, backends }, None) => (0..backends.len()).for_each(|target| {
                pool.mark(target, true);
            }),
            (Servers::Pool { pool, backends }, Some(health)) => {
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
