//! The streaming decoder of client frames (RFC 6455 §5).

use std::{mem, ops::Range};

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::{
    CloseFrame, Violation,
    header::{Header, Partial},
    mask::unmask,
};

/// How far an input has been decoded, and where its payload lies.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DecodeProgress {
    /// Everything before this is done with.
    pub at: usize,
    /// The payload found so far, unmasked and in one run.
    pub payload: Range<usize>,
}

impl DecodeProgress {
    /// Where payload that lies at `from` belongs: behind the run, or where it is if it begins the run.
    fn place(&self, from: usize) -> usize {
        if self.payload.start == self.payload.end { from } else { self.payload.end }
    }

    /// Takes in payload that was put to its place.
    fn extend(&mut self, range: &Range<usize>) {
        if self.payload.start == self.payload.end {
            self.payload.start = range.start;
        }
        self.payload.end = range.end;
    }
}

/// Something a client sent that is more than binary payload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Payload of a text message, at the end of the run.
    Text {
        /// Where it lies. Empty for an empty frame.
        range: Range<usize>,
        /// Whether the message ends here.
        last: bool,
    },
    /// A Ping, to be answered with the same payload.
    Ping(Vec<u8>),
    /// A Pong.
    Pong,
    /// A Close. Nothing after it means anything.
    Close(CloseFrame),
}

/// Turns the bytes of a client into [`Event`]s, wherever they are cut.
///
/// Payload is unmasked where it lies and never copied or collected; the decoder itself holds a partial header, and
/// a control payload while it arrives.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    state: State,
    /// Of an unfinished message: whether it is text.
    message: Option<bool>,
}

#[derive(Debug)]
enum State {
    Header(Partial),
    Data { left: u64, mask: [u8; 4], text: bool, last: bool },
    Control { opcode: Control, left: usize, mask: [u8; 4], payload: Vec<u8> },
}

impl Default for State {
    fn default() -> Self {
        Self::Header(Partial::default())
    }
}

