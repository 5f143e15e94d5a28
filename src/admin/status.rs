//! What the status page shows, as JSON.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::{
    control::{BackendStatus, ListenerStatus},
    metrics_text::GatewaySnapshot,
    process::ProcessStats,
};
use crate::{
    metrics::Metrics,
    outcome::{Phase, Reason},
    session::Payload,
};

const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

#[derive(Debug, Serialize)]
pub(super) struct StatusReport {
    version: &'static str,
    now: String,
    started: String,
    loaded: String,
    ready: bool,
    draining: bool,
    reloads: ReloadCounts,
    sessions: Usage,
    handshakes: Usage,
    /// Since the process began.
    sessions_opened: u64,
    accept_errors: u64,
    bytes_in: u64,
    bytes_out: u64,
    ends: Vec<ReasonCount>,
    listeners: Vec<ListenerEntry>,
    backends: Vec<BackendEntry>,
    process: ProcessStats,
}

#[derive(Debug, Serialize)]
struct ReloadCounts {
    ok: u64,
    failed: u64,
}

#[derive(Debug, Serialize)]
struct Usage {
    in_use: usize,
    limit: usize,
}

/// How many connections ended for a reason, since the process began.
#[derive(Debug, Serialize)]
struct ReasonCount {
    reason: &'static str,
    /// Before a server was asked, at the dial, or in a session.
    at: &'static str,
    count: u64,
}

#[derive(Debug, Serialize)]
struct ListenerEntry {
    address: String,
    tls: bool,
    certificate_expiry: Option<String>,
    /// Negative once it has expired.
    expires_in_seconds: Option<i64>,
}

#[derive(Debug, Serialize)]
struct BackendEntry {
    route: String,
    backend: String,
    up: bool,
    sessions: usize,
}

/// How everything stands.
pub(super) fn status(
    metrics: &Metrics,
    opened: u64,
    moment: GatewaySnapshot,
    now: SystemTime,
) -> StatusReport {
    let GatewaySnapshot { status, payload, process, started } = moment;
    let time = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
    let carried = payload.into_values().fold(Payload::default(), Payload::plus);
    let use_of = |(in_use, limit): (usize, usize)| Usage { in_use, limit };
    StatusReport {
        version: env!("CARGO_PKG_VERSION"),
        now: time(now),
        started: time(started),
        loaded: time(status.loaded),
        ready: status.ready,
        draining: status.draining,
        reloads: ReloadCounts { ok: status.reloads.0, failed: status.reloads.1 },
        sessions: use_of(status.sessions),
        handshakes: use_of(status.handshakes),
        sessions_opened: opened,
        accept_errors: metrics.accept_errors(),
        bytes_in: carried.bytes_in,
        bytes_out: carried.bytes_out,
        ends: ends(metrics),
        listeners: status.listeners.into_iter().map(|listener| told(listener, now)).collect(),
        backends: status
            .backends
            .into_iter()
            .map(|BackendStatus { route, backend, up, sessions }| BackendEntry {
                route,
                backend,
                up,
                sessions,
            })
            .collect(),
        process,
    }
}

/// In the order of the table, those that have happened.
fn ends(metrics: &Metrics) -> Vec<ReasonCount> {
    let happened = Reason::ALL.iter().map(|&reason| ReasonCount {
        reason: reason.as_str(),
        at: match reason.phase() {
            Phase::Handshake => "refused",
            Phase::Served => "served",
            Phase::Dial => "dial",
            Phase::Session => "session",
        },
        count: metrics.ended(reason),
    });
    happened.filter(|end| end.count > 0).collect()
}

fn told(listener: ListenerStatus, now: SystemTime) -> ListenerEntry {
    let ListenerStatus { address, tls, certificate_expiry: end } = listener;
    let left = |end: SystemTime| match end.duration_since(now) {
        Ok(left) => left.as_secs() as i64,
        Err(over) => -(over.duration().as_secs() as i64),
    };
    ListenerEntry {
        address,
        tls,
        // The formatter knows no year beyond 9999.
        certificate_expiry: end.and_then(|end| {
            let shown = end.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since < YEAR_10000);
            shown.then(|| humantime::format_rfc3339_seconds(end).to_string())
        }),
        expires_in_seconds: end.map(left),
    }
}
