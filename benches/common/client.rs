//! One client connection: WebSocket over TLS, WebSocket, or bytes over TLS for programs that only terminate it.

use std::{
    fmt, io,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::backend::Command;

/// How much is read at a time, in bytes.
const CHUNK: usize = 64 * 1024;
/// How long any one thing may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// RFC 6455 §5.3 wants it unpredictable; here it has to be the same for frames that are made once.
const MASK: [u8; 4] = [0x9d, 0x3a, 0xc4, 0x71];

/// What a program under test speaks with its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    /// WebSocket over TLS.
    Wss,
    /// WebSocket.
    Ws,
    /// TLS and nothing else: frames are so many bytes, and answers come without any.
    Tls,
}

impl fmt::Display for Speech {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wss => "wss",
            Self::Ws => "ws",
            Self::Tls => "tls",
        })
    }
}

impl FromStr for Speech {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        [Self::Wss, Self::Ws, Self::Tls]
            .into_iter()
            .find(|speech| speech.to_string() == word)
            .ok_or_else(|| format!("{word} is not a way to speak"))
    }
}

/// How TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// With X25519 alone, so that every server does the same arithmetic, and without resumption.
    Whole,
    /// With X25519MLKEM768, as browsers do, and without resumption.
    Hybrid,
    /// With X25519MLKEM768, and from a ticket wherever there is one.
    Resumed,
}

impl Handshake {
    const ALL: [Self; 3] = [Self::Whole, Self::Hybrid, Self::Resumed];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Hybrid => "hybrid",
            Self::Resumed => "resumed",
        }
    }
}

impl FromStr for Handshake {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|handshake| handshake.word() == word);
        known.ok_or_else(|| format!("{word} is no kind of handshake"))
    }
}

/// TLS 1.3.
pub(super) fn connector(certificate: &Path, handshake: Handshake) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let group = match handshake {
        Handshake::Whole => aws_lc_rs::kx_group::X25519,
        Handshake::Hybrid | Handshake::Resumed => aws_lc_rs::kx_group::X25519MLKEM768,
    };
    let provider = CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = match handshake {
        Handshake::Whole | Handshake::Hybrid => Resumption::disabled(),
        // The driver's connections at a time, and more.
        Handshake::Resumed => Resumption::in_memory_sessions(256),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A connection whose upgrade, if there is one, is done.
pub(super) struct Line {
    wire: Wire,
    framed: bool,
    frames: Frames,
}

impl Line {
    pub(super) async fn open(
        speech: Speech,
        address: SocketAddr,
        connector: &TlsConnector,
    ) -> anyhow::Result<Self> {
        patiently("opening", async {
            let socket = TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            let wire = if speech == Speech::Ws {
                Wire::Plain(socket)
            } else {
                let name = ServerName::try_from("localhost")?;
                Wire::Tls(Box::new(connector.connect(name, socket).await?))
            };
            let mut line = Self { wire, framed: speech != Speech::Tls, frames: Frames::default() };
            if line.framed {
                line.upgrade().await?;
            }
            Ok(line)
        })
        .await
    }

    /// Whether TLS began with a ticket.
    pub(super) fn is_resumed(&self) -> bool {
        match &self.wire {
            Wire::Plain(_) => false,
            Wire::Tls(stream) => stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }

    /// Sends `payload` as one frame.
    pub(super) async fn send(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        if self.framed {
            self.wire.write_all(&frame(BINARY, payload)).await?;
        } else {
            self.wire.write_all(payload).await?;
        }
        Ok(self.wire.flush().await?)
    }

    /// Sends `frames` and takes one TLS record for each of them.
    pub(super) async fn send_in_records(&mut self, frames: &[u8], each: usize) -> anyhow::Result<()> {
        let Wire::Tls(stream) = &mut self.wire else { bail!("records need TLS") };
        for frame in frames.chunks(each) {
            stream.get_mut().1.writer().write_all(frame)?;
        }
        Ok(stream.flush().await?)
    }

    /// Sends bytes as they are.
    pub(super) async fn send_raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.wire.write_all(bytes).await?;
        Ok(self.wire.flush().await?)
    }

    /// Reads `count` bytes of payload.
    pub(super) async fn receive(&mut self, count: u64, buffer: &mut [u8]) -> anyhow::Result<()> {
        let mut left = count;
        while left > 0 {
            let len =
                timeout(PATIENCE, self.wire.read(buffer)).await.context("receiving takes too long")??;
            ensure!(len > 0, "closed {left} bytes before the end");
            let payload = if self.framed { self.frames.payload(&buffer[..len]) } else { len as u64 };
            ensure!(payload <= left, "more than what was asked for");
            left -= payload;
        }
        Ok(())
    }

    /// One echo of `payload`, together with the command for it.
    pub(super) async fn greet(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        let mut message = Command::Echo(payload.len() as u64).encode().to_vec();
        message.extend_from_slice(payload);
        self.send(&message).await?;
        self.receive(payload.len() as u64, &mut [0; 1024]).await
    }

    /// Ends the connection as its protocol wants it and waits until the other side has done so, too.
    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        patiently("closing", async {
            if self.framed {
                self.wire.write_all(&frame(CLOSE, &1000_u16.to_be_bytes())).await?;
                self.wire.flush().await?;
            } else {
                self.wire.shutdown().await?;
            }
            // How exactly it ends (with or without close_notify) is theirs to choose.
            while self.wire.read(&mut [0; 1024]).await.is_ok_and(|len| len > 0) {}
            Ok(())
        })
        .await
    }

    async fn upgrade(&mut self) -> anyhow::Result<()> {
        let head = "GET /bench HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                    Sec-WebSocket-Protocol: binary\r\n\r\n";
        self.wire.write_all(head.as_bytes()).await?;
        self.wire.flush().await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            // The backend speaks only when spoken to, so nothing follows the head.
            ensure!(self.wire.read_buf(&mut answer).await? > 0, "closed before the upgrade");
        }
        let answer = String::from_utf8_lossy(&answer);
        ensure!(answer.starts_with("HTTP/1.1 101 "), "not upgraded: {answer}");
        Ok(())
    }
}

/// A buffer for [`Line::receive`].
pub(super) fn buffer() -> Vec<u8> {
    vec![0; CHUNK]
}

async fn patiently<T>(what: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    timeout(PATIENCE, work).await.with_context(|| format!("{what} takes too long"))?
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

/// Where a stream of unmasked frames stands.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    left: u64,
}

impl Frames {
    /// How many bytes of `input` are payload of data frames.
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

    /// Begins the payload once the header is whole, and the next header once a payload has ended.
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
            // Tells the end of this payload from the end of the header.
            self.header.push(0);
            if self.left == 0 {
                self.header.clear();
            }
        } else if self.header.len() > size {
            self.header.clear();
        }
    }
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
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
