//! How many events are sent at once, and how long the pause after a failure is.
//!
//! Pure: random numbers are an argument.

use std::time::Duration;

/// The most events of one request.
pub(super) const MAX_BATCH: usize = 100;
/// The pauses after failures: the first, which doubles, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

#[derive(Debug)]
pub(super) struct Retry {
    batch: usize,
    failures: u32,
}

impl Retry {
    pub(super) fn new() -> Self {
        Self { batch: MAX_BATCH, failures: 0 }
    }

    /// How many events the next request has at most. After a failure it is one: if the receiver rejects one event, it is
    /// found, and while it does not answer, a short request tries.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
        self.batch = (self.batch * 2).min(MAX_BATCH);
    }

    /// How long to wait before the next request. `random` is from 0 to 1: gateways that failed together try at different times.
    pub(super) fn failed(&mut self, random: f64) -> Duration {
        let (first, longest) = PAUSES;
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.batch = 1;
        pause.mul_f64(0.5 + 0.5 * random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_again_after_a_success() {
        let mut retry = Retry::new();
        let pauses: Vec<u64> = (0..9).map(|_| retry.failed(1.0).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(retry.failed(0.0), Duration::from_secs(30));
        retry.succeeded();
        assert_eq!(retry.failed(0.0), Duration::from_millis(500));
    }

    #[test]
    fn after_a_failure_one_event_is_sent_and_then_twice_as_many() {
        let mut retry = Retry::new();
        assert_eq!(retry.batch(), MAX_BATCH);
        retry.succeeded();
        assert_eq!(retry.batch(), MAX_BATCH);
        retry.failed(0.5);
        let sizes: Vec<usize> = (0..9)
            .map(|_| {
                let size = retry.batch();
                retry.succeeded();
                size
            })
            .collect();
        assert_eq!(sizes, [1, 2, 4, 8, 16, 32, 64, 100, 100]);
    }
}
