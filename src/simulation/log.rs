//! Captures the access log lines of one thread.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{
    Dispatch, Metadata, Subscriber,
    field::{Field, Visit},
    subscriber::{DefaultGuard, set_default},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
};

use crate::outcome::ACCESS_LOG;

/// An access log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// When it was written, in milliseconds since the beginning.
    pub(super) at: u64,
    pub(super) peer: SocketAddr,
    pub(super) session: Option<u64>,
    pub(super) reason: String,
    pub(super) close_code: Option<u64>,
    pub(super) bytes_in: Option<u64>,
    pub(super) bytes_out: Option<u64>,
    pub(super) duration_ms: u64,
}

/// The access log of one simulation.
#[derive(Clone)]
pub(super) struct AccessLog {
    start: Instant,
    lines: Arc<Mutex<Vec<Line>>>,
}

impl AccessLog {
    /// Captures what is logged on this thread until the guard is dropped.
    pub(super) fn capture() -> (Self, DefaultGuard) {
        // While there is only one subscriber, tracing caches for each call site whether it is enabled, as seen by the
        // thread that reaches it first. That may be the thread of another test, which has no subscriber.
        static SECOND: OnceLock<Dispatch> = OnceLock::new();
        SECOND.get_or_init(|| Dispatch::new(tracing_subscriber::registry()));
        let log = Self { start: Instant::now(), lines: Arc::default() };
        let guard = set_default(tracing_subscriber::registry().with(log.clone()));
        (log, guard)
    }

    pub(super) fn lines(&self) -> Vec<Line> {
        self.lines.lock().clone()
    }
}

impl<S: Subscriber> Layer<S> for AccessLog {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target() == ACCESS_LOG
    }

    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.lines.lock().push(Line {
            at: self.start.elapsed().as_millis() as u64,
            peer: fields.peer.parse().expect("the peer is an address"),
            session: fields.session,
            reason: fields.reason,
            close_code: fields.close_code,
            bytes_in: fields.bytes_in,
            bytes_out: fields.bytes_out,
            duration_ms: fields.duration_ms,
        });
    }
}

#[derive(Default)]
struct Fields {
    peer: String,
    session: Option<u64>,
    reason: String,
    close_code: Option<u64>,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
    duration_ms: u64,
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "session" => self.session = Some(value),
            "close_code" => self.close_code = Some(value),
            "bytes_in" => self.bytes_in = Some(value),
            "bytes_out" => self.bytes_out = Some(value),
            "duration_ms" => self.duration_ms = value,
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "reason" {
            self.reason = value.to_owned();
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "peer" {
            self.peer = format!("{value:?}");
        }
    }
}
