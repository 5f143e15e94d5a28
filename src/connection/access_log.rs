//! The last station.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use tracing::Level;

use crate::{
    config::Backend,
    metrics::Metrics,
    outcome::{ACCESS_LOG, Reason},
    relay::SessionEnd,
    session::ConnectionId,
};

/// The one line that closes a connection, and the count that goes with it. Written even if the connection is cut short.
pub(super) struct AccessLogLine {
    /// What the connection is called here and by its server.
    pub(super) id: ConnectionId,
    /// The client: the socket's peer, until a trusted proxy says better.
    pub(super) peer: SocketAddr,
    pub(super) route: Option<Box<str>>,
    /// Its number, once it is a session.
    pub(super) session: Option<u64>,
    /// The server that was reached, or tried last.
    pub(super) backend: Option<Backend>,
    /// What only an operator should read.
    pub(super) detail: Option<String>,
    started: Instant,
    metrics: Arc<Metrics>,
    written: bool,
}

impl AccessLogLine {
    pub(super) fn new(id: ConnectionId, peer: SocketAddr, metrics: Arc<Metrics>) -> Self {
        let started = Instant::now();
        Self {
            id,
            peer,
            route: None,
            session: None,
            backend: None,
            detail: None,
            started,
            metrics,
            written: false,
        }
    }

    /// Writes it. `ended`: what is known of a session that was not cut short.
    pub(super) fn write(&mut self, reason: Reason, ended: Option<SessionEnd>) {
        self.written = true;
        self.metrics.count_end(self.route.as_deref(), reason);
        macro_rules! event {
            ($macro:ident, $message:literal) => {
                tracing::$macro!(
                    target: ACCESS_LOG,
                    request_id = %self.id,
                    session = self.session,
                    peer = %self.peer,
                    route = self.route.as_deref(),
                    backend = self.backend.as_ref().map(ToString::to_string),
                    reason = reason.as_str(),
                    close_code = ended.and_then(|ended| ended.close_code),
                    bytes_in = ended.map(|ended| ended.bytes_in),
                    bytes_out = ended.map(|ended| ended.bytes_out),
                    duration_ms = self.started.elapsed().as_millis() as u64,
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
}

impl Drop for AccessLogLine {
    fn drop(&mut self) {
        if !self.written {
            // Without a panic, only the end of the drain cuts a connection short.
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
    async fn a_panic_ends_the_connection_that_it_happens_in_and_no_other() {
        let metrics = Arc::new(Metrics::default());
        let connections = TaskTracker::new();
        let ids = ConnectionIds::default();
        let event = || AccessLogLine::new(ids.next(), ([192, 0, 2, 7], 41114).into(), Arc::clone(&metrics));
        let (mut other, broken) = (event(), event());
        let (go_on, told) = tokio::sync::oneshot::channel();
        let other = connections.spawn(async move {
            told.await.unwrap();
            other.write(Reason::ClientClosed, None);
        });
        let broken = connections.spawn(async move {
            let _broken = broken;
            panic!("on purpose");
        });
        assert!(broken.await.unwrap_err().is_panic());
        assert_eq!(metrics.ended(Reason::Internal), 1);
        go_on.send(()).unwrap();
        other.await.unwrap();
        assert_eq!((metrics.ended(Reason::ClientClosed), metrics.ended(Reason::Draining)), (1, 0));
        connections.close();
        connections.wait().await;
    }
}
