//! The current log settings: format, level, and the writer of each destination.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::SystemTime,
};

use tracing::{Level, Metadata};

use super::{
    error::LogError,
    format::{journal, json, text},
    line::Line,
    sinks::{AccessLogFile, Journal, Stderr},
    writer::LogWriter,
};
use crate::{config::LogFormat, outcome::ACCESS_LOG};

/// Replaced as a whole when the configuration or the level changes.
#[derive(Clone)]
pub(super) struct LogSettings {
    pub(super) format: LogFormat,
    pub(super) level: Level,
    /// Whether standard error is a terminal.
    pub(super) colours: bool,
    /// Standard error or the journal.
    pub(super) main: Arc<LogWriter>,
    /// The access log file, if one is configured.
    pub(super) access_log: Option<(PathBuf, Arc<LogWriter>)>,
}

impl LogSettings {
    pub(super) fn access_log_path(&self) -> Option<&Path> {
        self.access_log.as_ref().map(|(path, _)| path.as_path())
    }

    pub(super) fn wants(&self, event: &Metadata<'_>) -> bool {
        // tracing also asks about spans, which are never logged.
        !event.is_span()
            && (*event.level() <= self.level || self.access_log.is_some() && event.target() == ACCESS_LOG)
    }

    /// Formats a line for each destination it goes to and queues it there.
    pub(super) fn write(&self, line: &Line) {
        let now = SystemTime::now();
        if line.level <= self.level {
            self.main.push(match self.format {
                LogFormat::Text => text(line, now, self.colours),
                LogFormat::Json => json(line, now),
                LogFormat::Journald => journal(line),
            });
        }
        if let Some((_, file)) = self.access_log.as_ref().filter(|_| line.is_access_log) {
            // The journal's format is not for files.
            file.push(if self.format == LogFormat::Json { json(line, now) } else { text(line, now, false) });
        }
    }
}

/// Opens the main destination. If journald is not reachable, the result is text on standard error, and the reason.
pub(super) fn main_writer(
    format: LogFormat,
    journal: &Path,
    dropped: &Arc<AtomicU64>,
) -> Result<(LogFormat, Arc<LogWriter>, Option<LogError>), LogError> {
    let stderr = || LogWriter::start("log", Stderr, Arc::clone(dropped));
    let (format, writer, no_journal) = match format {
        LogFormat::Text | LogFormat::Json => (format, stderr(), None),
        LogFormat::Journald => match Journal::connect(journal) {
            Ok(journal) => (format, LogWriter::start("log", journal, Arc::clone(dropped)), None),
            Err(cause) => {
                let error = LogError::Journal { path: journal.display().to_string(), cause };
                (LogFormat::Text, stderr(), Some(error))
            }
        },
    };
    Ok((format, writer.map(Arc::new).map_err(LogError::Thread)?, no_journal))
}

pub(super) fn access_log_writer(
    path: Option<&Path>,
    dropped: &Arc<AtomicU64>,
) -> Result<Option<(PathBuf, Arc<LogWriter>)>, LogError> {
    let Some(path) = path else { return Ok(None) };
    let file = AccessLogFile::open(path)
        .map_err(|cause| LogError::Sessions { path: path.display().to_string(), cause })?;
    let writer = LogWriter::start("log-sessions", file, Arc::clone(dropped)).map_err(LogError::Thread)?;
    Ok(Some((path.to_owned(), Arc::new(writer))))
}
