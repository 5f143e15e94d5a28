//! A client that expects to be disturbed: each step has a deadline and returns an error instead of failing the test. What
//! fails the test at once is an echo with a wrong byte, or an invalid frame.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::ledger::Ledger;
use crate::support::{
    BINARY, CLOSE, Check, ClientStream, Frame, ListenerIndex, PING, PONG, Request, Response, Session, TLS,
    close_body, frame, pattern,
};

/// Where clients connect, and how.
#[derive(Clone)]
pub(crate) struct Target {
    /// A listener, or the proxy in front of it.
    pub(crate) address: SocketAddr,
    pub(crate) listener: ListenerIndex,
    pub(crate) request: Request,
    pub(crate) source: Option<IpAddr>,
    /// Records the connection; `None` if a proxy does.
    pub(crate) ledger: Option<Arc<Ledger>>,
    pub(crate) config: Arc<ClientConfig>,
    /// The limit of each step.
    pub(crate) limit: Duration,
}

impl Target {
    pub(crate) fn from(&self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self.clone() }
    }

    pub(crate) fn with_limit(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }

    /// Opens a session. What it sends begins at position `at` of the pattern.
    pub(crate) async fn open(&self, at: u64) -> Result<Client, String> {
        self.open_with(at, |_| {}).await
    }

    /// The same, with a socket that `prepare` configures.
    pub(crate) async fn open_with(
        &self,
        at: u64,
        prepare: impl FnOnce(&TcpSocket),
    ) -> Result<Client, String> {
        let socket = self.connect_with(prepare).await?;
        let peer = socket.local_addr().map_err(|error| format!("connect: {error}"))?;
        let mut stream = if self.listener == TLS {
            let name = ServerName::try_from("localhost").expect("a name");
            let connector = TlsConnector::from(Arc::clone(&self.config));
            ClientStream::Tls(Box::new(self.step("TLS", connector.connect(name, socket)).await?))
        } else {
            ClientStream::Plain(socket)
        };
        let upgrade = async {
            stream.write_all(&self.request.bytes()).await?;
            stream.flush().await?;
            let mut bytes = Vec::new();
            loop {
                if let Some(response) = Response::parse(&bytes, true) {
                    return Ok(response);
                }
                if stream.read_buf(&mut bytes).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        };
        let response = self.step("upgrade", upgrade).await?;
        if let Some(ledger) = &self.ledger {
            ledger.answered(peer);
        }
        match response.status {
            101 => Ok(Client { session: Session::new(stream, peer, &response.rest), at, limit: self.limit }),
            status => Err(format!("status {status}")),
        }
    }

    /// A connection on which nothing is sent yet.
    pub(crate) async fn connect_with(&self, prepare: impl FnOnce(&TcpSocket)) -> Result<TcpStream, String> {
        let socket = TcpSocket::new_v4().map_err(|error| format!("socket: {error}"))?;
        prepare(&socket);
        // Bound first: if the attempt is given up, the gateway may see it all the same, and the ledger must know its port.
        let source = self.source.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let bound = socket.set_reuseaddr(true).and_then(|()| socket.bind((source, 0).into()));
        let peer = bound.and_then(|()| socket.local_addr()).map_err(|error| format!("bind: {error}"))?;
        if let Some(ledger) = &self.ledger {
            ledger.attempted(peer);
        }
        let socket = self.step("connect", socket.connect(self.address)).await?;
        if let Some(ledger) = &self.ledger {
            ledger.connected(peer);
        }
        socket.set_nodelay(true).map_err(|error| format!("TCP_NODELAY: {error}"))?;
        Ok(socket)
    }

    async fn step<T>(&self, name: &str, step: impl Future<Output = io::Result<T>>) -> Result<T, String> {
        limited(name, self.limit, async { step.await.map_err(|error| format!("{name}: {:?}", error.kind())) })
            .await
    }
}

/// An open session.
pub(crate) struct Client {
    pub(crate) session: Session,
    at: u64,
    limit: Duration,
}

impl Client {
    /// Sends `length` bytes of the pattern and expects them back.
    pub(crate) async fn echo(&mut self, length: usize) -> Result<(), String> {
        let bytes = frame(true, BINARY, &pattern(self.at, length));
        let end = self.at + length as u64;
        let mut check = Check::from(self.at);
        self.at = end;
        limited("echo", self.limit, async {
            self.send(&bytes).await?;
            while check.at < end {
                let Frame { opcode, payload, .. } = self.next().await?;
                match opcode {
                    BINARY | 0 => check.feed(&payload),
                    CLOSE => return Err(closed(&payload)),
                    _ => {}
                }
            }
            assert_eq!(check.at, end, "more data than was sent");
            Ok(())
        })
        .await
    }

    /// Sends nothing for a while, and answers Pings.
    pub(crate) async fn rest(&mut self, time: Duration) -> Result<(), String> {
        let end = tokio::time::Instant::now() + time;
        // Only the reading has a deadline: a Pong must not be sent half.
        while let Ok(next) = tokio::time::timeout_at(end, self.session.frames.next_without_deadline()).await {
            match next.ok_or("ended")? {
                Frame { opcode: CLOSE, payload, .. } => return Err(closed(&payload)),
                Frame { opcode: PING, payload, .. } => self.send(&frame(true, PONG, &payload)).await?,
                Frame { opcode: PONG, .. } => {}
                other => panic!("data that nobody asked for: {other:?}"),
            }
        }
        Ok(())
    }

    /// The closing handshake, begun by the client.
    pub(crate) async fn close(mut self) -> Result<(), String> {
        limited("close", self.limit, async {
            self.send(&frame(true, CLOSE, &close_body(1000, b""))).await?;
            loop {
                match self.next().await? {
                    Frame { opcode: CLOSE, payload, .. } if payload == close_body(1000, b"") => break,
                    Frame { opcode: CLOSE, payload, .. } => return Err(closed(&payload)),
                    _ => {}
                }
            }
            match self.session.frames.next_without_deadline().await {
                None => Ok(()),
                Some(frame) => panic!("a frame after Close: {frame:?}"),
            }
        })
        .await
    }

    /// Ends without a Close frame, in one of several ways.
    pub(crate) async fn abandon(mut self, way: u64) {
        match way % 3 {
            // In the middle of a frame.
            0 => drop(self.send(&frame(true, BINARY, &[0; 100])[..50]).await),
            1 => self.session.into_stream().reset(),
            _ => drop(self.session.writer.shutdown().await),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let sent = async {
            self.session.writer.write_all(bytes).await?;
            self.session.writer.flush().await
        };
        sent.await.map_err(|error: io::Error| format!("send: {:?}", error.kind()))
    }

    /// The next frame. A Ping has been answered.
    async fn next(&mut self) -> Result<Frame, String> {
        let next = self.session.frames.next_without_deadline().await.ok_or("ended")?;
        if next.opcode == PING {
            self.send(&frame(true, PONG, &next.payload)).await?;
        }
        Ok(next)
    }
}

async fn limited<T>(
    name: &str,
    limit: Duration,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(format!("{name}: no end within {limit:?}")))
}

fn closed(payload: &[u8]) -> String {
    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
    format!("closed with {code:?}")
}
