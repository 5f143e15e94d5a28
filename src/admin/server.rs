//! The HTTP server of the admin addresses.
//!
//! Owns the limits of its connections. Knows nothing of the API behind it. It does not count against the gateway's
//! limits, so it responds even when the gateway is full. Invariants: the number of connections is bounded, and so is the
//! time of each without a request; a request that fails the guard's check is not handled.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, StatusCode, header::HOST};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time,
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use super::api::{AdminContext, AdminScope};
use super::{
    api::{AdminApi, read},
    connections::{Connection, Connections},
    guard::{self, GuardRefusal},
    response::{AdminResponse, TEXT, response},
    socket::{SocketError, address_of, bind},
};
use crate::{
    config::{AdminAddress, SocketAccess},
    http::quoted,
    transport::listener::{Backoff, ListeningSocket},
};

/// A further one takes the place of the one that has waited longest for its client.
const MAX_CONNECTIONS: usize = 64;
/// Close a connection if it sends no whole request head for this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Close a connection if the client reads nothing of a response for this long.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest request head, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The pause between attempts to bind an address that is in use.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A running admin server; it stops when this is dropped.
#[derive(Debug)]
pub(crate) struct AdminServer {
    address: AdminAddress,
    _closes: DropGuard,
}

/// The socket of the admin address; none while another process still has it.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    address: AdminAddress,
    access: SocketAccess,
    socket: Option<ListeningSocket>,
}

impl AdminSocket {
    /// Listens on `address`; `access` is for a Unix socket. If it is in use, most likely by the process that this one
    /// replaces, [`serve`](Self::serve) retries until it is free.
    ///
    /// # Errors
    /// The address cannot be used, and retrying would not help.
    pub(crate) fn bind(address: &AdminAddress, access: &SocketAccess) -> Result<Self, SocketError> {
        let socket = match bind(address, access) {
            Ok(socket) => Some(socket),
            Err(SocketError::InUse) => None,
            Err(error) => return Err(error),
        };
        let actual = socket.as_ref().and_then(address_of);
        let address = actual.unwrap_or_else(|| address.clone());
        Ok(Self { address, access: access.clone(), socket })
    }

    /// The local address, with the port that the system chose for port 0.
    pub(crate) fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// Accepts connections from now on, in tasks of the current runtime.
    pub(crate) fn serve(self, context: AdminContext, scope: AdminScope) -> AdminServer {
        let Self { address, access, socket } = self;
        let api = Arc::new(AdminApi::new(context, scope));
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned({
            let (address, stop) = (address.clone(), stop.clone());
            async move {
                let socket = match socket {
                    Some(socket) => socket,
                    None => bind_when_free(&address, &access, scope).await,
                };
                let address = address_of(&socket).unwrap_or(address);
                tracing::info!(%address, "listening on the {scope}");
                accept(socket, api, stop).await;
            }
        }));
        AdminServer { address, _closes: stop.drop_guard() }
    }
}

impl AdminServer {
    /// The local address, with the port that the system chose for port 0.
    pub(crate) fn address(&self) -> &AdminAddress {
        &self.address
    }
}

/// Retries until the process that has the address releases it.
async fn bind_when_free(address: &AdminAddress, access: &SocketAccess, scope: AdminScope) -> ListeningSocket {
    tracing::warn!(%address, "the {scope} is in use by another program; retrying until it is free");
    loop {
        time::sleep(RETRY_INTERVAL).await;
        match bind(address, access) {
            Ok(socket) => return socket,
            Err(SocketError::InUse) => {}
            Err(error) => tracing::debug!(%address, %error, "cannot listen on the {scope}; retrying"),
        }
    }
}

async fn accept(socket: ListeningSocket, api: Arc<AdminApi>, stop: CancellationToken) {
    let (connections, own) = (Arc::new(Connections::new(MAX_CONNECTIONS)), socket.address().ip());
    let mut backoff = Backoff::default();
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                backoff.reset();
                stream.set_nodelay();
                let connection = Arc::new(connections.open().await);
                let (api, stop) = (Arc::clone(&api), stop.clone());
                tokio::spawn(async move {
                    let served = serve_connection(stream, own, api, Arc::clone(&connection));
                    tokio::select! {
                        _ = stop.run_until_cancelled(served) => {}
                        () = connection.closed() => tracing::debug!("admin connection closed for a newer one"),
                    }
                });
            }
            Err(error) => {
                if let Some(pause) = backoff.after(&error) {
                    tracing::debug!(%error, "cannot accept on the admin address");
                    time::sleep(pause).await;
                }
            }
        }
    }
}

