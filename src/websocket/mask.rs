//! Masking (RFC 6455 §5.3).

use std::ops::Range;

/// Payload at least this long is unmasked and then moved, both at the speed of memory; shorter payload is moved block by
/// block on the way, without a call.
const LONG: usize = 256;

/// Unmasks the payload in `from` to `to`, which is not above it. Masking and unmasking are the same (RFC 6455 §5.3).
#[inline]
pub(super) fn unmask(bytes: &mut [u8], from: Range<usize>, to: usize, mask: [u8; 4]) {
    // Four times the mask, whatever the byte order.
    let wide = u128::from(u32::from_ne_bytes(mask)) * 0x0000_0001_0000_0001_0000_0001_0000_0001;
    if from.start == to || from.len() >= LONG {
        let (blocks, rest) = bytes[from.clone()].as_chunks_mut::<16>();
        for block in blocks {
            *block = (u128::from_ne_bytes(*block) ^ wide).to_ne_bytes();
        }
        for (byte, mask) in rest.iter_mut().zip(wide.to_ne_bytes()) {
            *byte ^= mask;
        }
        if from.start != to {
            bytes.copy_within(from, to);
        }
        return;
    }
    // A block is read before it is written below where it lay, so nothing unread is overwritten.
    let (mut at, mut to) = (from.start, to);
    while let Some(block) = bytes[at..from.end].first_chunk() {
        let block = (u128::from_ne_bytes(*block) ^ wide).to_ne_bytes();
        bytes[to..to + 16].copy_from_slice(&block);
        at += 16;
        to += 16;
    }
    for (at, mask) in (at..from.end).zip(wide.to_ne_bytes()) {
        bytes[to] = bytes[at] ^ mask;
        to += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn short_and_long_payload_is_unmasked_where_it_is_and_on_the_move(
            payload in prop::collection::vec(any::<u8>(), 0..600),
            mask in any::<[u8; 4]>(),
            down in 0_usize..20,
        ) {
            let expected: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            let mut bytes = [vec![0; down], payload].concat();
            let (from, end) = (down, bytes.len());
            unmask(&mut bytes, from..end, 0, mask);
            prop_assert_eq!(&bytes[..expected.len()], &expected);
        }
    }
}
