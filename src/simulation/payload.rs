//! The payload of a simulated session: every byte is determined by its stream and its offset, so that a receiver sees
//! at once when one is lost, repeated, changed or of another stream.

/// The bytes of the number that a stream begins with.
const NUMBER: u64 = 4;

/// The byte at `offset` of stream `number`.
pub(super) fn byte(number: u32, offset: u64) -> u8 {
    if offset < NUMBER {
        return number.to_be_bytes()[offset as usize];
    }
    let mixed = (offset ^ (u64::from(number) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// `len` bytes from `offset` on.
pub(super) fn bytes(number: u32, offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64).map(|offset| byte(number, offset)).collect()
}

/// What has been received of one stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Received {
    /// How many bytes.
    pub(super) len: u64,
    start: [u8; NUMBER as usize],
    /// The first byte that is not the stream's.
    pub(super) wrong: Option<String>,
}

impl Received {
    /// Of which stream, if enough was received to tell.
    pub(super) fn number(&self) -> Option<u32> {
        (self.len >= NUMBER).then(|| u32::from_be_bytes(self.start))
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        for &received in bytes {
            if self.len < NUMBER {
                self.start[self.len as usize] = received;
            } else {
                let number = u32::from_be_bytes(self.start);
                let expected = byte(number, self.len);
                if received != expected && self.wrong.is_none() {
                    let len = self.len;
                    self.wrong = Some(format!("byte {len} of stream {number} is {received}, not {expected}"));
                }
            }
            self.len += 1;
        }
    }
}
