//! WebSocket frames as a test needs them, valid or not (RFC 6455 §5.2).

use std::io;
use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::{Check, ClientStream, within};

pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// The mask of every frame that does not use another one.
pub(crate) const MASK: [u8; 4] = [0xa7, 0x03, 0x5e, 0xf1];

/// A masked frame with the shortest header.
pub(crate) fn frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(u8::from(fin) << 7 | opcode, payload.len() as u64);
    bytes.extend(masked(payload, 0));
    bytes
}

/// The shortest header that announces `length` masked bytes.
pub(crate) fn header(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(0x80 | length as u8),
        126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
    }
    bytes.extend_from_slice(&MASK);
    bytes
}

/// `payload`, which begins at byte `at` of its frame, under the mask.
pub(crate) fn masked(payload: &[u8], at: usize) -> Vec<u8> {
    payload.iter().enumerate().map(|(i, byte)| byte ^ MASK[(at + i) % 4]).collect()
}

/// The payload of a Close frame.
pub(crate) fn close_body(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), reason].concat()
}

/// A frame that the gateway sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) fin: bool,
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The code and the reason of a Close frame; no code is `None`.
    #[track_caller]
    pub(crate) fn close(&self) -> (Option<u16>, String) {
        assert_eq!(self.opcode, CLOSE, "not a Close frame: {self:?}");
        assert_ne!(self.payload.len(), 1, "half a close code");
        let Some((code, reason)) = self.payload.split_first_chunk() else { return (None, String::new()) };
        (Some(u16::from_be_bytes(*code)), String::from_utf8(reason.to_vec()).expect("a reason of UTF-8"))
    }
}

/// How the gateway ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// In good order, between two frames: with a FIN, and a close_notify before it if the connection uses TLS.
    Closed,
    /// With a FIN alone although the connection uses TLS, or inside a frame.
    Truncated,
    /// With a RST.
    Reset,
}

/// Reads the gateway's frames and checks that a server may send them (RFC 6455 §5.1, §5.2, §5.5).
pub(crate) struct Frames<R> {
    stream: R,
    bytes: BytesMut,
    in_message: bool,
    end: Option<End>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(crate) fn new(stream: R, already: &[u8]) -> Self {
        Self { stream, bytes: already.into(), in_message: false, end: None }
    }

    /// The next frame; `None` when the gateway has ended the connection, see [`Frames::ended`].
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        within("a frame or the end", self.next_without_deadline()).await
    }

    /// The same without a deadline.
    pub(crate) async fn next_without_deadline(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.parse() {
                return Some(frame);
            }
            self.bytes.reserve(64 * 1024);
            let end = match self.stream.read_buf(&mut self.bytes).await {
                Ok(1..) => continue,
                Ok(0) if self.bytes.is_empty() => End::Closed,
                Ok(0) => End::Truncated,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => End::Truncated,
                Err(_) => End::Reset,
            };
            self.end.get_or_insert(end);
            return None;
        }
    }

    /// How the gateway ended the connection, if it has.
    pub(crate) fn ended(&self) -> Option<End> {
        self.end
    }

    fn parse(&mut self) -> Option<Frame> {
        let bytes = &self.bytes[..];
        let (&[first, second], rest) = bytes.split_first_chunk()?;
        assert_eq!(first & 0x70, 0, "a reserved bit in {first:#04x}");
        assert_eq!(second & 0x80, 0, "the gateway masked a frame");
        let (length, size) = match second {
            126 => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
            127 => (u64::from_be_bytes(*rest.first_chunk()?), 10),
            short => (u64::from(short), 2),
        };
        let shortest = match length {
            0..=125 => 2,
            126..=0xffff => 4,
            _ => 10,
        };
        assert_eq!(size, shortest, "a length of {length} in a header of {size} bytes");
        let length = usize::try_from(length).expect("a length");
        let payload = bytes.get(size..size + length)?.to_vec();
        self.bytes.advance(size + length);

        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        match opcode {
            CLOSE | PING | PONG => {
                assert!(fin && length <= 125, "a control frame of {length} bytes, FIN {fin}")
            }
            CONTINUATION => {
                assert!(self.in_message, "a continuation of nothing");
                self.in_message = !fin;
            }
            TEXT | BINARY => {
                assert!(!self.in_message, "a message inside a message");
                self.in_message = !fin;
            }
            _ => panic!("opcode {opcode}"),
        }
        Some(Frame { fin, opcode, payload })
    }

    /// The next frame that carries data.
    pub(crate) async fn data(&mut self) -> Frame {
        loop {
            match self.next().await {
                Some(frame) if matches!(frame.opcode, CONTINUATION | TEXT | BINARY) => return frame,
                Some(frame) if frame.opcode == CLOSE => panic!("expected data, not {:?}", frame.close()),
                Some(_) => {}
                None => panic!("expected data, not the end"),
            }
        }
    }

    /// Exactly `length` bytes of data, however they are framed.
    pub(crate) async fn payload(&mut self, length: usize) -> Vec<u8> {
        let mut payload = Vec::new();
        while payload.len() < length {
            payload.extend(self.data().await.payload);
        }
        assert_eq!(payload.len(), length, "more data than expected");
        payload
    }

    /// Compares data with the pattern up to position `end`.
    pub(crate) async fn pattern(&mut self, check: &mut Check, end: u64) {
        while check.at < end {
            check.feed(&self.data().await.payload);
        }
        assert_eq!(check.at, end, "more data than expected");
    }

    /// Reads up to the Close frame: the data before it, its code and its reason.
    pub(crate) async fn until_close(&mut self) -> (Vec<u8>, Option<u16>, String) {
        let mut data = Vec::new();
        loop {
            let Some(frame) = self.next().await else {
                panic!("the connection ended without a Close frame, after {} bytes of data", data.len());
            };
            match frame.opcode {
                CLOSE => {
                    let (code, reason) = frame.close();
                    return (data, code, reason);
                }
                CONTINUATION | TEXT | BINARY => data.extend(frame.payload),
                _ => {}
            }
        }
    }
}

