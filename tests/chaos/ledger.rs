//! Accounts for every connection: what clients know of theirs, what the gateway counted, and what it logged.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use serde_json::Value;

use crate::support::Gateway;

/// Reasons of sessions whose backend was not reached.
const DIAL_FAILURES: [&str; 6] = [
    "backend_refused",
    "backend_timeout",
    "backend_unresolved",
    "backend_tls_failed",
    "no_healthy_backend",
    "overloaded",
];

/// How exactly clients know which of their connections the gateway has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// All that were made.
    All,
    /// The kernel can lose some that a client believes to have made, because packets are lost or its queue is full; but
    /// none on which the gateway has answered.
    Answered,
}

/// What clients know of the connections of one address and port.
#[derive(Debug, Default, Clone, Copy)]
struct Known {
    attempted: usize,
    connected: usize,
    answered: usize,
}

/// The connections that clients and proxies have made.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<HashMap<String, Known>>);

/// The connections of one gateway.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) connections: usize,
    pub(crate) sessions: usize,
    /// Log lines that were lost.
    pub(crate) dropped: usize,
}

impl Ledger {
    /// A client is about to connect from this address and port.
    pub(crate) fn attempted(&self, peer: SocketAddr) {
        self.change(peer, |known| known.attempted += 1);
    }

    /// It has connected.
    pub(crate) fn connected(&self, peer: SocketAddr) {
        self.change(peer, |known| known.connected += 1);
    }

    /// The gateway has sent something on this connection.
    pub(crate) fn answered(&self, peer: SocketAddr) {
        self.change(peer, |known| known.answered += 1);
    }

    fn change(&self, peer: SocketAddr, change: impl FnOnce(&mut Known)) {
        change(self.0.lock().expect("no panic").entry(peer.to_string()).or_default());
    }

    /// Checks, while nothing is connected, that the metrics, the access log and this ledger say the same.
    pub(crate) async fn check(&self, gateway: &Gateway, accepted: Accepted) -> Totals {
        let metrics = gateway.request("GET", "/metrics", "").await.text().to_owned();
        let ended = sum(&metrics, "portcullis_connections_ended_total", "");
        let lines = gateway
            .until("an access log line for each counted connection", |lines| {
                let lines: Vec<Line> = lines.iter().filter_map(Line::of).collect();
                (lines.len() >= ended).then_some(lines)
            })
            .await;
        assert_eq!(lines.len(), ended, "access log lines, and connections that were counted");
        let sessions: Vec<&Line> = lines.iter().filter(|line| line.is_session).collect();
        let dials = sum(&metrics, "portcullis_backend_dials_total", "");
        assert_eq!(sessions.len(), dials, "access log lines of sessions, and dials");
        let relayed = sessions.iter().filter(|line| line.relayed).count();
        let opened = sum(&metrics, "portcullis_sessions_opened_total", "");
        assert_eq!(
            relayed, opened,
            "access log lines of sessions that reached a backend, and sessions opened"
        );
        assert_eq!(sum(&metrics, "portcullis_sessions", ""), 0, "open sessions");

        let mut seen: HashMap<&str, usize> = HashMap::new();
        for line in &lines {
            *seen.entry(&line.peer).or_default() += 1;
        }
        for (peer, known) in self.0.lock().expect("no panic").iter() {
            let lines = seen.remove(peer.as_str()).unwrap_or(0);
            let least = if accepted == Accepted::All { known.connected } else { known.answered };
            assert!(
                (least..=known.attempted).contains(&lines),
                "{lines} access log lines of {peer}: {known:?}"
            );
        }
        assert!(seen.is_empty(), "access log lines of connections that nobody made: {seen:?}");
        let dropped = sum(&metrics, "portcullis_log_lines_dropped_total", "");
        Totals { connections: lines.len(), sessions: opened, dropped }
    }
}

/// An access log line.
struct Line {
    peer: String,
    is_session: bool,
    /// Whether it is a session that reached its backend.
    relayed: bool,
}

impl Line {
    fn of(line: &Value) -> Option<Self> {
        let text = |key: &str| line[key].as_str().unwrap_or_default();
        let is_session = match text("message") {
            "session ended" => true,
            "refused" | "served" => false,
            _ => return None,
        };
        let relayed = is_session && line["bytes_in"].is_u64() && !DIAL_FAILURES.contains(&text("reason"));
        Some(Self { peer: text("peer").to_owned(), is_session, relayed })
    }
}

/// The sum of all series of a metric that contain `label`.
pub(crate) fn sum(metrics: &str, name: &str, label: &str) -> usize {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        let is_series = labels.is_empty() || labels.starts_with('{');
        (is_series && labels.contains(label)).then(|| value.parse::<f64>().expect("a number") as usize)
    });
    values.sum()
}
