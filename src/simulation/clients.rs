//! The clients of a simulation: WebSocket clients that behave well or badly, each on a host of its own.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::{
    network::Network,
    payload::{self, Received},
    plan::{Closes, Plan, Record, Seen, SeenLog},
};
use crate::{random::Random, websocket::client::frame};

const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection for S {}

/// Where clients connect to.
#[derive(Clone)]
pub(super) struct Gateway {
    pub(super) address: SocketAddr,
    pub(super) tls: Option<TlsConnector>,
}

pub(super) struct Client {
    pub(super) network: Network,
    pub(super) host: IpAddr,
    pub(super) gateway: Gateway,
    pub(super) plan: Plan,
    pub(super) seen: SeenLog,
    pub(super) random: Random,
    /// When it gives up.
    pub(super) patience: Duration,
}

impl Client {
    /// Connects once and does what is planned.
    pub(super) async fn run(mut self) {
        let index = {
            let mut seen = self.seen.lock();
            let (number, plan) = (seen.len() as u32 + 1, self.plan.clone());
            seen.push(Seen {
                plan,
                number,
                address: None,
                socket: None,
                sent: 0,
                sent_close: false,
                received: Received::default(),
                status: None,
                opened: None,
                close_code: None,
                end: false,
                error: None,
            });
            seen.len() - 1
        };
        let record = Record { seen: Arc::clone(&self.seen), index };
        let limit = match self.plan.closes {
            Closes::Aborts(after) => after,
            _ => self.patience,
        };
        let error = match timeout(limit, self.connection(&record)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "out of patience".to_owned(),
        };
        record.change(|seen| seen.error = Some(error));
    }

    async fn connection(&mut self, record: &Record) -> io::Result<()> {
        let stream = self.network.connect(self.host, self.gateway.address).await?;
        record
            .change(|seen| (seen.address, seen.socket) = (Some(stream.local_addr()), Some(stream.socket())));
        let stream: Box<dyn Connection> = match &self.gateway.tls {
            Some(_) if self.plan.head == 0 => Box::new(stream),
            Some(tls) => {
                let name = rustls::pki_types::ServerName::from(self.gateway.address.ip());
                Box::new(tls.connect(name, stream).await?)
            }
            None => Box::new(stream),
        };
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (number, mut sent) = (record.number(), 0);
        let mut request = self.request();
        while sent < self.plan.pipelined {
            sent += self.frame(number, sent, &mut request);
        }
        record.change(|seen| seen.sent = sent);
        writer.write_all(&request).await?;
        writer.flush().await?;
        let mut buffer = Vec::new();
        let status = read_head(&mut reader, &mut buffer).await?;
        record.change(|seen| seen.status = status);
        if status != Some(101) {
            // The response ends with the connection.
            tokio::io::copy(&mut reader, &mut tokio::io::sink()).await?;
            record.change(|seen| seen.end = true);
            return Ok(());
        }
        let now = self.network.world().now();
        record.change(|seen| seen.opened = Some(now));
        let (answers, to_send) = unbounded_channel();
        let random = self.random.fork();
        let reading =
            Reading { reader, buffer, answers, plan: self.plan.clone(), random, record: record.clone() };
        let write = async {
            let _ = self.write(writer, to_send, sent, record).await;
            // The reader learns how the connection ends.
            std::future::pending().await
        };
        tokio::select! {
            biased;
            result = reading.run() => result,
            result = write => result,
        }
    }

    fn request(&self) -> Vec<u8> {
        let Plan { path, origin, head, .. } = self.plan;
        let scheme = if self.gateway.tls.is_some() { "https" } else { "http" };
        let host = self.gateway.address;
        let origin = if origin.is_empty() { format!("{scheme}://{host}") } else { origin.to_owned() };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        request.as_bytes()[..request.len() * head / 100].to_vec()
    }

    /// Appends the next frame. Returns how much payload it has.
    fn frame(&mut self, number: u32, sent: u64, bytes: &mut Vec<u8>) -> u64 {
        let len = self.random.between(0, self.plan.frame).min(self.plan.upload - sent);
        bytes.extend(frame(BINARY, &payload::bytes(number, sent, len as usize)));
        len
    }

