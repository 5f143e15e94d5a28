//! The streaming decoder of client frames (RFC 6455 §5).

use std::{mem, ops::Range};

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::{
    CloseFrame, Violation,
    header::{Header, PartialHeader},
    mask::unmask,
};

/// How far an input has been decoded, and where its payload is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DecodeProgress {
    /// Everything before this offset has been decoded.
    pub at: usize,
    /// The payload found so far, unmasked and contiguous.
    pub payload: Range<usize>,
}

impl DecodeProgress {
    /// Where to move payload that starts at `from`: behind the payload found so far; the first payload stays in place.
    fn destination(&self, from: usize) -> usize {
        if self.payload.start == self.payload.end { from } else { self.payload.end }
    }

    /// Adds payload that was moved to its destination.
    fn extend(&mut self, range: &Range<usize>) {
        if self.payload.start == self.payload.end {
            self.payload.start = range.start;
        }
        self.payload.end = range.end;
    }
}

/// Anything but binary payload that a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Payload of a text message, at the end of [`DecodeProgress::payload`].
    Text {
        /// Its offsets in the input. Empty for an empty frame.
        range: Range<usize>,
        /// Whether the message ends here.
        last: bool,
    },
    /// A Ping, with the payload to send back.
    Ping(Vec<u8>),
    Pong,
    /// A Close. Everything after it must be ignored.
    Close(CloseFrame),
}

/// Decodes the bytes of a client into payload and [`Event`]s, however they are split.
///
/// Payload is unmasked in the input buffer and never buffered elsewhere; the decoder itself stores a partial header,
/// and a control payload while it arrives.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    state: State,
    /// Whether the current message is text; `None` between messages.
    message: Option<bool>,
}

#[derive(Debug)]
enum State {
    Header(PartialHeader),
    Data { left: u64, mask: [u8; 4], text: bool, fin: bool },
    Control { opcode: Control, left: usize, mask: [u8; 4], payload: Vec<u8> },
}

impl Default for State {
    fn default() -> Self {
        Self::Header(PartialHeader::default())
    }
}

