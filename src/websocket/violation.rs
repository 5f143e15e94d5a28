//! The ways in which a client can violate the protocol.

use crate::outcome::Reason;

/// A violation of RFC 6455 by a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// §5.1: a client must mask every frame.
    #[error("frame is not masked")]
    Unmasked,
    /// §5.2: no extension was negotiated.
    #[error("reserved bit is set")]
    ReservedBit,
    /// §5.2: opcodes 3-7 and 11-15.
    #[error("opcode {0} is reserved")]
    ReservedOpcode(u8),
    /// §5.5: a control frame is final.
    #[error("control frame is fragmented")]
    FragmentedControl,
    /// §5.5: a control payload is at most 125 bytes.
    #[error("control frame is longer than 125 bytes")]
    LongControl,
    /// §5.4: nothing to continue.
    #[error("continuation without a message")]
    StrayContinuation,
    /// §5.4: the last message is not finished.
    #[error("new message inside an unfinished one")]
    UnfinishedMessage,
    /// §5.2: the shortest form of a length must be used.
    #[error("length is not in its shortest form")]
    LengthNotMinimal,
    /// §5.2: the top bit of a 64-bit length is 0.
    #[error("length has its top bit set")]
    LengthTooLarge,
    /// §5.5.1: a body starts with a 2-byte code.
    #[error("close body of one byte")]
    CloseBody,
    /// §7.4: an endpoint must not send this code.
    #[error("close code {0} must not be sent")]
    CloseCode(u16),
    /// §5.5.1: a reason is UTF-8.
    #[error("close reason is not UTF-8")]
    CloseReason,
}

impl Violation {
    /// Why a session with this violation ends.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::CloseReason => Reason::InvalidText,
            _ => Reason::ProtocolError,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reason_that_is_not_utf8_ends_a_session_as_invalid_text() {
        assert_eq!(Violation::CloseReason.reason(), Reason::InvalidText);
        for violation in [Violation::Unmasked, Violation::CloseBody, Violation::CloseCode(1005)] {
            assert_eq!(violation.reason(), Reason::ProtocolError);
        }
    }
}
