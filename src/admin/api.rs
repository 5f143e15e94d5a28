//! What the admin address answers: one function from a request to an answer.
//!
//! Owns the paths, the methods and the shapes of what is asked and told. Refuses to know sockets, and how anything is done:
//! whatever is steered is steered by [`ProcessControl`]. Invariants: nothing but POST and DELETE changes anything; a body is
//! read up to a limit; no answer may be kept, framed, or read by another site.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
        X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
    },
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::{sleep, timeout};

use super::{
    control::ProcessControl,
    metrics_text::{self, GatewaySnapshot},
    page,
    process::measure,
    sessions::{RateTable, SessionFilter, list, peer},
    status::status,
};
use crate::{
    metrics::Metrics,
    outcome::Reason,
    session::{Registry, SessionSnapshot},
};

/// The largest body that is read, in bytes.
const MAX_BODY: usize = 16 * 1024;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// From the first look at the sessions to the second, where rates must be told at once.
const RATE_SAMPLE: Duration = Duration::from_millis(300);
/// The longest reason for a kill, in bytes: what a Close frame has room for (RFC 6455 §5.5).
const MAX_REASON: usize = 123;
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// An answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// What the operator looks at and steers by.
#[derive(Debug)]
pub(super) struct AdminApi {
    control: Arc<dyn ProcessControl>,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    readings: Mutex<RateTable>,
    started: SystemTime,
}

/// Which sessions are to be ended, and why.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kill {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ids: Option<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogLevel {
    level: String,
}

/// Something that was asked for wrongly.
struct ApiError(StatusCode, String);

impl ApiError {
    fn request(message: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, message.into())
    }
}

impl AdminApi {
    pub(super) fn new(
        control: Arc<dyn ProcessControl>,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (readings, started) = (Mutex::default(), SystemTime::now());
        Self { control, registry, metrics, readings, started }
    }

