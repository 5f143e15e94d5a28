//! The way to a backend: the one room that knows how to get a byte stream to a target.
//!
//! Owns name resolution and dialling. Refuses to know who asked and what is carried. Invariant: a dial ends within its
//! deadline, all addresses of a name together.

pub mod balance;
pub mod health;
pub mod targets;
#[cfg(test)]
mod test_log;
pub mod allowed;
pub mod announce;
pub mod race;
pub mod resolve;
pub mod starttls;
pub mod stream;
pub mod tls;

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpStream, lookup_host},
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::{
    config::{Backend, Host},
    outcome::Reason,
};

/// How many names may be looked up at once: the system's resolver takes a thread for each.
const LOOKUPS: usize = 64;

/// Why a backend was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No address took the connection.
    #[error("{backend} refused the connection: {source}")]
    Refused {
        /// The backend.
        backend: Backend,
        /// What the system said of the last address tried.
        source: io::Error,
    },
    /// The deadline came first.
    #[error("{backend} did not answer in time")]
    Timeout {
        /// The backend.
        backend: Backend,
    },
    /// The name has no address.
    #[error("the name in {backend} does not resolve: {source}")]
    Unresolved {
        /// The backend.
        backend: Backend,
        /// What the resolver said.
        source: io::Error,
    },
    /// This machine has no descriptor or local port left.
    #[error("no descriptor or local port left to reach {backend}: {source}")]
    Exhausted {
        /// The backend.
        backend: Backend,
        /// What the system said.
        source: io::Error,
    },
}

impl DialError {
    /// The end this leads to.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused { .. } => Reason::BackendRefused,
            Self::Timeout { .. } => Reason::BackendTimeout,
            Self::Unresolved { .. } => Reason::BackendUnresolved,
            Self::Exhausted { .. } => Reason::Overloaded,
        }
    }
}

/// Reaches backends.
#[derive(Debug)]
pub struct Dialer {
    lookups: Semaphore,
}

impl Default for Dialer {
    fn default() -> Self {
        Self { lookups: Semaphore::new(LOOKUPS) }
    }
}

impl Dialer {
    /// Connects to `backend` within `limit`, lookup included. Several addresses share the time that is left.
    ///
    /// # Errors
    /// Each way to fail is a [`DialError`] of its own.
    pub async fn dial(&self, backend: &Backend, limit: Duration) -> Result<TcpStream, DialError> {
        let deadline = Instant::now() + limit;
        let addresses = self.resolve(backend, deadline).await?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for (index, address) in addresses.iter().enumerate() {
            let now = Instant::now();
            let share = deadline.saturating_duration_since(now) / (addresses.len() - index) as u32;
            match timeout_at(now + share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Frames are small and interactive; without this a first picture waits for delayed ACKs.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) if is_exhaustion(&error) => {
                    return Err(DialError::Exhausted { backend: backend.clone(), source: error });
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(match last.kind() {
            io::ErrorKind::TimedOut => DialError::Timeout { backend: backend.clone() },
            io::ErrorKind::NotFound => DialError::Unresolved { backend: backend.clone(), source: last },
            _ => DialError::Refused { backend: backend.clone(), source: last },
        })
    }

    async fn resolve(&self, backend: &Backend, deadline: Instant) -> Result<Vec<SocketAddr>, DialError> {
        let Backend::Tcp { host, port } = backend else {
            let source = io::ErrorKind::Unsupported.into();
            return Err(DialError::Refused { backend: backend.clone(), source });
        };
        let name = match host {
            Host::Address(address) => return Ok(vec![SocketAddr::new(*address, *port)]),
            Host::Name(name) => name.as_str(),
        };
        let lookup = async {
            // The semaphore is never closed; without a permit the lookup would only be unbounded.
            let _permit = self.lookups.acquire().await;
            lookup_host((name, *port)).await
        };
        match timeout_at(deadline, lookup).await {
            Ok(Ok(addresses)) => Ok(addresses.collect()),
            Ok(Err(source)) => Err(DialError::Unresolved { backend: backend.clone(), source }),
            Err(_) => Err(DialError::Timeout { backend: backend.clone() }),
        }
    }
}

/// Whether a connect failed for want of something on our side (EMFILE, ENFILE, EADDRNOTAVAIL, ENOBUFS).
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24 | 99 | 105))
        || error.kind() == io::ErrorKind::AddrNotAvailable
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn backend(text: &str) -> Backend {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_backend_is_reached_and_told_not_to_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = backend(&format!("tcp://{}", listener.local_addr().unwrap()));
        let stream = Dialer::default().dial(&backend, Duration::from_secs(5)).await.unwrap();
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = backend(&format!("tcp://{}", listener.local_addr().unwrap()));
        drop(listener);
        let error = Dialer::default().dial(&backend, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.reason(), Reason::BackendRefused);
        assert!(error.to_string().contains(&backend.to_string()), "{error}");
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_unresolved() {
        let error = Dialer::default().dial(&backend("tcp://nobody.invalid:1"), Duration::from_secs(20)).await;
        assert_eq!(error.unwrap_err().reason(), Reason::BackendUnresolved);
    }
}
