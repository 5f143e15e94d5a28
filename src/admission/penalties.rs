//! Penalties for repeated refusals: the pure rule for one source.
//!
//! Owns when a penalty begins and how long it is. Knows nothing of addresses, tables and clocks (`now` is an argument), nor of
//! which refusals count. Invariants: a source without refusals has no penalty; no penalty is longer than `max`; a further
//! refusal never shortens one; the state expires by itself.
//!
//! A token bucket of `rate` and `burst` tolerates refusals, because healthy clients cause some too, and hundreds of them can
//! share an address. The refusal that finds the bucket empty begins a penalty of `min`. A penalty that follows an earlier one
//! is twice as long, less twice the time that has passed between them, up to `max`; so a source that is quiet for as long as
//! its last penalty was begins with `min` again.

use std::{num::NonZeroU32, time::Duration};

use super::{gcra::Gcra, table::Row};

/// The penalties for repeated refusals of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Penalties {
    /// How many refusals per second are tolerated, on average: the rate at which the token bucket refills.
    pub rate: NonZeroU32,
    /// How many are tolerated at once after a quiet period: the size of the token bucket.
    pub burst: NonZeroU32,
    /// The first penalty.
    pub min: Duration,
    /// The longest penalty. Not shorter than `min`.
    pub max: Duration,
}

/// The same, with the durations in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct PenaltyRule {
    tolerated: Gcra,
    min: u64,
    max: u64,
}

impl PenaltyRule {
    pub(super) fn new(penalties: Penalties) -> Self {
        let Penalties { rate, burst, min, max } = penalties;
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let min = nanos(min);
        Self { tolerated: Gcra::new(rate, burst), min, max: nanos(max).max(min) }
    }
}

/// The refusals of one source. Times are nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PenaltyState {
    /// When the token bucket is full again.
    full_at: u64,
    /// When the last penalty ends.
    penalty_until: u64,
    /// The length of the last penalty.
    length: u64,
}

impl PenaltyState {
    /// What is left of a penalty.
    pub(super) fn remaining(&self, now: u64) -> Option<Duration> {
        let left = self.penalty_until.saturating_sub(now);
        (left > 0).then(|| Duration::from_nanos(left))
    }

    /// Counts one refusal. Returns the length of a penalty that begins now.
    pub(super) fn count_refusal(&mut self, now: u64, rule: &PenaltyRule) -> Option<Duration> {
        // An empty bucket stays empty: what comes beyond it is not remembered for longer.
        if let Ok(full_at) = rule.tolerated.take(self.full_at, now) {
            self.full_at = full_at;
            return None;
        }
        // A refusal during a penalty is that of a connection which began before it.
        if self.remaining(now).is_some() {
            return None;
        }
        let since = now - self.penalty_until;
        let remembered = self.length.saturating_sub(since);
        self.length = remembered.saturating_mul(2).clamp(rule.min, rule.max);
        self.penalty_until = now.saturating_add(self.length);
        Some(Duration::from_nanos(self.length))
    }
}

impl Row for PenaltyState {
    fn is_in_use(&self) -> bool {
        false
    }