/// Serves the requests of one connection.
pub(super) async fn serve_connection<S>(
    stream: S,
    own: Option<SocketAddr>,
    api: Arc<AdminApi>,
    connection: Arc<Connection>,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut io = TimeoutStream::new(stream);
    io.set_write_timeout(Some(WRITE_TIMEOUT));
    let service = service_fn(move |request: Request<Incoming>| {
        let (api, connection) = (Arc::clone(&api), Arc::clone(&connection));
        async move { Ok::<_, Infallible>(handle(request, own, &api, &connection).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Box::pin(io)), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "admin connection failed");
    }
}

async fn handle(
    request: Request<Incoming>,
    own: Option<SocketAddr>,
    api: &AdminApi,
    connection: &Connection,
) -> AdminResponse {
    match guard::check(request.method(), request.uri(), request.headers(), own) {
        Ok(()) => {
            let request = read(request).await;
            let _answering = connection.answering();
            api.handle(request).await
        }
        Err(refusal) => {
            let host = request.headers().get(HOST).map(|host| quoted(host.as_bytes()));
            tracing::debug!(host, why = %refusal, "admin request refused");
            let status = match refusal {
                GuardRefusal::NoHost | GuardRefusal::OtherTarget => StatusCode::BAD_REQUEST,
                GuardRefusal::ForeignHost | GuardRefusal::Page => StatusCode::FORBIDDEN,
            };
            response(status, TEXT, format!("{refusal}\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        task::JoinHandle,
        time::Instant,
    };

    use super::*;
    use crate::admin::{
        control::{BoxFuture, GatewayStatus, ProcessControl, TicketRoute},
        fuzzing::AdminService,
    };

    /// A process that changes nothing.
    #[derive(Debug)]
    struct Unchanging;

    impl ProcessControl for Unchanging {
        fn reload(&self) -> BoxFuture<'_, Result<String, String>> {
            Box::pin(async { Err("not here".to_owned()) })
        }

        fn drain(&self) {}

        fn set_log_level(&self, _: tracing::Level) -> Result<(), String> {
            Err("not here".to_owned())
        }

        fn ticket_route(&self, _: &str, _: Option<&str>) -> Result<TicketRoute, String> {
            Ok(TicketRoute { path: "/desk".to_owned(), parameter: Some("ticket".to_owned()), base: None })
        }

        fn status(&self) -> GatewayStatus {
            GatewayStatus::empty()
        }
    }

    /// Serves one connection whose pipe holds this many bytes.
    fn serve(pipe: usize) -> (DuplexStream, JoinHandle<()>) {
        let (client, server) = duplex(pipe);
        let service = AdminService::new(Arc::new(Unchanging), Arc::default());
        (client, tokio::spawn(async move { service.serve(server).await }))
    }

    /// Of the paused clock.
    async fn within_an_hour<F: Future>(future: F) -> F::Output {
        time::timeout(Duration::from_secs(3600), future).await.expect("an end within an hour")
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_and_half_a_body_have_five_seconds() {
        for (half, status) in [
            ("GET /metrics HTTP/1.1\r\nHost: loc", ""),
            (
                "POST /api/log-level HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{",
                "HTTP/1.1 408 ",
            ),
        ] {
            let (mut client, served) = serve(64 * 1024);
            client.write_all(half.as_bytes()).await.unwrap();
            let (start, mut reply) = (Instant::now(), String::new());
            within_an_hour(client.read_to_string(&mut reply)).await.unwrap();
            assert_eq!(start.elapsed().as_secs(), 5, "{half:?}: {reply:?}");
            assert!(reply.starts_with(status), "{half:?}: {reply:?}");
            within_an_hour(served).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_has_ten_seconds() {
        let (mut client, served) = serve(256);
        let start = Instant::now();
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        within_an_hour(served).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 10);
        drop(client);
    }
}