impl Decoder {
    /// Decodes from `progress.at` up to the next [`Event`], or to the end of the input. Payload is unmasked and moved
    /// down over the headers in between, so that the payload of many small frames is contiguous.
    ///
    /// # Errors
    /// The first violation. The decoder must not be called after it.
    pub(crate) fn decode(
        &mut self,
        input: &mut [u8],
        progress: &mut DecodeProgress,
    ) -> Result<Option<Event>, Violation> {
        while progress.at < input.len() {
            self.short_frames(input, progress);
            let event = match &mut self.state {
                State::Header(partial) => {
                    let (consumed, header) = partial.push(&input[progress.at..])?;
                    progress.at += consumed;
                    if let Some(header) = header {
                        self.begin(header)?;
                    }
                    None
                }
                State::Data { .. } => self.data(input, progress),
                State::Control { .. } => self.control(input, progress)?,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        // A frame without payload is complete with its header, although no input is left.
        match &self.state {
            State::Data { left: 0, .. } => Ok(self.data(input, progress)),
            State::Control { left: 0, .. } => self.control(input, progress),
            _ => Ok(None),
        }
    }

    /// Whether a header has been received in part.
    pub(crate) fn in_header(&self) -> bool {
        matches!(self.state, State::Header(PartialHeader { filled: 1.., .. }))
    }

    /// The fast path: decodes complete, unfragmented binary messages of up to 125 bytes. Interactive protocols send
    /// many of them, and the state machine would cost more than their payload.
    fn short_frames(&mut self, input: &mut [u8], progress: &mut DecodeProgress) {
        if self.message.is_some() || !matches!(self.state, State::Header(PartialHeader { filled: 0, .. })) {
            return;
        }
        while let &[0x82, second @ 0x80..=0xfd, a, b, c, d, ref after @ ..] = &input[progress.at..] {
            let len = usize::from(second & 0x7f);
            if after.len() < len {
                return;
            }
            let from = progress.at + 6;
            let to = progress.destination(from);
            unmask(input, from..from + len, to, [a, b, c, d]);
            progress.extend(&(to..to + len));
            progress.at = from + len;
        }
    }

    /// Checks a header against the current message (RFC 6455 §5.4), and enters the state for its payload.
    fn begin(&mut self, header: Header) -> Result<(), Violation> {
        let Header { fin, opcode, length, mask } = header;
        let text = match (opcode, self.message) {
            (OpCode::Control(opcode), _) => {
                self.state = State::Control { opcode, left: length as usize, mask, payload: Vec::new() };
                return Ok(());
            }
            (OpCode::Data(Data::Continue), message) => message.ok_or(Violation::StrayContinuation)?,
            (OpCode::Data(_), Some(_)) => return Err(Violation::UnfinishedMessage),
            (OpCode::Data(data), None) => data == Data::Text,
        };
        self.message = if fin { None } else { Some(text) };
        self.state = State::Data { left: length, mask, text, fin };
        Ok(())
    }

    /// Decodes the available part of the current data frame.
    fn data(&mut self, input: &mut [u8], progress: &mut DecodeProgress) -> Option<Event> {
        let State::Data { left, mask, text, fin } = &mut self.state else { return None };
        let from = progress.at;
        let available = input.len() - from;
        let len = usize::try_from(*left).map_or(available, |left| left.min(available));
        let to = progress.destination(from);
        let range = to..to + len;
        unmask(input, from..from + len, to, *mask);
        progress.extend(&range);
        progress.at += len;
        mask.rotate_left(len % 4);
        *left -= len as u64;
        let done = *left == 0;
        let event = text.then_some(Event::Text { range, last: *fin && done });
        if done {
            self.state = State::default();
        }
        event
    }

    /// Decodes the available part of the current control frame.
    fn control(
        &mut self,
        input: &mut [u8],
        progress: &mut DecodeProgress,
    ) -> Result<Option<Event>, Violation> {
        let State::Control { opcode, left, mask, payload } = &mut self.state else { return Ok(None) };
        let len = (input.len() - progress.at).min(*left);
        let range = progress.at..progress.at + len;
        unmask(input, range.clone(), range.start, *mask);
        payload.extend_from_slice(&input[range]);
        progress.at += len;
        mask.rotate_left(len % 4);
        *left -= len;
        if *left > 0 {
            return Ok(None);
        }
        let event = match opcode {
            Control::Ping => Event::Ping(mem::take(payload)),
            Control::Pong => Event::Pong,
            _ => Event::Close(CloseFrame::parse(payload)?),
        };
        self.state = State::default();
        Ok(Some(event))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::websocket::client::{MASK, frame};

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Decoded {
        payload: Vec<u8>,
        text_messages: usize,
        pings: Vec<Vec<u8>>,
        pongs: usize,
        close: Option<CloseFrame>,
    }

    /// Decodes `pieces` one after the other.
    fn decode_all<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Decoded, Violation> {
        let mut decoder = Decoder::default();
        let mut decoded = Decoded::default();
        for piece in pieces {
            let mut piece = piece.to_vec();
            let mut progress = DecodeProgress::default();
            while progress.at < piece.len() {
                let before = progress.at;
                match decoder.decode(&mut piece, &mut progress)? {
                    Some(Event::Text { last, .. }) => decoded.text_messages += usize::from(last),
                    Some(Event::Ping(payload)) => decoded.pings.push(payload),
                    Some(Event::Pong) => decoded.pongs += 1,
                    Some(Event::Close(close)) => decoded.close = Some(close),
                    None => assert_eq!(progress.at, piece.len(), "stopped without an event"),
                }
                assert!(progress.at > before, "no progress");
            }
            decoded.payload.extend(&piece[progress.payload]);
        }
        Ok(decoded)
    }

    #[test]
    fn every_violation_is_reported() {
        let masked = |first: u8, second: u8, more: &[u8]| [&[first, second], more, &MASK].concat();
        for (bytes, violation) in [
            (vec![0x82, 0x05], Violation::Unmasked),
            (vec![0xc2, 0x85], Violation::ReservedBit),
            (vec![0xa2, 0x85], Violation::ReservedBit),
            (vec![0x92, 0x85], Violation::ReservedBit),
            (vec![0x83, 0x80], Violation::ReservedOpcode(3)),
            (vec![0x8b, 0x80], Violation::ReservedOpcode(11)),
            (vec![0x09, 0x80], Violation::FragmentedControl),
            (vec![0x89, 0xfe], Violation::LongControl),
            (frame(0x80, b"x"), Violation::StrayContinuation),
            ([frame(0x02, b"x"), frame(0x82, b"y")].concat(), Violation::UnfinishedMessage),
            (
                [frame(0x02, b"x"), frame(0x80, b"y"), frame(0x80, b"z")].concat(),
                Violation::StrayContinuation,
            ),
            (masked(0x82, 0xfe, &[0, 125]), Violation::LengthNotMinimal),
            (masked(0x82, 0xff, &[0, 0, 0, 0, 0, 0, 0xff, 0xff]), Violation::LengthNotMinimal),
            (masked(0x82, 0xff, &[0x80, 0, 0, 0, 0, 0, 0, 0]), Violation::LengthTooLarge),
            (frame(0x88, b"\x03"), Violation::CloseBody),
            (frame(0x88, b"\x03\xed"), Violation::CloseCode(1005)),
            (frame(0x88, b"\x03\xe8\xff"), Violation::CloseReason),
        ] {
            assert_eq!(decode_all([&bytes[..]]), Err(violation), "{bytes:02x?}");
            assert_eq!(decode_all(bytes.chunks(1)), Err(violation), "{bytes:02x?}, a byte at a time");
        }
    }

    #[test]
    fn control_frames_may_interleave_with_fragments() {
        let bytes = [
            frame(0x01, b"one "),
            frame(0x89, b"are you there"),
            frame(0x00, b""),
            frame(0x8a, b""),
            frame(0x80, b"message"),
            frame(0x88, b"\x03\xe8bye"),
        ]
        .concat();
        let expected = Decoded {
            payload: b"one message".to_vec(),
            text_messages: 1,
            pings: vec![b"are you there".to_vec()],
            pongs: 1,
            close: Some(CloseFrame::new(1000, "bye")),
        };
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(decode_all(bytes.chunks(size)).as_ref(), Ok(&expected), "split every {size} bytes");
        }
    }

    #[test]
    fn huge_frame_is_streamed() {
        let mut decoder = Decoder::default();
        let mut header = [&[0x82, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0], &MASK[..]].concat();
        assert_eq!(decoder.decode(&mut header, &mut DecodeProgress::default()), Ok(None));
        let mut chunk = vec![0; 1 << 16];
        let mut progress = DecodeProgress::default();
        assert_eq!(decoder.decode(&mut chunk, &mut progress), Ok(None));
        assert_eq!(progress, DecodeProgress { at: 1 << 16, payload: 0..1 << 16 });
        assert_eq!(chunk[..4], MASK);
    }

    #[test]
    fn payload_of_many_frames_is_contiguous() {
        let frames = [&b"many"[..], b"", &[b' '; 300], b"small", &[b'.'; 40]];
        let mut input: Vec<u8> = frames.iter().flat_map(|payload| frame(0x82, payload)).collect();
        let mut progress = DecodeProgress::default();
        assert_eq!(Decoder::default().decode(&mut input, &mut progress), Ok(None));
        assert_eq!(progress.at, input.len());
        assert_eq!(input[progress.payload], frames.concat());
    }

    #[test]
    fn control_payload_may_have_125_bytes() {
        let payload = [b'p'; 125];
        let decoded = decode_all([&frame(0x89, &payload)[..]]);
        assert_eq!(decoded.map(|decoded| decoded.pings), Ok(vec![payload.to_vec()]));
    }

    #[test]
    fn frame_without_payload_is_complete_with_its_header() {
        let event = |first: u8| {
            Decoder::default()
                .decode(&mut frame(first, b""), &mut DecodeProgress::default())
                .unwrap()
                .unwrap()
        };
        assert_eq!(event(0x81), Event::Text { range: 6..6, last: true });
        assert_eq!(event(0x89), Event::Ping(Vec::new()));
        assert_eq!(event(0x8a), Event::Pong);
        assert_eq!(event(0x88), Event::Close(CloseFrame::default()));
    }

    #[test]
    fn payload_that_looks_like_a_frame_is_payload() {
        // As sent, after the mask, each of these begins with the header of a short frame.
        let like_a_frame: Vec<u8> =
            frame(0x82, b"inner").iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        let payload = [like_a_frame.clone(), vec![0; 300]].concat();
        for first in [0x81, 0x82] {
            let decoded = decode_all([&frame(first, &payload)[..]]);
            assert_eq!(decoded.map(|decoded| decoded.payload), Ok(payload.clone()));
        }
        let fragments = [frame(0x02, b"a"), frame(0x80, &payload)].concat();
        let decoded = decode_all([&fragments[..]]);
        assert_eq!(decoded.map(|decoded| decoded.payload.len()), Ok(payload.len() + 1));
    }

    #[test]
    fn partial_header_is_reported() {
        let mut decoder = Decoder::default();
        let mut decode = |bytes: &[u8]| {
            assert!(decoder.decode(&mut bytes.to_vec(), &mut DecodeProgress::default()).is_ok());
            decoder.in_header()
        };
        assert!(!decode(&[]));
        assert!(decode(&[0x82]));
        assert!(!decode(&[&[0x81], &MASK[..]].concat()), "the header is complete");
        assert!(!decode(b"x"), "the frame is complete");
    }

    proptest! {
        #[test]
        fn payload_is_exact_however_it_is_split(
            messages in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..400), any::<bool>()), 1..8),
            cuts in prop::collection::vec(1_usize..200, 1..50),
            first in 1_u8..=2,
        ) {
            let mut bytes = Vec::new();
            let mut expected: Vec<u8> = Vec::new();
            let mut open = false;
            for (payload, last) in &messages {
                bytes.extend(frame((u8::from(*last) << 7) | if open { 0 } else { first }, payload));
                expected.extend(payload);
                open = !last;
            }
            let mut remaining = &bytes[..];
            let mut pieces = Vec::new();
            for cut in cuts.iter().cycle() {
                if remaining.is_empty() { break }
                let (piece, after) = remaining.split_at((*cut).min(remaining.len()));
                pieces.push(piece);
                remaining = after;
            }
            let decoded = decode_all(pieces).unwrap();
            prop_assert_eq!(decoded.payload, expected);
            let finished = messages.iter().filter(|(_, last)| *last).count();
            prop_assert_eq!(decoded.text_messages, if first == 1 { finished } else { 0 });
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), size in 1_usize..50) {
            let whole = decode_all([&bytes[..]]);
            let pieces = decode_all(bytes.chunks(size));
            prop_assert_eq!(whole.is_ok(), pieces.is_ok());
        }
    }
}
