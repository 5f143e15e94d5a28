//! Between those who log and one place that lines are written to.
//!
//! Owns the lines on their way and the thread that writes them. Invariant: to hand over a line never takes longer than
//! to copy it; what does not fit any more is counted and gone.

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

/// How much may wait for a place that does not keep up, in bytes: some ten thousand closing lines.
const MOST_WAITING: usize = 4 * 1024 * 1024;
/// How much is given to the place at once, in bytes.
const BATCH: usize = 64 * 1024;

/// How long the thread rests after it has written, so that under load it wakes for many lines and not for each.
const REST: Duration = Duration::from_millis(5);

/// Where lines end up. May take its time.
pub(super) trait Sink: Send + 'static {
    /// Writes lines, each of which is whole. Returns how many of them were lost.
    fn write(&mut self, lines: &[Vec<u8>]) -> u64;

    /// Looks for its place again.
    fn reopen(&mut self) {}
}

/// The way to one place. When it is dropped, what was handed over is still written.
pub(super) struct LogWriter {
    queue: Arc<Queue>,
    dropped: Arc<AtomicU64>,
}

impl fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("waiting", &self.queue.state().bytes).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// Of the lines, and of those that are being written.
    bytes: usize,
    reopen: bool,
    closed: bool,
    /// Whether the thread sleeps until it is woken: a call to the system that is saved where it does not.
    is_asleep: bool,
    /// How many wait for lines to be written.
    waiting: usize,
}

impl LogWriter {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// The system has no thread.
    pub(super) fn start(name: &str, mut sink: impl Sink, dropped: Arc<AtomicU64>) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let (written, lost_lines) = (Arc::clone(&queue), Arc::clone(&dropped));
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some(Work { lines, reopen }) = written.next() {
                if reopen {
                    sink.reopen();
                }
                let lost = if lines.is_empty() { 0 } else { sink.write(&lines) };
                lost_lines.fetch_add(lost, Ordering::Relaxed);
                if written.done(&lines) {
                    thread::sleep(REST);
                }
            }
        })?;
        Ok(Self { queue, dropped })
    }

    /// Hands a line over, or counts it as dropped if there is no room for it.
    pub(super) fn push(&self, line: Vec<u8>) {
        let mut state = self.queue.state();
        let bytes = state.bytes + line.len();
        if bytes > MOST_WAITING {
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

    /// Has the place looked for again, before the next line is written.
    pub(super) fn reopen(&self) {
        self.queue.state().reopen = true;
        self.queue.changed.notify_all();
    }

    /// Waits until everything that was handed over is written, but not longer than until `end`.
    pub(super) fn wait_until_written(&self, end: Instant) {
        let mut state = self.queue.state();
        while state.bytes > 0 || state.reopen {
            if Instant::now() >= end {
                return;
            }
            state.waiting += 1;
            self.queue.changed.wait_until(&mut state, end);
            state.waiting -= 1;
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.queue.state().closed = true;
        self.queue.changed.notify_all();
    }
}

/// What the thread does next.
struct Work {
    lines: Vec<Vec<u8>>,
    reopen: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits for work. `None` when there will be none.
    fn next(&self) -> Option<Work> {
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
            bytes <= BATCH
        });
        // A line that is longer than a batch goes alone.
        let count = fitting.count().max(1).min(state.lines.len());
        let lines = state.lines.drain(..count).collect();
        if state.lines.is_empty() {
            // The memory of a burst is not kept.
            state.lines = VecDeque::new();
        }
        Some(Work { lines, reopen: std::mem::take(&mut state.reopen) })
    }

    /// Takes note that these are written. Returns whether there is time for a rest.
    fn done(&self, lines: &[Vec<u8>]) -> bool {
        let mut state = self.state();
        state.bytes -= lines.iter().map(Vec::len).sum::<usize>();
        let (is_awaited, is_over) = (state.waiting > 0, state.closed);
        let much_to_do = state.bytes >= BATCH;
        drop(state);
        if is_awaited {
            self.changed.notify_all();
        }
        !is_awaited && !is_over && !much_to_do
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    /// Tells what it was given; takes it only when it is allowed to.
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
    fn lines_come_in_their_order_and_whole() {
        let (writer, seen, allow, dropped) = gate();
        writer.push(b"first\n".to_vec());
        let mut all = seen.recv().unwrap();
        let long = vec![b'x'; 2 * BATCH];
        for line in [&b"second\n"[..], b"third\n", &long, b"last\n"] {
            writer.push(line.to_vec());
        }
        drop(allow);
        writer.wait_until_written(soon());
        drop(writer);
        let batches: Vec<Vec<Vec<u8>>> = seen.iter().collect();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1], "a long line goes alone");
        all.extend(batches.concat());
        assert_eq!(all, [&b"first\n"[..], b"second\n", b"third\n", &long, b"last\n"]);
        assert_eq!(dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn who_logs_never_waits_and_what_does_not_fit_is_counted() {
        let (writer, seen, allow, dropped) = gate();
        let line = vec![b'x'; 1024];
        writer.push(line.clone());
        seen.recv().unwrap();
        // The place is stuck now.
        let fitting = MOST_WAITING / line.len() - 1;
        for _ in 0..fitting + 7 {
            writer.push(line.clone());
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 7);
        writer.wait_until_written(Instant::now());
        drop(allow);
        writer.wait_until_written(soon());
        writer.push(line);
        drop(writer);
        assert_eq!(seen.iter().flatten().count(), fitting + 1, "there is room again");
        assert_eq!(dropped.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn a_place_is_looked_for_again_before_the_next_line() {
        let (writer, seen, allow, dropped) = gate();
        drop(allow);
        writer.reopen();
        writer.wait_until_written(soon());
        writer.push(b"a line\n".to_vec());
        writer.wait_until_written(soon());
        assert_eq!(seen.recv().unwrap(), [b"a line\n"]);
        assert_eq!(dropped.load(Ordering::Relaxed), 1, "the gate loses as many lines as it was reopened");
    }
}
