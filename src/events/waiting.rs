//! The events that wait, in the order in which they were reported.
//!
//! Pure. Invariant: there are at most as many as the limit says. Beyond it the oldest connect is dropped, and a disconnect only
//! if no connect is left: a disconnect says all that its connect said, and how the session ended.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::Event;

/// Memory for this many events is kept when none waits.
const KEPT_CAPACITY: usize = 64;

/// An event and its place in the order.
#[derive(Debug)]
pub(super) struct Numbered {
    number: u64,
    pub(super) event: Event,
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    connects: VecDeque<Numbered>,
    disconnects: VecDeque<Numbered>,
    last: u64,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.connects.len() + self.disconnects.len()
    }

    pub(super) fn push(&mut self, event: Event) {
        self.last += 1;
        let number = self.last;
        self.queue_of(&event).push_back(Numbered { number, event });
    }

    /// Drops events beyond `limit`. Returns how many.
    pub(super) fn trim(&mut self, limit: usize) -> usize {
        let beyond = self.len().saturating_sub(limit);
        for _ in 0..beyond {
            if self.connects.pop_front().is_none() {
                self.disconnects.pop_front();
            }
        }
        beyond
    }

    /// Drops events that are older than `max_age`. Returns how many.
    pub(super) fn expire(&mut self, now: Instant, max_age: Duration) -> usize {
        let before = self.len();
        let is_old = |waiting: &Numbered| now.duration_since(waiting.event.reported) > max_age;
        for queue in [&mut self.connects, &mut self.disconnects] {
            while queue.front().is_some_and(is_old) {
                queue.pop_front();
            }
        }
        before - self.len()
    }

    /// Takes the oldest events, at most `most`.
    pub(super) fn take(&mut self, most: usize) -> Vec<Numbered> {
        let taken: Vec<Numbered> = std::iter::from_fn(|| self.pop()).take(most).collect();
        if self.len() == 0 && self.connects.capacity() + self.disconnects.capacity() > KEPT_CAPACITY {
            (self.connects, self.disconnects) = (VecDeque::new(), VecDeque::new());
        }
        taken
    }

    /// Puts back what was taken.
    pub(super) fn put_back(&mut self, taken: Vec<Numbered>) {
        for waiting in taken.into_iter().rev() {
            self.queue_of(&waiting.event).push_front(waiting);
        }
    }

    fn pop(&mut self) -> Option<Numbered> {
        let first = |queue: &VecDeque<Numbered>| queue.front().map(|waiting| waiting.number);
        match (first(&self.connects), first(&self.disconnects)) {
            (Some(connect), Some(disconnect)) if disconnect < connect => self.disconnects.pop_front(),
            (Some(_), _) => self.connects.pop_front(),
            (None, _) => self.disconnects.pop_front(),
        }
    }

    fn queue_of(&mut self, event: &Event) -> &mut VecDeque<Numbered> {
        if event.end.is_some() { &mut self.disconnects } else { &mut self.connects }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{events::EndOfSession, outcome::Reason};

    fn connect(session: u64, reported: Instant) -> Event {
        Event::example(session, reported)
    }

    fn disconnect(session: u64, reported: Instant) -> Event {
        let end = EndOfSession {
            reason: Reason::ClientClosed,
            close_code: None,
            bytes: Some((0, 0)),
            duration: Duration::ZERO,
        };
        Event { end: Some(end), ..Event::example(session, reported) }
    }

    /// The sessions of events: those of disconnects are negative.
    fn names(taken: &[Numbered]) -> Vec<i64> {
        let name = |Numbered { event, .. }: &Numbered| {
            let session = i64::try_from(event.session).unwrap();
            if event.end.is_some() { -session } else { session }
        };
        taken.iter().map(name).collect()
    }

    fn example(now: Instant) -> Waiting {
        let mut waiting = Waiting::default();
        for event in
            [connect(1, now), connect(2, now), disconnect(1, now), connect(3, now), disconnect(3, now)]
        {
            waiting.push(event);
        }
        waiting
    }

    #[test]
    fn events_are_taken_in_the_order_in_which_they_were_reported() {
        let mut waiting = example(Instant::now());
        let first = waiting.take(2);
        assert_eq!(names(&first), [1, 2]);
        assert_eq!(names(&waiting.take(2)), [-1, 3]);
        waiting.put_back(first);
        assert_eq!(names(&waiting.take(100)), [1, 2, -3]);
        assert_eq!((waiting.len(), names(&waiting.take(1))), (0, vec![]));
    }

    #[test]
    fn a_full_queue_drops_the_oldest_connect_first() {
        for (limit, left) in
            [(5, &[1, 2, -1, 3, -3][..]), (4, &[2, -1, 3, -3]), (3, &[-1, 3, -3]), (2, &[-1, -3]), (1, &[-3])]
        {
            let mut waiting = example(Instant::now());
            assert_eq!(waiting.trim(limit), 5 - limit);
            assert_eq!(names(&waiting.take(100)), left, "{limit}");
        }
    }

    #[test]
    fn events_that_are_too_old_are_dropped() {
        const SECOND: Duration = Duration::from_secs(1);
        let start = Instant::now();
        let mut waiting = example(start);
        waiting.push(connect(4, start + SECOND));
        assert_eq!(waiting.expire(start + SECOND, SECOND), 0);
        assert_eq!(waiting.expire(start + SECOND * 2, SECOND), 5);
        assert_eq!(names(&waiting.take(100)), [4]);
    }

    #[test]
    fn memory_is_released_when_nothing_waits() {
        let mut waiting = Waiting::default();
        for session in 0..10_000 {
            waiting.push(connect(session, Instant::now()));
        }
        waiting.take(10_000);
        assert_eq!(waiting.connects.capacity(), 0);
    }
}
