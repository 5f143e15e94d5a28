//! GCRA, the generic cell rate algorithm (ITU-T I.371 Annex A, "virtual scheduling"): a token bucket whose whole state is
//! one number, the theoretical arrival time (TAT).
//!
//! Owns the arithmetic. Keeps no state, and knows nothing of what is counted, nor of clocks: times are nanoseconds.
//! Invariants: in the long run, no more tokens are taken than `rate` per second; an attempt that finds the bucket empty
//! changes nothing.

use std::num::NonZeroU32;

/// A token bucket that holds `burst` tokens and refills at `rate`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gcra {
    /// Nanoseconds between tokens at exactly `rate`; rounded up, so that `rate` is never exceeded.
    interval: u64,
    /// How many nanoseconds before its theoretical arrival time a token may be taken: the burst tolerance.
    tolerance: u64,
}

impl Gcra {
    /// `rate` is in tokens per second.
    pub(super) fn new(rate: NonZeroU32, burst: NonZeroU32) -> Self {
        let interval = 1_000_000_000_u64.div_ceil(rate.get().into());
        let tolerance = interval.saturating_mul(u64::from(burst.get()) - 1);
        Self { interval, tolerance }
    }

    /// Takes one token at `now`. `tat` is the theoretical arrival time that the last token left: when the bucket is full
    /// again; 0 if none was taken. Returns the new one.
    ///
    /// # Errors
    /// The bucket is empty. In how many nanoseconds there is a token; never 0.
    pub(super) fn take(&self, tat: u64, now: u64) -> Result<u64, u64> {
        let due = tat.max(now);
        match (due - now).saturating_sub(self.tolerance) {
            0 => Ok(due.saturating_add(self.interval)),
            early => Err(early),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn gcra(rate: u32, burst: u32) -> Gcra {
        let some = |number| NonZeroU32::new(number).unwrap();
        Gcra::new(some(rate), some(burst))
    }

    #[test]
    fn a_full_bucket_has_burst_tokens_and_then_one_for_each_interval() {
        let gcra = gcra(4, 3);
        let mut tat = 0;
        for _ in 0..3 {
            tat = gcra.take(tat, SECOND).unwrap();
        }
        assert_eq!(tat, SECOND + 3 * SECOND / 4, "when the bucket is full again");
        assert_eq!(gcra.take(tat, SECOND), Err(SECOND / 4));
        assert_eq!(gcra.take(tat, SECOND + SECOND / 4 - 1), Err(1));
        assert_eq!(gcra.take(tat, SECOND + SECOND / 4), Ok(tat + SECOND / 4));
    }

    #[test]
    fn a_bucket_is_never_fuller_than_burst() {
        let gcra = gcra(4, 2);
        let (mut tat, later) = (gcra.take(0, 0).unwrap(), 3600 * SECOND);
        for _ in 0..2 {
            tat = gcra.take(tat, later).unwrap();
        }
        assert_eq!(gcra.take(tat, later), Err(SECOND / 4));
    }

    #[test]
    fn an_interval_that_is_no_whole_number_is_rounded_up() {
        assert_eq!(gcra(3, 1).take(0, 0), Ok(333_333_334));
        assert_eq!(gcra(u32::MAX, 1).take(0, 0), Ok(1));
    }

    #[test]
    fn extreme_values_saturate() {
        assert_eq!(gcra(1, 1).take(u64::MAX, u64::MAX), Ok(u64::MAX));
        assert_eq!(gcra(1, 1).take(u64::MAX, 0), Err(u64::MAX));
        let most = u64::from(u32::MAX - 1) * SECOND;
        assert_eq!(gcra(1, u32::MAX).take(most, 0), Ok(most + SECOND));
        assert_eq!(gcra(1, u32::MAX).take(most + 1, 0), Err(1));
    }

    proptest! {
        #[test]
        fn no_more_tokens_are_taken_than_burst_and_rate_allow(
            rate in 1_u32..2_000,
            burst in 1_u32..50,
            gaps in prop::collection::vec(0_u64..SECOND / 20, 1..300),
        ) {
            let gcra = gcra(rate, burst);
            let (mut tat, mut now, mut taken) = (0, 0, 0_u64);
            for gap in gaps {
                now += gap;
                match gcra.take(tat, now) {
                    Ok(new) => (tat, taken) = (new, taken + 1),
                    Err(early) => {
                        prop_assert_eq!(gcra.take(tat, now + early - 1), Err(1));
                        prop_assert!(gcra.take(tat, now + early).is_ok());
                    }
                }
                let refilled = u128::from(now) * u128::from(rate) / u128::from(SECOND);
                prop_assert!(u128::from(taken) <= u128::from(burst) + refilled, "{taken} tokens at {now}");
            }
        }
    }
}
