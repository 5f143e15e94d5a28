//! Events: tells a server of the operator's of each session that opens or ends (`[events]`).
//!
//! Owns what an event contains, the queue in which events wait, and the task that delivers them. Knows nothing of how a session
//! works: a connection reports what happens to it. Invariants: to report an event never waits and never fails; the queue is
//! bounded; a session whose end is reported has the same route, client and user as when it opened; no credential is part of
//! an event, and neither the secret nor the query of the receiver's URL of a log line.

mod body;
mod delivery;
mod queue;
mod receiver;
mod report;
mod retry;
mod waiting;

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

pub(crate) use self::{
    delivery::deliver,
    queue::{EventQueue, EventStats},
    receiver::{EventSettings, ReceiverError},
};
use crate::{outcome::Reason, session::ConnectionId};

/// A session has opened, or has ended.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub time: SystemTime,
    /// When it was reported, by the clock that nobody sets.
    pub reported: Instant,
    /// The connection, as in the access log.
    pub request_id: ConnectionId,
    pub session: u64,
    pub peer: SocketAddr,
    /// The name of its route.
    pub route: Box<str>,
    pub user: Option<Box<str>>,
    pub backend: Option<Box<str>>,
    /// How it ended; `None` if it has opened.
    pub end: Option<EndOfSession>,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndOfSession {
    pub reason: Reason,
    pub close_code: Option<u16>,
    /// Payload accepted from the client and from the backend; `None` if its task has panicked.
    pub bytes: Option<(u64, u64)>,
    /// Since the client connected.
    pub duration: Duration,
}

#[cfg(test)]
impl Event {
    /// An event of the session with this number.
    fn example(session: u64, reported: Instant) -> Self {
        Self {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            reported,
            request_id: ConnectionId::new(0x9f1c_03ab_77d2, session),
            session,
            peer: ([192, 0, 2, 7], 41114).into(),
            route: "desk".into(),
            user: Some("ann".into()),
            backend: Some("tcp://127.0.0.1:5900".into()),
            end: None,
        }
    }
}
