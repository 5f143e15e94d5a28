//! One client connection: WebSocket over TLS, WebSocket, or plain bytes over TLS for programs that only terminate TLS.

use std::{
    io,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustls::{HandshakeKind, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    protocol::{ClientProtocol, Command},
    request::Request,
};

/// How much is read at a time, in bytes.
const CHUNK: usize = 64 * 1024;
/// The limit of each single step.
const TIMEOUT: Duration = Duration::from_secs(60);
/// RFC 6455 §5.3 demands an unpredictable mask; here it is constant, because a frame is built once and sent many times.
const MASK: [u8; 4] = [0x9d, 0x3a, 0xc4, 0x71];

/// A connection after its TLS handshake and upgrade, as far as its protocol has them.
pub(super) struct Connection {
    stream: ClientStream,
    framed: bool,
    frames: FrameParser,
}

impl Connection {
    pub(super) async fn open(
        protocol: ClientProtocol,
        address: SocketAddr,
        connector: &TlsConnector,
    ) -> anyhow::Result<Self> {
        Self::open_from(None, &Request::default(), protocol, address, connector).await
    }

    /// The same with a request, and from an address of this machine.
    pub(super) async fn open_from(
        source: Option<IpAddr>,
        request: &Request,
        protocol: ClientProtocol,
        address: SocketAddr,
        connector: &TlsConnector,
    ) -> anyhow::Result<Self> {
        with_timeout("opening", async {
            let socket = TcpSocket::new_v4()?;
            if let Some(source) = source {
                socket.bind((source, 0).into())?;
            }
            let socket = socket.connect(address).await?;
            socket.set_nodelay(true)?;
            let stream = if protocol == ClientProtocol::Ws {
                ClientStream::Plain(socket)
            } else {
                let name = ServerName::try_from("localhost")?;
                ClientStream::Tls(Box::new(connector.connect(name, socket).await?))
            };
            let mut connection =
                Self { stream, framed: protocol != ClientProtocol::Tls, frames: FrameParser::default() };
            if connection.framed {
                connection.upgrade(request).await?;
            }
            Ok(connection)
        })
        .await
    }

    /// Whether the TLS session was resumed.
    pub(super) fn is_resumed(&self) -> bool {
        match &self.stream {
            ClientStream::Plain(_) => false,
            ClientStream::Tls(stream) => stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }

    /// Sends `payload` as one frame.
    pub(super) async fn send(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        if self.framed {
            self.stream.write_all(&frame(BINARY, payload)).await?;
        } else {
            self.stream.write_all(payload).await?;
        }
        Ok(self.stream.flush().await?)
    }

    /// Sends `frames`, each of `each` bytes, in one TLS record each.
    pub(super) async fn send_in_records(&mut self, frames: &[u8], each: usize) -> anyhow::Result<()> {
        let ClientStream::Tls(stream) = &mut self.stream else {
            bail!("one record for each frame needs TLS")
        };
        for frame in frames.chunks(each) {
            stream.get_mut().1.writer().write_all(frame)?;
        }
        Ok(stream.flush().await?)
    }

    /// Sends bytes without framing.
    pub(super) async fn send_raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Reads `count` bytes of payload.
    pub(super) async fn receive(&mut self, count: u64, buffer: &mut [u8]) -> anyhow::Result<()> {
        let mut left = count;
        while left > 0 {
            let len = timeout(TIMEOUT, self.stream.read(buffer)).await.context("receiving timed out")??;
            ensure!(len > 0, "connection closed, {left} bytes missing");
            let payload = if self.framed { self.frames.payload(&buffer[..len]) } else { len as u64 };
            ensure!(payload <= left, "received more than requested");
            left -= payload;
        }
        Ok(())
    }

    /// Sends an echo command together with `payload`, and reads the echo.
    pub(super) async fn echo(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        let mut message = Command::Echo(payload.len() as u64).encode().to_vec();
        message.extend_from_slice(payload);
        self.send(&message).await?;
        self.receive(payload.len() as u64, &mut [0; 1024]).await
    }

    /// Waits for the end of the connection.
    pub(super) async fn ended(mut self) {
        while self.stream.read(&mut [0; 1024]).await.is_ok_and(|len| len > 0) {}
    }

    /// Performs the closing handshake of the protocol and waits for the end of the stream.
    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        with_timeout("closing", async {
            if self.framed {
                self.stream.write_all(&frame(CLOSE, &1000_u16.to_be_bytes())).await?;
                self.stream.flush().await?;
            } else {
                self.stream.shutdown().await?;
            }
            // Peers may end TLS with or without close_notify.
            while self.stream.read(&mut [0; 1024]).await.is_ok_and(|len| len > 0) {}
            Ok(())
        })
        .await
    }

    async fn upgrade(&mut self, request: &Request) -> anyhow::Result<()> {
        self.stream.write_all(request.head().as_bytes()).await?;
        self.stream.flush().await?;
        let mut response = Vec::new();
        // A refusal has a body.
        while !response.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            // The backend sends nothing unasked, so nothing follows the head of an upgrade.
            ensure!(self.stream.read_buf(&mut response).await? > 0, "connection closed before the upgrade");
        }
        let response = String::from_utf8_lossy(&response);
        // An error has one line: it may be the answer of a process.
        let status = response.lines().next().unwrap_or_default();
        ensure!(status.starts_with("HTTP/1.1 101 "), Refused(status.to_owned()));
        Ok(())
    }
}

