//! The session endpoints: list with rates, kill by number, kill by filter.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::{
    kill::{KillRequest, KillResponse},
    response::{AdminResponse, ApiError, json},
    sessions::{RateTable, SessionFilter, list, peer},
};
use crate::{
    outcome::Reason,
    session::{Registry, SessionSnapshot},
};

/// The time between the two samples that the first request takes to have rates.
const RATE_SAMPLE: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub(super) struct SessionApi {
    registry: Arc<Registry>,
    rates: Mutex<RateTable>,
}

impl SessionApi {
    pub(super) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, rates: Mutex::default() }
    }

    /// `GET /api/sessions`.
    pub(super) async fn list(&self, query: Option<&str>) -> Result<AdminResponse, ApiError> {
        let (mut filter, mut limit) = (SessionFilter::default(), usize::MAX);
        for (key, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let value = value.into_owned();
            match &*key {
                "route" => filter.route = Some(value),
                "peer" => filter.peer = Some(peer(&value).map_err(ApiError::bad_request)?),
                "user" => filter.user = Some(value),
                "find" => filter.text = Some(value),
                "limit" => {
                    limit = value.parse().map_err(|_| {
                        ApiError::bad_request(format!("limit {value:?}: must be a whole number"))
                    })?;
                }
                _ => return Err(unknown_parameter(&key, "route, peer, user, find, limit")),
            }
        }
        let sessions = self.sample().await;
        let rates = self.rates.lock();
        Ok(json(StatusCode::OK, &list(&sessions, &filter, limit, &rates, SystemTime::now())))
    }

    /// `DELETE /api/sessions/ID`.
    pub(super) fn kill_one(&self, path: &str, query: Option<&str>) -> Result<AdminResponse, ApiError> {
        let id = path.rsplit('/').next().unwrap_or_default();
        let id: u64 =
            id.parse().map_err(|_| ApiError::bad_request(format!("{id:?} is not a session number")))?;
        let mut request = KillRequest { ids: Some(vec![id]), ..KillRequest::default() };
        for (key, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match &*key {
                "reason" => request.reason = Some(value.into_owned()),
                _ => return Err(unknown_parameter(&key, "reason")),
            }
        }
        let killed = self.close_sessions(&request)?;
        if killed.is_empty() {
            return Err(ApiError(StatusCode::NOT_FOUND, format!("no session {id}")));
        }
        Ok(json(StatusCode::OK, &KillResponse { killed }))
    }

    /// `POST /api/sessions/kill`.
    pub(super) fn kill(&self, request: &KillRequest) -> Result<AdminResponse, ApiError> {
        let killed = self.close_sessions(request)?;
        Ok(json(StatusCode::OK, &KillResponse { killed }))
    }

    /// Takes a snapshot of all sessions and samples their byte counts for the rates.
    async fn sample(&self) -> Vec<SessionSnapshot> {
        let sample = |now, force| {
            let sessions = self.registry.snapshot();
            self.rates.lock().sample(now, &sessions, force);
            sessions
        };
        let start = Instant::now();
        let is_cold = self.rates.lock().is_cold(start);
        let sessions = sample(start, false);
        if !is_cold {
            return sessions;
        }
        sleep(RATE_SAMPLE).await;
        sample(Instant::now(), true)
    }

    /// Closes the matching sessions. Returns their numbers.
    fn close_sessions(&self, request: &KillRequest) -> Result<Vec<u64>, ApiError> {
        let filter = request.filter().map_err(ApiError::bad_request)?;
        let reason = request.reason.as_deref();
        let candidates = match filter.ids.as_deref() {
            // Looked up one by one: no snapshot of all sessions is needed.
            Some(ids) => ids.iter().filter_map(|id| self.registry.get(*id)).collect(),
            None => self.registry.snapshot(),
        };
        let matching =
            candidates.into_iter().filter(|session| filter.matches(session)).map(|session| session.id);
        let closed: Vec<u64> =
            matching.filter(|id| self.registry.end_with_message(*id, Reason::Killed, reason)).collect();
        if !closed.is_empty() {
            tracing::info!(sessions = closed.len(), detail = reason, "killed by the operator");
        }
        Ok(closed)
    }
}

fn unknown_parameter(name: &str, known: &str) -> ApiError {
    ApiError::bad_request(format!("unknown parameter {name:?}; known: {known}"))
}
