//! Parsing of client frame headers (RFC 6455 §5.2).

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::Violation;

/// The longest header of a masked frame, in bytes.
const MAX_MASKED_HEADER: usize = 14;
/// The longest control payload, in bytes (RFC 6455 §5.5).
pub(super) const MAX_CONTROL: usize = 125;

/// A header of which only a part has arrived.
#[derive(Debug, Default)]
pub(super) struct PartialHeader {
    bytes: [u8; MAX_MASKED_HEADER],
    pub(super) filled: u8,
}

impl PartialHeader {
    /// Consumes the bytes of `input` that belong to the header. Returns their number, and the header once it is
    /// complete.
    pub(super) fn push(&mut self, input: &[u8]) -> Result<(usize, Option<Header>), Violation> {
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

/// The header of a client frame (RFC 6455 §5.2). Checked, except against the message that the frame belongs to.
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) opcode: OpCode,
    pub(super) length: u64,
    pub(super) mask: [u8; 4],
}

impl Header {
    /// Parses the header at the start of `bytes` and returns it with its size; `None` while it is incomplete. A
    /// violation in the first two bytes is reported without waiting for more.
    fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Violation> {
        let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
        let fin = first & 0x80 != 0;
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
            OpCode::Control(_) if !fin => return Err(Violation::FragmentedControl),
            OpCode::Control(_) if usize::from(short) > MAX_CONTROL => return Err(Violation::LongControl),
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
        Ok(Some((Self { fin, opcode, length, mask: *mask }, bytes.len() - rest.len())))
    }
}