/// The first line of a response other than 101.
#[derive(Debug, thiserror::Error)]
#[error("upgrade refused: {0}")]
pub(super) struct Refused(String);

impl Refused {
    /// Whether the server is overloaded.
    pub(super) fn is_unavailable(&self) -> bool {
        self.0.starts_with("HTTP/1.1 503 ")
    }
}

/// A buffer for [`Connection::receive`].
pub(super) fn buffer() -> Vec<u8> {
    vec![0; CHUNK]
}

async fn with_timeout<T>(what: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    timeout(TIMEOUT, work).await.with_context(|| format!("{what} timed out"))?
}

const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;

/// One masked frame.
pub(super) fn binary(payload: &[u8]) -> Vec<u8> {
    frame(BINARY, payload)
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len @ 126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// An incremental parser of unmasked frames that counts payload bytes.
#[derive(Default)]
struct FrameParser {
    header: Vec<u8>,
    left: u64,
}

impl FrameParser {
    /// Consumes `input` and returns how many of its bytes are payload of data frames.
    fn payload(&mut self, mut input: &[u8]) -> u64 {
        let mut payload = 0;
        while let Some((&first, rest)) = input.split_first() {
            if self.left > 0 {
                let len = self.left.min(input.len() as u64);
                let control = self.header.first().is_some_and(|first| first & 0x08 != 0);
                payload += if control { 0 } else { len };
                self.left -= len;
                input = &input[len as usize..];
            } else {
                self.header.push(first);
                input = rest;
            }
            if self.left == 0 {
                self.advance();
            }
        }
        payload
    }

    /// Starts the payload once the header is complete, and the next header once the payload is.
    fn advance(&mut self) {
        let size = match self.header.get(1).map(|second| second & 0x7f) {
            None => return,
            Some(126) => 4,
            Some(127) => 10,
            Some(_) => 2,
        };
        if self.header.len() == size {
            let long = self.header[2..].iter().fold(0, |len, byte| len << 8 | u64::from(*byte));
            self.left = if size == 2 { u64::from(self.header[1]) } else { long };
            // One byte more than the header, to tell the end of this payload from the end of the header.
            self.header.push(0);
            if self.left == 0 {
                self.header.clear();
            }
        } else if self.header.len() > size {
            self.header.clear();
        }
    }
}

enum ClientStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
