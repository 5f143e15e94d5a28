//! When a key set is fetched.
//!
//! Pure: the time and the random numbers are arguments. Invariant: however many tokens name a key that is not in the set, it is
//! fetched for them once in [`ON_DEMAND`] at most.

use std::time::Duration;

use tokio::time::Instant;

/// How long a key set is used before it is fetched again.
const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// The least time from one fetch for an unknown key to the next.
const ON_DEMAND: Duration = Duration::from_secs(30);
/// The pauses after failures: the first, which doubles, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

#[derive(Debug)]
pub(super) struct Schedule {
    next: Instant,
    is_running: bool,
    on_demand: Option<Instant>,
    failures: u32,
}

impl Schedule {
    /// The first fetch is due now.
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, is_running: false, on_demand: None, failures: 0 }
    }

    /// When the next fetch is due.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// A token names a key that is not in the set. Whether a fetch is running, or due now.
    pub(super) fn request(&mut self, now: Instant) -> bool {
        if self.is_running || self.next <= now {
            return true;
        }
        if self.on_demand.is_some_and(|last| now.duration_since(last) < ON_DEMAND) {
            return false;
        }
        (self.on_demand, self.next) = (Some(now), now);
        true
    }

    pub(super) fn begin(&mut self) {
        self.is_running = true;
    }

    /// A fetch was successful. `random` is from 0 to 1: gateways that were started together fetch at different times.
    pub(super) fn succeeded(&mut self, now: Instant, random: f64) {
        (self.is_running, self.failures) = (false, 0);
        self.next = now + INTERVAL.mul_f64(0.9 + 0.1 * random);
    }

    /// A fetch failed.
    pub(super) fn failed(&mut self, now: Instant, random: f64) {
        let (first, longest) = PAUSES;
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.is_running = false;
        self.failures = self.failures.saturating_add(1);
        self.next = now + pause.mul_f64(0.5 + 0.5 * random);
    }

    /// Whether the last fetch failed.
    pub(super) fn is_failing(&self) -> bool {
        self.failures > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_set_is_fetched_at_once_and_then_every_five_minutes() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        assert_eq!(schedule.next(), start);
        schedule.begin();
        schedule.succeeded(start + SECOND, 1.0);
        assert_eq!(schedule.next(), start + SECOND + INTERVAL);
        schedule.succeeded(start, 0.0);
        assert_eq!(schedule.next(), start + Duration::from_secs(270));
        assert!(!schedule.is_failing());
    }

    #[test]
    fn unknown_keys_cause_one_fetch_in_thirty_seconds() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        let mut fetches = 0;
        // A thousand tokens a second for ten minutes; each fetch takes half a second.
        let mut until = None;
        for milli in 0..600_000u64 {
            let now = start + Duration::from_millis(milli);
            schedule.request(now);
            match until {
                Some(end) if now >= end => {
                    schedule.succeeded(now, 1.0);
                    until = None;
                }
                None if schedule.next() <= now => {
                    schedule.begin();
                    fetches += 1;
                    until = Some(now + SECOND / 2);
                }
                _ => {}
            }
        }
        assert!((19..=22).contains(&fetches), "{fetches} fetches in 600 s");
    }

    #[test]
    fn the_first_unknown_key_after_a_scheduled_fetch_is_looked_up_at_once() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        assert!(schedule.request(start), "the first fetch is due");
        schedule.begin();
        assert!(schedule.request(start + SECOND), "it is running");
        schedule.succeeded(start + SECOND, 0.0);
        assert!(schedule.request(start + SECOND * 2));
        assert_eq!(schedule.next(), start + SECOND * 2);
        schedule.begin();
        schedule.succeeded(start + SECOND * 3, 0.0);
        assert!(!schedule.request(start + SECOND * 31));
        assert!(schedule.request(start + SECOND * 32));
    }

    #[test]
    fn pauses_after_failures_double_up_to_a_minute() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        let mut pauses = Vec::new();
        for _ in 0..40 {
            schedule.begin();
            schedule.failed(now, 1.0);
            pauses.push(schedule.next().duration_since(now).as_secs());
        }
        assert_eq!(pauses[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses.last(), Some(&60));
        assert!(schedule.is_failing());
        schedule.failed(now, 0.0);
        assert_eq!(schedule.next(), now + SECOND * 30);
        schedule.succeeded(now, 0.0);
        assert!(!schedule.is_failing());
        schedule.failed(now, 1.0);
        assert_eq!(schedule.next(), now + SECOND);
    }
}
