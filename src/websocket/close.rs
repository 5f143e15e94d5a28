//! Close frames: which codes may travel, and how a body is read and written (RFC 6455 §5.5.1, §7.4).

use tungstenite::protocol::frame::coding::CloseCode;

use super::Violation;

/// The longest reason a Close frame can carry: a control payload of 125 bytes less the code.
pub(crate) const MAX_CLOSE_REASON: usize = 123;

/// The body of a Close frame. Without a code the body is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct CloseFrame {
    /// The status code, if one was given.
    pub code: Option<u16>,
    /// The reason, for people. Empty without a code.
    pub reason: String,
}

impl CloseFrame {
    /// A Close frame with this code and reason. A reason over 123 bytes is cut at a character boundary.
    pub(crate) fn new(code: u16, reason: &str) -> Self {
        Self { code: Some(code), reason: reason[..reason.floor_char_boundary(MAX_CLOSE_REASON)].to_owned() }
    }

    /// The body as it travels.
    pub(crate) fn body(&self) -> Vec<u8> {
        let Some(code) = self.code else { return Vec::new() };
        let mut body = Vec::with_capacity(2 + self.reason.len());
        body.extend_from_slice(&code.to_be_bytes());
        body.extend_from_slice(self.reason.as_bytes());
        body
    }

    /// Reads the body of a client's Close frame.
    ///
    /// # Errors
    /// A body of one byte, a code that must not travel, or a reason that is not UTF-8.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Violation> {
        let Some((code, reason)) = body.split_first_chunk::<2>() else {
            return if body.is_empty() { Ok(Self::default()) } else { Err(Violation::CloseBody) };
        };
        let code = u16::from_be_bytes(*code);
        if !may_travel(code) {
            return Err(Violation::CloseCode(code));
        }
        let reason = str::from_utf8(reason).map_err(|_| Violation::CloseReason)?;
        Ok(Self { code: Some(code), reason: reason.to_owned() })
    }
}

/// Whether an endpoint may put this code into a Close frame (RFC 6455 §7.4.2 and the IANA registry).
fn may_travel(code: u16) -> bool {
    // 1014 (bad gateway) was registered after the crate's list was made.
    code == 1014 || CloseCode::from(code).is_allowed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_that_may_travel_are_accepted() {
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999] {
            let parsed = CloseFrame::parse(&CloseFrame::new(code, "bye").body());
            assert_eq!(parsed, Ok(CloseFrame::new(code, "bye")));
        }
        for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535_u16] {
            assert_eq!(CloseFrame::parse(&code.to_be_bytes()), Err(Violation::CloseCode(code)));
        }
    }

    #[test]
    fn a_body_is_empty_or_starts_with_a_whole_code() {
        assert_eq!(CloseFrame::parse(b""), Ok(CloseFrame::default()));
        assert_eq!(CloseFrame::parse(b"\x03"), Err(Violation::CloseBody));
        assert_eq!(CloseFrame::parse(b"\x03\xe8\xff\xfe"), Err(Violation::CloseReason));
        assert!(CloseFrame::default().body().is_empty());
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let frame = CloseFrame::new(1011, &"ä".repeat(100));
        assert_eq!(frame.reason.len(), 122);
        assert!(frame.body().len() <= 125);
    }
}
