//! The first stages of a connection: client address, PROXY header, TLS.

use std::net::SocketAddr;

use rustls::ProtocolVersion;
use tokio::time::{self, Instant};

use super::{ListenerSettings, Shared, access_log::AccessLogLine};
use crate::{
    admission::{AddressPermit, HandshakePermit, LimitExceeded},
    client_certificate::ClientCertificate,
    config::Timeouts,
    counting_stream::CountingStream,
    http::{self, Refusal},
    outcome::Reason,
    transport::{
        peer,
        proxy_protocol::{self, Initiator, ProxyHeader},
        socket::Socket,
        stream::ClientStream,
        tls::TlsAccept,
    },
};

/// What is known of a connection before its first request.
#[derive(Clone, Copy)]
pub(super) struct ConnectionInfo<'a> {
    /// The address of the client, or of the trusted proxy in front of it.
    pub(super) peer: SocketAddr,
    /// The local address that the client connected to.
    pub(super) local: SocketAddr,
    /// The TLS version, if TLS is used.
    pub(super) tls: Option<ProtocolVersion>,
    /// The certificate that the client has presented, if TLS is used and asks for one.
    pub(super) certificate: Option<&'a ClientCertificate>,
    /// Whether its forwarding headers are trusted to name the client.
    pub(super) proxied: bool,
}

impl ConnectionInfo<'_> {
    pub(super) fn new(socket: &Socket, peer: SocketAddr, settings: &ListenerSettings) -> Self {
        let local = socket.local_addr();
        let proxied = peer::is_trusted(&settings.trusted_proxies, peer.ip());
        Self { peer, local, tls: None, certificate: None, proxied }
    }

    /// Reads the PROXY header and applies it.
    async fn read_proxy_header(
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
            // The proxy itself made the connection, but its requests can be those of an untrusted client.
            Initiator::Unknown => false,
        };
        Ok(Self { peer: client, local: destination.unwrap_or(self.local), proxied, ..self })
    }

    /// Reads the PROXY header, and admits the client that it names.
    pub(super) async fn name_client(
        self,
        socket: &mut Socket,
        permit: &mut HandshakePermit,
        settings: &ListenerSettings,
        shared: &Shared,
        log_line: &mut AccessLogLine,
    ) -> Result<(Self, Option<AddressPermit>), Reason> {
        let taken_away = permit.taken_away();
        let info = tokio::select! {
            biased;
            named = self.read_proxy_header(socket, settings, log_line) => named?,
            () = taken_away => return Err(gave_way(log_line)),
        };
        let address_permit = info.admit(shared, log_line)?;
        let moved = permit.set_client(info.peer.ip(), is_limited(address_permit.as_ref()));
        moved.map_err(|exceeded| refused(&exceeded, log_line))?;
        Ok((info, address_permit))
    }

    /// Counts the connection against the limits per address and network, unless only its request can name the client.
    pub(super) fn admit(
        &self,
        shared: &Shared,
        log_line: &mut AccessLogLine,
    ) -> Result<Option<AddressPermit>, Reason> {
        let permit = (!self.proxied).then(|| admit(shared, self.peer)).transpose();
        permit.map_err(|exceeded| refused(&exceeded, log_line))
    }
}

/// Applies the rate limit and the connection limit of the client's address.
pub(super) fn admit(shared: &Shared, client: SocketAddr) -> Result<AddressPermit, LimitExceeded> {
    shared.limiter.admit(client.ip(), Instant::now().into_std())
}

/// Why a connection ends before it is a session.
pub(super) struct EarlyEnd {
    pub(super) reason: Reason,
    /// Whether the client is not to blame for it, so that it does not count for a penalty.
    pub(super) excused: bool,
}

impl From<Reason> for EarlyEnd {
    fn from(reason: Reason) -> Self {
        Self { reason, excused: false }
    }
}

