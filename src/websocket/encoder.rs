//! Frames from the server: one header before a payload, or a whole control frame. Never masked (RFC 6455 §5.1).

use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use super::CloseFrame;

/// The longest header of an unmasked frame, in bytes (RFC 6455 §5.2).
pub(crate) const MAX_HEADER: usize = 10;
/// The longest control payload, in bytes (RFC 6455 §5.5).
const MAX_CONTROL: usize = 125;

/// Writes the header of a final data frame of `len` payload bytes so that it ends where `room` ends: the payload
/// follows in the same buffer. Returns the header's length.
pub(crate) fn data_header(text: bool, len: usize, room: &mut [u8; MAX_HEADER]) -> usize {
    let opcode = OpCode::Data(if text { Data::Text } else { Data::Binary });
    let header = header(opcode);
    let size = header.len(len as u64);
    format(&header, len, &mut room[MAX_HEADER - size..]);
    size
}

/// A whole control frame, ready to be written.
#[derive(Debug)]
pub(crate) struct ControlFrame {
    bytes: [u8; 2 + MAX_CONTROL],
    len: u8,
}

impl ControlFrame {
    /// A Ping. A payload over 125 bytes is cut.
    pub(crate) fn ping(payload: &[u8]) -> Self {
        Self::new(Control::Ping, payload)
    }

    /// The Pong that answers a Ping with this payload.
    pub(crate) fn pong(payload: &[u8]) -> Self {
        Self::new(Control::Pong, payload)
    }

    /// A Close.
    pub(crate) fn close(frame: &CloseFrame) -> Self {
        Self::new(Control::Close, &frame.body())
    }

    /// The frame as it travels.
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

fn header(opcode: OpCode) -> FrameHeader {
    FrameHeader { is_final: true, opcode, mask: None, ..FrameHeader::default() }
}

/// Writes `header` into exactly the room it needs.
fn format(header: &FrameHeader, len: usize, mut room: &mut [u8]) {
    let written = header.format(len as u64, &mut room);
    debug_assert!(written.is_ok() && room.is_empty(), "the room is as long as the header says");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_header_ends_where_the_payload_begins() {
        for (len, expected) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_535, &[0x82, 126, 0xff, 0xff]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut room = [0xee; MAX_HEADER];
            let size = data_header(false, len, &mut room);
            assert_eq!(&room[MAX_HEADER - size..], expected);
        }
        let mut room = [0; MAX_HEADER];
        data_header(true, 1, &mut room);
        assert_eq!(room[8..], [0x81, 1]);
    }

    #[test]
    fn control_frames_are_whole() {
        assert_eq!(ControlFrame::pong(b"hi").as_bytes(), b"\x8a\x02hi");
        assert_eq!(ControlFrame::ping(b"").as_bytes(), b"\x89\x00");
        assert_eq!(ControlFrame::close(&CloseFrame::new(1001, "gone")).as_bytes(), b"\x88\x06\x03\xe9gone");
        assert_eq!(ControlFrame::ping(&[0; 300]).as_bytes().len(), 127);
    }
}
