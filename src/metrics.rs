//! What was counted.
//!
//! Owns the process's counters, under the names that docs/metrics.md gives them. Refuses to know who reads them, and what
//! can be looked up instead of counted: what is alive, what is configured. Invariants: every connection is counted under
//! exactly one reason, so the sum of all reasons is the number of connections that ended; the value of a label is a
//! name of the configuration or a word of ours, never a client's.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::outcome::Reason;

/// How long a handshake or a dial takes, in seconds: from a neighbour in the rack to the default timeout.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// The result of a dial that reached its server.
const OK: &str = "ok";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabels {
    route: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    route: String,
    backend: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DialLabels {
    route: String,
    backend: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

/// The counters of the process. All but the living sessions only grow.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    ended: Family<EndedLabels, Counter>,
    /// The same over all routes, in the order of the table.
    ended_for: [AtomicU64; Reason::ALL.len()],
    sessions: Family<BackendLabels, Gauge>,
    opened: Family<BackendLabels, Counter>,
    dials: Family<DialLabels, Counter>,
    dial_seconds: Family<RouteLabels, Histogram, fn() -> Histogram>,
    tls_seconds: Histogram,
    accept_errors: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(SECONDS);
        let mut metrics = Self {
            registry: Registry::with_prefix("portcullis"),
            ended: Family::default(),
            ended_for: [const { AtomicU64::new(0) }; Reason::ALL.len()],
            sessions: Family::default(),
            opened: Family::default(),
            dials: Family::default(),
            dial_seconds: Family::new_with_constructor(seconds),
            tls_seconds: seconds(),
            accept_errors: Counter::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("connections_ended", "Connections that ended, by reason", self.ended.clone());
        registry.register("sessions", "Sessions that reached a backend and live", self.sessions.clone());
        registry.register("sessions_opened", "Sessions that reached a backend", self.opened.clone());
        registry.register("backend_dials", "Connections to backends tried for clients", self.dials.clone());
        let dial = "Time from the choice of a backend to its connection, failures included";
        registry.register_with_unit("backend_dial", dial, Unit::Seconds, self.dial_seconds.clone());
        let tls = "Time from the accepted socket to the end of a good TLS handshake";
        registry.register_with_unit("tls_handshake", tls, Unit::Seconds, self.tls_seconds.clone());
        registry.register(
            "accept_errors",
            "Connections that could not be accepted",
            self.accept_errors.clone(),
        );
    }

    /// Counts one connection that ended for `reason`, on a route if it had reached one.
    pub fn count_end(&self, route: Option<&str>, reason: Reason) {
        let route = route.unwrap_or_default().to_owned();
        self.ended.get_or_create(&EndedLabels { route, reason: reason.as_str() }).inc();
        self.ended_for[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one session, for as long as what this returns lives. `backend`: its URL in the configuration, or one word
    /// for all that tokens lead to.
    #[must_use = "the session is counted among the living until this is dropped"]
    pub fn open_session(&self, route: &str, backend: &str) -> SessionGauge {
        let labels = BackendLabels { route: route.to_owned(), backend: backend.to_owned() };
        self.opened.get_or_create(&labels).inc();
        let sessions = self.sessions.get_or_create_owned(&labels);
        sessions.inc();
        SessionGauge(sessions)
    }

    /// Counts one dial that took so long, to `backend` (none if there was none to be tried), and how it failed.
    pub fn count_dial(&self, route: &str, backend: Option<&str>, failed: Option<Reason>, took: Duration) {
        let (route, backend) = (route.to_owned(), backend.unwrap_or_default().to_owned());
        self.dial_seconds.get_or_create(&RouteLabels { route: route.clone() }).observe(took.as_secs_f64());
        let result = failed.map_or(OK, Reason::as_str);
        self.dials.get_or_create(&DialLabels { route, backend, result }).inc();
    }

    /// Counts one good TLS handshake that took so long.
    pub fn count_tls(&self, took: Duration) {
        self.tls_seconds.observe(took.as_secs_f64());
    }

    /// Counts one failed accept.
    pub fn count_accept_error(&self) {
        self.accept_errors.inc();
    }

    /// How many connections ended for `reason`, over all routes.
    pub fn ended(&self, reason: Reason) -> u64 {
        self.ended_for[reason as usize].load(Ordering::Relaxed)
    }

    /// How many accepts failed.
    pub fn accept_errors(&self) -> u64 {
        self.accept_errors.get()
    }

    /// Writes all of it as OpenMetrics text, without the line that ends it.
    ///
    /// # Errors
    /// `writer` failed.
    pub fn encode(&self, writer: &mut impl fmt::Write) -> fmt::Result {
        encode_registry(writer, &self.registry)
    }
}

/// One session among the living, until it is dropped.
#[derive(Debug)]
pub struct SessionGauge(Gauge);

impl Drop for SessionGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &Metrics) -> String {
        let mut text = String::new();
        metrics.encode(&mut text).unwrap();
        text
    }

    #[track_caller]
    fn assert_says(metrics: &Metrics, labels: &str) {
        let text = text(metrics);
        assert!(text.lines().any(|said| said == labels), "{labels} is not in\n{text}");
    }

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let metrics = Metrics::default();
        for &reason in Reason::ALL {
            metrics.count_end(Some("vnc"), reason);
            assert_says(
                &metrics,
                &format!("portcullis_connections_ended_total{{route=\"vnc\",reason=\"{reason}\"}} 1"),
            );
        }
        assert!(Reason::ALL.iter().all(|&reason| metrics.ended(reason) == 1));
        metrics.count_end(None, Reason::TlsFailed);
        assert_says(&metrics, "portcullis_connections_ended_total{route=\"\",reason=\"tls_failed\"} 1");
        assert_eq!(metrics.ended(Reason::TlsFailed), 2);
    }

    #[test]
    fn a_session_lives_until_it_is_dropped() {
        let metrics = Metrics::default();
        let labels = "{route=\"vnc\",backend=\"tcp://a:1\"}";
        let (one, two) = (metrics.open_session("vnc", "tcp://a:1"), metrics.open_session("vnc", "tcp://a:1"));
        assert_says(&metrics, &format!("portcullis_sessions{labels} 2"));
        drop(one);
        assert_says(&metrics, &format!("portcullis_sessions{labels} 1"));
        drop(two);
        assert_says(&metrics, &format!("portcullis_sessions{labels} 0"));
        assert_says(&metrics, &format!("portcullis_sessions_opened_total{labels} 2"));
    }

    #[test]
    fn dials_and_handshakes_are_timed() {
        let metrics = Metrics::default();
        metrics.count_dial("vnc", Some("tcp://a:1"), None, Duration::from_millis(3));
        metrics.count_dial("vnc", None, Some(Reason::NoHealthyBackend), Duration::from_millis(30));
        metrics.count_tls(Duration::from_millis(700));
        let dials = "portcullis_backend_dials_total{route=\"vnc\",backend=";
        assert_says(&metrics, &format!("{dials}\"tcp://a:1\",result=\"ok\"}} 1"));
        assert_says(&metrics, &format!("{dials}\"\",result=\"no_healthy_backend\"}} 1"));
        assert_says(&metrics, "portcullis_backend_dial_seconds_bucket{le=\"0.005\",route=\"vnc\"} 1");
        assert_says(&metrics, "portcullis_tls_handshake_seconds_count 1");
        assert_says(&metrics, "portcullis_tls_handshake_seconds_bucket{le=\"0.5\"} 0");
        assert_says(&metrics, "portcullis_tls_handshake_seconds_bucket{le=\"1.0\"} 1");
    }
}
