//! Passwords are hashed here: slow on purpose, on few threads, behind a bounded queue.
//!
//! Owns how many computations run and wait at the same time, of all methods together. Knows nothing of passwords. Invariant: a
//! computation whose client has gone keeps its place until it is over, so that their number is bounded however many clients come
//! and go.

use std::{sync::Arc, thread::available_parallelism};

use tokio::{sync::Semaphore, task::spawn_blocking};

/// How many computations run at the same time at most: half of the processors, so that sessions have the other half, and few
/// enough that their memory is bounded.
const MAX_RUNNING: usize = 4;
/// How many computations wait at most.
const MAX_WAITING: usize = 64;

/// There is no place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many passwords are being checked")]
pub(crate) struct QueueFull;

/// Runs slow computations on threads for blocking calls, a few at a time.
#[derive(Debug)]
pub(crate) struct HashQueue {
    running: Arc<Semaphore>,
    /// Those that run and those that wait.
    places: Arc<Semaphore>,
}

impl Default for HashQueue {
    fn default() -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        Self::new((processors / 2).clamp(1, MAX_RUNNING), MAX_WAITING)
    }
}

impl HashQueue {
    fn new(running: usize, waiting: usize) -> Self {
        Self {
            running: Arc::new(Semaphore::new(running)),
            places: Arc::new(Semaphore::new(running + waiting)),
        }
    }

    /// Runs a computation when it is its turn.
    ///
    /// # Errors
    /// As many as may wait are waiting.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        compute: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, QueueFull> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| QueueFull)?;
        // The semaphore is never closed.
        let turn = Arc::clone(&self.running).acquire_owned().await.map_err(|_| QueueFull)?;
        let computed = spawn_blocking(move || {
            let computed = compute();
            drop((turn, place));
            computed
        });
        // The panic hook has reported a panic.
        computed.await.map_err(|_| QueueFull)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        time::Duration,
    };

    use tokio::{task::yield_now, time::timeout};

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_does_not_fit_is_refused_and_what_fits_is_computed() {
        let queue = Arc::new(HashQueue::new(1, 2));
        let (go, wait) = mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let start = || {
            let (queue, wait) = (Arc::clone(&queue), Arc::clone(&wait));
            tokio::spawn(
                async move { queue.run(move || wait.lock().unwrap().recv_timeout(SOON).is_ok()).await },
            )
        };
        let tasks = [start(), start(), start()];
        while queue.places.available_permits() > 0 {
            yield_now().await;
        }
        assert_eq!(queue.run(|| ()).await, Err(QueueFull));
        for _ in &tasks {
            go.send(()).unwrap();
        }
        for task in tasks {
            assert_eq!(timeout(SOON, task).await.unwrap().unwrap(), Ok(true));
        }
        assert_eq!(queue.run(|| 1).await, Ok(1));
    }

    #[tokio::test]
    async fn no_more_run_than_may_even_if_their_clients_have_gone() {
        let queue = Arc::new(HashQueue::new(2, 100));
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = Vec::new();
        for _ in 0..40 {
            let (queue, running, most) = (Arc::clone(&queue), Arc::clone(&running), Arc::clone(&most));
            tasks.push(tokio::spawn(async move {
                let compute = move || {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    running.fetch_sub(1, Ordering::SeqCst);
                };
                queue.run(compute).await
            }));
            yield_now().await;
            if let Some(task) = tasks.iter().rev().nth(3) {
                task.abort();
            }
        }
        for task in tasks {
            let _ = timeout(SOON, task).await.unwrap();
        }
        assert!(matches!(most.load(Ordering::SeqCst), 1..=2), "{most:?}");
        let all = async {
            while queue.places.available_permits() < 102 {
                yield_now().await;
            }
        };
        timeout(SOON, all).await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_returns_its_place() {
        let queue = HashQueue::new(1, 0);
        for _ in 0..3 {
            assert_eq!(queue.run(|| panic!("on purpose")).await, Err::<(), _>(QueueFull));
        }
        assert_eq!(queue.run(|| 1).await, Ok(1));
    }
}
