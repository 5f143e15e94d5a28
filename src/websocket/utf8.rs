//! UTF-8 over a stream that is cut anywhere (RFC 6455 §8.1).

/// Bytes that are not, and cannot become, UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("text is not UTF-8")]
pub(crate) struct InvalidUtf8;

/// Checks text piece by piece. Keeps at most the 3 bytes of a code point that a cut left unfinished.
#[derive(Debug, Default)]
pub(crate) struct Utf8Stream {
    tail: [u8; 4],
    len: u8,
}

impl Utf8Stream {
    /// Takes the next piece.
    ///
    /// # Errors
    /// The piece continues or contains something that is not UTF-8.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), InvalidUtf8> {
        let rest = self.finish_tail(piece)?;
        match str::from_utf8(rest) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_none() => {
                self.keep(&rest[error.valid_up_to()..]);
                Ok(())
            }
            Err(_) => Err(InvalidUtf8),
        }
    }

    /// Whether the text so far ends between two code points, as a message must.
    pub(crate) fn is_complete(&self) -> bool {
        self.len == 0
    }

    /// The bytes of the unfinished code point, to be sent before the next piece.
    pub(crate) fn unfinished(&self) -> &[u8] {
        &self.tail[..usize::from(self.len)]
    }

    /// Completes a code point that the last piece left unfinished; returns what follows it.
    fn finish_tail<'a>(&mut self, piece: &'a [u8]) -> Result<&'a [u8], InvalidUtf8> {
        let mut rest = piece;
        while self.len > 0 {
            let Some((&byte, after)) = rest.split_first() else { break };
            rest = after;
            self.tail[usize::from(self.len)] = byte;
            self.len += 1;
            match str::from_utf8(self.unfinished()) {
                Ok(_) => self.len = 0,
                // Four bytes are always decided, so an undecided tail leaves room for one more.
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(InvalidUtf8),
            }
        }
        Ok(rest)
    }

    fn keep(&mut self, tail: &[u8]) {
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
    fn a_code_point_may_be_cut_anywhere_but_not_left_unfinished() {
        assert_eq!(check(&["€".as_bytes()]), Ok(true));
        assert_eq!(check(&[b"\xe2", b"", b"\x82", b"\xac"]), Ok(true));
        assert_eq!(check(&[b"\xe2\x82"]), Ok(false));
    }

    #[test]
    fn what_cannot_become_text_is_refused_at_once() {
        for pieces in [&[b"\xff".as_slice()][..], &[b"\xe2", b"\x28"], &[b"\xed", b"\xa0"], &[b"\xc0"]] {
            assert_eq!(check(pieces), Err(InvalidUtf8), "{pieces:?}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..12), cut in 0_usize..12) {
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(check(&[head, tail]) == Ok(true), str::from_utf8(&bytes).is_ok());
        }

        #[test]
        fn text_passes_however_it_is_cut(text in "\\PC{0,40}", size in 1_usize..5) {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            prop_assert_eq!(check(&pieces), Ok(true));
        }
    }
}
