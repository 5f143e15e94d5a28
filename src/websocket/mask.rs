//! Masking (RFC 6455 §5.3).

use std::ops::Range;

/// Payload of at least this length is unmasked in place and then moved with one copy, both at memory speed; shorter
/// payload is moved block by block while it is unmasked, which saves the call.
const LONG: usize = 256;

/// Unmasks the payload in `from` and moves it down to `to`, which must not be above `from.start`.
#[inline]
pub(super) fn unmask(bytes: &mut [u8], from: Range<usize>, to: usize, mask: [u8; 4]) {
    // The mask repeated four times, for either byte order.
    let wide = u128::from(u32::from_ne_bytes(mask)) * 0x0000_0001_0000_0001_0000_0001_0000_0001;
    if from.start == to || from.len() >= LONG {
        let (blocks, tail) = bytes[from.clone()].as_chunks_mut::<16>();
        for block in blocks {
            *block = (u128::from_ne_bytes(*block) ^ wide).to_ne_bytes();
        }
        for (byte, mask) in tail.iter_mut().zip(wide.to_ne_bytes()) {
            *byte ^= mask;
        }
        if from.start != to {
            bytes.copy_within(from, to);
        }
        return;
    }
    // Each block is read before it is written at a lower position, so no unread byte is overwritten.
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
        fn payload_is_unmasked_in_place_and_while_moved(
            payload in prop::collection::vec(any::<u8>(), 0..600),
            mask in any::<[u8; 4]>(),
            distance in 0_usize..20,
        ) {
            let expected: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            let mut bytes = [vec![0; distance], payload].concat();
            let (from, end) = (distance, bytes.len());
            unmask(&mut bytes, from..end, 0, mask);
            prop_assert_eq!(&bytes[..expected.len()], &expected);
        }
    }
}
