//! Turns at the processor, for work that takes long and can wait: TLS handshakes.
//!
//! Owns who is polled next. Knows nothing of the work. Invariant: while one turn is taken on each processor, all others wait
//! for theirs in their order.
//!
//! A handshake uses the processor for as long as dozens of relayed messages do, without a pause. When hundreds of clients
//! send their first flight at the same moment, the runtime would run them all before the next message of a session. Here at
//! most one of them for each worker thread is in the runtime's queue, and it is behind everything that is ready, what has
//! arrived on sockets meanwhile included.

use std::{future::poll_fn, num::NonZeroUsize, pin::pin, task::Poll, thread::available_parallelism};

use tokio::{sync::Semaphore, task::yield_now};

/// The turns of all handshakes.
#[derive(Debug)]
pub struct Turns(Semaphore);

impl Default for Turns {
    /// One turn at a time for each processor.
    fn default() -> Self {
        Self::new(available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }
}

impl Turns {
    fn new(at_a_time: NonZeroUsize) -> Self {
        Self(Semaphore::new(at_a_time.get()))
    }

    /// Runs `work`, of which each step (each poll) waits for a turn. Between two steps it has none, however long it waits.
    pub(crate) async fn run<F: Future>(&self, work: F) -> F::Output {
        let mut work = pin!(work);
        loop {
            // Fails only if the semaphore is closed, which it never is.
            let turn = self.0.acquire().await;
            // The runtime polls what is ready, and looks for what has arrived, before this task again.
            yield_now().await;
            if let Poll::Ready(output) = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
                return output;
            }
            drop(turn);
            woken().await;
        }
    }
}

/// Ready when the task is woken again. The work has arranged for that, with the same waker.
async fn woken() {
    let mut is_woken = false;
    poll_fn(|_| match std::mem::replace(&mut is_woken, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::{
        sync::{Barrier, oneshot},
        task::{LocalSet, spawn_local},
    };

    use super::*;

    #[tokio::test]
    async fn work_that_waits_has_no_turn() {
        let turns = Turns::new(NonZeroUsize::MIN);
        let (sender, receiver) = oneshot::channel();
        let waiting = turns.run(receiver);
        let other = turns.run(async { sender.send("done") });
        let (received, sent) = tokio::join!(waiting, other);
        assert_eq!((received, sent), (Ok("done"), Ok(())));
    }

    #[tokio::test]
    async fn every_wake_is_followed_by_a_turn() {
        let turns = Rc::new(Turns::new(NonZeroUsize::new(2).unwrap()));
        // Each of ten has ten steps, and each step needs all of them.
        let barrier = Rc::new(Barrier::new(10));
        let local = LocalSet::new();
        for _ in 0..10 {
            let (turns, barrier) = (Rc::clone(&turns), Rc::clone(&barrier));
            local.spawn_local(async move {
                let steps = async {
                    for _ in 0..10 {
                        barrier.wait().await;
                    }
                };
                turns.run(steps).await;
            });
        }
        tokio::time::timeout(std::time::Duration::from_secs(10), local).await.expect("a lost wake-up");
    }

    /// Messages that are ready go before steps that are.
    #[tokio::test]
    async fn other_tasks_run_between_two_turns() {
        const STEPS: usize = 20;
        let turns = Rc::new(Turns::new(NonZeroUsize::MIN));
        let order = Rc::new(RefCell::new(Vec::new()));
        let local = LocalSet::new();
        local
            .run_until(async {
                let mut tasks = Vec::new();
                for _ in 0..STEPS {
                    let (turns, order) = (Rc::clone(&turns), Rc::clone(&order));
                    tasks.push(spawn_local(async move {
                        turns.run(async { order.borrow_mut().push("step") }).await;
                    }));
                }
                let of_relay = Rc::clone(&order);
                tasks.push(spawn_local(async move {
                    for _ in 0..STEPS {
                        of_relay.borrow_mut().push("message");
                        yield_now().await;
                    }
                }));
                for task in tasks {
                    task.await.unwrap();
                }
            })
            .await;
        let order = order.borrow();
        let together =
            order.chunk_by(|one, other| one == other).filter(|run| run[0] == "step").map(<[_]>::len);
        // At the end there are no messages any more.
        let before_the_last = together.take(STEPS - 2).max();
        // At the beginning the first two follow each other.
        assert!(before_the_last.is_some_and(|run| run <= 2), "{order:?}");
    }
}