    fn expiry(&self) -> u64 {
        self.full_at.max(self.penalty_until.saturating_add(self.length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rule(rate: u32, burst: u32, min: u64, max: u64) -> PenaltyRule {
        let some = |n| NonZeroU32::new(n).unwrap();
        PenaltyRule::new(Penalties {
            rate: some(rate),
            burst: some(burst),
            min: Duration::from_secs(min),
            max: Duration::from_secs(max),
        })
    }

    /// Refusals at `now`, until a penalty begins. Returns its length in seconds.
    fn penalty(state: &mut PenaltyState, now: u64, rule: &PenaltyRule) -> u64 {
        let penalty = (0..=1_000).find_map(|_| state.count_refusal(now, rule));
        penalty.expect("a penalty within a thousand refusals").as_secs()
    }

    #[test]
    fn as_many_refusals_as_the_bucket_holds_are_tolerated() {
        let rule = rule(2, 10, 10, 600);
        let mut state = PenaltyState::default();
        for _ in 0..10 {
            assert_eq!(state.count_refusal(SECOND, &rule), None);
        }
        assert_eq!(state.remaining(SECOND), None);
        assert_eq!(state.count_refusal(SECOND, &rule), Some(Duration::from_secs(10)));
        assert_eq!(state.remaining(SECOND), Some(Duration::from_secs(10)));
        assert_eq!(state.remaining(11 * SECOND), None);
    }

    #[test]
    fn refusals_at_the_tolerated_rate_have_no_penalty() {
        let rule = rule(2, 10, 10, 600);
        let mut state = PenaltyState::default();
        for n in 0..100_000 {
            assert_eq!(state.count_refusal(n * SECOND / 2, &rule), None, "refusal {n}");
        }
    }

    #[test]
    fn each_penalty_is_twice_as_long_as_the_last_up_to_the_maximum() {
        let rule = rule(1, 5, 10, 100);
        let (mut state, mut now, mut lengths) = (PenaltyState::default(), SECOND, Vec::new());
        for _ in 0..6 {
            let length = penalty(&mut state, now, &rule);
            lengths.push(length);
            now += length * SECOND;
            assert_eq!(state.remaining(now), None);
        }
        assert_eq!(lengths, [10, 20, 40, 80, 100, 100]);
    }

    #[test]
    fn a_quiet_source_begins_with_the_shortest_penalty_again() {
        let rule = rule(1, 5, 10, 100);
        let mut state = PenaltyState::default();
        let mut now = SECOND;
        for length in [10, 20, 40] {
            assert_eq!(penalty(&mut state, now, &rule), length);
            now += length * SECOND;
        }
        let mut later = state;
        // Half of the last penalty's length has passed: half of it is forgotten.
        assert_eq!(penalty(&mut state, now + 20 * SECOND, &rule), 40);
        assert_eq!(penalty(&mut later, now + 40 * SECOND, &rule), 10);
    }

    #[test]
    fn refusals_of_connections_that_began_before_a_penalty_do_not_lengthen_it() {
        let rule = rule(1, 1, 10, 100);
        let mut state = PenaltyState::default();
        assert_eq!(penalty(&mut state, SECOND, &rule), 10);
        for _ in 0..1_000 {
            assert_eq!(state.count_refusal(5 * SECOND, &rule), None);
        }
        assert_eq!(state.remaining(5 * SECOND), Some(Duration::from_secs(6)));
        assert_eq!(penalty(&mut state, 11 * SECOND, &rule), 20);
    }

    #[test]
    fn extreme_values_saturate() {
        let rule = rule(1, u32::MAX, u64::MAX, u64::MAX);
        let mut state = PenaltyState { full_at: u64::MAX, ..PenaltyState::default() };
        assert!(state.count_refusal(1, &rule).is_some());
        assert_eq!(state.penalty_until, u64::MAX);
        assert_eq!(state.count_refusal(u64::MAX, &rule), None);
        assert_eq!(state.expiry(), u64::MAX);
    }

    proptest! {
        #[test]
        fn penalties_are_bounded_grow_with_refusals_and_decay(
            rate in 1_u32..50,
            burst in 1_u32..40,
            min in 1_u64..30,
            factor in 1_u64..40,
            gaps in prop::collection::vec(prop_oneof![0_u64..SECOND / 4, 0_u64..60 * SECOND], 1..400),
        ) {
            let max = min * factor;
            let rule = rule(rate, burst, min, max);
            let (mut state, mut now) = (PenaltyState::default(), SECOND);
            for gap in gaps {
                now += gap;
                let before = state;
                let penalty = state.count_refusal(now, &rule);
                prop_assert!(state.remaining(now) >= before.remaining(now), "a refusal shortened a penalty");
                prop_assert!(state.remaining(now) <= Some(Duration::from_secs(max)));
                prop_assert!(state.expiry() >= before.expiry(), "a refusal is forgotten sooner");
                // The bucket and twice the longest penalty.
                let longest = (u64::from(burst) * SECOND.div_ceil(rate.into())).max(2 * max * SECOND);
                prop_assert!(state.expiry() <= now + longest, "{state:?} at {now} is kept too long");
                if let Some(penalty) = penalty {
                    prop_assert!(penalty >= Duration::from_secs(min) && penalty <= Duration::from_secs(max));
                    prop_assert_eq!(before.remaining(now), None);
                    prop_assert_eq!(state.remaining(now), Some(penalty));
                }
                prop_assert_eq!(state.remaining(state.expiry()), None);
            }
            // Once it has expired it is equivalent to the default.
            let at = state.expiry();
            let (mut fresh, mut expired) = (PenaltyState::default(), state);
            for _ in 0..=burst {
                prop_assert_eq!(expired.count_refusal(at, &rule), fresh.count_refusal(at, &rule));
                prop_assert_eq!(expired.remaining(at), fresh.remaining(at));
            }
        }

        #[test]
        fn more_refusals_never_begin_a_penalty_later(
            rate in 1_u32..10,
            burst in 1_u32..20,
            refusals in prop::collection::vec((0_u64..2 * SECOND, any::<bool>()), 1..200),
        ) {
            let rule = rule(rate, burst, 10, 100);
            let (mut some, mut all, mut now) = (PenaltyState::default(), PenaltyState::default(), SECOND);
            for (gap, in_both) in refusals {
                now += gap;
                let has_penalty = all.count_refusal(now, &rule).is_some() || all.penalty_until > 0;
                if in_both && some.count_refusal(now, &rule).is_some() {
                    prop_assert!(has_penalty, "fewer refusals had a penalty first");
                    break;
                }
            }
        }
    }
}
