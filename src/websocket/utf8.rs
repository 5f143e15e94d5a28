//! UTF-8 validation of a stream that may be split at any byte (RFC 6455 §8.1).

/// The bytes are not valid UTF-8, whatever follows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("text is not UTF-8")]
pub(crate) struct InvalidUtf8;

/// Validates text piece by piece. Buffers only the bytes, at most 3, of a code point that a split left incomplete.
#[derive(Debug, Default)]
pub(crate) struct Utf8Stream {
    tail: [u8; 4],
    len: u8,
}

impl Utf8Stream {
    /// Validates the next piece.
    ///
    /// # Errors
    /// The piece, with the incomplete code point before it, is not UTF-8.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), InvalidUtf8> {
        let after_tail = self.complete_tail(piece)?;
        match str::from_utf8(after_tail) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_none() => {
                self.store_tail(&after_tail[error.valid_up_to()..]);
                Ok(())
            }
            Err(_) => Err(InvalidUtf8),
        }
    }

    /// Whether the text so far ends with a complete code point, as a message must.
    pub(crate) fn is_complete(&self) -> bool {
        self.len == 0
    }

    /// The bytes of the incomplete code point at the end. They precede the next piece.
    pub(crate) fn incomplete(&self) -> &[u8] {
        &self.tail[..usize::from(self.len)]
    }

    /// Completes the code point that the previous piece left incomplete; returns what follows it.
    fn complete_tail<'a>(&mut self, piece: &'a [u8]) -> Result<&'a [u8], InvalidUtf8> {
        let mut remaining = piece;
        while !self.is_complete() {
            let Some((&byte, after)) = remaining.split_first() else { break };
            remaining = after;
            self.tail[usize::from(self.len)] = byte;
            self.len += 1;
            match str::from_utf8(self.incomplete()) {
                Ok(_) => self.len = 0,
                // Four bytes are always valid or invalid, so an incomplete tail has space for one more.
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(InvalidUtf8),
            }
        }
        Ok(remaining)
    }

    fn store_tail(&mut self, tail: &[u8]) {
        self.tail[..tail.len()].copy_from_slice(tail);
        self.len = tail.len() as u8;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pieces: &[&[u8]]) -> Result<bool, InvalidUtf8> {
        let mut stream = Utf8Stream::default();
        for piece in pieces {
            stream.push(piece)?;
        }
        Ok(stream.is_complete())
    }

    #[test]
    fn code_points_may_be_split_but_not_left_incomplete() {
        assert_eq!(check(&["€".as_bytes()]), Ok(true));
        assert_eq!(check(&[b"\xe2", b"", b"\x82", b"\xac"]), Ok(true));
        assert_eq!(check(&[b"\xe2\x82"]), Ok(false));
    }

    #[test]
    fn invalid_utf8_is_detected_at_once() {
        for pieces in [&[b"\xff".as_slice()][..], &[b"\xe2", b"\x28"], &[b"\xed", b"\xa0"], &[b"\xc0"]] {
            assert_eq!(check(pieces), Err(InvalidUtf8), "{pieces:?}");
        }
    }

    proptest! {
        #[test]
        fn split_and_unsplit_validation_agree(bytes in prop::collection::vec(any::<u8>(), 0..12), cut in 0_usize..12) {
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(check(&[head, tail]) == Ok(true), str::from_utf8(&bytes).is_ok());
        }

        #[test]
        fn text_is_valid_however_it_is_split(text in "\\PC{0,40}", size in 1_usize..5) {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            prop_assert_eq!(check(&pieces), Ok(true));
        }
    }
}
