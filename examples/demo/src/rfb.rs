//! The RFB 3.8 messages: parses a viewer's, writes the desktop's (RFC 6143).
//!
//! Owns the layout of every message the demo uses. Knows nothing of sockets or pictures: the parser gets the bytes received
//! so far and returns a message, "not enough yet" or an error. Invariant: no input panics, and no length or count that a
//! viewer sends is allocated.

use crate::pixels::{PixelFormat, PixelFormatError};
use thiserror::Error;

/// ProtocolVersion, the first message of either side (§7.1.1).
pub(crate) const GREETING: &[u8; 12] = b"RFB 003.008\n";
/// Security type "None" (§7.2.1).
pub(crate) const SECURITY_NONE: u8 = 1;
/// The longest clipboard text a viewer may send, in bytes. It is discarded, but not for hours.
pub(crate) const MAX_CUT_TEXT: u32 = 1 << 20;

/// Why the session ends.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum RfbError {
    #[error("the first bytes are not an RFB version: {0:?}")]
    NotRfb(String),
    #[error("a viewer cannot send RFB message type {0}")]
    UnknownMessage(u8),
    #[error("a clipboard text of {0} bytes; this desktop accepts at most {MAX_CUT_TEXT}")]
    CutText(u32),
    #[error("pixel format refused: {0}")]
    PixelFormat(#[from] PixelFormatError),
}

/// The version a viewer chose. RFC 6143 names three; all other minor versions behave as 3.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// The server chooses the security type and sends it in four bytes.
    V3_3,
    /// The viewer chooses from a list; no SecurityResult follows "None".
    V3_7,
    /// As 3.7, with a SecurityResult after every security type.
    V3_8,
}

impl Version {
    /// Reads the viewer's ProtocolVersion.
    pub(crate) fn parse(line: &[u8; 12]) -> Result<Self, RfbError> {
        let minor = match line {
            [b'R', b'F', b'B', b' ', b'0', b'0', b'3', b'.', minor @ .., b'\n'] => decimal(minor),
            _ => None,
        };
        match minor {
            Some(8..) => Ok(Self::V3_8),
            Some(7) => Ok(Self::V3_7),
            Some(_) => Ok(Self::V3_3),
            None => Err(RfbError::NotRfb(String::from_utf8_lossy(line).into_owned())),
        }
    }
}

fn decimal(digits: &[u8]) -> Option<u32> {
    digits
        .iter()
        .try_fold(0_u32, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u32::from(digit - b'0')))
}

/// A rectangle of the picture, in pixels, in the order of the wire format (§7.5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rectangle {
    pub(crate) x: u16,
    pub(crate) y: u16,
    pub(crate) width: u16,
    pub(crate) height: u16,
}

/// The messages of a viewer after the handshake (§7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientMessage {
    SetPixelFormat(PixelFormat),
    /// Ignored: Raw is always allowed, and this desktop sends nothing else.
    SetEncodings {
        count: u16,
    },
    UpdateRequest {
        incremental: bool,
        area: Rectangle,
    },
    Key {
        down: bool,
        keysym: u32,
    },
    Pointer {
        /// Bit 0 is the left button, bit 1 the middle, bit 2 the right.
        buttons: u8,
        x: u16,
        y: u16,
    },
    CutText {
        length: u32,
    },
}

impl ClientMessage {
    /// How many bytes after this message to discard.
    pub(crate) fn discards(&self) -> u64 {
        match *self {
            Self::SetEncodings { count } => 4 * u64::from(count),
            Self::CutText { length } => u64::from(length),
            _ => 0,
        }
    }