impl Decoder {
    /// Decodes on from `progress.at` until something other than binary payload has come, or nothing is left. Payload
    /// is unmasked and moved down over the headers in between, so that the payload of many small frames is one run.
    ///
    /// # Errors
    /// The first violation ends decoding: the decoder must not be called again.
    pub(crate) fn decode(
        &mut self,
        input: &mut [u8],
        progress: &mut DecodeProgress,
    ) -> Result<Option<Event>, Violation> {
        while progress.at < input.len() {
            self.short_frames(input, progress);
            let event = match &mut self.state {
                State::Header(partial) => {
                    let (bytes_written, header) = partial.take(&input[progress.at..])?;
                    progress.at += bytes_written;
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
        // A frame without payload ends with its header.
        match &self.state {
            State::Data { left: 0, .. } => Ok(self.data(input, progress)),
            State::Control { left: 0, .. } => self.control(input, progress),
            _ => Ok(None),
        }
    }

    /// Whether a header has begun and not ended.
    pub(crate) fn in_header(&self) -> bool {
        matches!(self.state, State::Header(Partial { filled: 1.., .. }))
    }

    /// Decodes the whole binary messages of up to 125 bytes that come next: the stuff of chatty protocols, for which
    /// the way through the states would cost more than the payload.
    fn short_frames(&mut self, input: &mut [u8], progress: &mut DecodeProgress) {
        if self.message.is_some() || !matches!(self.state, State::Header(Partial { filled: 0, .. })) {
            return;
        }
        while let &[0x82, second @ 0x80..=0xfd, a, b, c, d, ref rest @ ..] = &input[progress.at..] {
            let len = usize::from(second & 0x7f);
            if rest.len() < len {
                return;
            }
            let from = progress.at + 6;
            let to = progress.place(from);
            unmask(input, from..from + len, to, [a, b, c, d]);
            progress.extend(&(to..to + len));
            progress.at = from + len;
        }
    }

    /// Checks a header against the message it belongs to (RFC 6455 §5.4), and waits for its payload.
    fn begin(&mut self, header: Header) -> Result<(), Violation> {
        let Header { last, opcode, length, mask } = header;
        let text = match (opcode, self.message) {
            (OpCode::Control(opcode), _) => {
                self.state = State::Control { opcode, left: length as usize, mask, payload: Vec::new() };
                return Ok(());
            }
            (OpCode::Data(Data::Continue), message) => message.ok_or(Violation::StrayContinuation)?,
            (OpCode::Data(_), Some(_)) => return Err(Violation::UnfinishedMessage),
            (OpCode::Data(data), None) => data == Data::Text,
        };
        self.message = if last { None } else { Some(text) };
        self.state = State::Data { left: length, mask, text, last };
        Ok(())
    }

    /// Takes what there is of the current data frame.
    fn data(&mut self, input: &mut [u8], progress: &mut DecodeProgress) -> Option<Event> {
        let State::Data { left, mask, text, last } = &mut self.state else { return None };
        let from = progress.at;
        let available = input.len() - from;
        let len = usize::try_from(*left).map_or(available, |left| left.min(available));
        let to = progress.place(from);
        let range = to..to + len;
        unmask(input, from..from + len, to, *mask);
        progress.extend(&range);
        progress.at += len;
        mask.rotate_left(len % 4);
        *left -= len as u64;
        let done = *left == 0;
        let event = text.then_some(Event::Text { range, last: *last && done });
        if done {
            self.state = State::default();
        }
        event
    }

    /// Takes what there is of the current control frame.
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
    struct Heard {
        payload: Vec<u8>,
        /// Of text: a binary message is nothing but its payload.
        messages: usize,
        pings: Vec<Vec<u8>>,
        pongs: usize,
        close: Option<CloseFrame>,
    }

    /// Feeds `pieces` one after the other.
    fn hear<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Heard, Violation> {
        let mut decoder = Decoder::default();
        let mut heard = Heard::default();
        for piece in pieces {
            let mut piece = piece.to_vec();
            let mut progress = DecodeProgress::default();
            while progress.at < piece.len() {
                let before = progress.at;
                match decoder.decode(&mut piece, &mut progress)? {
                    Some(Event::Text { last, .. }) => heard.messages += usize::from(last),
                    Some(Event::Ping(payload)) => heard.pings.push(payload),
                    Some(Event::Pong) => heard.pongs += 1,
                    Some(Event::Close(close)) => heard.close = Some(close),
                    None => assert_eq!(progress.at, piece.len(), "stopped for nothing"),
                }
                assert!(progress.at > before, "no progress");
            }
            heard.payload.extend(&piece[progress.payload]);
        }
        Ok(heard)
    }

    #[test]
    fn every_violation_has_its_name() {
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
            assert_eq!(hear([&bytes[..]]), Err(violation), "{bytes:02x?}");
            assert_eq!(hear(bytes.chunks(1)), Err(violation), "{bytes:02x?}, a byte at a time");
        }
    }

    #[test]
    fn control_frames_may_stand_between_the_fragments_of_a_message() {
        let bytes = [
            frame(0x01, b"one "),
            frame(0x89, b"are you there"),
            frame(0x00, b""),
            frame(0x8a, b""),
            frame(0x80, b"message"),
            frame(0x88, b"\x03\xe8bye"),
        ]
        .concat();
        let expected = Heard {
            payload: b"one message".to_vec(),
            messages: 1,
            pings: vec![b"are you there".to_vec()],
            pongs: 1,
            close: Some(CloseFrame::new(1000, "bye")),
        };
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(hear(bytes.chunks(size)).as_ref(), Ok(&expected), "cut every {size} bytes");
        }
    }

    #[test]
    fn an_endless_frame_is_streamed() {
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
    fn the_payload_of_many_frames_becomes_one_run() {
        let frames = [&b"many"[..], b"", &[b' '; 300], b"small", &[b'.'; 40]];
        let mut input: Vec<u8> = frames.iter().flat_map(|payload| frame(0x82, payload)).collect();
        let mut progress = DecodeProgress::default();
        assert_eq!(Decoder::default().decode(&mut input, &mut progress), Ok(None));
        assert_eq!(progress.at, input.len());
        assert_eq!(input[progress.payload], frames.concat());
    }

    #[test]
    fn a_header_that_has_begun_is_known() {
        let mut decoder = Decoder::default();
        let mut decode = |bytes: &[u8]| {
            assert!(decoder.decode(&mut bytes.to_vec(), &mut DecodeProgress::default()).is_ok());
            decoder.in_header()
        };
        assert!(!decode(&[]));
        assert!(decode(&[0x82]));
        assert!(!decode(&[&[0x81], &MASK[..]].concat()), "the header is whole");
        assert!(!decode(b"x"), "and the frame");
    }

    proptest! {
        #[test]
        fn payload_is_exact_however_it_is_cut(
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
            let mut rest = &bytes[..];
            let mut pieces = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            let heard = hear(pieces).unwrap();
            prop_assert_eq!(heard.payload, expected);
            let ends = messages.iter().filter(|(_, last)| *last).count();
            prop_assert_eq!(heard.messages, if first == 1 { ends } else { 0 });
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), size in 1_usize..50) {
            let whole = hear([&bytes[..]]);
            let pieces = hear(bytes.chunks(size));
            prop_assert_eq!(whole.is_ok(), pieces.is_ok());
        }
    }
}
