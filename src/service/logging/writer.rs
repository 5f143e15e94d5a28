//! A bounded queue and a writer thread in front of one log destination.
//!
//! Owns the queued lines and the thread. Invariant: queueing a line never blocks on the destination; a line that does not
//! fit is dropped and counted.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// The capacity of the queue in bytes: some ten thousand access log lines.
const MAX_QUEUED: usize = 4 * 1024 * 1024;
/// How much is written at once, in bytes.
const MAX_BATCH: usize = 64 * 1024;

/// How long the thread pauses after a write, so that under load it wakes for many lines at once and not for each.
const PAUSE: Duration = Duration::from_millis(5);

/// A destination. Its methods may block.
pub(super) trait Sink: Send + 'static {
    /// Writes complete lines. Returns how many of them were lost.
    fn write(&mut self, lines: &[Vec<u8>]) -> u64;

    /// Opens the destination again, by its path.
    fn reopen(&mut self) {}
}

/// The handle of one destination. Lines that are queued when it is dropped are still written.
pub(super) struct LogWriter {
    queue: Arc<Queue>,
    dropped: Arc<AtomicU64>,
}

impl fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWriter").field("queued_bytes", &self.queue.state().bytes).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    lines: VecDeque<Vec<u8>>,
    /// The size of the queued lines and of those being written.
    bytes: usize,
    reopen: bool,
    closed: bool,
    /// Whether the thread waits for a notification; if not, the system call to notify it is saved.
    is_asleep: bool,
    /// How many callers wait for the queue to be written.
    waiters: usize,
}

