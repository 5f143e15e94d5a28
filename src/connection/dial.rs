//! The dial: connects to the backend, and records the result in the metrics and the access log line.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use super::{access_log::AccessLogLine, request::SessionRequest};
use crate::{
    backend::{BackendStream, ClientInfo, Connected, balance},
    config::{Backend, Destinations, Route},
    http::AcceptedRequest,
    metrics::Metrics,
    outcome::Reason,
};

/// The metric label of all backends that tokens select. There can be any number of them, so they share one label.
const TOKEN_BACKENDS_LABEL: &str = "targets";

/// The result of a dial.
pub(super) struct DialOutcome {
    pub(super) backend: Result<BackendStream, Reason>,
    pub(super) permit: Option<balance::BackendPermit>,
    /// The metric label of the backend that was reached, or tried last.
    pub(super) label: Option<Cow<'static, str>>,
}

/// Dials the backend that the request selects, counts the dial, and records the backend for the access log.
pub(super) async fn dial(
    request: &SessionRequest,
    client_info: &ClientInfo<'_>,
    limit: Duration,
    metrics: &Metrics,
    log_line: &mut AccessLogLine,
) -> DialOutcome {
    let AcceptedRequest { routed, choice, .. } = &request.accepted;
    let (route, start) = (&routed.route, Instant::now());
    let connected = routed.upstream.connect(choice, client_info, limit).await;
    let (backend, permit) = match connected {
        Ok(Connected { stream, backend, permit }) => {
            log_line.backend = Some(backend);
            (Ok(stream), permit)
        }
        Err(error) => {
            log_line.backend = error.backend().cloned();
            log_line.detail = Some(error.to_string());
            (Err(error.reason()), None)
        }
    };
    let label = log_line.backend.as_ref().map(|backend| label(route, backend));
    let failure = backend.as_ref().err().copied();
    metrics.count_dial(&route.name, label.as_deref(), failure, start.elapsed());
    DialOutcome { backend, permit, label }
}

/// The metric label of a backend. Only the configuration determines it, so clients cannot create labels.
fn label(route: &Route, backend: &Backend) -> Cow<'static, str> {
    match route.upstream.destinations {
        Destinations::Fixed(_) => Cow::Owned(backend.to_string()),
        Destinations::Tokens(_) => Cow::Borrowed(TOKEN_BACKENDS_LABEL),
    }
}
