//! The headers of client frames (RFC 6455 §5.2).

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::Violation;

/// The longest header of a masked frame, in bytes.
const MAX_HEADER: usize = 14;
/// The longest control payload, in bytes (RFC 6455 §5.5).
const MAX_CONTROL: u64 = 125;

/// A header that arrives in pieces.
#[derive(Debug, Default)]
pub(super) struct Partial {
    bytes: [u8; MAX_HEADER],
    pub(super) filled: u8,
}

impl Partial {
    /// Takes what `input` adds to the header; returns how many bytes that was, and the header once it is whole.
    pub(super) fn take(&mut self, input: &[u8]) -> Result<(usize, Option<Header>), Violation> {
        if self.filled == 0
            && let Some((header, size)) = Header::parse(input)?
        {
            return Ok((size, Some(header)));
        }
        for (index, &byte) in input.iter().enumerate() {
            self.bytes[usize::from(self.filled)] = byte;
            self.filled += 1;
            if let Some((header, _)) = Header::parse(&self.bytes[..usize::from(self.filled)])? {
                self.filled = 0;
                return Ok((index + 1, Some(header)));
            }
        }
        Ok((input.len(), None))
    }
}

/// A client frame's header (RFC 6455 §5.2), checked as far as it can be alone.
pub(super) struct Header {
    pub(super) last: bool,
    pub(super) opcode: OpCode,
    pub(super) length: u64,
    pub(super) mask: [u8; 4],
}

impl Header {
    /// Reads the header at the start of `bytes`, and its size; `None` while it is not whole. What the first two
    /// bytes give away is refused without waiting for the rest.
    fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Violation> {
        let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
        let last = first & 0x80 != 0;
        let short = second & 0x7f;
        if first & 0x70 != 0 {
            return Err(Violation::ReservedBit);
        }
        if second & 0x80 == 0 {
            return Err(Violation::Unmasked);
        }
        let opcode = OpCode::from(first & 0x0f);
        match opcode {
            OpCode::Data(Data::Reserved(code)) | OpCode::Control(Control::Reserved(code)) => {
                return Err(Violation::ReservedOpcode(code));
            }
            OpCode::Control(_) if !last => return Err(Violation::FragmentedControl),
            OpCode::Control(_) if u64::from(short) > MAX_CONTROL => return Err(Violation::LongControl),
            _ => {}
        }
        let (length, rest) = match short {
            126 => {
                let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
                (u64::from_be_bytes(*length), rest)
            }
            short => (u64::from(short), rest),
        };
        match (short, length) {
            (126, 0..126) | (127, 0..0x1_0000) => return Err(Violation::LengthNotMinimal),
            (_, 0x8000_0000_0000_0000..) => return Err(Violation::LengthTooLarge),
            _ => {}
        }
        let Some((mask, rest)) = rest.split_first_chunk() else { return Ok(None) };
        Ok(Some((Self { last, opcode, length, mask: *mask }, bytes.len() - rest.len())))
    }
}
