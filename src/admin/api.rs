//! The admin API: paths, methods, and the shapes of requests and responses.
//!
//! Knows nothing of sockets, nor of how a command is carried out: that is [`ProcessControl`]. Invariants: only POST and
//! DELETE change anything; a request body is bounded in size and time.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header::ALLOW};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::{
    control::ProcessControl,
    deny_api::DenyApi,
    metrics_text::{self, GatewaySnapshot},
    page,
    process::measure,
    response::{AdminResponse, ApiError, TEXT, json, message, response},
    session_api::SessionApi,
    status::status,
    ticket_api::TicketApi,
};
use crate::{auth::Credentials, metrics::Metrics, session::Registry};

/// The largest request body, in bytes.
const MAX_BODY: usize = 16 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// A request and its whole body, or why that could not be read.
pub(super) type ReadRequest = Request<Result<Bytes, ApiError>>;

/// What the API acts on.
#[derive(Debug, Clone)]
pub(crate) struct AdminContext {
    pub(crate) control: Arc<dyn ProcessControl>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) credentials: Arc<Credentials>,
}

/// What the requests of one address can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdminScope {
    Everything,
    /// Only the requests for tickets.
    Tickets,
}

impl fmt::Display for AdminScope {
    /// The name of the address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Everything => "admin address",
            Self::Tickets => "address for tickets",
        })
    }
}

#[derive(Debug)]
pub(super) struct AdminApi {
    scope: AdminScope,
    control: Arc<dyn ProcessControl>,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    sessions: SessionApi,
    tickets: TicketApi,
    denied: DenyApi,
    /// When the process started.
    started: SystemTime,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogLevelRequest {
    level: String,
}

impl AdminApi {
    pub(super) fn new(context: AdminContext, scope: AdminScope) -> Self {
        let AdminContext { control, registry, metrics, credentials } = context;
        let sessions = SessionApi::new(Arc::clone(&registry));
        let tickets = TicketApi::new(Arc::clone(&control), Arc::clone(&registry), Arc::clone(&credentials));
        let denied = DenyApi::new(Arc::clone(&registry), credentials);
        Self { scope, control, registry, metrics, sessions, tickets, denied, started: SystemTime::now() }
    }

    /// Handles a request that has passed the guard.
    pub(super) async fn handle(&self, request: ReadRequest) -> AdminResponse {
        let Some(methods) = methods(request.uri().path(), self.scope) else {
            return response(StatusCode::NOT_FOUND, TEXT, "not found\n");
        };
        if !methods.contains(request.method()) {
            return method_not_allowed(methods);
        }
        self.route(request).await.unwrap_or_else(AdminResponse::from)
    }

    async fn route(&self, request: ReadRequest) -> Result<AdminResponse, ApiError> {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/" => Ok(page::html()),
            "/style.css" => Ok(page::style()),
            "/script.js" => Ok(page::script()),
            "/healthz" => Ok(response(StatusCode::OK, TEXT, "alive\n")),
            "/readyz" => Ok(self.ready()),
            "/metrics" => self.metrics(),
            "/api/status" => {
                let (opened, now) = (self.registry.opened(), SystemTime::now());
                Ok(json(StatusCode::OK, &status(&self.metrics, opened, self.snapshot(), now)))
            }
            "/api/sessions" => self.sessions.list(request.uri().query()).await,
            "/api/sessions/kill" => self.sessions.kill(&read_json(request)?),
            "/api/reload" => self.reload().await,
            "/api/drain" => {
                self.control.drain();
                let text = "draining: no new connections are accepted, sessions are being closed";
                Ok(message(StatusCode::ACCEPTED, text))
            }
            "/api/log-level" => self.set_log_level(&read_json(request)?),
            "/api/tickets" => self.tickets.issue(&read_json(request)?),
            TICKET_CHECK => self.tickets.check(&read_json(request)?),
            "/api/denied" => self.denied.deny(&read_json(request)?),
            path => match (path.strip_prefix(TICKET), request.method() == Method::DELETE) {
                (Some(id), true) => self.tickets.revoke(id),
                (Some(id), false) => self.tickets.get(id),
                (None, _) => self.sessions.kill_one(path, request.uri().query()),
            },
        }
    }

