//! Encoding of server frames: the header of a data frame, or a whole control frame. Never masked (RFC 6455 §5.1).

use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use super::{CloseFrame, header::MAX_CONTROL};

/// The longest header of an unmasked frame, in bytes (RFC 6455 §5.2).
pub(crate) const MAX_HEADER: usize = 10;

/// Writes the header of a final data frame with `len` payload bytes to the end of `buffer`, directly before the
/// payload. Returns the length of the header. `buffer` must be long enough for it; [`MAX_HEADER`] bytes always are.
pub(crate) fn data_header(text: bool, len: usize, buffer: &mut [u8]) -> usize {
    let opcode = OpCode::Data(if text { Data::Text } else { Data::Binary });
    let header = header(opcode);
    let size = header.len(len as u64);
    let start = buffer.len() - size;
    format(&header, len, &mut buffer[start..]);
    size
}

/// A complete control frame, ready to be written.
#[derive(Debug)]
pub(crate) struct ControlFrame {
    bytes: [u8; 2 + MAX_CONTROL],
    len: u8,
}

impl ControlFrame {
    /// A Ping. A payload over 125 bytes is truncated.
    pub(crate) fn ping(payload: &[u8]) -> Self {
        Self::new(Control::Ping, payload)
    }

    /// The Pong that answers a Ping with this payload.
    pub(crate) fn pong(payload: &[u8]) -> Self {
        Self::new(Control::Pong, payload)
    }

    pub(crate) fn close(frame: &CloseFrame) -> Self {
        Self::new(Control::Close, &frame.body())
    }

    /// The frame as sent on the wire.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn new(opcode: Control, payload: &[u8]) -> Self {
        let payload = &payload[..payload.len().min(MAX_CONTROL)];
        let mut bytes = [0; 2 + MAX_CONTROL];
        format(&header(OpCode::Control(opcode)), payload.len(), &mut bytes[..2]);
        bytes[2..2 + payload.len()].copy_from_slice(payload);
        Self { bytes, len: 2 + payload.len() as u8 }
    }
}

/// The default is final and not masked.
fn header(opcode: OpCode) -> FrameHeader {
    FrameHeader { opcode, ..FrameHeader::default() }
}

/// Writes `header` to `buffer`, which has exactly its length.
fn format(header: &FrameHeader, len: usize, mut buffer: &mut [u8]) {
    let written = header.format(len as u64, &mut buffer);
    debug_assert!(written.is_ok() && buffer.is_empty(), "the buffer has the length of the header");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_header_ends_at_the_payload() {
        for (len, expected) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_535, &[0x82, 126, 0xff, 0xff]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut buffer = [0xee; MAX_HEADER];
            let size = data_header(false, len, &mut buffer);
            assert_eq!(&buffer[MAX_HEADER - size..], expected);
        }
        let mut buffer = [0; MAX_HEADER];
        data_header(true, 1, &mut buffer);
        assert_eq!(buffer[8..], [0x81, 1]);
    }

    #[test]
    fn control_frames_are_complete() {
        assert_eq!(ControlFrame::pong(b"hi").as_bytes(), b"\x8a\x02hi");
        assert_eq!(ControlFrame::ping(b"").as_bytes(), b"\x89\x00");
        assert_eq!(ControlFrame::close(&CloseFrame::new(1001, "gone")).as_bytes(), b"\x88\x06\x03\xe9gone");
        assert_eq!(ControlFrame::ping(&[0; 300]).as_bytes().len(), 127);
    }
}
