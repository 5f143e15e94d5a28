//! What the collector of events and the handles of the log share.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use parking_lot::{Mutex, MutexGuard, RwLock};

use super::{
    error::LogError,
    line::Line,
    sampling::{Sampler, SuppressedLines},
    settings::{LogSettings, access_log_writer, main_writer},
};
use crate::config::Log;

/// The message of the line that counts suppressed lines.
pub(super) const SUPPRESSED: &str = "refusals left out of the log";

pub(super) struct LogState {
    settings: RwLock<Arc<LogSettings>>,
    /// Serialises changes of the settings.
    changing: Mutex<()>,
    sampler: Mutex<Sampler>,
    /// The socket of journald.
    pub(super) journal: PathBuf,
    /// Lines lost because a destination could not keep up or failed.
    pub(super) dropped: Arc<AtomicU64>,
}

impl fmt::Debug for LogState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogState").field("dropped", &self.dropped).finish_non_exhaustive()
    }
}

impl LogState {
    /// Also returns why the journal is not used, if it is configured.
    pub(super) fn new(log: &Log, journal: &Path) -> Result<(Self, Option<LogError>), LogError> {
        let dropped = Arc::new(AtomicU64::new(0));
        let (format, main, no_journal) = main_writer(log.format, journal, &dropped)?;
        let colours = io::IsTerminal::is_terminal(&io::stderr());
        let access_log = access_log_writer(log.sessions.as_deref(), &dropped)?;
        let settings = LogSettings { format, level: log.level, colours, main, access_log };
        let state = Self {
            settings: RwLock::new(Arc::new(settings)),
            changing: Mutex::default(),
            sampler: Mutex::new(Sampler::new(log.refused_per_second.get())),
            journal: journal.to_owned(),
            dropped,
        };
        Ok((state, no_journal))
    }

    pub(super) fn settings(&self) -> Arc<LogSettings> {
        Arc::clone(&self.settings.read())
    }

    /// Hold the guard from reading the settings to replacing them.
    pub(super) fn lock_changes(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    pub(super) fn replace_settings(&self, settings: LogSettings) {
        *self.settings.write() = Arc::new(settings);
        // tracing caches for each callsite whether it is enabled.
        tracing::callsite::rebuild_interest_cache();
    }

    pub(super) fn sampler(&self) -> MutexGuard<'_, Sampler> {
        self.sampler.lock()
    }

    /// Writes a line for each reason with suppressed lines that were not reported yet.
    pub(super) fn report_suppressed(&self) {
        let suppressed = self.sampler().take_suppressed();
        for SuppressedLines { reason, count } in suppressed {
            self.settings().write(&Line::suppressed(SUPPRESSED, &reason, count));
        }
    }
}