    fn snapshot(&self) -> GatewaySnapshot {
        let (status, payload) = (self.control.status(), self.registry.payload());
        GatewaySnapshot { status, payload, process: measure(), started: self.started }
    }

    fn ready(&self) -> AdminResponse {
        let status = self.control.status();
        match (status.ready, status.draining) {
            (true, _) => response(StatusCode::OK, TEXT, "ready\n"),
            (false, true) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n"),
            (false, false) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n"),
        }
    }

    fn metrics(&self) -> Result<AdminResponse, ApiError> {
        let text = metrics_text::text(&self.metrics, &self.snapshot())
            .map_err(|error| ApiError(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok(response(StatusCode::OK, metrics_text::CONTENT_TYPE, text))
    }

    async fn reload(&self) -> Result<AdminResponse, ApiError> {
        // In its own task: a client that disconnects must not cancel a reload halfway.
        let control = Arc::clone(&self.control);
        match tokio::spawn(async move { control.reload().await }).await {
            Ok(Ok(text)) => Ok(message(StatusCode::OK, text)),
            Ok(Err(error)) => Err(ApiError(StatusCode::UNPROCESSABLE_ENTITY, error)),
            Err(error) => Err(ApiError(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }

    fn set_log_level(
        &self,
        LogLevelRequest { level: name }: &LogLevelRequest,
    ) -> Result<AdminResponse, ApiError> {
        // `Level` itself would also parse numbers and other spellings.
        let levels = ["error", "warn", "info", "debug", "trace"];
        let level = levels.contains(&name.as_str()).then(|| name.parse().ok()).flatten();
        let level = level.ok_or_else(|| {
            ApiError::bad_request(format!("unknown level {name:?}; known: {}", levels.join(", ")))
        })?;
        self.control.set_log_level(level).map_err(|error| ApiError(StatusCode::CONFLICT, error))?;
        Ok(message(StatusCode::OK, format!("the log level is {name} until the next reload")))
    }
}

/// Where a ticket can be checked: no ticket has this id.
const TICKET_CHECK: &str = "/api/tickets/check";
/// What the path of a ticket begins with.
const TICKET: &str = "/api/tickets/";

/// The methods allowed on a path; `None` if there is no such path here.
fn methods(path: &str, scope: AdminScope) -> Option<&'static [Method]> {
    match path {
        "/api/tickets" | TICKET_CHECK => Some(&[Method::POST]),
        path if path.starts_with(TICKET) => Some(&[Method::GET, Method::HEAD, Method::DELETE]),
        _ if scope == AdminScope::Tickets => None,
        "/" | "/style.css" | "/script.js" | "/healthz" | "/readyz" | "/metrics" | "/api/status"
        | "/api/sessions" => Some(&[Method::GET, Method::HEAD]),
        "/api/sessions/kill" | "/api/reload" | "/api/drain" | "/api/log-level" | "/api/denied" => {
            Some(&[Method::POST])
        }
        path if path.starts_with("/api/sessions/") => Some(&[Method::DELETE]),
        _ => None,
    }
}

fn method_not_allowed(methods: &[Method]) -> AdminResponse {
    let names = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let text = format!("method not allowed; use {names}\n");
    let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
    if let Ok(names) = HeaderValue::from_str(&names) {
        refusal.headers_mut().insert(ALLOW, names);
    }
    refusal
}

/// Reads the body of a request that can have one.
pub(super) async fn read<B>(request: Request<B>) -> ReadRequest
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let (head, body) = request.into_parts();
    let body = if head.method == Method::POST { read_body(body).await } else { Ok(Bytes::new()) };
    Request::from_parts(head, body)
}

async fn read_body<B>(body: B) -> Result<Bytes, ApiError>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    match timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("the body is larger than {MAX_BODY} bytes");
            Err(ApiError(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Ok(Err(error)) => Err(ApiError::bad_request(format!("cannot read the body: {error}"))),
        Err(_) => Err(ApiError(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time".to_owned())),
    }
}

fn read_json<T: DeserializeOwned>(request: ReadRequest) -> Result<T, ApiError> {
    serde_json::from_slice(&request.into_body()?)
        .map_err(|error| ApiError::bad_request(format!("invalid JSON body: {error}")))
}
