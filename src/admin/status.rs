//! The body of `GET /api/status`, which the status page shows.

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

/// The formatter has no years after 9999.
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
    /// Since the process started.
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

/// How many connections ended for a reason, since the process started.
#[derive(Debug, Serialize)]
struct ReasonCount {
    reason: &'static str,
    /// The phase in which it ended.
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

pub(super) fn status(
    metrics: &Metrics,
    opened: u64,
    snapshot: GatewaySnapshot,
    now: SystemTime,
) -> StatusReport {
    let GatewaySnapshot { status, payload, process, started } = snapshot;
    let time = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
    let payload = payload.into_values().fold(Payload::default(), Payload::plus);
    let usage = |(in_use, limit): (usize, usize)| Usage { in_use, limit };
    StatusReport {
        version: env!("CARGO_PKG_VERSION"),
        now: time(now),
        started: time(started),
        loaded: time(status.loaded),
        ready: status.ready,
        draining: status.draining,
        reloads: ReloadCounts { ok: status.reloads.0, failed: status.reloads.1 },
        sessions: usage(status.sessions),
        handshakes: usage(status.handshakes),
        sessions_opened: opened,
        accept_errors: metrics.accept_errors(),
        bytes_in: payload.bytes_in,
        bytes_out: payload.bytes_out,
        ends: reason_counts(metrics),
        listeners: status.listeners.into_iter().map(|listener| listener_entry(listener, now)).collect(),
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

/// The reasons that have occurred, in the order of the table.
fn reason_counts(metrics: &Metrics) -> Vec<ReasonCount> {
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

fn listener_entry(listener: ListenerStatus, now: SystemTime) -> ListenerEntry {
    let ListenerStatus { address, tls, certificate_expiry: expiry } = listener;
    let seconds_left = |expiry: SystemTime| match expiry.duration_since(now) {
        Ok(left) => left.as_secs() as i64,
        Err(past) => -(past.duration().as_secs() as i64),
    };
    ListenerEntry {
        address,
        tls,
        certificate_expiry: expiry.and_then(|expiry| {
            let fits = expiry.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since < YEAR_10000);
            fits.then(|| humantime::format_rfc3339_seconds(expiry).to_string())
        }),
        expires_in_seconds: expiry.map(seconds_left),
    }
}
