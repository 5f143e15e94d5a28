//! What the process is told by signals.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGUSR1: the logs that are files have been moved away.
#[derive(Debug)]
pub struct ReopenSignals(Signal);

impl ReopenSignals {
    /// Takes the signal over from the system's default, which would end the process.
    ///
    /// # Errors
    /// The system refused.
    pub fn listen() -> io::Result<Self> {
        signal(SignalKind::user_defined1()).map(Self)
    }

    /// Waits for the next.
    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// SIGTERM and SIGINT: the first asks for a drain, the second for the end.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Takes the signals over from the system's defaults.
    ///
    /// # Errors
    /// The system refused.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
