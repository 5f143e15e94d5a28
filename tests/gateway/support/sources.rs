//! Clients that differ by their source address: those that are served, and those over a limit.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{AccessLogLine, Gateway, Session, TLS, read_to_end};

impl Gateway {
    /// An open session over TLS of a client at `source`, which echoes.
    pub(crate) async fn session_from(&self, source: IpAddr) -> Session {
        let connection = self.connect_from(Some(source), TLS).await;
        let mut session = self.open(connection, &self.upgrade(TLS, "/echo")).await;
        session.echo(b"hello").await;
        session
    }

    /// How long a client at `source` that behaves waits for its 101. Its session ends here.
    pub(crate) async fn time_to_session(&self, source: IpAddr) -> Duration {
        let start = Instant::now();
        let connection = self.connect_from(Some(source), TLS).await;
        let mut session = self.open(connection, &self.upgrade(TLS, "/echo")).await;
        let took = start.elapsed();
        session.echo(b"hello").await;
        session.close(1000).await;
        took
    }

    /// Expects that the gateway closes a connection from `source` without sending anything, before TLS. Returns its access
    /// log line.
    pub(crate) async fn refused_before_tls(&self, source: IpAddr, reason: &str) -> AccessLogLine {
        let mut socket = self.tcp_from(Some(source), TLS).await;
        let peer = socket.local_addr().expect("a connected socket");
        let (bytes, _) = read_to_end(&mut socket).await;
        assert_eq!(bytes, b"", "TLS had not begun");
        let end = self.refused(peer, reason).await;
        assert_eq!(end.text("route"), None, "a route before any request: {end:?}");
        end
    }
}
