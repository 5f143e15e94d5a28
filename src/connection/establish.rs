//! From the accepted socket to an open session: every stage that can refuse the connection.
//!
//! The settings and the shared state are used here only: a session can outlive many reloads, and must not keep their
//! configurations in memory.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    ListenerSettings, Shared,
    accepted::{ConnectionInfo, EarlyEnd, count_refusal, gave_way, secure},
    access_log::AccessLogLine,
    dial::{DialOutcome, dial},
    drain_grace,
    request::{SessionRequest, read_requests},
};
use crate::{
    admission::{AddressPermit, HandshakePermit, Permit, UserPermit},
    auth::Grant,
    backend::{BackendStream, ClientInfo, balance},
    config::{BackendFailure, Receive, Route, Send, Timeouts},
    http::{AcceptedRequest, Exchange, ExchangeError, Refusal},
    metrics::SessionGauge,
    outcome::Reason,
    relay::{RelaySettings, RelayStream},
    session::{CredentialId, Identity, Session, SessionInfo, TokenDigest},
    transport::{socket::Socket, stream::ClientStream},
};

/// An upgraded connection, ready to relay.
pub(super) struct Established {
    pub(super) stream: ClientStream,
    pub(super) session: OpenSession,
}

/// A session whose client has its 101.
pub(super) struct OpenSession {
    /// What the client has sent behind its request.
    pub(super) pipelined: Bytes,
    /// The backend, or why the dial failed.
    pub(super) backend: Result<BackendStream, Reason>,
    pub(super) relay_settings: RelaySettings,
    pub(super) session: Session,
    pub(super) guards: Guards,
}

/// What a session holds until it ends.
type Guards =
    (Option<AddressPermit>, Permit, Option<UserPermit>, Option<balance::BackendPermit>, Option<SessionGauge>);

/// Serves the connection until it is a session. A refusal counts against the client's address.
pub(super) async fn establish(
    socket: Socket,
    info: ConnectionInfo<'_>,
    address_permit: Option<AddressPermit>,
    permit: HandshakePermit,
    settings: Arc<ListenerSettings>,
    shared: Arc<Shared>,
    log_line: &mut AccessLogLine,
) -> Result<Box<Established>, Reason> {
    let established = serve_stages(socket, info, address_permit, permit, &settings, &shared, log_line).await;
    established.map_err(|end| {
        count_refusal(&end, &settings, &shared, log_line);
        end.reason
    })
}

async fn serve_stages(
    mut socket: Socket,
    mut info: ConnectionInfo<'_>,
    mut address_permit: Option<AddressPermit>,
    mut permit: HandshakePermit,
    settings: &ListenerSettings,
    shared: &Shared,
    log_line: &mut AccessLogLine,
) -> Result<Box<Established>, EarlyEnd> {
    // One deadline for everything up to the first request head, however the client spreads it.
    let first_head = Instant::now() + settings.handshake_limit();
    if settings.proxy_protocol {
        let permit = &mut permit;
        (info, address_permit) = info.name_client(&mut socket, permit, settings, shared, log_line).await?;
    }
    let taken_away = permit.taken_away();
    let (mut stream, head_deadline) = tokio::select! {
        biased;
        tls_stream = secure(socket, settings, shared, &mut permit, log_line) => tls_stream?,
        () = taken_away => return Err(gave_way(log_line).into()),
        () = drain_grace(shared) => return Err(Reason::Draining.into()),
    };
    let certificate = stream.client_certificate();
    let info = ConnectionInfo { tls: stream.tls_version(), certificate: certificate.as_ref(), ..info };
    let exchange = Exchange::new(&mut stream, settings.snapshot.timeouts.stall);
    let head_deadline = head_deadline.min(first_head);
    let taken_away = permit.taken_away();
    let (exchange, mut request) = tokio::select! {
        biased;
        requested = read_requests(exchange, head_deadline, info, settings, shared, &mut permit, log_line) => requested?,
        () = taken_away => {
            let reason = if permit.is_waiting() { Reason::Served } else { gave_way(log_line) };
            return Err(reason.into());
        }
    };
    // It is a session from here on, and has the permit of one.
    drop(permit);
    request.address_permit = address_permit.or(request.address_permit);
    let session = open_session(exchange, request, info, settings, shared, log_line).await?;
    Ok(Box::new(Established { stream, session }))
}

