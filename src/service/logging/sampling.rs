//! Which lines about refused connections are written, when there are too many of them. Pure: time is an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What lines are counted over.
pub(super) const SPAN: Duration = Duration::from_secs(1);

/// At most so many lines of each reason in each second. Reasons are few: they are the words of one table.
#[derive(Debug)]
pub(super) struct Sampler {
    most: u32,
    seconds: BTreeMap<String, Second>,
}

/// A second that began with a line.
#[derive(Debug)]
struct Second {
    began: Instant,
    seen: u32,
    held: u64,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SampleDecision {
    pub(super) is_written: bool,
    /// Whether it is the first that is held back since [`Sampler::take_held`] last told of this reason, so that somebody
    /// should ask for that again after [`SPAN`].
    pub(super) begins_to_hold: bool,
}

/// How many lines of a reason were held back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SuppressedLines {
    pub(super) reason: String,
    pub(super) count: u64,
}

impl Sampler {
    pub(super) fn new(most: u32) -> Self {
        Self { most, seconds: BTreeMap::new() }
    }

    pub(super) fn set_most(&mut self, most: u32) {
        self.most = most;
    }

    pub(super) fn judge(&mut self, reason: &str, now: Instant) -> SampleDecision {
        if !self.seconds.contains_key(reason) {
            self.seconds.insert(reason.to_owned(), Second { began: now, seen: 0, held: 0 });
        }
        let Some(second) = self.seconds.get_mut(reason) else {
            return SampleDecision { is_written: true, begins_to_hold: false };
        };
        if now.duration_since(second.began) >= SPAN {
            (second.began, second.seen) = (now, 0);
        }
        if second.seen < self.most {
            second.seen += 1;
            return SampleDecision { is_written: true, begins_to_hold: false };
        }
        second.held += 1;
        SampleDecision { is_written: false, begins_to_hold: second.held == 1 }
    }

    /// What was held back and not told yet.
    pub(super) fn take_held(&mut self) -> Vec<SuppressedLines> {
        let seconds = self.seconds.iter_mut().filter(|(_, second)| second.held > 0);
        seconds
            .map(|(reason, second)| SuppressedLines {
                reason: reason.clone(),
                count: std::mem::take(&mut second.held),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: SampleDecision = SampleDecision { is_written: true, begins_to_hold: false };
    const FIRST_HELD: SampleDecision = SampleDecision { is_written: false, begins_to_hold: true };
    const HELD: SampleDecision = SampleDecision { is_written: false, begins_to_hold: false };

    #[test]
    fn each_reason_has_its_lines_each_second() {
        let mut sampler = Sampler::new(2);
        let start = Instant::now();
        let late = start + Duration::from_millis(999);
        let judged: Vec<SampleDecision> =
            [start, start, late, late].map(|now| sampler.judge("origin_refused", now)).to_vec();
        assert_eq!(judged, [WRITTEN, WRITTEN, FIRST_HELD, HELD]);
        assert_eq!(sampler.judge("unknown_route", late), WRITTEN, "another reason");
        assert_eq!(sampler.judge("origin_refused", start + SPAN), WRITTEN, "another second");
        assert_eq!(sampler.take_held(), [SuppressedLines { reason: "origin_refused".to_owned(), count: 2 }]);
        assert_eq!(sampler.take_held(), [], "told once");
    }

    #[test]
    fn whoever_has_told_is_asked_again_only_after_another_line_was_held() {
        let mut sampler = Sampler::new(1);
        let now = Instant::now();
        assert_eq!([1, 2, 3].map(|_| sampler.judge("a", now)), [WRITTEN, FIRST_HELD, HELD]);
        sampler.take_held();
        assert_eq!(sampler.judge("a", now), FIRST_HELD);
        sampler.set_most(5);
        assert_eq!(sampler.judge("a", now), WRITTEN, "a new bound counts at once");
        assert_eq!(sampler.take_held().len(), 1);
    }
}
