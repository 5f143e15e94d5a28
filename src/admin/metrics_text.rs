//! The text of `/metrics`: the counters of the process, and gauges from a snapshot.
//!
//! Owns the snapshot gauges. They are built for each scrape, so that a series disappears when its listener or backend is
//! no longer configured. The names are documented in docs/metrics.md.

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
use crate::{events::EventStats, metrics::Metrics, session::Payload};

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendGaugeLabels {
    route: String,
    backend: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
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

type SecondsGauge = Gauge<f64, AtomicU64>;

/// What the gauges are built from.
#[derive(Debug)]
pub(super) struct GatewaySnapshot {
    pub(super) status: GatewayStatus,
    pub(super) payload: BTreeMap<Arc<str>, Payload>,
    pub(super) process: ProcessStats,
    /// When the process started.
    pub(super) started: SystemTime,
}

/// The OpenMetrics text. Formatting into memory does not fail.
pub(super) fn text(metrics: &Metrics, snapshot: &GatewaySnapshot) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(16 * 1024);
    metrics.encode(&mut text)?;
    encode_registry(&mut text, &gateway_registry(snapshot))?;
    encode_registry(&mut text, &process_registry(snapshot))?;
    encode_eof(&mut text)?;
    Ok(text)
}

fn gateway_registry(snapshot: &GatewaySnapshot) -> Registry {
    let GatewaySnapshot { status, payload, .. } = snapshot;
    let mut registry = Registry::with_prefix("portcullis");
    let payload_bytes = Family::<DirectionLabels, Counter>::default();
    for (route, payload) in payload {
        for (direction, bytes) in [("in", payload.bytes_in), ("out", payload.bytes_out)] {
            let route = route.to_string();
            payload_bytes.get_or_create(&DirectionLabels { route, direction }).inc_by(bytes);
        }
    }
    let help = "Payload accepted from clients (in) and from backends (out), open sessions included";
    registry.register_with_unit("payload", help, Unit::Bytes, payload_bytes);
    let up = Family::<BackendGaugeLabels, Gauge>::default();
    for backend in &status.backends {
        let (route, url) = (backend.route.clone(), backend.backend.clone());
        up.get_or_create(&BackendGaugeLabels { route, backend: url }).set(backend.up.into());
    }
    registry.register("backend_up", "Whether new sessions are sent to this backend", up);
    gauge(&mut registry, "handshakes", "Connections that are not sessions yet", status.handshakes.0);
    gauge(&mut registry, "handshakes_limit", "limits.max_handshakes", status.handshakes.1);
    gauge(&mut registry, "sessions_limit", "limits.max_sessions", status.sessions.1);
    let reloads = Family::<ResultLabels, Counter>::default();
    for (result, times) in [("ok", status.reloads.0), ("failed", status.reloads.1)] {
        reloads.get_or_create(&ResultLabels { result }).inc_by(times);
    }
    registry.register("reloads", "Configuration reloads", reloads);
    let help = "When the configuration of new connections was loaded";
    registry.register_with_unit("config_loaded_timestamp", help, Unit::Seconds, timestamp(status.loaded));
    let expiry = Family::<ListenerLabels, SecondsGauge>::default();
    for listener in &status.listeners {
        if let Some(end) = listener.certificate_expiry {
            let listener = listener.address.clone();
            expiry.get_or_create(&ListenerLabels { listener }).set(unix_seconds(end));
        }
    }
    let help = "When the listener's certificate, the first of its chain, expires";
    registry.register_with_unit("certificate_expiry_timestamp", help, Unit::Seconds, expiry);
    gauge(&mut registry, "ready", "Whether new connections are accepted", status.ready.into());
    gauge(&mut registry, "draining", "Whether a drain has started", status.draining.into());
    let dropped = Counter::<u64>::default();
    dropped.inc_by(status.dropped_log_lines);
    registry.register(
        "log_lines_dropped",
        "Log lines lost because a sink could not keep up or failed",
        dropped,
    );
    events(&mut registry, status.events);
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The version of the program", version);
    registry
}

fn events(registry: &mut Registry, stats: EventStats) {
    let EventStats { queued, delivered, dropped, requests: (accepted, failed) } = stats;
    gauge(registry, "events_queued", "Events that wait for the receiver of [events]", queued);
    let counters = |values: [(&'static str, u64); 2]| {
        let family = Family::<ResultLabels, Counter>::default();
        for (result, count) in values {
            family.get_or_create(&ResultLabels { result }).inc_by(count);
        }
        family
    };
    let events = counters([("delivered", delivered), ("dropped", dropped)]);
    registry.register("events", "Events that the receiver has accepted, or that are lost", events);
    let requests = counters([("ok", accepted), ("failed", failed)]);
    registry.register("event_requests", "Requests to the receiver of [events]", requests);
}

fn process_registry(snapshot: &GatewaySnapshot) -> Registry {
    let mut registry = Registry::with_prefix("process");
    let ProcessStats { open_fds, max_fds, resident_bytes, cpu_seconds } = snapshot.process;
    if let Some(open) = open_fds {
        gauge(&mut registry, "open_fds", "Open descriptors", open as usize);
    }
    if let Some(most) = max_fds {
        gauge(&mut registry, "max_fds", "Limit of open descriptors", most as usize);
    }
    if let Some(bytes) = resident_bytes {
        let memory = Gauge::<i64>::default();
        memory.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        registry.register_with_unit("resident_memory", "Resident memory", Unit::Bytes, memory);
    }
    if let Some(seconds) = cpu_seconds {
        let spent = Counter::<f64, AtomicU64>::default();
        spent.inc_by(seconds);
        registry.register_with_unit("cpu", "Processor time, user and system", Unit::Seconds, spent);
    }
    let help = "When the process started";
    registry.register_with_unit("start_time", help, Unit::Seconds, timestamp(snapshot.started));
    registry
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: usize) {
    let gauge = Gauge::<i64>::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn timestamp(time: SystemTime) -> impl Metric {
    let gauge = SecondsGauge::default();
    gauge.set(unix_seconds(time));
    gauge
}

fn unix_seconds(time: SystemTime) -> f64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}
