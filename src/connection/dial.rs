//! The last station before the session: the dial, and what is noted of it.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use super::{closing_line::ClosingLine, request::Wanted};
use crate::{
    backend::{BackendStream, Caller, Connected, balance},
    config::{Backend, Destinations, Route},
    metrics::Metrics,
    outcome::Reason,
};

/// What counters call all the servers that tokens lead to: there may be any number of them.
const TARGETS: &str = "targets";

/// What came of a dial.
pub(super) struct Dialled {
    pub(super) backend: Result<BackendStream, Reason>,
    pub(super) place: Option<balance::Place>,
    /// What counters call the server that was reached, or tried last.
    pub(super) label: Option<Cow<'static, str>>,
}

/// Dials what was wished for, counts it, and notes for the closing line which server it came to.
pub(super) async fn dial(
    wanted: &Wanted,
    caller: &Caller,
    limit: Duration,
    metrics: &Metrics,
    line: &mut ClosingLine,
) -> Dialled {
    let (route, start) = (&wanted.routed.route, Instant::now());
    let connected = wanted.routed.upstream.connect(&wanted.wish, caller, limit).await;
    let (backend, place) = match connected {
        Ok(Connected { stream, backend, place }) => {
            line.backend = Some(backend);
            (Ok(stream), place)
        }
        Err(error) => {
            line.backend = error.backend().cloned();
            line.detail = Some(error.to_string());
            (Err(error.reason()), None)
        }
    };
    let label = line.backend.as_ref().map(|backend| label(route, backend));
    let failed = backend.as_ref().err().copied();
    metrics.count_dial(&route.name, label.as_deref(), failed, start.elapsed());
    Dialled { backend, place, label }
}

/// What counters call a server: a name that the configuration has, whatever clients ask for.
fn label(route: &Route, backend: &Backend) -> Cow<'static, str> {
    match route.upstream.destinations {
        Destinations::Fixed(_) => Cow::Owned(backend.to_string()),
        Destinations::Tokens(_) => Cow::Borrowed(TARGETS),
    }
}
