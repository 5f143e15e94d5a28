//! One connection's whole life, and nothing else.
//!
//! Owns the order of the stations from the accepted socket to the closing line. Refuses to know how any station works.
//! Invariants: every connection writes exactly one closing line and is counted once; whatever it holds (places,
//! slots, its registry entry) is a guard that its end releases; no backend hears of a client that was refused.

mod arrival;
mod closing_line;
mod dial;
mod request;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use ipnet::IpNet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use self::{
    arrival::{Arrival, secure},
    closing_line::ClosingLine,
    dial::{Dialled, dial},
    request::converse,
};
use crate::{
    admission::{Capacity, Limiter, Place, Slot, canonical},
    backend::{BackendStream, Caller, Upstream, balance},
    config::{BackendFailure, Receive, Route, Send, Timeouts},
    http::{Exchange, Fault, Files, Refusal, Routes},
    metrics::{Living, Metrics},
    outcome::Reason,
    relay::{self, Link, Rules},
    session::{Facts, Registry, Session},
    transport::{socket::Socket, stream::ClientStream, tls::Tls},
};

/// How long a client that has just come may take to ask once the gateway stops.
const LAST_CALL: Duration = Duration::from_secs(1);

/// What the connections of one listener share, as of one reading of the configuration.
#[derive(Debug)]
pub struct Door {
    /// Its certificate; without one the listener is plain.
    pub tls: Option<Tls>,
    /// Who may say for whom it speaks.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether every connection must begin with a PROXY header.
    pub proxy_protocol: bool,
    /// What its connections are opened under.
    pub terms: Arc<Terms>,
}

/// What connections are opened under: one reading of the configuration. A session keeps to it when another is read.
#[derive(Debug)]
pub struct Terms {
    /// Where requests may lead.
    pub routes: Routes<Arc<Upstream>>,
    /// What else may be asked for.
    pub files: Option<Files>,
    /// How long each station may take.
    pub timeouts: Timeouts,
}

/// What all connections share for as long as the process lives.
#[derive(Debug)]
pub struct House {
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
    /// Cancelled when the gateway stops: whoever does not ask for anything soon is let go.
    pub draining: CancellationToken,
}

/// Lives the life of one connection.
pub async fn live(socket: Socket, peer: SocketAddr, door: Arc<Door>, house: Arc<House>) {
    let peer = SocketAddr::new(canonical(peer.ip()), peer.port());
    let id = house.registry.connections.next();
    let mut line = ClosingLine::new(id, peer, Arc::clone(&house.metrics));
    // Boxed, so that a session carries nothing of its youth: handshakes are large.
    let entered = Box::pin(enter(socket, &door, &house, &mut line)).await;
    let entered = match entered {
        Ok(entered) => entered,
        Err(reason) => return line.write(reason, None),
    };
    // A session can outlive many readings of the configuration, and keeps none of them in memory.
    drop((door, house));
    let Entered { stream, pipelined, backend, rules, session, guards } = *entered;
    let ended = match backend {
        Ok(backend) => relay::relay(stream, pipelined, backend, &rules, &session).await,
        Err(reason) => {
            relay::refuse(stream, pipelined, (reason, reason.explanation()), &rules, &session).await
        }
    };
    // Whoever reads the line finds room for the next.
    drop(session);
    drop(guards);
    line.write(ended.reason, Some(ended));
}

/// A connection that has become a session.
struct Entered {
    stream: ClientStream,
    pipelined: Bytes,
    backend: Result<BackendStream, Reason>,
    rules: Rules,
    session: Session,
    guards: (Option<Place>, Slot, Option<balance::Place>, Option<Living>),
}

/// From the socket to the 101: every station that may say no.
async fn enter(
    mut socket: Socket,
    door: &Door,
    house: &House,
    line: &mut ClosingLine,
) -> Result<Box<Entered>, Reason> {
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
    let (mut stream, head_by) = tokio::select! {
        biased;
        secured = secure(socket, door, &house.metrics, line) => secured?,
        () = last_call(house) => return Err(Reason::Draining),
    };
    arrival.tls = stream.tls_version();
    let exchange = Exchange::new(&mut stream, door.terms.timeouts.stall);
    let (exchange, wanted) = converse(exchange, head_by, arrival, door, house, line).await?;
    let route = &wanted.routed.route;
    let facts = Facts { peer: line.peer, route: &route.name, user: None, since: SystemTime::now() };
    let session = house.registry.open(facts);
    line.session = Some(session.id());
    let caller = Caller { client: line.peer, called: arrival.called, tls: arrival.tls, id: line.id };
    let timeouts = &door.terms.timeouts;
    let Dialled { backend, place: backend_place, label } =
        dial(&wanted, &caller, timeouts.connect, &house.metrics, line).await;
    if let Err(reason) = backend
        && route.backend_failure == BackendFailure::Status
    {
        exchange.refuse(Refusal::new(reason), timeouts.close).await;
        return Err(reason);
    }
    let switching = wanted.handshake.switching(wanted.subprotocol.as_deref());
    let pipelined = exchange.upgrade(switching).await.map_err(Fault::reason)?;
    drop(handshake);
    let reached = line.backend.as_ref().zip(label).filter(|_| backend.is_ok());
    let living = reached.map(|(backend, label)| {
        session.reached(&backend.to_string());
        house.metrics.open_session(&route.name, &label)
    });
    let rules = rules(route, timeouts);
    let guards = (place.or(wanted.place), wanted.slot, backend_place, living);
    Ok(Box::new(Entered { stream, pipelined, backend, rules, session, guards }))
}

/// Ready when the gateway stops and whoever came while the door was open has had a moment to ask: nobody is turned away in
/// the middle of asking, and nobody who is silent holds the end up.
async fn last_call(house: &House) {
    house.draining.cancelled().await;
    time::sleep(LAST_CALL).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_output<F, A, B, C, D>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_a_session_is_small() {
        let size = size_of_output(live);
        assert!(size <= 1280, "{size} bytes");
    }
}