/// An open session whose frames the test reads and writes itself.
pub(crate) struct Session<S = ClientStream> {
    pub(crate) peer: SocketAddr,
    pub(crate) frames: Frames<ReadHalf<S>>,
    pub(crate) writer: WriteHalf<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    pub(crate) fn new(stream: S, peer: SocketAddr, already: &[u8]) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { peer, frames: Frames::new(reader, already), writer }
    }

    /// The connection below the session.
    pub(crate) fn into_stream(self) -> S {
        self.frames.stream.unsplit(self.writer)
    }

    /// Sends bytes as they are.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let sent = within("the gateway to read bytes", async {
            self.writer.write_all(bytes).await?;
            self.writer.flush().await
        });
        sent.await.unwrap_or_else(|error| panic!("{} bytes could not be sent: {error}", bytes.len()));
    }

    /// The same, to a gateway that may have closed the connection already.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) {
        let sent = within("the gateway to read bytes or to close the connection", async {
            self.writer.write_all(bytes).await?;
            self.writer.flush().await
        });
        let _ = sent.await;
    }

    /// Sends one binary message and expects it back.
    pub(crate) async fn echo(&mut self, payload: &[u8]) {
        self.send(&frame(true, BINARY, payload)).await;
        assert_eq!(self.frames.payload(payload.len()).await, payload, "the echo");
    }

    /// Sends a Close as a browser does, and waits for the answer and the end.
    pub(crate) async fn close(&mut self, code: u16) {
        self.send(&frame(true, CLOSE, &close_body(code, b""))).await;
        let (_, answered, _) = self.frames.until_close().await;
        assert_eq!(answered, Some(code), "the code of the answer");
        self.end().await;
    }

    /// Waits for the gateway's Close, answers it and waits for the end.
    pub(crate) async fn closed(&mut self) -> (Vec<u8>, Option<u16>, String) {
        let closed = self.frames.until_close().await;
        let body = closed.1.map(|code| close_body(code, b"")).unwrap_or_default();
        // The gateway may have closed the connection already, as after a protocol error.
        self.try_send(&frame(true, CLOSE, &body)).await;
        self.end().await;
        closed
    }

    /// Waits for the end of the connection, which must be a good one, and closes this side too: until then the gateway
    /// lingers.
    pub(crate) async fn end(&mut self) {
        assert_eq!(self.frames.next().await, None, "nothing follows a Close");
        assert_eq!(self.frames.ended(), Some(End::Closed), "how the gateway ended the connection");
        // The socket may be closed already.
        let _ = self.writer.shutdown().await;
    }
}
