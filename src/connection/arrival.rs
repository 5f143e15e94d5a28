//! The first stations: who is calling, and TLS.

use std::{net::SocketAddr, time::Instant as StdInstant};

use rustls::ProtocolVersion;
use tokio::time::{self, Instant};

use super::{Door, House, closing_line::ClosingLine};
use crate::{
    admission::{Place, Refused},
    config::Timeouts,
    http::{self, Refusal},
    metered::Metered,
    metrics::Metrics,
    outcome::Reason,
    transport::{
        peer,
        proxy_protocol::{self, Announced, Speaker},
        socket::Socket,
        stream::ClientStream,
        tls::Accepted,
    },
};

/// What is known of a connection before it asks for anything.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    /// The client, or the trusted proxy that speaks for it.
    pub(super) peer: SocketAddr,
    /// The address of ours that was called.
    pub(super) called: SocketAddr,
    /// The version of TLS that it speaks, if it does.
    pub(super) tls: Option<ProtocolVersion>,
    /// Whether its requests may say who the client is.
    pub(super) proxied: bool,
}

impl Arrival {
    pub(super) fn of(socket: &Socket, peer: SocketAddr, door: &Door) -> Self {
        let called = socket.local_addr();
        Self { peer, called, tls: None, proxied: peer::is_trusted(&door.trusted_proxies, peer.ip()) }
    }

    /// What a PROXY header makes of it.
    pub(super) async fn announced(
        self,
        socket: &mut Socket,
        door: &Door,
        line: &mut ClosingLine,
    ) -> Result<Self, Reason> {
        let Announced { client, destination, speaker } =
            proxy_protocol::read(socket, self.peer, &door.trusted_proxies).await.map_err(|error| {
                line.detail = Some(error.to_string());
                Reason::ProxyHeaderInvalid
            })?;
        line.peer = client;
        let proxied = match speaker {
            Speaker::Client => peer::is_trusted(&door.trusted_proxies, client.ip()),
            Speaker::Proxy => true,
            // The connection is the proxy's, and its requests are a stranger's.
            Speaker::Unknown => false,
        };
        Ok(Self { peer: client, called: destination.unwrap_or(self.called), proxied, ..self })
    }

    /// Counts the connection against its client, unless only its request can say who that is.
    pub(super) fn admit(&self, house: &House) -> Result<Option<Place>, Reason> {
        let admitted = (!self.proxied).then(|| admit(house, self.peer)).transpose();
        admitted.map_err(|refused| reason_of(&refused))
    }
}

/// Counts a connection against the address it comes from.
pub(super) fn admit(house: &House, client: SocketAddr) -> Result<Place, Refused> {
    house.limiter.admit(client.ip(), StdInstant::now())
}

pub(super) fn reason_of(refused: &Refused) -> Reason {
    match refused {
        Refused::Rate { .. } => Reason::RateLimited,
        Refused::Sessions => Reason::TooManySessions,
    }
}

/// TLS, where the listener has a certificate. Also returns when the first request head must be whole.
pub(super) async fn secure(
    socket: Socket,
    door: &Door,
    metrics: &Metrics,
    line: &mut ClosingLine,
) -> Result<(ClientStream, Instant), Reason> {
    socket.send_at_once();
    let Timeouts { tls: tls_limit, request, close, .. } = door.terms.timeouts;
    let Some(tls) = &door.tls else {
        let head_by = Instant::now() + request;
        if time::timeout_at(head_by, brings_proxy_header(&socket)).await == Ok(true) {
            return Err(Reason::ProxyHeaderInvalid);
        }
        return Ok((ClientStream::Plain(Metered::new(socket)), head_by));
    };
    let start = StdInstant::now();
    match time::timeout(tls_limit, tls.accept(socket)).await {
        Err(_) => Err(Reason::TlsTimeout),
        Ok(Err(error)) => {
            line.detail = Some(error.to_string());
            Err(Reason::TlsFailed)
        }
        Ok(Ok(Accepted::Stream(stream))) => {
            metrics.count_tls(start.elapsed());
            Ok((stream, Instant::now() + request))
        }
        Ok(Ok(Accepted::NotTls(socket))) => {
            if brings_proxy_header(&socket).await {
                return Err(Reason::ProxyHeaderInvalid);
            }
            // Most likely HTTP: a person who left out the s is told so.
            http::refuse_unheard(socket, Refusal::new(Reason::NotTls), close).await;
            Err(Reason::NotTls)
        }
    }
}

/// Whether a connection that was not asked for a PROXY header begins with one. Nothing is read.
async fn brings_proxy_header(socket: &Socket) -> bool {
    let mut first = [0; 12];
    socket.peek(&mut first).await.is_ok_and(|len| proxy_protocol::begins(&first[..len]))
}
