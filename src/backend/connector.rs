//! Dials one backend: name resolution, TCP or Unix socket, PROXY protocol header, STARTTLS, TLS.
//!
//! Owns the order of these steps, and the error that each can end with. Knows nothing of other backends of the route.

use std::{io, path::Path, sync::Arc};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, timeout_at},
};

use super::{
    allowed::Allowed,
    balance::BackendRegistry,
    exhaustion::is_exhaustion,
    happy_eyeballs::{self, TcpConnectError},
    own::{AddressSet, OwnAddresses},
    proxy_header::{self, ClientInfo},
    resolve::{ResolveError, Resolver},
    starttls::{self, StartTlsError},
    stream::BackendStream,
    targets::TokenKey,
    tls::{SystemRoots, TlsConfigError, TlsConnector, TlsError},
};
#[cfg(test)]
use crate::simulation::Network;
use crate::{
    config::{Backend, Destinations, SendProxy, UpstreamConfig},
    counting_stream::CountingStream,
    outcome::Reason,
    socket_buffer::SocketBuffer,
};

/// What the connectors of all routes share.
#[derive(Debug, Default)]
pub struct DialContext {
    pub resolver: Arc<Resolver>,
    /// The state of all backends.
    pub registry: Arc<BackendRegistry>,
    /// The authorities that the system trusts.
    pub roots: SystemRoots,
    /// The addresses that the running gateway listens on; never dialled.
    pub own: Arc<OwnAddresses>,
    /// Those of the configuration that is being loaded, for the checks while it is loaded.
    pub configured: AddressSet,
    /// How much the kernel buffers for a connection. A reload changes it for all.
    pub socket_buffer: SocketBuffer,
    /// Under which tokens are known.
    pub(super) token_key: Arc<TokenKey>,
}

impl DialContext {
    /// The context for a reload of the configuration: cached answers and the state of backends are kept, files are read
    /// again.
    pub fn for_reload(&self) -> Self {
        Self {
            resolver: Arc::clone(&self.resolver),
            registry: Arc::clone(&self.registry),
            roots: SystemRoots::default(),
            own: Arc::clone(&self.own),
            configured: AddressSet::default(),
            socket_buffer: self.socket_buffer.clone(),
            token_key: Arc::clone(&self.token_key),
        }
    }
}

/// Why one backend was not reached. The messages continue "cannot reach tcp://…: ".
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No address could be connected to.
    #[error(transparent)]
    Tcp(#[from] TcpConnectError),
    /// The Unix socket is one of this gateway.
    #[error("this gateway itself listens there, and no route leads to it")]
    Own,
    /// The Unix socket could not be connected to.
    #[error("{0}")]
    Unix(io::Error),
    /// The connection was established, but the PROXY header could not be sent.
    #[error("it does not accept a PROXY header: {0}")]
    ProxyHeader(io::Error),
    #[error(transparent)]
    StartTls(#[from] StartTlsError),
    /// A token selects a backend with TLS, and no authority is trusted.
    #[error(
        "the system has no certificate authorities to check its certificate with; install ca-certificates"
    )]
    NoTls,
    /// The TLS handshake failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl ConnectError {
    /// The reason that a session ends with.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Resolve(error) => error.reason(),
            Self::Tcp(error) => error.reason(),
            Self::Unix(error) | Self::ProxyHeader(error) => reason_of(error),
            Self::Own => Reason::BackendRefused,
            Self::StartTls(error) => error.reason(),
            Self::NoTls => Reason::BackendTlsFailed,
            Self::Tls(error) => error.reason(),
        }
    }
}

/// What a route may dial.
pub(super) fn allowed(config: &UpstreamConfig, context: &DialContext) -> Allowed {
    Allowed {
        networks: config.allowed_networks.clone(),
        by_token: matches!(config.destinations, Destinations::Tokens(_)),
        own: Arc::clone(&context.own),
    }
}

fn reason_of(error: &io::Error) -> Reason {
    match error.kind() {
        _ if is_exhaustion(error) => Reason::Overloaded,
        io::ErrorKind::TimedOut => Reason::BackendTimeout,
        _ => Reason::BackendRefused,
    }
}

/// Dials the backends of one route.
#[derive(Debug)]
pub struct Connector {
    resolver: Arc<Resolver>,
    allowed: Allowed,
    tls_connector: Option<TlsConnector>,
    xmpp_domain: Option<String>,
    send_proxy: Option<SendProxy>,
    socket_buffer: SocketBuffer,
}

