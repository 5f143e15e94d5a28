//! The metrics of the process: its counters, histograms and the gauge of open sessions.
//!
//! Owns them under the names that docs/metrics.md lists, in the OpenMetrics (Prometheus) text format. Knows nothing of
//! who reads them, nor of values that need no counting because they are read where they belong: other gauges, the
//! configuration. Invariants: every connection is counted under exactly one reason, so the sum over all reasons is the
//! number of connections that ended; a label value is a name from the configuration or a word of the program, never
//! client input.

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

/// The histogram buckets for handshakes and dials in seconds: from a machine in the same rack to the default timeout.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// The `result` of a successful dial.
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
struct AuthenticationLabels {
    route: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

/// The metrics of the process. All but the gauge of open sessions only grow.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    ended: Family<EndedLabels, Counter>,
    /// The same for all routes together, by the discriminant of the reason.
    ended_by_reason: [AtomicU64; Reason::ALL.len()],
    sessions: Family<BackendLabels, Gauge>,
    opened: Family<BackendLabels, Counter>,
    authentications: Family<AuthenticationLabels, Counter>,
    dials: Family<DialLabels, Counter>,
    dial_seconds: Family<RouteLabels, Histogram, fn() -> Histogram>,
    tls_seconds: Histogram,
    accept_errors: Counter,
    penalties: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(BUCKETS);
        let mut metrics = Self {
            registry: Registry::with_prefix("portcullis"),
            ended: Family::default(),
            ended_by_reason: [const { AtomicU64::new(0) }; Reason::ALL.len()],
            sessions: Family::default(),
            opened: Family::default(),
            authentications: Family::default(),
            dials: Family::default(),
            dial_seconds: Family::new_with_constructor(seconds),
            tls_seconds: seconds(),
            accept_errors: Counter::default(),
            penalties: Counter::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("connections_ended", "Connections that ended, by reason", self.ended.clone());
        registry.register("sessions", "Open sessions that reached a backend", self.sessions.clone());
        registry.register("sessions_opened", "Sessions that reached a backend", self.opened.clone());
        let authentications = "Requests for routes that require a credential, by what was found of it";
        registry.register("authentications", authentications, self.authentications.clone());
        registry.register("backend_dials", "Dials to backends for clients", self.dials.clone());
        let dial = "Time from the choice of a backend to its connection, failures included";
        registry.register_with_unit("backend_dial", dial, Unit::Seconds, self.dial_seconds.clone());
        let tls = "Time from the accepted socket to the end of a successful TLS handshake";
        registry.register_with_unit("tls_handshake", tls, Unit::Seconds, self.tls_seconds.clone());
        registry.register(
            "accept_errors",
            "Connections that could not be accepted",
            self.accept_errors.clone(),
        );
        let penalties = "Penalties of client addresses for repeated refusals";
        registry.register("penalties", penalties, self.penalties.clone());
    }

