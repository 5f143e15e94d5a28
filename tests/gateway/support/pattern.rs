//! Bytes that encode their position, so that a lost, duplicated or moved byte is detected and located.

use std::sync::LazyLock;

/// A prime, so that no power of two hides a block that was moved or repeated.
const PERIOD: usize = 65_521;

static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..PERIOD).map(|_| next()).collect()
});

/// `length` bytes of the pattern, from position `at` on.
pub(crate) fn pattern(at: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    let mut place = (at % PERIOD as u64) as usize;
    while bytes.len() < length {
        let end = PERIOD.min(place + length - bytes.len());
        bytes.extend_from_slice(&BLOCK[place..end]);
        place = 0;
    }
    bytes
}

/// Compares received bytes with the pattern.
#[derive(Debug, Default)]
pub(crate) struct Check {
    /// How many bytes were right so far.
    pub(crate) at: u64,
}

impl Check {
    /// Starts in the middle of the pattern.
    pub(crate) fn from(at: u64) -> Self {
        Self { at }
    }

    /// Compares the next bytes; fails at the first wrong one.
    #[track_caller]
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let expected = pattern(self.at, bytes.len());
        if bytes != expected {
            let offset = bytes.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(0) as u64;
            panic!("the byte at {} is not the one that was sent", self.at + offset);
        }
        self.at += bytes.len() as u64;
    }
}