impl Connector {
    /// Loads the TLS settings of a route, if any of its backends uses TLS.
    ///
    /// # Errors
    /// A certificate or key is missing, unreadable or wrong.
    pub(super) fn load(config: &UpstreamConfig, context: &DialContext) -> Result<Self, TlsConfigError> {
        Ok(Self {
            resolver: Arc::clone(&context.resolver),
            allowed: allowed(config, context),
            tls_connector: match &config.destinations {
                Destinations::Fixed(backends) if !backends.iter().any(Backend::is_encrypted) => None,
                Destinations::Fixed(_) => Some(TlsConnector::load(&config.tls, &context.roots)?),
                // Whether a token selects a backend with TLS is known only when it is used; until then nothing is
                // missing.
                Destinations::Tokens(_) => TlsConnector::load(&config.tls, &context.roots).ok(),
            },
            xmpp_domain: config.xmpp_domain.clone(),
            send_proxy: config.send_proxy,
            socket_buffer: context.socket_buffer.clone(),
        })
    }

    /// Connects to one backend. Without a client, the connection is a health check.
    ///
    /// # Errors
    /// [`ConnectError`] has a variant for each step.
    pub async fn connect(
        &self,
        backend: &Backend,
        client_info: Option<&ClientInfo<'_>>,
        deadline: Instant,
    ) -> Result<BackendStream, ConnectError> {
        let (host, port) = match backend {
            Backend::Unix(path) => return self.unix(path, client_info, deadline).await,
            Backend::Tcp { host, port }
            | Backend::Tls { host, port }
            | Backend::StartTlsXmpp { host, port } => (host, *port),
        };
        let addresses = self.resolver.resolve(host, deadline).await?;
        let (allowed, buffer) = (&self.allowed, &self.socket_buffer);
        #[cfg(test)]
        if let Some(network) = Network::current() {
            let connect = |address| network.dial(address);
            let connected =
                happy_eyeballs::happy_eyeballs(addresses, port, allowed, deadline, connect).await?;
            let mut stream = CountingStream::new(connected);
            self.send_proxy_header(&mut stream, client_info, deadline).await?;
            return Ok(BackendStream::Simulated(stream));
        }
        let connected = happy_eyeballs::tcp(addresses, port, allowed, buffer, deadline).await?;
        let mut stream = CountingStream::new(connected);
        self.send_proxy_header(&mut stream, client_info, deadline).await?;
        let host = host.to_string();
        let name = match backend {
            Backend::Tls { .. } => &host,
            Backend::StartTlsXmpp { .. } => {
                let domain = self.xmpp_domain.as_ref().unwrap_or(&host);
                starttls::negotiate(&mut stream, domain, deadline).await?;
                domain
            }
            Backend::Tcp { .. } | Backend::Unix(_) => return Ok(BackendStream::Tcp(stream)),
        };
        match &self.tls_connector {
            Some(tls_connector) => {
                Ok(BackendStream::Tls(Box::new(tls_connector.connect(name, stream, deadline).await?)))
            }
            None => Err(ConnectError::NoTls),
        }
    }

    async fn unix(
        &self,
        path: &Path,
        client_info: Option<&ClientInfo<'_>>,
        deadline: Instant,
    ) -> Result<BackendStream, ConnectError> {
        let own = self.allowed.own.current();
        if own.has_path(path) {
            return Err(ConnectError::Own);
        }
        let connected = timeout_at(deadline, UnixStream::connect(path)).await;
        let socket =
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(ConnectError::Unix)?;
        // A link may have been changed since.
        if socket.peer_addr().is_ok_and(|peer| own.has_bound(peer.as_pathname())) {
            return Err(ConnectError::Own);
        }
        let mut stream = CountingStream::new(socket);
        self.send_proxy_header(&mut stream, client_info, deadline).await?;
        Ok(BackendStream::Unix(stream))
    }

    /// Sends the PROXY protocol header, if the route has `send_proxy`.
    async fn send_proxy_header<S>(
        &self,
        stream: &mut S,
        client_info: Option<&ClientInfo<'_>>,
        deadline: Instant,
    ) -> Result<(), ConnectError>
    where
        S: AsyncWrite + Unpin,
    {
        let Some(version) = self.send_proxy else { return Ok(()) };
        let header = proxy_header::header(version, client_info);
        let written = timeout_at(deadline, stream.write_all(&header)).await;
        written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(ConnectError::ProxyHeader)
    }
}