impl LogWriter {
    /// Starts the writer thread.
    pub(super) fn start(name: &str, mut sink: impl Sink, dropped: Arc<AtomicU64>) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let (thread_queue, lost_lines) = (Arc::clone(&queue), Arc::clone(&dropped));
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some(Batch { lines, reopen }) = thread_queue.next() {
                if reopen {
                    sink.reopen();
                }
                let lost = if lines.is_empty() { 0 } else { sink.write(&lines) };
                lost_lines.fetch_add(lost, Ordering::Relaxed);
                if thread_queue.finish(&lines) {
                    thread::sleep(PAUSE);
                }
            }
        })?;
        Ok(Self { queue, dropped })
    }

    /// Queues a line, or counts it as dropped if it does not fit.
    pub(super) fn push(&self, line: Vec<u8>) {
        let mut state = self.queue.state();
        let bytes = state.bytes + line.len();
        if bytes > MAX_QUEUED {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes = bytes;
        state.lines.push_back(line);
        let wake = std::mem::take(&mut state.is_asleep);
        drop(state);
        if wake {
            self.queue.changed.notify_all();
        }
    }

    /// Reopens the destination before the next line is written.
    pub(super) fn reopen(&self) {
        self.queue.state().reopen = true;
        self.queue.changed.notify_all();
    }

    /// Waits until every queued line is written, until `deadline` at the latest.
    pub(super) fn wait_until_written(&self, deadline: Instant) {
        let mut state = self.queue.state();
        while state.bytes > 0 || state.reopen {
            if Instant::now() >= deadline {
                return;
            }
            state.waiters += 1;
            self.queue.changed.wait_until(&mut state, deadline);
            state.waiters -= 1;
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.queue.state().closed = true;
        self.queue.changed.notify_all();
    }
}

/// The next batch of the thread.
struct Batch {
    lines: Vec<Vec<u8>>,
    reopen: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }

    /// Waits for lines. `None` once the handle is dropped and the queue empty.
    fn next(&self) -> Option<Batch> {
        let mut state = self.state();
        while state.lines.is_empty() && !state.reopen {
            if state.closed {
                return None;
            }
            state.is_asleep = true;
            self.changed.wait(&mut state);
        }
        let mut bytes = 0;
        let fitting = state.lines.iter().take_while(|line| {
            bytes += line.len();
            bytes <= MAX_BATCH
        });
        // A line that is longer than a batch is written alone.
        let count = fitting.count().max(1).min(state.lines.len());
        let lines = state.lines.drain(..count).collect();
        if state.lines.is_empty() {
            // Releases the memory of a burst.
            state.lines = VecDeque::new();
        }
        Some(Batch { lines, reopen: std::mem::take(&mut state.reopen) })
    }

    /// Removes written lines from the count and wakes waiters. Returns whether the thread should pause.
    fn finish(&self, lines: &[Vec<u8>]) -> bool {
        let mut state = self.state();
        state.bytes -= lines.iter().map(Vec::len).sum::<usize>();
        let (is_awaited, is_closed) = (state.waiters > 0, state.closed);
        let has_full_batch = state.bytes >= MAX_BATCH;
        drop(state);
        if is_awaited {
            self.changed.notify_all();
        }
        !is_awaited && !is_closed && !has_full_batch
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    /// Reports each batch, and finishes writing it when allowed to.
    struct Gate {
        given: mpsc::Sender<Vec<Vec<u8>>>,
        allowed: mpsc::Receiver<()>,
        reopened: u64,
    }

    impl Sink for Gate {
        fn write(&mut self, lines: &[Vec<u8>]) -> u64 {
            let _ = self.given.send(lines.to_vec());
            let _ = self.allowed.recv();
            self.reopened
        }

        fn reopen(&mut self) {
            self.reopened += 1;
        }
    }

    type Given = mpsc::Receiver<Vec<Vec<u8>>>;

    fn gate() -> (LogWriter, Given, mpsc::Sender<()>, Arc<AtomicU64>) {
        let ((given, seen), (allow, allowed)) = (mpsc::channel(), mpsc::channel());
        let dropped = Arc::new(AtomicU64::new(0));
        let writer =
            LogWriter::start("gate", Gate { given, allowed, reopened: 0 }, Arc::clone(&dropped)).unwrap();
        (writer, seen, allow, dropped)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn lines_are_written_in_order_and_whole() {
        let (writer, seen, allow, dropped) = gate();
        writer.push(b"first\n".to_vec());
        let mut all = seen.recv().unwrap();
        let long = vec![b'x'; 2 * MAX_BATCH];
        for line in [&b"second\n"[..], b"third\n", &long, b"last\n"] {
            writer.push(line.to_vec());
        }
        drop(allow);
        writer.wait_until_written(soon());
        drop(writer);
        let batches: Vec<Vec<Vec<u8>>> = seen.iter().collect();
        assert_eq!(
            batches.iter().map(Vec::len).collect::<Vec<_>>(),
            [2, 1, 1],
            "a long line is written alone"
        );
        all.extend(batches.concat());
        assert_eq!(all, [&b"first\n"[..], b"second\n", b"third\n", &long, b"last\n"]);
        assert_eq!(dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn push_never_blocks_and_counts_what_does_not_fit() {
        let (writer, seen, allow, dropped) = gate();
        let line = vec![b'x'; 1024];
        writer.push(line.clone());
        seen.recv().unwrap();
        // The destination blocks from here on.
        let fitting = MAX_QUEUED / line.len() - 1;
        for _ in 0..fitting + 7 {
            writer.push(line.clone());
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 7);
        writer.wait_until_written(Instant::now());
        drop(allow);
        writer.wait_until_written(soon());
        writer.push(line);
        drop(writer);
        assert_eq!(seen.iter().flatten().count(), fitting + 1, "the queue has space again");
        assert_eq!(dropped.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn the_destination_is_reopened_before_the_next_line() {
        let (writer, seen, allow, dropped) = gate();
        drop(allow);
        writer.reopen();
        writer.wait_until_written(soon());
        writer.push(b"a line\n".to_vec());
        writer.wait_until_written(soon());
        assert_eq!(seen.recv().unwrap(), [b"a line\n"]);
        assert_eq!(
            dropped.load(Ordering::Relaxed),
            1,
            "the gate reports a lost line for each time it was reopened"
        );
    }
}
