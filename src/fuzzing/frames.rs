//! The frame decoder: against tungstenite on whole inputs, and against itself however the input is split.

use std::io::{self, Read, Write};

use tungstenite::{
    Message, WebSocket,
    error::{Error, ProtocolError},
    protocol::{Role, WebSocketConfig},
};

use crate::websocket::{CloseFrame, DecodeProgress, Decoder, Event, Utf8Stream, Violation};

/// What a decoder makes of an input.
#[derive(Debug, Default)]
struct Decoded {
    /// The payload of all data frames.
    payload: Vec<u8>,
    controls: Vec<ControlMessage>,
    fault: Option<Fault>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ControlMessage {
    Ping(Vec<u8>),
    Pong,
    Close(CloseFrame),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Violation(Violation),
    Utf8,
}

/// The first byte chooses how the rest is split.
pub fn frames(data: &[u8]) {
    let Some((&split, bytes)) = data.split_first() else { return };
    let whole = decode([bytes]);
    let pieces = decode(cut(bytes, split));
    assert_eq!(
        (&whole.controls, whole.fault),
        (&pieces.controls, pieces.fault),
        "the split changed something"
    );
    match whole.fault {
        // Of an invalid text, the piece in which it became invalid is not forwarded.
        Some(Fault::Utf8) => assert!(pieces.payload.starts_with(&whole.payload), "other payload"),
        _ => assert_eq!(whole.payload, pieces.payload, "the split changed the payload"),
    }
    compare_with_tungstenite(&whole, bytes);
}

/// The pieces in which `bytes` arrive: of one size for a small `split`, otherwise of sizes that follow from it.
fn cut(bytes: &[u8], split: u8) -> Vec<&[u8]> {
    if split < 64 {
        return bytes.chunks(usize::from(split) + 1).collect();
    }
    let (mut pieces, mut rest, mut random) = (Vec::new(), bytes, u32::from(split));
    while !rest.is_empty() {
        // Xorshift (Marsaglia, 2003). Most pieces are shorter than a header.
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        let longest = if random.is_multiple_of(4) { 1000 } else { 6 };
        let (piece, behind) = rest.split_at((random as usize % longest + 1).min(rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Decoded {
    let (mut decoder, mut text, mut decoded) =
        (Decoder::default(), Utf8Stream::default(), Decoded::default());
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut progress = DecodeProgress::default();
        let mut ended = false;
        loop {
            match decoder.decode(&mut piece, &mut progress) {
                Ok(None) => break,
                Ok(Some(Event::Text { range, last })) => {
                    if text.push(&piece[range.clone()]).is_err() || last && !text.is_complete() {
                        progress.payload.end = range.start;
                        decoded.fault = Some(Fault::Utf8);
                    }
                }
                Ok(Some(Event::Ping(payload))) => decoded.controls.push(ControlMessage::Ping(payload)),
                Ok(Some(Event::Pong)) => decoded.controls.push(ControlMessage::Pong),
                Ok(Some(Event::Close(close))) => {
                    decoded.controls.push(ControlMessage::Close(close));
                    ended = true;
                }
                Err(violation) => decoded.fault = Some(Fault::Violation(violation)),
            }
            if ended || decoded.fault.is_some() {
                decoded.payload.extend(&piece[progress.payload]);
                return decoded;
            }
        }
        assert_eq!(progress.at, piece.len(), "input was left");
        decoded.payload.extend(&piece[progress.payload]);
    }
    decoded
}

/// Both must find the same messages, up to the first violation.
fn compare_with_tungstenite(ours: &Decoded, bytes: &[u8]) {
    let (theirs, error) = read_with_tungstenite(bytes);
    // What it forwards is complete messages; ours also the beginning of one.
    let common = ours.payload.len().min(theirs.payload.len());
    assert_eq!(ours.payload[..common], theirs.payload[..common], "other payload");
    let common = ours.controls.len().min(theirs.controls.len());
    assert_eq!(ours.controls[..common], theirs.controls[..common], "other control frames");
    let is_lenient = match ours.fault {
        None => {
            assert!(theirs.fault.is_none(), "only tungstenite refuses this: {error:?}");
            assert!(theirs.payload.len() <= ours.payload.len(), "payload was lost");
            // It refuses long messages, and replaces the codes that it does not know.
            let differs = matches!(error, Error::Capacity(_) | Error::AlreadyClosed);
            assert!(differs || theirs.controls == ours.controls, "other control frames: {error:?}");
            return;
        }
        // RFC 6455 requires these of a client; tungstenite does not check them. A control frame is long for us if
        // it has the longer form of a length.
        Some(Fault::Violation(violation)) => {
            use Violation::{CloseCode, LengthNotMinimal, LengthTooLarge, LongControl};
            matches!(violation, CloseCode(_) | LengthNotMinimal | LengthTooLarge | LongControl)
        }
        Some(Fault::Utf8) => false,
    };
    let is_end = matches!(error, Error::Protocol(ProtocolError::ResetWithoutClosingHandshake));
    let stops = theirs.fault.is_some() || is_end || matches!(error, Error::Capacity(_));
    assert!(is_lenient || stops, "only ours refuses this: {:?}, {error:?}", ours.fault);
    assert!(is_lenient || theirs.controls.len() <= ours.controls.len(), "it went on after {:?}", ours.fault);
}

fn read_with_tungstenite(bytes: &[u8]) -> (Decoded, Error) {
    // A limit, because a header alone would make it reserve the length.
    let limit = Some(1 << 20);
    let config = WebSocketConfig::default().max_frame_size(limit).max_message_size(limit);
    let mut socket = WebSocket::from_raw_socket(Incoming(bytes), Role::Server, Some(config));
    let mut decoded = Decoded::default();
    let error = loop {
        match socket.read() {
            Ok(Message::Binary(payload)) => decoded.payload.extend(payload),
            Ok(Message::Text(text)) => decoded.payload.extend(text.as_bytes()),
            Ok(Message::Ping(payload)) => decoded.controls.push(ControlMessage::Ping(payload.to_vec())),
            Ok(Message::Pong(_)) => decoded.controls.push(ControlMessage::Pong),
            Ok(Message::Close(close)) => {
                let close = close.map(|close| (u16::from(close.code), close.reason.to_string()));
                // It does not know 1014 and reports 1002 instead of a code that must not be sent.
                if close.as_ref().is_some_and(|(code, _)| *code == 1002) {
                    break Error::AlreadyClosed;
                }
                let close = close.map(|(code, reason)| CloseFrame { code: Some(code), reason });
                decoded.controls.push(ControlMessage::Close(close.unwrap_or_default()));
                break Error::ConnectionClosed;
            }
            Ok(Message::Frame(_)) => {}
            Err(error) => break error,
        }
    };
    let is_end = matches!(error, Error::Protocol(ProtocolError::ResetWithoutClosingHandshake));
    if matches!(error, Error::Protocol(_) | Error::Utf8(_)) && !is_end {
        decoded.fault = Some(Fault::Utf8);
    }
    (decoded, error)
}

/// Input from memory; output is accepted and forgotten.
struct Incoming<'a>(&'a [u8]);

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Incoming<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