/// Dials the backend and responds to the upgrade request.
async fn open_session(
    exchange: Exchange<'_, ClientStream>,
    mut request: SessionRequest,
    info: ConnectionInfo<'_>,
    settings: &ListenerSettings,
    shared: &Shared,
    log_line: &mut AccessLogLine,
) -> Result<OpenSession, Reason> {
    let timeouts = &settings.snapshot.timeouts;
    let route = &request.accepted.routed.route;
    let now = SystemTime::now();
    let expires = request.grant.as_ref().and_then(|grant| grant.end(now));
    let line = request.accepted.choice.line();
    let identity = identity(request.grant.take(), line);
    let credential = identity.as_ref().and_then(|identity| identity.credential.clone());
    let session_info = SessionInfo { peer: log_line.peer, route: &route.name, since: now, identity };
    let session = shared.registry.open(session_info);
    // Asked now that the session is registered: a revocation from here on finds it there.
    if credential.is_some_and(|credential| shared.credentials.is_revoked(&credential, now)) {
        log_line.detail = Some("the credential was revoked while the session was being opened".to_owned());
        exchange.respond_and_close(Refusal::new(Reason::Unauthorized), timeouts.close).await;
        return Err(Reason::Unauthorized);
    }
    if line.is_some_and(|line| !request.accepted.routed.upstream.has_line(line)) {
        log_line.detail = Some("the token was removed while the session was being opened".to_owned());
        exchange.respond_and_close(Refusal::new(Reason::UnknownRoute), timeouts.close).await;
        return Err(Reason::UnknownRoute);
    }
    log_line.session = Some(session.id());
    let user = log_line.user.clone();
    let client_info = ClientInfo {
        client: log_line.peer,
        local: info.local,
        tls: info.tls,
        certificate: info.certificate,
        user: user.as_deref(),
        id: log_line.id,
    };
    let DialOutcome { backend, permit: backend_permit, label } =
        dial(&request, &client_info, timeouts.connect, &shared.metrics, log_line).await;
    if let Err(reason) = backend
        && route.backend_failure == BackendFailure::Status
    {
        exchange.respond_and_close(Refusal::new(reason), timeouts.close).await;
        return Err(reason);
    }
    let AcceptedRequest { handshake, subprotocol, .. } = &request.accepted;
    let switching = handshake.switching(subprotocol.as_deref());
    let pipelined = exchange.upgrade(switching).await.map_err(ExchangeError::reason)?;
    let recorded = log_line.backend.as_ref().zip(label).filter(|_| backend.is_ok());
    let session_gauge = recorded.map(|(backend, label)| {
        session.set_backend(&backend.to_string());
        shared.metrics.open_session(&route.name, &label)
    });
    if let Some(events) = settings.snapshot.events.as_ref().filter(|_| backend.is_ok()) {
        log_line.report(events);
    }
    let relay_settings =
        RelaySettings { expires: expires.map(instant_of), ..relay_settings(route, timeouts) };
    let SessionRequest { address_permit, session_permit, user_permit, .. } = request;
    let guards = (address_permit, session_permit, user_permit, backend_permit, session_gauge);
    Ok(OpenSession { pipelined, backend, relay_settings, session, guards })
}

/// Who opens the session, and the credentials that it ends with.
fn identity(grant: Option<Grant>, line: Option<TokenDigest>) -> Option<Identity> {
    let identity = grant.map(Grant::identity);
    let Some(line) = line.map(CredentialId::TargetToken) else { return identity };
    let (user, credential) =
        identity.map_or((None, None), |Identity { user, credential }| (user, credential));
    Some(Identity { user, credential: Some(line.and(credential)) })
}

fn relay_settings(route: &Route, timeouts: &Timeouts) -> RelaySettings {
    RelaySettings {
        accept_text: route.receive == Receive::Any,
        send_text: route.send == Send::Text,
        close: timeouts.close,
        stall: timeouts.stall,
        ping: timeouts.ping,
        pong: timeouts.pong,
        idle: timeouts.idle,
        lifetime: timeouts.lifetime,
        expires: None,
    }
}

/// When a time of the day comes. The clock of the machine may be set while the session is open: that changes nothing.
fn instant_of(time: SystemTime) -> Instant {
    /// Far enough for any session, and near enough for timers.
    const FAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    Instant::now() + time.duration_since(SystemTime::now()).unwrap_or_default().min(FAR)
}

impl RelayStream for ClientStream {
    fn bytes_written(&self) -> u64 {
        self.bytes_written()
    }

    fn force_write(&mut self) {
        self.force_write();
    }
}

impl RelayStream for BackendStream {
    fn bytes_written(&self) -> u64 {
        self.bytes_written()
    }

    fn force_write(&mut self) {
        self.force_write();
    }
}
