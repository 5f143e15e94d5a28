//! The frames of a case: what the client sends, and what it has received.

use super::case::{CLIENT_DATA, Case, Last};
use crate::websocket::client::frame;

/// The bytes of the client, and where its payload is in them.
pub(super) struct Sent {
    pub(super) bytes: Vec<u8>,
    /// The offset of each payload in `bytes`, and its length.
    pub(super) payloads: Vec<(usize, usize)>,
    pub(super) payload_len: usize,
    pub(super) pings: usize,
    /// The end of the messages; the Close or the violation follows.
    pub(super) messages_end: usize,
}

impl Sent {
    pub(super) fn new(case: &Case) -> Self {
        let mut sent =
            Self { bytes: Vec::new(), payloads: Vec::new(), payload_len: 0, pings: 0, messages_end: 0 };
        let mut open = false;
        for &(len, last, ping) in &case.frames {
            let opcode = match (open, case.text) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => 2,
            };
            let payload = &CLIENT_DATA[sent.payload_len..sent.payload_len + len];
            sent.bytes.extend(frame((u8::from(last) << 7) | opcode, payload));
            sent.payloads.push((sent.bytes.len() - len, len));
            sent.payload_len += len;
            open = !last;
            if ping {
                sent.bytes.extend(frame(0x89, &(sent.pings as u32).to_be_bytes()));
                sent.pings += 1;
            }
        }
        sent.messages_end = sent.bytes.len();
        match case.last {
            Last::Close => sent.bytes.extend(frame(0x88, b"\x03\xe8")),
            Last::Violation => sent.bytes.extend([0x82, 0x01, 0x00]),
            Last::Nothing => {}
        }
        sent
    }

    /// How many bytes of payload the first `len` bytes contain.
    pub(super) fn payload_within(&self, len: usize) -> usize {
        self.payloads.iter().map(|&(at, payload)| len.saturating_sub(at).min(payload)).sum()
    }
}

/// What the client has received.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) payload: Vec<u8>,
    pub(super) pongs: Vec<u32>,
    pub(super) close: Option<Option<u16>>,
    /// The last frame is not complete.
    pub(super) is_cut: bool,
}

impl Received {
    /// Parses `bytes`; panics if they are not frames of a server, or if something follows a Close.
    pub(super) fn parse(mut bytes: &[u8], text: bool) -> Self {
        let mut received = Self::default();
        while !bytes.is_empty() {
            assert!(received.close.is_none(), "{} bytes after the Close", bytes.len());
            let (header, len) = match *bytes {
                [_, len @ 0..126, ..] => (2, usize::from(len)),
                [_, 126, a, b, ..] => (4, usize::from(u16::from_be_bytes([a, b]))),
                [_, 127, 0, 0, 0, 0, a, b, c, d, ..] => (10, u32::from_be_bytes([a, b, c, d]) as usize),
                [_, 126 | 127, ..] | [_] => (bytes.len(), 0),
                _ => panic!("a masked frame or one of terabytes: {:02x?}", &bytes[..2]),
            };
            let end = bytes.len().min(header + len);
            received.is_cut = end < header + len || header == bytes.len() && (header, len) != (2, 0);
            let payload = &bytes[header.min(end)..end];
            match bytes[0] {
                0x81 | 0x82 => {
                    assert_eq!(bytes[0] == 0x81, text, "the opcode");
                    let is_whole_text = received.is_cut || !text || std::str::from_utf8(payload).is_ok();
                    assert!(is_whole_text, "a text message ends within a code point");
                    received.payload.extend(payload);
                }
                0x8a if !received.is_cut => {
                    received
                        .pongs
                        .push(u32::from_be_bytes(payload.try_into().expect("the payload of a Ping")));
                }
                0x88 if !received.is_cut => {
                    received.close = Some(payload.first_chunk().map(|code| u16::from_be_bytes(*code)));
                }
                0x88..=0x8a => {}
                other => panic!("a frame begins with {other:#x}"),
            }
            bytes = &bytes[end..];
        }
        received
    }
}
