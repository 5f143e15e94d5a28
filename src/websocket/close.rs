//! Close frames: the codes that may be sent, and how a body is parsed and written (RFC 6455 §5.5.1, §7.4).

use tungstenite::protocol::frame::coding::CloseCode;

use super::{Violation, header::MAX_CONTROL};

/// The longest reason of a Close frame: 123 bytes, a control payload less the code (RFC 6455 §5.5).
pub(crate) const MAX_CLOSE_REASON: usize = MAX_CONTROL - size_of::<u16>();

/// The body of a Close frame; empty if there is no code.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct CloseFrame {
    /// The status code, if there is one.
    pub code: Option<u16>,
    /// The human-readable reason; empty if there is no code.
    pub reason: String,
}

impl CloseFrame {
    /// A Close frame with this code and reason. A longer reason than [`MAX_CLOSE_REASON`] is truncated at a
    /// character boundary.
    pub(crate) fn new(code: u16, reason: &str) -> Self {
        Self { code: Some(code), reason: reason[..reason.floor_char_boundary(MAX_CLOSE_REASON)].to_owned() }
    }

    /// The body as sent on the wire.
    pub(crate) fn body(&self) -> Vec<u8> {
        let Some(code) = self.code else { return Vec::new() };
        let mut body = Vec::with_capacity(2 + self.reason.len());
        body.extend_from_slice(&code.to_be_bytes());
        body.extend_from_slice(self.reason.as_bytes());
        body
    }

    /// Parses the body of a client's Close frame.
    ///
    /// # Errors
    /// A body of one byte, a code that must not be sent, or a reason that is not UTF-8.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Violation> {
        let Some((code, reason)) = body.split_first_chunk::<2>() else {
            return if body.is_empty() { Ok(Self::default()) } else { Err(Violation::CloseBody) };
        };
        let code = u16::from_be_bytes(*code);
        if !may_be_sent(code) {
            return Err(Violation::CloseCode(code));
        }
        let reason = str::from_utf8(reason).map_err(|_| Violation::CloseReason)?;
        Ok(Self { code: Some(code), reason: reason.to_owned() })
    }
}

/// Whether an endpoint may send this code in a Close frame (RFC 6455 §7.4.2 and the IANA registry).
fn may_be_sent(code: u16) -> bool {
    // 1014 (bad gateway) was registered with IANA later and is missing in tungstenite's list.
    code == 1014 || CloseCode::from(code).is_allowed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Reason;

    #[test]
    fn only_codes_that_may_be_sent_are_accepted() {
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999] {
            let parsed = CloseFrame::parse(&CloseFrame::new(code, "bye").body());
            assert_eq!(parsed, Ok(CloseFrame::new(code, "bye")));
        }
        for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535_u16] {
            assert_eq!(CloseFrame::parse(&code.to_be_bytes()), Err(Violation::CloseCode(code)));
        }
    }

    #[test]
    fn no_reason_has_a_code_that_must_not_be_sent() {
        for code in Reason::ALL.iter().filter_map(|reason| reason.close_code()) {
            assert!(may_be_sent(code), "{code}");
        }
    }

    #[test]
    fn body_is_empty_or_starts_with_a_complete_code() {
        assert_eq!(CloseFrame::parse(b""), Ok(CloseFrame::default()));
        assert_eq!(CloseFrame::parse(b"\x03"), Err(Violation::CloseBody));
        assert_eq!(CloseFrame::parse(b"\x03\xe8\xff\xfe"), Err(Violation::CloseReason));
        assert!(CloseFrame::default().body().is_empty());
    }

    #[test]
    fn long_reason_is_truncated_between_characters() {
        let frame = CloseFrame::new(1011, &"ä".repeat(100));
        assert_eq!(frame.reason.len(), 122);
        assert!(frame.body().len() <= 125);
    }
}