    /// Counts one connection that ended for `reason`; `route` is `None` if its request matched no route.
    pub(crate) fn count_end(&self, route: Option<&str>, reason: Reason) {
        let route = route.unwrap_or_default().to_owned();
        self.ended.get_or_create(&EndedLabels { route, reason: reason.as_str() }).inc();
        self.ended_by_reason[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one opened session, and one open session until the guard is dropped. `backend`: its URL in the
    /// configuration, or one word for all backends that are chosen by token.
    #[must_use = "the session counts as open until this is dropped"]
    pub(crate) fn open_session(&self, route: &str, backend: &str) -> SessionGauge {
        let labels = BackendLabels { route: route.to_owned(), backend: backend.to_owned() };
        self.opened.get_or_create(&labels).inc();
        let sessions = self.sessions.get_or_create_owned(&labels);
        sessions.inc();
        SessionGauge(sessions)
    }

    /// Counts one request for a route that requires a credential. `result`: a word of the program.
    pub(crate) fn count_authentication(&self, route: &str, result: &'static str) {
        let labels = AuthenticationLabels { route: route.to_owned(), result };
        self.authentications.get_or_create(&labels).inc();
    }

    /// Counts one dial and its duration. `backend`: `None` if there was none to try. `failed`: `None` on success.
    pub(crate) fn count_dial(
        &self,
        route: &str,
        backend: Option<&str>,
        failed: Option<Reason>,
        duration: Duration,
    ) {
        let (route, backend) = (route.to_owned(), backend.unwrap_or_default().to_owned());
        self.dial_seconds
            .get_or_create(&RouteLabels { route: route.clone() })
            .observe(duration.as_secs_f64());
        let result = failed.map_or(OK, Reason::as_str);
        self.dials.get_or_create(&DialLabels { route, backend, result }).inc();
    }

    /// Counts one successful TLS handshake and its duration.
    pub(crate) fn count_tls(&self, duration: Duration) {
        self.tls_seconds.observe(duration.as_secs_f64());
    }

    pub(crate) fn count_accept_error(&self) {
        self.accept_errors.inc();
    }

    /// Counts one penalty of a client address.
    pub(crate) fn count_penalty(&self) {
        self.penalties.inc();
    }

    /// The number of connections that ended for `reason`, on all routes together.
    pub(crate) fn ended(&self, reason: Reason) -> u64 {
        self.ended_by_reason[reason as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn accept_errors(&self) -> u64 {
        self.accept_errors.get()
    }

    /// Writes the metrics as OpenMetrics text, without the final `# EOF` line.
    ///
    /// # Errors
    /// An error of `writer`.
    pub(crate) fn encode(&self, writer: &mut impl fmt::Write) -> fmt::Result {
        encode_registry(writer, &self.registry)
    }
}

/// Counts one open session in its gauge until it is dropped.
#[derive(Debug)]
pub(crate) struct SessionGauge(Gauge);

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
    fn assert_contains(metrics: &Metrics, labels: &str) {
        let text = text(metrics);
        assert!(text.lines().any(|line| line == labels), "{labels} is not in\n{text}");
    }

    #[test]
    fn every_reason_has_its_own_counter() {
        let metrics = Metrics::default();
        for &reason in Reason::ALL {
            metrics.count_end(Some("vnc"), reason);
            assert_contains(
                &metrics,
                &format!("portcullis_connections_ended_total{{route=\"vnc\",reason=\"{reason}\"}} 1"),
            );
        }
        assert!(Reason::ALL.iter().all(|&reason| metrics.ended(reason) == 1));
        metrics.count_end(None, Reason::TlsFailed);
        assert_contains(&metrics, "portcullis_connections_ended_total{route=\"\",reason=\"tls_failed\"} 1");
        assert_eq!(metrics.ended(Reason::TlsFailed), 2);
    }

    #[test]
    fn session_gauge_counts_until_it_is_dropped() {
        let metrics = Metrics::default();
        let labels = "{route=\"vnc\",backend=\"tcp://a:1\"}";
        let (one, two) = (metrics.open_session("vnc", "tcp://a:1"), metrics.open_session("vnc", "tcp://a:1"));
        assert_contains(&metrics, &format!("portcullis_sessions{labels} 2"));
        drop(one);
        assert_contains(&metrics, &format!("portcullis_sessions{labels} 1"));
        drop(two);
        assert_contains(&metrics, &format!("portcullis_sessions{labels} 0"));
        assert_contains(&metrics, &format!("portcullis_sessions_opened_total{labels} 2"));
    }

    #[test]
    fn dials_and_tls_handshakes_are_timed() {
        let metrics = Metrics::default();
        metrics.count_dial("vnc", Some("tcp://a:1"), None, Duration::from_millis(3));
        metrics.count_dial("vnc", None, Some(Reason::NoHealthyBackend), Duration::from_millis(30));
        metrics.count_tls(Duration::from_millis(700));
        let dials = "portcullis_backend_dials_total{route=\"vnc\",backend=";
        assert_contains(&metrics, &format!("{dials}\"tcp://a:1\",result=\"ok\"}} 1"));
        assert_contains(&metrics, &format!("{dials}\"\",result=\"no_healthy_backend\"}} 1"));
        assert_contains(&metrics, "portcullis_backend_dial_seconds_bucket{le=\"0.005\",route=\"vnc\"} 1");
        assert_contains(&metrics, "portcullis_tls_handshake_seconds_count 1");
        assert_contains(&metrics, "portcullis_tls_handshake_seconds_bucket{le=\"0.5\"} 0");
        assert_contains(&metrics, "portcullis_tls_handshake_seconds_bucket{le=\"1.0\"} 1");
    }
}
