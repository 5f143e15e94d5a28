//! The last station before the session: the dial, and what is noted of it.

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

/// What counters call all the servers that tokens lead to: there may be any number of them.
const TARGETS: &str = "targets";

/// What came of a dial.
pub(super) struct DialOutcome {
    pub(super) backend: Result<BackendStream, Reason>,
    pub(super) permit: Option<balance::BackendPermit>,
    /// What counters call the server that was reached, or tried last.
    pub(super) label: Option<Cow<'static, str>>,
}

/// Dials what was wished for, counts it, and notes for the closing line which server it came to.
pub(super) async fn dial(
    request: &SessionRequest,
    client_info: &ClientInfo,
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
    let failed = backend.as_ref().err().copied();
    metrics.count_dial(&route.name, label.as_deref(), failed, start.elapsed());
    DialOutcome { backend, permit, label }
}

/// What counters call a server: a name that the configuration has, whatever clients ask for.
fn label(route: &Route, backend: &Backend) -> Cow<'static, str> {
    match route.upstream.destinations {
        Destinations::Fixed(_) => Cow::Owned(backend.to_string()),
        Destinations::Tokens(_) => Cow::Borrowed(TARGETS),
    }
}