    /// Answers a request that may be made.
    pub(super) async fn answer<B>(&self, request: Request<B>) -> Answer
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
    {
        let path = request.uri().path().to_owned();
        let methods: &[Method] = match path.as_str() {
            "/" | "/style.css" | "/script.js" | "/healthz" | "/readyz" | "/metrics" | "/api/status"
            | "/api/sessions" => &[Method::GET, Method::HEAD],
            "/api/sessions/kill" | "/api/reload" | "/api/drain" | "/api/log-level" => &[Method::POST],
            path if path.starts_with("/api/sessions/") => &[Method::DELETE],
            _ => return answer(StatusCode::NOT_FOUND, TEXT, "nothing here\n"),
        };
        if !methods.contains(request.method()) {
            let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
            let names = names.join(", ");
            let mut refused =
                answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("only {names} is answered here\n"));
            if let Ok(names) = HeaderValue::from_str(&names) {
                refused.headers_mut().insert(ALLOW, names);
            }
            return refused;
        }
        let answered = match path.as_str() {
            "/" => Ok(page::html()),
            "/style.css" => Ok(page::style()),
            "/script.js" => Ok(page::script()),
            "/healthz" => Ok(answer(StatusCode::OK, TEXT, "alive\n")),
            "/readyz" => Ok(self.ready()),
            "/metrics" => self.metrics(),
            "/api/status" => {
                json(&status(&self.metrics, self.registry.opened(), self.moment(), SystemTime::now()))
            }
            "/api/sessions" => self.sessions(request.uri().query()).await,
            "/api/sessions/kill" => match body(request).await {
                Ok(kill) => self.kill(kill),
                Err(error) => Err(error),
            },
            "/api/reload" => self.reload().await,
            "/api/drain" => {
                self.control.drain();
                message(
                    StatusCode::ACCEPTED,
                    "draining: nobody is accepted any more, and every session is told",
                )
            }
            "/api/log-level" => match body(request).await {
                Ok(wanted) => self.log_level(&wanted),
                Err(error) => Err(error),
            },
            path => self.kill_one(path, request.uri().query()),
        };
        answered.unwrap_or_else(|ApiError(status, message)| {
            #[derive(Serialize)]
            struct Error {
                error: String,
            }
            json_with(status, &Error { error: message })
        })
    }

    fn moment(&self) -> GatewaySnapshot {
        let (status, payload) = (self.control.status(), self.registry.payload());
        GatewaySnapshot { status, payload, process: measure(), started: self.started }
    }

    fn ready(&self) -> Answer {
        let status = self.control.status();
        match (status.ready, status.draining) {
            (true, _) => answer(StatusCode::OK, TEXT, "ready\n"),
            (false, true) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n"),
            (false, false) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n"),
        }
    }

    fn metrics(&self) -> Result<Answer, ApiError> {
        let text = metrics_text::text(&self.metrics, &self.moment())
            .map_err(|error| ApiError(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok(answer(StatusCode::OK, metrics_text::CONTENT_TYPE, text))
    }

    async fn sessions(&self, query: Option<&str>) -> Result<Answer, ApiError> {
        let (mut choice, mut most) = (SessionFilter::default(), usize::MAX);
        for (key, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let value = value.into_owned();
            match &*key {
                "route" => choice.route = Some(value),
                "peer" => choice.peer = Some(peer(&value).map_err(ApiError::request)?),
                "find" => choice.text = Some(value),
                "limit" => {
                    most = value
                        .parse()
                        .map_err(|_| ApiError::request(format!("limit {value:?}: must be a whole number")))?;
                }
                _ => {
                    let known = "route, peer, find and limit";
                    return Err(ApiError::request(format!("unknown parameter {key:?}; there are {known}")));
                }
            }
        }
        let sessions = self.snapshot().await;
        let readings = self.readings.lock();
        json(&list(&sessions, &choice, most, &readings, SystemTime::now()))
    }

    /// Looks at all sessions, so that rates can be told.
    async fn snapshot(&self) -> Vec<SessionSnapshot> {
        let read = |now, at_once| {
            let sessions = self.registry.snapshot();
            let mut readings = self.readings.lock();
            readings.read(now, &sessions, at_once);
            sessions
        };
        let start = Instant::now();
        let cold = self.readings.lock().is_cold(start);
        let sessions = read(start, false);
        if !cold {
            return sessions;
        }
        sleep(RATE_SAMPLE).await;
        read(Instant::now(), true)
    }

    fn kill_one(&self, path: &str, query: Option<&str>) -> Result<Answer, ApiError> {
        let id = path.rsplit('/').next().unwrap_or_default();
        let id: u64 =
            id.parse().map_err(|_| ApiError::request(format!("{id:?} is no number of a session")))?;
        let mut reason = None;
        for (key, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match &*key {
                "reason" => reason = Some(value.into_owned()),
                _ => return Err(ApiError::request(format!("unknown parameter {key:?}; there is reason"))),
            }
        }
        let choice = SessionFilter { ids: Some(vec![id]), ..SessionFilter::default() };
        let killed = self.end(&choice, reason.as_deref())?;
        if killed.is_empty() {
            return Err(ApiError(StatusCode::NOT_FOUND, format!("there is no session {id}")));
        }
        json(&Killed { killed })
    }

    fn kill(&self, kill: Kill) -> Result<Answer, ApiError> {
        let Kill { ids, route, peer: from, reason } = kill;
        let peer = from.as_deref().map(peer).transpose().map_err(ApiError::request)?;
        let choice = SessionFilter { ids, route, peer, text: None };
        if choice.is_everything() {
            return Err(ApiError::request("say which sessions: ids, route or peer"));
        }
        json(&Killed { killed: self.end(&choice, reason.as_deref())? })
    }

    /// Tells the sessions that are meant to end. Returns their numbers.
    fn end(&self, choice: &SessionFilter, reason: Option<&str>) -> Result<Vec<u64>, ApiError> {
        if reason.is_some_and(|message| message.len() > MAX_REASON || message.contains(char::is_control)) {
            let message = format!("the reason must be one line of at most {MAX_REASON} bytes");
            return Err(ApiError::request(message));
        }
        let meant = match choice.ids.as_deref() {
            // Whoever names them need not wait for a look at all.
            Some(ids) => ids.iter().filter_map(|id| self.registry.get(*id)).collect(),
            None => self.registry.snapshot(),
        };
        let meant = meant.into_iter().filter(|session| choice.matches(session)).map(|session| session.id);
        let told = meant.filter(|id| self.registry.end_with_message(*id, Reason::Killed, reason));
        let told: Vec<u64> = told.collect();
        if !told.is_empty() {
            tracing::info!(sessions = told.len(), detail = reason, "killed by the operator");
        }
        Ok(told)
    }

    async fn reload(&self) -> Result<Answer, ApiError> {
        // A task of its own: one who asks and leaves does not stop it halfway.
        let control = Arc::clone(&self.control);
        match tokio::spawn(async move { control.reload().await }).await {
            Ok(Ok(text)) => message(StatusCode::OK, text),
            Ok(Err(message)) => Err(ApiError(StatusCode::UNPROCESSABLE_ENTITY, message)),
            Err(error) => Err(ApiError(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }

    fn log_level(&self, wanted: &LogLevel) -> Result<Answer, ApiError> {
        let levels = ["error", "warn", "info", "debug", "trace"];
        let level = levels.contains(&wanted.level.as_str()).then(|| wanted.level.parse().ok()).flatten();
        let level = level.ok_or_else(|| {
            let known = levels.join(", ");
            ApiError::request(format!("unknown level {:?}; there are {known}", wanted.level))
        })?;
        self.control.set_log_level(level).map_err(|message| ApiError(StatusCode::CONFLICT, message))?;
        message(StatusCode::OK, format!("the log level is {} until the next reload", wanted.level))
    }
}

/// The numbers of the sessions that were told to end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Killed {
    pub(super) killed: Vec<u64>,
}

async fn body<T, B>(request: Request<B>) -> Result<T, ApiError>
where
    T: DeserializeOwned,
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let body = match timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("more than {MAX_BODY} bytes are not read");
            return Err(ApiError(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        Ok(Err(error)) => return Err(ApiError::request(format!("the body is broken: {error}"))),
        Err(_) => return Err(ApiError(StatusCode::REQUEST_TIMEOUT, "no whole body in time".to_owned())),
    };
    serde_json::from_slice(&body)
        .map_err(|error| ApiError::request(format!("not the JSON that is needed: {error}")))
}

fn message(status: StatusCode, message: impl Into<String>) -> Result<Answer, ApiError> {
    #[derive(Serialize)]
    struct Message {
        message: String,
    }
    Ok(json_with(status, &Message { message: message.into() }))
}

fn json(value: &impl Serialize) -> Result<Answer, ApiError> {
    Ok(json_with(StatusCode::OK, value))
}

fn json_with(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(text) => answer(status, JSON, text),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}

/// An answer that no cache keeps, no frame holds and no other site reads.
pub(super) fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let fields: [(HeaderName, &'static str); 7] = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, page::POLICY),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        // Not "no-referrer": our own page's requests must have its Origin.
        (REFERRER_POLICY, "same-origin"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
    ];
    for (name, value) in fields {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
