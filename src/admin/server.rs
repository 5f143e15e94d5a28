//! The admin address: a small HTTP server beside the gateway.
//!
//! Owns its connections and their limits. Refuses to know what is answered. It stands outside of every limit of the gateway,
//! so that it answers also when the gateway is full. Invariants: it holds a bounded number of connections, each for a
//! bounded time without a request; whoever may not ask is not looked at.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, StatusCode, header::HOST};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{sync::Semaphore, time};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    api::{AdminApi, Answer, answer},
    control::ProcessControl,
    guard::{self, GuardRefusal},
    socket::{SocketError, address_of, bind},
};
use crate::{
    config::AdminAddress,
    http::quoted,
    metrics::Metrics,
    session::Registry,
    transport::{
        listener::{Backoff, ListeningSocket},
        socket::Socket,
    },
};

/// How many connections at once; more wait.
const MOST: usize = 64;
/// How long a connection may be without a whole request head.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long nothing of an answer may be taken.
const STALL: Duration = Duration::from_secs(10);
/// The largest request head, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// How often an address that somebody else has is asked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// The admin address while it is listened on: until this is dropped.
#[derive(Debug)]
pub(crate) struct AdminServer {
    address: AdminAddress,
    _closes: DropGuard,
}

/// A socket for the operator, or an address that somebody else still has.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    address: AdminAddress,
    socket: Option<ListeningSocket>,
}

impl AdminSocket {
    /// Listens on `address`. If somebody else still does, most likely the process that this one takes over from, it is
    /// asked for again and again once there is a server.
    ///
    /// # Errors
    /// It cannot be listened on, and waiting would not help.
    pub(crate) fn bind(address: &AdminAddress) -> Result<Self, SocketError> {
        let socket = match bind(address) {
            Ok(socket) => Some(socket),
            Err(SocketError::InUse) => None,
            Err(error) => return Err(error),
        };
        let actual = socket.as_ref().and_then(address_of);
        Ok(Self { address: actual.unwrap_or_else(|| address.clone()), socket })
    }

    /// Answers on it from now on, in tasks of the runtime this is called in.
    pub(crate) fn serve(
        self,
        control: Arc<dyn ProcessControl>,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
    ) -> AdminServer {
        let Self { address, socket } = self;
        let office = Arc::new(AdminApi::new(control, registry, metrics));
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned({
            let (address, stop) = (address.clone(), stop.clone());
            async move {
                let socket = match socket {
                    Some(socket) => socket,
                    None => wait_for(&address).await,
                };
                let shown = address_of(&socket).unwrap_or(address);
                tracing::info!(address = %shown, "listening for the operator");
                accept(socket, office, stop).await;
            }
        }));
        AdminServer { address, _closes: stop.drop_guard() }
    }
}

impl AdminServer {
    /// Where it listens, with the port that was given for port 0.
    pub(crate) fn address(&self) -> &AdminAddress {
        &self.address
    }
}

/// Asks for an address until whoever has it lets it go.
async fn wait_for(address: &AdminAddress) -> ListeningSocket {
    tracing::warn!(%address, "another program has the admin address; asking again until it is free");
    loop {
        time::sleep(AGAIN).await;
        match bind(address) {
            Ok(socket) => return socket,
            Err(SocketError::InUse) => {}
            Err(error) => tracing::debug!(%address, %error, "no admin address yet"),
        }
    }
}

async fn accept(socket: ListeningSocket, office: Arc<AdminApi>, stop: CancellationToken) {
    let (places, own) = (Arc::new(Semaphore::new(MOST)), socket.address().ip());
    let mut backoff = Backoff::default();
    loop {
        // Never closed, so there is always a place in the end.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, _)) => {
                backoff.reset();
                stream.set_nodelay();
                let (office, stop) = (Arc::clone(&office), stop.clone());
                tokio::spawn(async move {
                    stop.run_until_cancelled(serve(stream, own, office)).await;
                    drop(place);
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

/// Serves one connection to its end.
async fn serve(stream: Socket, own: Option<SocketAddr>, office: Arc<AdminApi>) {
    let mut io = TimeoutStream::new(stream);
    io.set_write_timeout(Some(STALL));
    let service = service_fn(move |request: Request<Incoming>| {
        let office = Arc::clone(&office);
        async move { Ok::<_, Infallible>(judged(request, own, &office).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_header_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Box::pin(io)), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an operator's connection ended");
    }
}

async fn judged(request: Request<Incoming>, own: Option<SocketAddr>, office: &AdminApi) -> Answer {
    match guard::judge(request.method(), request.headers(), own) {
        Ok(()) => office.answer(request).await,
        Err(refused) => {
            let host = request.headers().get(HOST).map(|host| quoted(host.as_bytes()));
            tracing::debug!(host, why = %refused, "refused on the admin address");
            let status = match refused {
                GuardRefusal::NoHost => StatusCode::BAD_REQUEST,
                GuardRefusal::ForeignHost | GuardRefusal::Page => StatusCode::FORBIDDEN,
            };
            answer(status, "text/plain; charset=utf-8", format!("{refused}\n"))
        }
    }
}
