//! The first stations: who is calling, and TLS.

use std::{net::SocketAddr, time::Instant as StdInstant};

use rustls::ProtocolVersion;
use tokio::time::{self, Instant};

use super::{ListenerSettings, Shared, access_log::AccessLogLine};
use crate::{
    admission::{AddressPermit, LimitExceeded},
    config::Timeouts,
    counting_stream::CountingStream,
    http::{self, Refusal},
    metrics::Metrics,
    outcome::Reason,
    transport::{
        peer,
        proxy_protocol::{self, Initiator, ProxyHeader},
        socket::Socket,
        stream::ClientStream,
        tls::TlsAccept,
    },
};

/// What is known of a connection before it asks for anything.
#[derive(Clone, Copy)]
pub(super) struct ConnectionInfo {
    /// The client, or the trusted proxy that speaks for it.
    pub(super) peer: SocketAddr,
    /// The address of ours that was called.
    pub(super) local: SocketAddr,
    /// The version of TLS that it speaks, if it does.
    pub(super) tls: Option<ProtocolVersion>,
    /// Whether its requests may say who the client is.
    pub(super) proxied: bool,
}

impl ConnectionInfo {
    pub(super) fn new(socket: &Socket, peer: SocketAddr, settings: &ListenerSettings) -> Self {
        let local = socket.local_addr();
        Self { peer, local, tls: None, proxied: peer::is_trusted(&settings.trusted_proxies, peer.ip()) }
    }

    /// What a PROXY header makes of it.
    pub(super) async fn read_proxy_header(
        self,
        socket: &mut Socket,
        settings: &ListenerSettings,
        log_line: &mut AccessLogLine,
    ) -> Result<Self, Reason> {
        let ProxyHeader { client, destination, initiator } =
            proxy_protocol::read(socket, self.peer, &settings.trusted_proxies).await.map_err(|error| {
                log_line.detail = Some(error.to_string());
                Reason::ProxyHeaderInvalid
            })?;
        log_line.peer = client;
        let proxied = match initiator {
            Initiator::Client => peer::is_trusted(&settings.trusted_proxies, client.ip()),
            Initiator::Proxy => true,
            // The connection is the proxy's, and its requests are a stranger's.
            Initiator::Unknown => false,
        };
        Ok(Self { peer: client, local: destination.unwrap_or(self.local), proxied, ..self })
    }

    /// Counts the connection against its client, unless only its request can say who that is.
    pub(super) fn admit(&self, shared: &Shared) -> Result<Option<AddressPermit>, Reason> {
        let admitted = (!self.proxied).then(|| admit(shared, self.peer)).transpose();
        admitted.map_err(|refused| reason_of(&refused))
    }
}

/// Counts a connection against the address it comes from.
pub(super) fn admit(shared: &Shared, client: SocketAddr) -> Result<AddressPermit, LimitExceeded> {
    shared.limiter.admit(client.ip(), StdInstant::now())
}

pub(super) fn reason_of(refused: &LimitExceeded) -> Reason {
    match refused {
        LimitExceeded::Rate { .. } => Reason::RateLimited,
        LimitExceeded::Sessions => Reason::TooManySessions,
    }
}

/// TLS, where the listener has a certificate. Also returns when the first request head must be whole.
pub(super) async fn secure(
    socket: Socket,
    settings: &ListenerSettings,
    metrics: &Metrics,
    log_line: &mut AccessLogLine,
) -> Result<(ClientStream, Instant), Reason> {
    socket.set_nodelay();
    let Timeouts { tls: tls_limit, request, close, .. } = settings.snapshot.timeouts;
    let Some(tls) = &settings.tls else {
        let head_by = Instant::now() + request;
        if time::timeout_at(head_by, begins_with_proxy_header(&socket)).await == Ok(true) {
            return Err(Reason::ProxyHeaderInvalid);
        }
        return Ok((ClientStream::Plain(CountingStream::new(socket)), head_by));
    };
    let start = StdInstant::now();
    match time::timeout(tls_limit, tls.accept(socket)).await {
        Err(_) => Err(Reason::TlsTimeout),
        Ok(Err(error)) => {
            log_line.detail = Some(error.to_string());
            Err(Reason::TlsFailed)
        }
        Ok(Ok(TlsAccept::Stream(stream))) => {
            metrics.count_tls(start.elapsed());
            Ok((stream, Instant::now() + request))
        }
        Ok(Ok(TlsAccept::NotTls(socket))) => {
            if begins_with_proxy_header(&socket).await {
                return Err(Reason::ProxyHeaderInvalid);
            }
            // Most likely HTTP: a person who left out the s is told so.
            http::refuse_without_request(socket, Refusal::new(Reason::NotTls), close).await;
            Err(Reason::NotTls)
        }
    }
}

/// Whether a connection that was not asked for a PROXY header begins with one. Nothing is read.
async fn begins_with_proxy_header(socket: &Socket) -> bool {
    let mut first = [0; 12];
    socket.peek(&mut first).await.is_ok_and(|len| proxy_protocol::begins(&first[..len]))
}