    /// Sends everything that is planned, and what the reader answers.
    async fn write(
        &mut self,
        mut writer: WriteHalf<Box<dyn Connection>>,
        mut answers: UnboundedReceiver<Vec<u8>>,
        mut sent: u64,
        record: &Record,
    ) -> io::Result<()> {
        while sent < self.plan.upload {
            let mut bytes = Vec::new();
            while let Ok(answer) = answers.try_recv() {
                bytes.extend(answer);
            }
            for _ in 0..self.plan.pings {
                bytes.extend(frame(PING, b"ping"));
            }
            sent += self.frame(record.number(), sent, &mut bytes);
            record.change(|seen| seen.sent = sent);
            writer.write_all(&bytes).await?;
            writer.flush().await?;
            if self.plan.pause > 0 {
                sleep(self.random.millis(self.plan.pause)).await;
            }
        }
        writer.write_all(self.plan.last).await?;
        if self.plan.closes == Closes::AfterUpload {
            writer.write_all(&frame(CLOSE, &1000_u16.to_be_bytes())).await?;
            record.change(|seen| seen.sent_close = true);
            return writer.flush().await;
        }
        writer.flush().await?;
        while let Some(answer) = answers.recv().await {
            let is_close = answer[0] == CLOSE;
            writer.write_all(&answer).await?;
            writer.flush().await?;
            if is_close {
                record.change(|seen| seen.sent_close = true);
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The reading half of a session.
struct Reading {
    reader: ReadHalf<Box<dyn Connection>>,
    buffer: Vec<u8>,
    answers: UnboundedSender<Vec<u8>>,
    plan: Plan,
    random: Random,
    record: Record,
}

impl Reading {
    /// Reads until the gateway has closed the connection.
    async fn run(mut self) -> io::Result<()> {
        if !self.plan.reads {
            return std::future::pending().await;
        }
        loop {
            while let Some((opcode, payload)) = take_frame(&mut self.buffer) {
                self.handle(opcode, &payload)?;
            }
            if self.plan.read_pause > 0 {
                sleep(self.random.millis(self.plan.read_pause)).await;
            }
            let len = self.random.between(1, 4096) as usize;
            let read = (&mut self.reader).take(len as u64).read_buf(&mut self.buffer).await?;
            if read == 0 {
                self.record.change(|seen| seen.end = true);
                return Ok(());
            }
        }
    }

    fn handle(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        let answer = match opcode {
            0x82 | 0x81 => {
                let (received, sent) = self.record.change(|seen| {
                    seen.received.push(payload);
                    (seen.received.len, seen.plan.upload)
                });
                let is_last =
                    self.plan.closes == Closes::AfterEcho && received == sent && !payload.is_empty();
                is_last.then(|| frame(CLOSE, &1000_u16.to_be_bytes()))
            }
            CLOSE => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                let answered = self.record.change(|seen| {
                    seen.close_code = code;
                    seen.sent_close
                });
                (!answered).then(|| frame(CLOSE, payload.get(..2).unwrap_or_default()))
            }
            PING => Some(frame(PONG, payload)),
            PONG => None,
            other => return Err(io::Error::other(format!("a frame that begins with {other:#x}"))),
        };
        if let Some(answer) = answer {
            // The writer ends after a Close.
            let _ = self.answers.send(answer);
        }
        Ok(())
    }
}

/// Takes the first frame of a server (unmasked) from `buffer`, once it is complete: its first byte, and its payload.
fn take_frame(buffer: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (len, header) = match buffer.get(1)? {
        126 => (usize::from(u16::from_be_bytes(*buffer.get(2..)?.first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*buffer.get(2..)?.first_chunk()?) as usize, 10),
        len => (usize::from(*len), 2),
    };
    let payload = buffer.get(header..header + len)?.to_vec();
    let first = buffer[0];
    buffer.drain(..header + len);
    Some((first, payload))
}

/// Reads a response head. Returns its status; `None` if the connection ends first. What follows it stays in `buffer`.
async fn read_head<R: AsyncRead + Unpin>(reader: &mut R, buffer: &mut Vec<u8>) -> io::Result<Option<u16>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let status =
                String::from_utf8_lossy(&buffer[..end]).split(' ').nth(1).and_then(|word| word.parse().ok());
            buffer.drain(..end + 4);
            return Ok(status);
        }
        if reader.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}
