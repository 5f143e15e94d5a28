//! Why the log cannot be written as configured.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The access log file cannot be opened.
    #[error("log.sessions: cannot append to {path}: {cause}; check the directory and its permissions")]
    Sessions { path: String, cause: io::Error },
    /// journald is not reachable.
    #[error(
        "log.format \"journald\": the journal does not listen on {path}: {cause}; write format = \"text\" where \
         systemd-journald does not run"
    )]
    Journal { path: String, cause: io::Error },
    /// No thread could be started.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(io::Error),
    /// Another tracing subscriber is installed already.
    #[error("another log subscriber is installed already")]
    Taken,
}
