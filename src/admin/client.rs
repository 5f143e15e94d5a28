//! The other end of the admin address: how a command asks a running gateway.

use std::{io, time::Duration};

use bytes::Bytes;
use http::{
    Method, Request, StatusCode,
    header::{CONTENT_TYPE, HOST},
};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::api::{Kill, Killed};
use crate::{config::AdminAddress, transport::socket::Socket};

/// How long a gateway may take to take a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long it may take to answer. A reload reads files, which can be far away.
const ANSWER: Duration = Duration::from_secs(60);

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Nobody is there.
    #[error("no gateway listens on {address}: {cause}; is it running, and with this [admin] address?")]
    Nobody {
        /// The admin address.
        address: AdminAddress,
        /// What the system said.
        cause: io::Error,
    },
    /// It may not be asked by us.
    #[error("{address} may not be used by this user; ask as the one who runs the gateway, or as root")]
    NotAllowed {
        /// The admin address.
        address: AdminAddress,
    },
    /// It does not answer.
    #[error("the gateway on {address} does not answer in time")]
    Silent {
        /// The admin address.
        address: AdminAddress,
    },
    /// It does not answer as a gateway would.
    #[error("what listens on {address} does not answer like this Portcullis: {cause}")]
    Strange {
        /// The admin address.
        address: AdminAddress,
        /// What is strange.
        cause: String,
    },
    /// It said no.
    #[error("{words}")]
    GuardRefusal {
        /// One line of the gateway's.
        words: String,
    },
}

/// Which sessions to end, and what to tell their clients.
#[derive(Debug, Clone, Default)]
pub(crate) struct KillRequest {
    /// These numbers; none for any.
    pub ids: Vec<u64>,
    /// On this route.
    pub route: Option<String>,
    /// From this address or network.
    pub peer: Option<String>,
    /// What to tell their clients, in one line of at most 123 bytes.
    pub reason: Option<String>,
}

/// Sessions as the gateway tells them.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SessionList {
    pub live: usize,
    pub matching: usize,
    pub sessions: Vec<SessionEntry>,
}

/// A session as the gateway tells it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SessionEntry {
    pub id: u64,
    pub peer: String,
    pub route: String,
    pub backend: Option<String>,
    pub age_seconds: f64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub rate_in: Option<u64>,
    pub rate_out: Option<u64>,
    pub round_trip_ms: Option<f64>,
}

/// A gateway that can be asked.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    address: AdminAddress,
}

impl Client {
    /// The one that listens there.
    pub(crate) fn new(address: AdminAddress) -> Self {
        Self { address }
    }

    /// The sessions that fit a query such as `route=vnc`, as JSON text.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub(crate) async fn sessions(&self, query: &str) -> Result<String, ControlError> {
        let body = self.good(Method::GET, &format!("/api/sessions?{query}"), &()).await?;
        String::from_utf8(body.into()).map_err(|error| self.strange(error))
    }

    /// Understands what [`Client::sessions`] returned.
    ///
    /// # Errors
    /// It is not what a gateway says.
    pub(crate) fn understand(&self, sessions: &str) -> Result<SessionList, ControlError> {
        serde_json::from_str(sessions).map_err(|error| self.strange(error))
    }

    /// Ends sessions. Returns the numbers of those that were told.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub(crate) async fn kill(&self, sentence: KillRequest) -> Result<Vec<u64>, ControlError> {
        let KillRequest { ids, route, peer, reason } = sentence;
        let kill = Kill { ids: Some(ids).filter(|ids| !ids.is_empty()), route, peer, reason };
        let Killed { killed } = self.read(&self.good(Method::POST, "/api/sessions/kill", &kill).await?)?;
        Ok(killed)
    }

    /// Has the configuration read again. Returns what the gateway says of it.
    ///
    /// # Errors
    /// See [`ControlError`]; refused if something is wrong with the configuration.
    pub(crate) async fn reload(&self) -> Result<String, ControlError> {
        self.order("/api/reload").await
    }

    /// Has all sessions sent away and nobody accepted any more. Returns what the gateway says of it.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub(crate) async fn drain(&self) -> Result<String, ControlError> {
        self.order("/api/drain").await
    }

    /// Whether it is well, and what it says of it. `live`: whether it is enough that it answers.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub(crate) async fn health(&self, live: bool) -> Result<(bool, String), ControlError> {
        let path = if live { "/healthz" } else { "/readyz" };
        let (status, body) = self.ask(Method::GET, path, &()).await?;
        match status {
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => {
                let words = String::from_utf8_lossy(&body).trim_end().to_owned();
                Ok((status == StatusCode::OK, words))
            }
            other => Err(self.strange(other)),
        }
    }

    async fn order(&self, path: &str) -> Result<String, ControlError> {
        #[derive(Deserialize)]
        struct Message {
            message: String,
        }
        let Message { message } = self.read(&self.good(Method::POST, path, &()).await?)?;
        Ok(message)
    }

    /// Asks, and takes no for a refusal.
    async fn good(&self, method: Method, path: &str, body: &impl Serialize) -> Result<Bytes, ControlError> {
        #[derive(Deserialize)]
        struct Error {
            error: String,
        }
        let (status, body) = self.ask(method, path, body).await?;
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice(&body) {
            Ok(Error { error }) => Err(ControlError::GuardRefusal { words: error }),
            Err(_) => Err(self.strange(status)),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let stream = match timeout(CONNECT, self.connect()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(cause)) => return Err(self.unreached(cause)),
            Err(_) => return Err(self.silent()),
        };
        let is_get = method == Method::GET;
        let body = serde_json::to_vec(body).map_err(|error| self.strange(error))?;
        let body = if is_get { Bytes::new() } else { body.into() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.strange(error))?;
        let asked = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let answered = async {
                let response = sender.send_request(request).await?;
                let (head, body) = response.into_parts();
                Ok::<_, hyper::Error>((head.status, body.collect().await?.to_bytes()))
            };
            let mut answered = std::pin::pin!(answered);
            tokio::select! {
                answer = &mut answered => answer,
                ended = connection => {
                    ended?;
                    answered.await
                }
            }
        };
        match timeout(ANSWER, asked).await {
            Ok(answer) => answer.map_err(|error| self.strange(error)),
            Err(_) => Err(self.silent()),
        }
    }

    async fn connect(&self) -> io::Result<Socket> {
        Ok(match &self.address {
            AdminAddress::Loopback(address) => Socket::Tcp(TcpStream::connect(address).await?),
            AdminAddress::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
        })
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ControlError> {
        serde_json::from_slice(body).map_err(|error| self.strange(error))
    }

    fn unreached(&self, cause: io::Error) -> ControlError {
        let address = self.address.clone();
        match cause.kind() {
            io::ErrorKind::PermissionDenied => ControlError::NotAllowed { address },
            _ => ControlError::Nobody { address, cause },
        }
    }

    fn silent(&self) -> ControlError {
        ControlError::Silent { address: self.address.clone() }
    }

    fn strange(&self, cause: impl ToString) -> ControlError {
        ControlError::Strange { address: self.address.clone(), cause: cause.to_string() }
    }
}
