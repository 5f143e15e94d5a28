//! What Prometheus reads: what was counted, and what can be looked up.
//!
//! Owns the gauges of the moment. They are made anew for every reader, so that what is no longer configured is no
//! longer told. The names stand in docs/metrics.md.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    sync::atomic::AtomicU64,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Metric, Registry, Unit},
};

use super::{control::GatewayStatus, process::ProcessStats};
use crate::{metrics::Metrics, session::Payload};

/// The Content-Type of it all.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    route: String,
    backend: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    listener: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// A gauge of seconds.
type Seconds = Gauge<f64, AtomicU64>;

/// What is looked up at the moment of reading.
#[derive(Debug)]
pub(super) struct GatewaySnapshot {
    pub(super) status: GatewayStatus,
    pub(super) payload: BTreeMap<Arc<str>, Payload>,
    pub(super) process: ProcessStats,
    /// When the process began.
    pub(super) started: SystemTime,
}

/// All of it, as OpenMetrics text.
///
/// # Errors
/// Never: it is written to memory.
pub(super) fn text(metrics: &Metrics, moment: &GatewaySnapshot) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(16 * 1024);
    metrics.encode(&mut text)?;
    encode_registry(&mut text, &of_gateway(moment))?;
    encode_registry(&mut text, &of_process(moment))?;
    encode_eof(&mut text)?;
    Ok(text)
}

fn of_gateway(moment: &GatewaySnapshot) -> Registry {
    let GatewaySnapshot { status, payload, .. } = moment;
    let mut registry = Registry::with_prefix("portcullis");
    let carried = Family::<RouteLabels, Counter>::default();
    for (route, payload) in payload {
        for (direction, bytes) in [("in", payload.bytes_in), ("out", payload.bytes_out)] {
            let route = route.to_string();
            carried.get_or_create(&RouteLabels { route, direction }).inc_by(bytes);
        }
    }
    let help = "Payload accepted from clients (in) and from backends (out), living sessions included";
    registry.register_with_unit("payload", help, Unit::Bytes, carried);
    let up = Family::<BackendLabels, Gauge>::default();
    for backend in &status.backends {
        let (route, url) = (backend.route.clone(), backend.backend.clone());
        up.get_or_create(&BackendLabels { route, backend: url }).set(backend.up.into());
    }
    registry.register("backend_up", "Whether sessions are led to this backend", up);
    gauge(&mut registry, "handshakes", "Connections that are not sessions yet", status.handshakes.0);
    gauge(&mut registry, "handshakes_limit", "limits.max_handshakes", status.handshakes.1);
    gauge(&mut registry, "sessions_limit", "limits.max_sessions", status.sessions.1);
    let reloads = Family::<ResultLabels, Counter>::default();
    for (result, times) in [("ok", status.reloads.0), ("failed", status.reloads.1)] {
        reloads.get_or_create(&ResultLabels { result }).inc_by(times);
    }
    registry.register("reloads", "Times the configuration was to be read again", reloads);
    let help = "When the configuration of new connections was loaded";
    registry.register_with_unit("config_loaded_timestamp", help, Unit::Seconds, moment_of(status.loaded));
    let expiry = Family::<ListenerLabels, Seconds>::default();
    for listener in &status.listeners {
        if let Some(end) = listener.certificate_expiry {
            let listener = listener.address.clone();
            expiry.get_or_create(&ListenerLabels { listener }).set(unix_seconds(end));
        }
    }
    let help = "When the listener's certificate, the first of its chain, ends";
    registry.register_with_unit("certificate_expiry_timestamp", help, Unit::Seconds, expiry);
    gauge(&mut registry, "ready", "Whether new connections are welcome", status.ready.into());
    gauge(&mut registry, "draining", "Whether sessions are being sent away", status.draining.into());
    let dropped = Counter::<u64>::default();
    dropped.inc_by(status.dropped_log_lines);
    registry.register("log_lines_dropped", "Log lines that nobody took fast enough", dropped);
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The program", version);
    registry
}

fn of_process(moment: &GatewaySnapshot) -> Registry {
    let mut registry = Registry::with_prefix("process");
    let ProcessStats { open_fds, max_fds, resident_bytes, cpu_seconds } = moment.process;
    if let Some(open) = open_fds {
        gauge(&mut registry, "open_fds", "Descriptors that are open", open as usize);
    }
    if let Some(most) = max_fds {
        gauge(&mut registry, "max_fds", "Descriptors that may be open", most as usize);
    }
    if let Some(bytes) = resident_bytes {
        let memory = Gauge::<i64>::default();
        memory.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        registry.register_with_unit("resident_memory", "Memory in use", Unit::Bytes, memory);
    }
    if let Some(seconds) = cpu_seconds {
        let spent = Counter::<f64, AtomicU64>::default();
        spent.inc_by(seconds);
        registry.register_with_unit("cpu", "Processor time, user and system", Unit::Seconds, spent);
    }
    let help = "When the process began";
    registry.register_with_unit("start_time", help, Unit::Seconds, moment_of(moment.started));
    registry
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: usize) {
    let gauge = Gauge::<i64>::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn moment_of(time: SystemTime) -> impl Metric {
    let gauge = Seconds::default();
    gauge.set(unix_seconds(time));
    gauge
}

fn unix_seconds(time: SystemTime) -> f64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}
