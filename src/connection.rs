//! One connection's whole life, and nothing else.
//!
//! Owns the order of the stations from the accepted socket to the closing line. Refuses to know how any station works.
//! Invariants: every connection writes exactly one closing line and is counted once; whatever it holds (places,
//! slots, its registry entry) is a guard that its end releases; no backend hears of a client that was refused.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant as StdInstant,
};

use ::http::{HeaderValue, Request, Response, header::ORIGIN};
use bytes::Bytes;
use ipnet::IpNet;
use rustls::ProtocolVersion;
use tokio::{
    net::TcpStream,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::Level;

use crate::{
    admission::{Capacity, Limiter, Origin, OriginRefused, Place, Refused, Slot, canonical},
    backend::{BackendStream, Caller, Connected, DialError, Upstream, Wish},
    config::{Backend, BackendFailure, Receive, Route, Send, Timeouts},
    http::{self, Body, Exchange, Fault, Files, Handshake, Refusal, Routed, Routes},
    metered::Metered,
    metrics::Metrics,
    outcome::Reason,
    relay::{self, Ended, Link, Rules},
    session::{Registry, Session},
    transport::{
        peer::{self, Client},
        proxy_protocol::{self, Announced, Speaker},
        stream::ClientStream,
        tls::{Accepted, Tls},
    },
};

/// What the connections of one listener share.
#[derive(Debug)]
pub struct Door {
    /// Its certificate; without one the listener is plain.
    pub tls: Option<Tls>,
    /// Who may say for whom it speaks.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether every connection must begin with a PROXY header.
    pub proxy_protocol: bool,
}

/// What all connections share.
#[derive(Debug)]
pub struct House {
    /// Where requests may lead.
    pub routes: Routes<Arc<Upstream>>,
    /// What else may be asked for.
    pub files: Option<Files>,
    /// How long each station may take.
    pub timeouts: Timeouts,
    /// How often and how many from one address.
    pub limiter: Arc<Limiter>,
    /// Connections that are not sessions yet.
    pub handshakes: Arc<Capacity>,
    /// Connections that are, or are about to be.
    pub sessions: Arc<Capacity>,
    /// What is alive.
    pub registry: Arc<Registry>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the gateway stops: whoever has not asked for anything yet is let go.
    pub draining: CancellationToken,
}

/// Lives the life of one connection.
pub async fn live(socket: TcpStream, peer: SocketAddr, door: Arc<Door>, house: Arc<House>) {
    let peer = SocketAddr::new(canonical(peer.ip()), peer.port());
    let mut line = ClosingLine::new(peer, Arc::clone(&house.metrics));
    // Boxed, so that a session carries nothing of its youth: handshakes are large.
    let entered = Box::pin(enter(socket, &door, &house, &mut line)).await;
    match entered {
        Ok(Entered { stream, pipelined, backend, rules, session, guards: _guards }) => {
            let ended = match backend {
                Ok(Connected { stream: backend, place: _place, .. }) => {
                    relay::relay(stream, pipelined, backend, &rules, &session).await
                }
                Err(error) => {
                    let reason = error.reason();
                    line.detail = Some(error.to_string());
                    relay::refuse(stream, pipelined, (reason, reason.explanation()), &rules, &session).await
                }
            };
            line.write(ended.reason, Some(ended));
        }
        Err(reason) => line.write(reason, None),
    }
}

/// A connection that has become a session.
struct Entered {
    stream: ClientStream,
    pipelined: Bytes,
    backend: Result<Connected, DialError>,
    rules: Rules,
    session: Session,
    guards: (Option<Place>, Slot),
}

/// From the socket to the 101: every station that may say no.
async fn enter(
    mut socket: TcpStream,
    door: &Door,
    house: &House,
    line: &mut ClosingLine,
) -> Result<Entered, Reason> {
    let mut arrival = Arrival::of(&socket, line.peer, door);
    let mut place = arrival.admit(house)?;
    let handshake = house.handshakes.take().ok_or(Reason::Overloaded)?;
    if house.sessions.in_use() >= house.sessions.limit() {
        return Err(Reason::Overloaded);
    }
    if door.proxy_protocol {
        arrival = arrival.announced(&mut socket, door, line).await?;
        place = arrival.admit(house)?;
    }
    let (mut stream, head_by) = secure(socket, door, house, line).await?;
    arrival.tls = stream.tls_version();
    let exchange = Exchange::new(&mut stream, house.timeouts.stall);
    let (exchange, wanted) = converse(exchange, head_by, arrival, door, house, line).await?;
    let session = house.registry.open();
    line.session = Some(session.id());
    let caller =
        Caller { client: line.peer, called: arrival.called, tls: arrival.tls, session: session.id() };
    let Routed { route, upstream } = &*wanted.routed;
    let backend = upstream.connect(&wanted.wish, &caller, house.timeouts.connect).await;
    line.backend =
        backend.as_ref().map_or_else(DialError::backend, |connected| Some(&connected.backend)).cloned();
    if let Err(error) = &backend
        && route.backend_failure == BackendFailure::Status
    {
        line.detail = Some(error.to_string());
        exchange.refuse(Refusal::new(error.reason()), house.timeouts.close).await;
        return Err(error.reason());
    }
    let switching = wanted.handshake.switching(wanted.subprotocol.as_deref());
    let pipelined = exchange.upgrade(switching).await.map_err(Fault::reason)?;
    drop(handshake);
    let rules = rules(route, &house.timeouts);
    let guards = (place.or(wanted.place), wanted.slot);
    Ok(Entered { stream, pipelined, backend, rules, session, guards })
}

/// What is known of a connection before it asks for anything.
#[derive(Clone, Copy)]
struct Arrival {
    /// The client, or the trusted proxy that speaks for it.
    peer: SocketAddr,
    /// The address of ours that was called.
    called: SocketAddr,
    tls: Option<ProtocolVersion>,
    /// Whether its requests may say who the client is.
    proxied: bool,
}

impl Arrival {
    fn of(socket: &TcpStream, peer: SocketAddr, door: &Door) -> Self {
        let called = socket.local_addr().unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
        Self { peer, called, tls: None, proxied: peer::is_trusted(&door.trusted_proxies, peer.ip()) }
    }

    /// What a PROXY header makes of it.
    async fn announced(
        self,
        socket: &mut TcpStream,
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
    fn admit(&self, house: &House) -> Result<Option<Place>, Reason> {
        let admitted = (!self.proxied).then(|| admit(house, self.peer)).transpose();
        admitted.map_err(|refused| reason(&refused))
    }
}

/// From the first request head to the one that wants a session: files are answered on the way, all else is refused.
async fn converse<'a>(
    mut exchange: Exchange<'a, ClientStream>,
    mut head_by: Instant,
    arrival: Arrival,
    door: &Door,
    house: &House,
    line: &mut ClosingLine,
) -> Result<(Exchange<'a, ClientStream>, Wanted), Reason> {
    let mut served = false;
    loop {
        let request = tokio::select! {
            biased;
            request = exchange.next(head_by) => request,
            () = house.draining.cancelled() => return Err(if served { Reason::Served } else { Reason::Draining }),
        };
        let request = match request {
            Ok(request) => request,
            Err(fault) => {
                exchange.close(fault, house.timeouts.close).await;
                let idle = matches!(fault, Fault::Gone | Fault::Timeout);
                return Err(if served && idle { Reason::Served } else { fault.reason() });
            }
        };
        match judge(request, arrival, door, house, line).await {
            Ok(Asked::Session(wanted)) => return Ok((exchange, wanted)),
            Ok(Asked::File(file)) => exchange.answer(file),
            Err(refusal) => {
                let reason = refusal.reason();
                line.detail = refusal.detail().map(str::to_owned);
                exchange.refuse(refusal, house.timeouts.close).await;
                return Err(reason);
            }
        }
        served = true;
        head_by = Instant::now() + house.timeouts.request;
    }
}

/// Counts a connection against the address it comes from.
fn admit(house: &House, client: SocketAddr) -> Result<Place, Refused> {
    house.limiter.admit(client.ip(), StdInstant::now())
}

fn reason(refused: &Refused) -> Reason {
    match refused {
        Refused::Rate { .. } => Reason::RateLimited,
        Refused::Sessions => Reason::TooManySessions,
    }
}

/// TLS, where the listener has a certificate. Also returns when the first request head must be whole.
async fn secure(
    socket: TcpStream,
    door: &Door,
    house: &House,
    line: &mut ClosingLine,
) -> Result<(ClientStream, Instant), Reason> {
    // Frames are small and interactive: nothing is gained by waiting for more to send.
    let _ = socket.set_nodelay(true);
    let Timeouts { tls: tls_limit, request, close, .. } = house.timeouts;
    let Some(tls) = &door.tls else {
        let head_by = Instant::now() + request;
        if time::timeout_at(head_by, brings_proxy_header(&socket)).await == Ok(true) {
            return Err(Reason::ProxyHeaderInvalid);
        }
        return Ok((ClientStream::Plain(Metered::new(socket)), head_by));
    };
    match time::timeout(tls_limit, tls.accept(socket)).await {
        Err(_) => Err(Reason::TlsTimeout),
        Ok(Err(error)) => {
            line.detail = Some(error.to_string());
            Err(Reason::TlsFailed)
        }
        Ok(Ok(Accepted::Stream(stream))) => Ok((stream, Instant::now() + request)),
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
async fn brings_proxy_header(socket: &TcpStream) -> bool {
    let mut first = [0; 12];
    socket.peek(&mut first).await.is_ok_and(|len| proxy_protocol::begins(&first[..len]))
}

/// What a request asks for, if it may have it.
enum Asked {
    File(Response<Body>),
    Session(Wanted),
}

/// A session that may begin once its backend answers.
struct Wanted {
    routed: Arc<Routed<Arc<Upstream>>>,
    wish: Wish,
    handshake: Handshake,
    subprotocol: Option<String>,
    place: Option<Place>,
    slot: Slot,
}

/// From the request head to the decision: route, handshake, Origin, sub-protocol, and what only the head could tell.
async fn judge(
    request: Request<()>,
    arrival: Arrival,
    door: &Door,
    house: &House,
    line: &mut ClosingLine,
) -> Result<Asked, Refusal> {
    let host = http::check_head(&request)?;
    let client = match arrival.proxied {
        true => peer::client(arrival.peer, &door.trusted_proxies, request.headers()),
        false => Client { address: arrival.peer, https: None, host: None },
    };
    line.peer = client.address;
    let host = client.host.map_or(host, |host| host.to_ascii_lowercase());
    let Some(routed) = house.routes.find(http::host_name(&host), request.uri().path()) else {
        return match &house.files {
            Some(files) => files.find(request).await.map(Asked::File),
            None => Err(Refusal::new(Reason::UnknownRoute)),
        };
    };
    let route = &routed.route;
    line.route = Some(route.name.clone());
    // Only now is it known who is behind the proxy. Files are not counted: a page can have a hundred of them.
    let admitted = arrival.proxied.then(|| admit(house, client.address)).transpose();
    let place = admitted.map_err(|refused| too_many(&refused))?;
    let handshake = Handshake::read(&request)?;
    let origins: Vec<&[u8]> = request.headers().get_all(ORIGIN).iter().map(HeaderValue::as_bytes).collect();
    let own = Origin::of_host(client.https.unwrap_or(arrival.tls.is_some()), &host);
    route.origins.permit(&origins, own.as_ref()).map_err(|refused| {
        let detail = match refused {
            OriginRefused::Malformed(_) | OriginRefused::Several => {
                format!("{refused}: {}", http::quoted(&origins.join(&b", "[..])))
            }
            _ => refused.to_string(),
        };
        let refusal = match refused {
            OriginRefused::Missing => Refusal::because(
                Reason::OriginRefused,
                "an Origin header is needed here: only web pages may connect",
            ),
            _ => Refusal::new(Reason::OriginRefused),
        };
        refusal.because_of(detail)
    })?;
    let subprotocol = handshake.subprotocol(&route.subprotocols)?.map(str::to_owned);
    let wish = routed.upstream.wish(&route.path, request.uri().path(), request.uri().query());
    let wish =
        wish.ok_or_else(|| Refusal::new(Reason::UnknownRoute).because_of("unknown token".to_owned()))?;
    let slot = house.sessions.take().ok_or_else(|| Refusal::new(Reason::Overloaded).retry_after(1))?;
    Ok(Asked::Session(Wanted { routed: Arc::clone(routed), wish, handshake, subprotocol, place, slot }))
}

fn too_many(refused: &Refused) -> Refusal {
    let seconds = match refused {
        Refused::Rate { retry_after } => retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0),
        Refused::Sessions => 1,
    };
    Refusal::new(reason(refused)).retry_after(seconds.max(1))
}

/// What a session of this route is held to.
fn rules(route: &Route, timeouts: &Timeouts) -> Rules {
    Rules {
        accept_text: route.receive == Receive::Any,
        send_text: route.send == Send::Text,
        close: timeouts.close,
        stall: timeouts.stall,
        ping: timeouts.ping,
        pong: timeouts.pong,
        idle: timeouts.idle,
        lifetime: timeouts.lifetime,
    }
}

impl Link for ClientStream {
    fn taken(&self) -> u64 {
        self.taken()
    }
}

impl Link for BackendStream {
    fn taken(&self) -> u64 {
        self.taken()
    }
}

/// The one line that closes a connection, and the count that goes with it. Written even if the connection is cut short.
struct ClosingLine {
    /// The client: the socket's peer, until a trusted proxy says better.
    peer: SocketAddr,
    route: Option<String>,
    session: Option<u64>,
    /// The server that was reached, or tried last.
    backend: Option<Backend>,
    /// What only an operator should read.
    detail: Option<String>,
    started: StdInstant,
    metrics: Arc<Metrics>,
    written: bool,
}

impl ClosingLine {
    fn new(peer: SocketAddr, metrics: Arc<Metrics>) -> Self {
        let started = StdInstant::now();
        Self {
            peer,
            route: None,
            session: None,
            backend: None,
            detail: None,
            started,
            metrics,
            written: false,
        }
    }

    /// `ended`: what is known of a session that was not cut short.
    fn write(&mut self, reason: Reason, ended: Option<Ended>) {
        self.written = true;
        self.metrics.count_end(reason);
        if let Some(ended) = ended {
            self.metrics.count_bytes(ended.bytes_in, ended.bytes_out);
        }
        macro_rules! line {
            ($macro:ident, $message:literal) => {
                tracing::$macro!(
                    session = self.session,
                    peer = %self.peer,
                    route = self.route.as_deref(),
                    backend = self.backend.as_ref().map(ToString::to_string),
                    reason = reason.as_str(),
                    close_code = ended.and_then(|ended| ended.close_code),
                    bytes_in = ended.map(|ended| ended.bytes_in),
                    bytes_out = ended.map(|ended| ended.bytes_out),
                    duration_ms = self.started.elapsed().as_millis() as u64,
                    detail = self.detail.as_deref(),
                    $message
                )
            };
        }
        match reason.level(self.session.is_some()) {
            Level::ERROR => line!(error, "session ended"),
            Level::INFO => line!(info, "session ended"),
            _ if reason == Reason::Served => line!(debug, "served"),
            _ => line!(debug, "refused"),
        }
    }
}

impl Drop for ClosingLine {
    fn drop(&mut self) {
        if !self.written {
            // Without a panic, only the end of the drain cuts a connection short.
            let reason = if std::thread::panicking() { Reason::Internal } else { Reason::Draining };
            self.write(reason, None);
        }
    }
}
