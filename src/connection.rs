//! One connection's whole life, and nothing else.
//!
//! Owns the order of the stations from the accepted socket to the closing line. Refuses to know how any station works.
//! Invariants: every connection writes exactly one closing line and is counted once; whatever it holds (places,
//! slots, its registry entry) is a guard that its end releases; no backend hears of a client that was refused.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use ::http::{HeaderValue, Request, Response, header::ORIGIN};
use bytes::Bytes;
use ipnet::IpNet;
use tokio::{net::TcpStream, time};
use tokio_util::sync::CancellationToken;
use tracing::Level;

use crate::{
    admission::{Capacity, Limiter, Origin, OriginRefused, Place, Refused, Slot, canonical},
    backend::{DialError, Dialer},
    config::{BackendFailure, Receive, Route, Send, Timeouts},
    http::{self, Body, Exchange, Fault, Files, Handshake, Refusal, Routes},
    metrics::Metrics,
    outcome::Reason,
    relay::{self, Ended, Link, Rules},
    session::{Registry, Session},
    transport::{
        peer,
        stream::{ClientStream, Metered},
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
}

/// What all connections share.
#[derive(Debug)]
pub struct House {
    /// Where requests may lead.
    pub routes: Routes,
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
    /// The way to backends.
    pub dialer: Dialer,
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
                Ok(backend) => relay::relay(stream, pipelined, Metered::new(backend), &rules, &session).await,
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
    backend: Result<TcpStream, DialError>,
    rules: Rules,
    session: Session,
    guards: (Option<Place>, Slot),
}

/// From the socket to the 101: every station that may say no.
async fn enter(
    socket: TcpStream,
    door: &Door,
    house: &House,
    line: &mut ClosingLine,
) -> Result<Entered, Reason> {
    let peer = line.peer;
    let proxied = peer::is_trusted(&door.trusted_proxies, peer.ip());
    let admitted = (!proxied).then(|| admit(house, peer)).transpose();
    let place = admitted.map_err(|refused| reason(&refused))?;
    let handshake = house.handshakes.take().ok_or(Reason::Overloaded)?;
    if house.sessions.in_use() >= house.sessions.limit() {
        return Err(Reason::Overloaded);
    }
    let mut stream = secure(socket, door, house, line).await?;
    let arrival = Arrival { peer, tls: stream.is_tls(), proxied };
    let exchange = Exchange::new(&mut stream, house.timeouts.stall);
    let (exchange, wanted) = converse(exchange, arrival, door, house, line).await?;
    let session = house.registry.open();
    line.session = Some(session.id());
    let backend = house.dialer.dial(&wanted.route.backend, house.timeouts.connect).await;
    if let Err(error) = &backend
        && wanted.route.backend_failure == BackendFailure::Status
    {
        line.detail = Some(error.to_string());
        exchange.refuse(Refusal::new(error.reason()), house.timeouts.close).await;
        return Err(error.reason());
    }
    let switching = wanted.handshake.switching(wanted.subprotocol.as_deref());
    let pipelined = exchange.upgrade(switching).await.map_err(Fault::reason)?;
    drop(handshake);
    let rules = rules(&wanted.route, &house.timeouts);
    let guards = (place.or(wanted.place), wanted.slot);
    Ok(Entered { stream, pipelined, backend, rules, session, guards })
}

/// What the socket alone tells.
#[derive(Clone, Copy)]
struct Arrival {
    peer: SocketAddr,
    tls: bool,
    proxied: bool,
}

/// From the first request head to the one that wants a session: files are answered on the way, all else is refused.
async fn converse<'a>(
    mut exchange: Exchange<'a, ClientStream>,
    arrival: Arrival,
    door: &Door,
    house: &House,
    line: &mut ClosingLine,
) -> Result<(Exchange<'a, ClientStream>, Wanted), Reason> {
    let mut served = false;
    loop {
        let deadline = time::Instant::now() + house.timeouts.request;
        let request = tokio::select! {
            biased;
            request = exchange.next(deadline) => request,
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
    }
}

/// Counts a connection against the address it comes from.
fn admit(house: &House, client: SocketAddr) -> Result<Place, Refused> {
    house.limiter.admit(client.ip(), Instant::now())
}

fn reason(refused: &Refused) -> Reason {
    match refused {
        Refused::Rate { .. } => Reason::RateLimited,
        Refused::Sessions => Reason::TooManySessions,
    }
}

/// TLS, where the listener has a certificate.
async fn secure(
    socket: TcpStream,
    door: &Door,
    house: &House,
    line: &mut ClosingLine,
) -> Result<ClientStream, Reason> {
    // Frames are small and interactive: nothing is gained by waiting for more to send.
    let _ = socket.set_nodelay(true);
    let Some(tls) = &door.tls else { return Ok(ClientStream::Plain(Metered::new(socket))) };
    match time::timeout(house.timeouts.tls, tls.accept(socket)).await {
        Err(_) => Err(Reason::TlsTimeout),
        Ok(Err(error)) => {
            line.detail = Some(error.to_string());
            Err(Reason::TlsFailed)
        }
        Ok(Ok(Accepted::Stream(stream))) => Ok(stream),
        Ok(Ok(Accepted::NotTls(socket))) => {
            // Most likely HTTP: a person who left out the s is told so.
            http::refuse_unheard(socket, Refusal::new(Reason::NotTls), house.timeouts.close).await;
            Err(Reason::NotTls)
        }
    }
}

/// What a request asks for, if it may have it.
enum Asked {
    File(Response<Body>),
    Session(Wanted),
}

/// A session that may begin once its backend answers.
struct Wanted {
    route: Arc<Route>,
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
    let client = peer::client(arrival.peer, &door.trusted_proxies, request.headers());
    line.peer = client.address;
    let host = client.host.map_or(host, |host| host.to_ascii_lowercase());
    let Some(route) = house.routes.find(http::host_name(&host), request.uri().path()) else {
        return match &house.files {
            Some(files) => files.find(request).await.map(Asked::File),
            None => Err(Refusal::new(Reason::UnknownRoute)),
        };
    };
    line.route = Some(Arc::clone(route));
    // Only now is it known who is behind the proxy. Files are not counted: a page can have a hundred of them.
    let admitted = arrival.proxied.then(|| admit(house, client.address)).transpose();
    let place = admitted.map_err(|refused| too_many(&refused))?;
    let handshake = Handshake::read(&request)?;
    let origins: Vec<&[u8]> = request.headers().get_all(ORIGIN).iter().map(HeaderValue::as_bytes).collect();
    let own = Origin::of_host(client.https.unwrap_or(arrival.tls), &host);
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
    let slot = house.sessions.take().ok_or_else(|| Refusal::new(Reason::Overloaded).retry_after(1))?;
    Ok(Asked::Session(Wanted { route: Arc::clone(route), handshake, subprotocol, place, slot }))
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

impl Link for Metered<TcpStream> {
    fn taken(&self) -> u64 {
        self.taken()
    }
}

/// The one line that closes a connection, and the count that goes with it. Written even if the connection is cut short.
struct ClosingLine {
    /// The client: the socket's peer, until a trusted proxy says better.
    peer: SocketAddr,
    route: Option<Arc<Route>>,
    session: Option<u64>,
    /// What only an operator should read.
    detail: Option<String>,
    started: Instant,
    metrics: Arc<Metrics>,
    written: bool,
}

impl ClosingLine {
    fn new(peer: SocketAddr, metrics: Arc<Metrics>) -> Self {
        let started = Instant::now();
        Self { peer, route: None, session: None, detail: None, started, metrics, written: false }
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
                    route = self.route.as_ref().map(|route| route.name.as_str()),
                    backend = self.session.and(self.route.as_ref()).map(|route| route.backend.to_string()),
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
