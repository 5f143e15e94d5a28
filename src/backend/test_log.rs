//! Captures log lines for tests.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, OnceLock},
};

use tracing::{
    Dispatch,
    subscriber::{DefaultGuard, set_default},
};

/// The lines that are logged on this thread until the guard is dropped.
#[derive(Clone, Default)]
pub(super) struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl CapturedLog {
    pub(super) fn capture() -> (Self, DefaultGuard) {
        // While there is only one subscriber, tracing caches for each call site whether it is enabled, as seen by the
        // thread that reaches it first. That may be the thread of another test, which has no subscriber.
        static SECOND: OnceLock<Dispatch> = OnceLock::new();
        SECOND.get_or_init(|| Dispatch::new(tracing_subscriber::registry()));
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_ansi(false)
            .with_target(false)
            .with_writer(move || writer.clone());
        (log, set_default(subscriber.finish()))
    }

    /// The lines since the last call.
    pub(super) fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).unwrap().lines().map(|line| line.trim().to_owned()).collect()
    }
}

impl Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