    /// Parses one message at the start of `arrived`: the message and its length, or `None` if it is incomplete. The
    /// longest message has 20 bytes.
    pub(crate) fn parse(arrived: &[u8]) -> Result<Option<(Self, usize)>, RfbError> {
        let Some(kind) = arrived.first() else { return Ok(None) };
        let message = match kind {
            0 => match arrived.first_chunk::<20>() {
                Some([_, _, _, _, wire @ ..]) => (Self::SetPixelFormat(PixelFormat::parse(wire)?), 20),
                None => return Ok(None),
            },
            2 => match arrived.first_chunk::<4>() {
                Some(&[_, _, c1, c0]) => (Self::SetEncodings { count: u16::from_be_bytes([c1, c0]) }, 4),
                None => return Ok(None),
            },
            3 => match arrived.first_chunk::<10>() {
                Some(&[_, incremental, x1, x0, y1, y0, w1, w0, h1, h0]) => {
                    let area = Rectangle {
                        x: u16::from_be_bytes([x1, x0]),
                        y: u16::from_be_bytes([y1, y0]),
                        width: u16::from_be_bytes([w1, w0]),
                        height: u16::from_be_bytes([h1, h0]),
                    };
                    (Self::UpdateRequest { incremental: incremental != 0, area }, 10)
                }
                None => return Ok(None),
            },
            4 => match arrived.first_chunk::<8>() {
                Some(&[_, down, _, _, k3, k2, k1, k0]) => {
                    (Self::Key { down: down != 0, keysym: u32::from_be_bytes([k3, k2, k1, k0]) }, 8)
                }
                None => return Ok(None),
            },
            5 => match arrived.first_chunk::<6>() {
                Some(&[_, buttons, x1, x0, y1, y0]) => {
                    let (x, y) = (u16::from_be_bytes([x1, x0]), u16::from_be_bytes([y1, y0]));
                    (Self::Pointer { buttons, x, y }, 6)
                }
                None => return Ok(None),
            },
            6 => match arrived.first_chunk::<8>() {
                Some(&[_, _, _, _, l3, l2, l1, l0]) => {
                    let length = u32::from_be_bytes([l3, l2, l1, l0]);
                    if length > MAX_CUT_TEXT {
                        return Err(RfbError::CutText(length));
                    }
                    (Self::CutText { length }, 8)
                }
                None => return Ok(None),
            },
            &other => return Err(RfbError::UnknownMessage(other)),
        };
        Ok(Some(message))
    }
}

/// ServerInit (§7.3.2).
pub(crate) fn server_init(width: u16, height: u16, name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(24 + name.len());
    out.extend(width.to_be_bytes());
    out.extend(height.to_be_bytes());
    out.extend(PixelFormat::NATIVE.to_wire());
    out.extend(reason(name));
    out
}

/// An RFB string: its length in four bytes, then its bytes. Also the reason of a refusal (§7.1.2).
pub(crate) fn reason(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let mut out = length.to_be_bytes().to_vec();
    out.extend(text.bytes().take(length as usize));
    out
}

/// The head of a FramebufferUpdate (§7.6.1): `rectangles` follow.
pub(crate) fn update_header(rectangles: u16) -> [u8; 4] {
    let [high, low] = rectangles.to_be_bytes();
    [0, 0, high, low]
}

