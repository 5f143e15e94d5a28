//! Rate limit for log lines about refused connections, for each reason. Pure: time is an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The length of a counting window.
pub(super) const WINDOW: Duration = Duration::from_secs(1);

/// Allows `limit` lines of each reason in each window. Memory is bounded because the set of reasons is fixed.
#[derive(Debug)]
pub(super) struct Sampler {
    limit: u32,
    windows: BTreeMap<String, Window>,
}

/// A window starts with a line, not at a fixed time.
#[derive(Debug)]
struct Window {
    start: Instant,
    written: u32,
    /// Lines suppressed and not reported yet; kept across windows.
    suppressed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SampleDecision {
    pub(super) is_written: bool,
    /// Whether it is the first suppressed line of this reason since [`Sampler::take_suppressed`], so that the caller must
    /// schedule another call after [`WINDOW`].
    pub(super) starts_suppression: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct SuppressedLines {
    pub(super) reason: String,
    pub(super) count: u64,
}

impl Sampler {
    pub(super) fn new(limit: u32) -> Self {
        Self { limit, windows: BTreeMap::new() }
    }

    pub(super) fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    pub(super) fn decide(&mut self, reason: &str, now: Instant) -> SampleDecision {
        let new_window = || Window { start: now, written: 0, suppressed: 0 };
        let window = match self.windows.get_mut(reason) {
            Some(window) => window,
            // Allocates only for a reason's first line.
            None => self.windows.entry(reason.to_owned()).or_insert_with(new_window),
        };
        if now.duration_since(window.start) >= WINDOW {
            (window.start, window.written) = (now, 0);
        }
        if window.written < self.limit {
            window.written += 1;
            return SampleDecision { is_written: true, starts_suppression: false };
        }
        window.suppressed += 1;
        SampleDecision { is_written: false, starts_suppression: window.suppressed == 1 }
    }

    /// Takes the counts of suppressed lines that were not reported yet.
    pub(super) fn take_suppressed(&mut self) -> Vec<SuppressedLines> {
        let windows = self.windows.iter_mut().filter(|(_, window)| window.suppressed > 0);
        windows
            .map(|(reason, window)| SuppressedLines {
                reason: reason.clone(),
                count: std::mem::take(&mut window.suppressed),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: SampleDecision = SampleDecision { is_written: true, starts_suppression: false };
    const FIRST_SUPPRESSED: SampleDecision = SampleDecision { is_written: false, starts_suppression: true };
    const SUPPRESSED: SampleDecision = SampleDecision { is_written: false, starts_suppression: false };

    #[test]
    fn each_reason_has_its_own_limit_per_window() {
        let mut sampler = Sampler::new(2);
        let start = Instant::now();
        let late = start + Duration::from_millis(999);
        let decisions: Vec<SampleDecision> =
            [start, start, late, late].map(|now| sampler.decide("origin_refused", now)).to_vec();
        assert_eq!(decisions, [WRITTEN, WRITTEN, FIRST_SUPPRESSED, SUPPRESSED]);
        assert_eq!(sampler.decide("unknown_route", late), WRITTEN, "another reason");
        assert_eq!(sampler.decide("origin_refused", start + WINDOW), WRITTEN, "another window");
        assert_eq!(
            sampler.take_suppressed(),
            [SuppressedLines { reason: "origin_refused".to_owned(), count: 2 }]
        );
        assert_eq!(sampler.take_suppressed(), [], "taken once");
    }

    #[test]
    fn suppression_starts_again_after_the_count_was_taken() {
        let mut sampler = Sampler::new(1);
        let now = Instant::now();
        assert_eq!([1, 2, 3].map(|_| sampler.decide("a", now)), [WRITTEN, FIRST_SUPPRESSED, SUPPRESSED]);
        sampler.take_suppressed();
        assert_eq!(sampler.decide("a", now), FIRST_SUPPRESSED);
        sampler.set_limit(5);
        assert_eq!(sampler.decide("a", now), WRITTEN, "a new limit applies at once");
        assert_eq!(sampler.take_suppressed().len(), 1);
    }
}
