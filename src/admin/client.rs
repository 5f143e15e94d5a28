//! The client of the admin API, behind the commands that control a running gateway.

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

use super::{
    kill::{KillRequest, KillResponse},
    sessions::SessionList,
    tickets::{CheckRequest, CheckResponse, RevokeResponse, TicketRequest, TicketResponse},
};
use crate::{config::AdminAddress, transport::socket::Socket};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Generous, because a reload reads files, which may be on a network file system.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("no gateway listens on {address}: {cause}; is it running, and with this [admin] address?")]
    NotListening { address: AdminAddress, cause: io::Error },
    #[error("permission denied on {address}; run this command as the gateway's user or as root")]
    PermissionDenied { address: AdminAddress },
    #[error("the gateway on {address} did not answer in time")]
    TimedOut { address: AdminAddress },
    /// Something listens, but it does not speak this API.
    #[error("unexpected answer from {address}: {cause}; is this a Portcullis of the same version?")]
    UnexpectedAnswer { address: AdminAddress, cause: String },
    /// The gateway refused; the message is its own, in one line.
    #[error("{message}")]
    Refused { message: String },
}

/// A client of one admin address. Opens a connection for each request.
#[derive(Debug, Clone)]
pub(crate) struct AdminClient {
    address: AdminAddress,
}

impl AdminClient {
    pub(crate) fn new(address: AdminAddress) -> Self {
        Self { address }
    }

    /// The sessions that match a query such as `route=vnc`, as JSON text.
    pub(crate) async fn sessions(&self, query: &str) -> Result<String, ControlError> {
        let body = self.request(Method::GET, &format!("/api/sessions?{query}"), &()).await?;
        String::from_utf8(body.into()).map_err(|error| self.unexpected(error))
    }

    /// Parses what [`AdminClient::sessions`] returned.
    pub(crate) fn parse_sessions(&self, sessions: &str) -> Result<SessionList, ControlError> {
        self.parse(sessions.as_bytes())
    }

    /// Closes sessions. Returns their numbers.
    pub(crate) async fn kill(&self, request: &KillRequest) -> Result<Vec<u64>, ControlError> {
        let body = self.request(Method::POST, "/api/sessions/kill", request).await?;
        let KillResponse { killed } = self.parse(&body)?;
        Ok(killed)
    }

    /// Issues a ticket. Returns the response as JSON text.
    pub(crate) async fn issue_ticket(&self, request: &TicketRequest) -> Result<String, ControlError> {
        let body = self.request(Method::POST, "/api/tickets", request).await?;
        String::from_utf8(body.into()).map_err(|error| self.unexpected(error))
    }

    /// Parses what [`AdminClient::issue_ticket`] returned.
    pub(crate) fn parse_ticket(&self, ticket: &str) -> Result<TicketResponse, ControlError> {
        self.parse(ticket.as_bytes())
    }

    /// How a ticket would fare now. It is not used.
    pub(crate) async fn check_ticket(&self, request: &CheckRequest) -> Result<CheckResponse, ControlError> {
        self.parse(&self.request(Method::POST, "/api/tickets/check", request).await?)
    }

    /// Revokes a ticket. Returns how many sessions are being ended.
    pub(crate) async fn revoke_ticket(&self, id: &str) -> Result<usize, ControlError> {
        let body = self.request(Method::DELETE, &format!("/api/tickets/{id}"), &()).await?;
        let RevokeResponse { ended } = self.parse(&body)?;
        Ok(ended)
    }

    /// Reloads the configuration. Returns the gateway's message.
    ///
    /// # Errors
    /// Also [`ControlError::Refused`], with what is wrong with the configuration.
    pub(crate) async fn reload(&self) -> Result<String, ControlError> {
        self.post("/api/reload").await
    }

    /// Stops accepting and closes all sessions. Returns the gateway's message.
    pub(crate) async fn drain(&self) -> Result<String, ControlError> {
        self.post("/api/drain").await
    }

    /// Whether the gateway is ready, and its message. `live`: only whether it responds.
    pub(crate) async fn health(&self, live: bool) -> Result<(bool, String), ControlError> {
        let path = if live { "/healthz" } else { "/readyz" };
        let (status, body) = self.send(Method::GET, path, &()).await?;
        match status {
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => {
                let message = String::from_utf8_lossy(&body).trim_end().to_owned();
                Ok((status == StatusCode::OK, message))
            }
            other => Err(self.unexpected(other)),
        }
    }

    async fn post(&self, path: &str) -> Result<String, ControlError> {
        #[derive(Deserialize)]
        struct Message {
            message: String,
        }
        let Message { message } = self.parse(&self.request(Method::POST, path, &()).await?)?;
        Ok(message)
    }

    /// Sends a request. A status other than 2xx is an error.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Bytes, ControlError> {
        #[derive(Deserialize)]
        struct Error {
            error: String,
        }
        let (status, body) = self.send(method, path, body).await?;
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice(&body) {
            Ok(Error { error }) => Err(ControlError::Refused { message: error }),
            Err(_) => Err(self.unexpected(status)),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let stream = match timeout(CONNECT_TIMEOUT, self.connect()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(cause)) => return Err(self.connect_error(cause)),
            Err(_) => return Err(self.timed_out()),
        };
        let is_get = method == Method::GET;
        let body = serde_json::to_vec(body).map_err(|error| self.unexpected(error))?;
        let body = if is_get { Bytes::new() } else { body.into() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.unexpected(error))?;
        let exchange = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let response = async {
                let (head, body) = sender.send_request(request).await?.into_parts();
                Ok::<_, hyper::Error>((head.status, body.collect().await?.to_bytes()))
            };
            let mut response = std::pin::pin!(response);
            tokio::select! {
                done = &mut response => done,
                closed = connection => {
                    closed?;
                    response.await
                }
            }
        };
        match timeout(RESPONSE_TIMEOUT, exchange).await {
            Ok(done) => done.map_err(|error| self.unexpected(error)),
            Err(_) => Err(self.timed_out()),
        }
    }

    async fn connect(&self) -> io::Result<Socket> {
        Ok(match &self.address {
            AdminAddress::Loopback(address) => Socket::Tcp(TcpStream::connect(address).await?),
            AdminAddress::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
        })
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ControlError> {
        serde_json::from_slice(body).map_err(|error| self.unexpected(error))
    }

    fn connect_error(&self, cause: io::Error) -> ControlError {
        let address = self.address.clone();
        match cause.kind() {
            io::ErrorKind::PermissionDenied => ControlError::PermissionDenied { address },
            _ => ControlError::NotListening { address, cause },
        }
    }

    fn timed_out(&self) -> ControlError {
        ControlError::TimedOut { address: self.address.clone() }
    }

    fn unexpected(&self, cause: impl ToString) -> ControlError {
        ControlError::UnexpectedAnswer { address: self.address.clone(), cause: cause.to_string() }
    }
}