/// The head of one rectangle in Raw encoding (§7.7.1): its pixels follow, row by row.
pub(crate) fn raw_header(area: Rectangle) -> [u8; 12] {
    let [x1, x0] = area.x.to_be_bytes();
    let [y1, y0] = area.y.to_be_bytes();
    let [w1, w0] = area.width.to_be_bytes();
    let [h1, h0] = area.height.to_be_bytes();
    [x1, x0, y1, y0, w1, w0, h1, h0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn minor_versions_map_to_three_versions() {
        let parse = |line: &[u8; 12]| Version::parse(line);
        assert_eq!(parse(b"RFB 003.003\n"), Ok(Version::V3_3));
        assert_eq!(parse(b"RFB 003.005\n"), Ok(Version::V3_3));
        assert_eq!(parse(b"RFB 003.007\n"), Ok(Version::V3_7));
        assert_eq!(parse(b"RFB 003.008\n"), Ok(Version::V3_8));
        assert_eq!(parse(b"RFB 003.889\n"), Ok(Version::V3_8));
        for bad in [
            b"GET / HTTP/1",
            b"RFB 004.001\n",
            b"RFB 003.0x8\n",
            b"RFB 003.008 ",
            b"\0\0\0\0\0\0\0\0\0\0\0\0",
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.starts_with("the first bytes are not an RFB version: "), "{error}");
        }
    }

    #[test]
    fn every_message_is_parsed_as_in_the_rfc() {
        let cases: [(&[u8], ClientMessage, u64); 6] = [
            (
                &[0, 9, 9, 9, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0],
                ClientMessage::SetPixelFormat(PixelFormat::NATIVE),
                0,
            ),
            (&[2, 9, 1, 2], ClientMessage::SetEncodings { count: 258 }, 1032),
            (
                &[3, 1, 0, 1, 0, 2, 2, 128, 1, 144],
                ClientMessage::UpdateRequest {
                    incremental: true,
                    area: Rectangle { x: 1, y: 2, width: 640, height: 400 },
                },
                0,
            ),
            (&[4, 1, 9, 9, 0, 0, 255, 13], ClientMessage::Key { down: true, keysym: 0xff0d }, 0),
            (&[5, 5, 1, 0, 0, 7], ClientMessage::Pointer { buttons: 5, x: 256, y: 7 }, 0),
            (&[6, 9, 9, 9, 0, 0, 1, 0], ClientMessage::CutText { length: 256 }, 256),
        ];
        for (wire, message, discards) in cases {
            assert_eq!(ClientMessage::parse(wire), Ok(Some((message, wire.len()))));
            assert_eq!(message.discards(), discards, "{message:?}");
            for short in 0..wire.len() {
                assert_eq!(
                    ClientMessage::parse(&wire[..short]),
                    Ok(None),
                    "{message:?} cut to {short} bytes"
                );
            }
        }
    }

    #[test]
    fn invalid_messages_are_errors() {
        for kind in [1, 7, 150, 255] {
            let error = ClientMessage::parse(&[kind; 20]).unwrap_err();
            assert_eq!(error, RfbError::UnknownMessage(kind));
        }
        let error = ClientMessage::parse(&[6, 0, 0, 0, 0, 16, 0, 1]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a clipboard text of 1048577 bytes; this desktop accepts at most 1048576"
        );
        let error = ClientMessage::parse(&[0; 20]).unwrap_err();
        assert_eq!(error.to_string(), "pixel format refused: 0 bits per pixel; RFB allows 8, 16 and 32");
    }

    #[test]
    fn server_messages_are_laid_out_as_in_the_rfc() {
        let init = server_init(640, 400, "desk");
        assert_eq!(&init[..4], [2, 128, 1, 144]);
        assert_eq!(&init[4..20], PixelFormat::NATIVE.to_wire());
        assert_eq!(&init[20..], b"\0\0\0\x04desk");
        assert_eq!(update_header(258), [0, 0, 1, 2]);
        let area = Rectangle { x: 1, y: 258, width: 3, height: 4 };
        assert_eq!(raw_header(area), [0, 1, 1, 2, 0, 3, 0, 4, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_overrun(arrived in prop::collection::vec(any::<u8>(), 0..64), kind in 0_u8..8) {
            for bytes in [arrived.clone(), [vec![kind], arrived].concat()] {
                let mut rest = bytes.as_slice();
                while let Ok(Some((message, taken))) = ClientMessage::parse(rest) {
                    prop_assert!(0 < taken && taken <= rest.len());
                    prop_assert!(message.discards() <= u64::from(MAX_CUT_TEXT));
                    rest = &rest[taken..];
                }
            }
        }

        #[test]
        fn any_twelve_bytes_are_a_version_or_an_error(line in any::<[u8; 12]>()) {
            let _ = Version::parse(&line);
        }
    }
}
