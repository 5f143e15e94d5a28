//! The access log: one line for each connection, written when it ends; and the events of a session, which say the same.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use tokio::time::Instant;
use tracing::Level;

use crate::{
    config::Backend,
    events::{EndOfSession, Event, EventQueue},
    metrics::Metrics,
    outcome::{ACCESS_LOG, Reason},
    relay::SessionEnd,
    session::ConnectionId,
};

/// The access log line of a connection and the metric that goes with it. Written on drop if the task is aborted or panics.
pub(super) struct AccessLogLine {
    /// The connection's id, here and in the PROXY header to its backend.
    pub(super) id: ConnectionId,
    /// The client's address: that of the socket's peer, until a trusted proxy names another.
    pub(super) peer: SocketAddr,
    pub(super) route: Option<Box<str>>,
    /// The user's name, once a credential has proved it.
    pub(super) user: Option<Box<str>>,
    /// The session id, once there is a session.
    pub(super) session: Option<u64>,
    /// The backend that was reached, or tried last.
    pub(super) backend: Option<Backend>,
    /// Details for the operator. The client does not receive them.
    pub(super) detail: Option<String>,
    started: Instant,
    metrics: Arc<Metrics>,
    /// Takes the event of the end, if it has taken that of the beginning.
    events: Option<Arc<EventQueue>>,
    written: bool,
}

impl AccessLogLine {
    pub(super) fn new(id: ConnectionId, peer: SocketAddr, metrics: Arc<Metrics>) -> Self {
        let started = Instant::now();
        Self {
            id,
            peer,
            route: None,
            user: None,
            session: None,
            backend: None,
            detail: None,
            started,
            metrics,
            events: None,
            written: false,
        }
    }

    /// Reports that the session has opened, and later that it has ended.
    pub(super) fn report(&mut self, events: &Arc<EventQueue>) {
        events.push(self.event(None));
        self.events = Some(Arc::clone(events));
    }

    /// Writes the line. `session_end` is what the relay reports of a session.
    pub(super) fn write(&mut self, reason: Reason, session_end: Option<SessionEnd>) {
        self.written = true;
        let duration = self.started.elapsed();
        if let Some(events) = self.events.take() {
            events.push(self.event(Some(EndOfSession {
                reason,
                close_code: session_end.and_then(|end| end.close_code),
                bytes: session_end.map(|end| (end.bytes_in, end.bytes_out)),
                duration,
            })));
        }
        self.metrics.count_end(self.route.as_deref(), reason);
        macro_rules! event {
            ($macro:ident, $message:literal) => {
                tracing::$macro!(
                    target: ACCESS_LOG,
                    request_id = %self.id,
                    session = self.session,
                    peer = %self.peer,
                    route = self.route.as_deref(),
                    user = self.user.as_deref(),
                    backend = self.backend.as_ref().map(ToString::to_string),
                    reason = reason.as_str(),
                    close_code = session_end.and_then(|end| end.close_code),
                    bytes_in = session_end.map(|end| end.bytes_in),
                    bytes_out = session_end.map(|end| end.bytes_out),
                    duration_ms = duration.as_millis() as u64,
                    detail = self.detail.as_deref(),
                    $message
                )
            };
        }
        match reason.level(self.session.is_some()) {
            Level::ERROR => event!(error, "session ended"),
            Level::INFO => event!(info, "session ended"),
            _ if reason == Reason::Served => event!(debug, "served"),
            _ => event!(debug, "refused"),
        }
    }

    fn event(&self, end: Option<EndOfSession>) -> Event {
        Event {
            time: SystemTime::now(),
            reported: Instant::now(),
            request_id: self.id,
            session: self.session.unwrap_or_default(),
            peer: self.peer,
            route: self.route.clone().unwrap_or_default(),
            user: self.user.clone(),
            backend: self.backend.as_ref().map(|backend| backend.to_string().into()),
            end,
        }
    }
}

impl Drop for AccessLogLine {
    fn drop(&mut self) {
        if !self.written {
            // Without a panic, only the end of `timeouts.drain` aborts a connection.
            let reason = if std::thread::panicking() { Reason::Internal } else { Reason::Draining };
            self.write(reason, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::session::ConnectionIds;

    #[tokio::test]
    async fn a_panic_ends_only_the_connection_it_happens_in() {
        let metrics = Arc::new(Metrics::default());
        let connections = TaskTracker::new();
        let ids = ConnectionIds::default();
        let log_line =
            || AccessLogLine::new(ids.next(), ([192, 0, 2, 7], 41114).into(), Arc::clone(&metrics));
        let (mut other, broken) = (log_line(), log_line());
        let (resume, resumed) = tokio::sync::oneshot::channel();
        let other = connections.spawn(async move {
            resumed.await.unwrap();
            other.write(Reason::ClientClosed, None);
        });
        let broken = connections.spawn(async move {
            let _broken = broken;
            panic!("on purpose");
        });
        assert!(broken.await.unwrap_err().is_panic());
        assert_eq!(metrics.ended(Reason::Internal), 1);
        resume.send(()).unwrap();
        other.await.unwrap();
        assert_eq!((metrics.ended(Reason::ClientClosed), metrics.ended(Reason::Draining)), (1, 0));
        connections.close();
        connections.wait().await;
    }
}