/// Counts a refusal for a penalty, unless the client is not to blame, or is a proxy that has not named the client.
pub(super) fn count_refusal(
    end: &EarlyEnd,
    settings: &ListenerSettings,
    shared: &Shared,
    log_line: &AccessLogLine,
) {
    let client = log_line.peer.ip();
    // Browsers request files that do not exist, such as icons. On a route, it is the token that is unknown.
    let is_file = end.reason == Reason::UnknownRoute && log_line.route.is_none();
    if end.reason.counts_for_penalty()
        && !is_file
        && !end.excused
        && !peer::is_trusted(&settings.trusted_proxies, client)
        && shared.limiter.count_refusal(client, Instant::now().into_std()).is_some()
    {
        shared.metrics.count_penalty();
    }
}

/// Records which limit was exceeded. Returns why the connection ends.
pub(super) fn refused(exceeded: &LimitExceeded, log_line: &mut AccessLogLine) -> Reason {
    log_line.detail = Some(exceeded.to_string());
    reason_of(exceeded)
}

/// Whether the limits of an address apply to a connection with this permit: not to one of a proxy that is still to name its
/// client, and not to one of an exempt address.
pub(super) fn is_limited(address_permit: Option<&AddressPermit>) -> bool {
    address_permit.is_some_and(|permit| !permit.is_exempt())
}

/// The reason of a connection whose handshake permit was given to a newer one.
pub(super) fn gave_way(log_line: &mut AccessLogLine) -> Reason {
    log_line.detail =
        Some("too slow while limits.max_handshakes connections were not sessions yet".to_owned());
    Reason::Overloaded
}

pub(super) fn reason_of(exceeded: &LimitExceeded) -> Reason {
    match exceeded.retry_after() {
        Some(_) => Reason::RateLimited,
        None => Reason::TooManySessions,
    }
}

/// Accepts TLS if the listener has a certificate. Also returns the deadline of the first request head.
pub(super) async fn secure(
    socket: Socket,
    settings: &ListenerSettings,
    shared: &Shared,
    permit: &mut HandshakePermit,
    log_line: &mut AccessLogLine,
) -> Result<(ClientStream, Instant), EarlyEnd> {
    socket.set_nodelay();
    let Timeouts { tls: tls_limit, request, close, .. } = settings.snapshot.timeouts;
    let Some(tls) = &settings.tls else {
        let head_deadline = Instant::now() + request;
        if let Ok(is_proxy_header) = time::timeout_at(head_deadline, begins_with_proxy_header(&socket)).await
        {
            permit.set_heard(Instant::now().into_std());
            if is_proxy_header {
                return Err(Reason::ProxyHeaderInvalid.into());
            }
        }
        return Ok((ClientStream::Plain(CountingStream::new(socket)), head_deadline));
    };
    let start = Instant::now();
    let heard = || permit.set_heard(Instant::now().into_std());
    match time::timeout(tls_limit, tls.accept(socket, &shared.turns, heard)).await {
        Err(_) => Err(Reason::TlsTimeout.into()),
        Ok(Err(error)) => {
            log_line.detail = Some(error.to_string());
            // An alert: most likely the client does not trust the certificate, which is a problem of the gateway.
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
            let excused = matches!(cause, Some(rustls::Error::AlertReceived(_)));
            Err(EarlyEnd { reason: Reason::TlsFailed, excused })
        }
        Ok(Ok(TlsAccept::Stream(stream))) => {
            shared.metrics.count_tls(start.elapsed());
            Ok((stream, Instant::now() + request))
        }
        Ok(Ok(TlsAccept::NotTls(socket))) => {
            if begins_with_proxy_header(&socket).await {
                return Err(Reason::ProxyHeaderInvalid.into());
            }
            // Most likely plain HTTP: the refusal says to use https://.
            http::refuse_without_request(socket, Refusal::new(Reason::NotTls), close).await;
            Err(Reason::NotTls.into())
        }
    }
}

/// Whether a connection begins with a PROXY header although the listener requires none. Peeks, and consumes nothing.
async fn begins_with_proxy_header(socket: &Socket) -> bool {
    let mut first = [0; 12];
    socket.peek(&mut first).await.is_ok_and(|len| proxy_protocol::begins(&first[..len]))
}
