//! Which log lines say that events are not delivered, or dropped.
//!
//! Pure: the time is an argument. Invariant: at most one warning in [`INTERVAL`], and after each that says so one line when
//! events are delivered again.

use std::time::Duration;

use tokio::time::Instant;

/// The least time from one warning to the next.
const INTERVAL: Duration = Duration::from_secs(60);

/// What is to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Nothing,
    /// The receiver does not accept events.
    NotDelivered,
    /// The receiver accepts events too slowly, and the queue was full.
    TooSlow,
    /// The receiver accepts events again.
    Recovered,
}

#[derive(Debug, Default)]
pub(super) struct Report {
    warned: Option<Instant>,
    /// How many events had been dropped when that was last logged.
    dropped: u64,
    is_failing: bool,
}

impl Report {
    /// A request failed.
    pub(super) fn failed(&mut self, now: Instant, dropped: u64) -> Line {
        self.warn(now, dropped, Line::NotDelivered)
    }

    /// A request was successful.
    pub(super) fn succeeded(&mut self, now: Instant, dropped: u64) -> Line {
        if std::mem::take(&mut self.is_failing) {
            self.dropped = dropped;
            return Line::Recovered;
        }
        if dropped == self.dropped { Line::Nothing } else { self.warn(now, dropped, Line::TooSlow) }
    }

    fn warn(&mut self, now: Instant, dropped: u64, line: Line) -> Line {
        if self.warned.is_some_and(|warned| now.duration_since(warned) < INTERVAL) {
            return Line::Nothing;
        }
        (self.warned, self.dropped) = (Some(now), dropped);
        self.is_failing = line == Line::NotDelivered;
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_logged_once_a_minute_and_its_end_once() {
        let (mut report, start) = (Report::default(), Instant::now());
        assert_eq!(report.succeeded(start, 0), Line::Nothing);
        assert_eq!(report.failed(start, 0), Line::NotDelivered);
        assert_eq!(report.failed(start + INTERVAL / 2, 10), Line::Nothing);
        assert_eq!(report.failed(start + INTERVAL, 20), Line::NotDelivered);
        assert_eq!(report.succeeded(start + INTERVAL, 30), Line::Recovered);
        assert_eq!(report.succeeded(start + INTERVAL * 3, 30), Line::Nothing);
    }

    #[test]
    fn failures_that_come_and_go_log_two_lines_a_minute() {
        let (mut report, start) = (Report::default(), Instant::now());
        let mut lines = 0;
        for second in 0..600 {
            let now = start + Duration::from_secs(second);
            lines += usize::from(report.failed(now, second) != Line::Nothing);
            lines += usize::from(report.succeeded(now, second) != Line::Nothing);
        }
        assert!((10..=20).contains(&lines), "{lines}");
    }

    #[test]
    fn a_receiver_that_is_too_slow_is_logged_when_events_are_dropped() {
        let (mut report, start) = (Report::default(), Instant::now());
        assert_eq!(report.succeeded(start, 1), Line::TooSlow);
        assert_eq!(report.succeeded(start + INTERVAL / 2, 2), Line::Nothing);
        assert_eq!(report.succeeded(start + INTERVAL, 2), Line::TooSlow);
        assert_eq!(report.succeeded(start + INTERVAL * 2, 2), Line::Nothing);
    }
}
