//! Where log lines go.

use std::{
    io::{self, IsTerminal},
    panic,
};

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::fmt;

use crate::config::{Log, LogFormat};

/// Sends log lines to standard error until the guard is dropped, which waits for what was written so far. A reader of
/// standard error that stalls costs log lines, not sessions.
#[must_use = "lines are lost once the guard is dropped"]
pub fn start(log: &Log) -> WorkerGuard {
    let (writer, guard) = tracing_appender::non_blocking(io::stderr());
    let builder = fmt().with_max_level(log.level).with_target(false).with_writer(writer);
    match log.format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => {
            builder.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
        }
    }
    // A panic is a line like any other; the task it ends is told by its own closing line.
    panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panic")));
    guard
}
