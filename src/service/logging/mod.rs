//! Logging: log lines, and the access log of connections.
//!
//! Owns the path from a tracing event to its destinations (standard error, journald, the access log file), the sampling
//! of lines about refused connections, and the reconfiguration of all that at runtime. Knows nothing of the meaning of
//! events, except that those with the target [`ACCESS_LOG`](crate::outcome::ACCESS_LOG) end a connection. Invariants:
//! logging never blocks on a reader, a disk or the journal; every lost line is counted; text chosen by clients cannot
//! end a line, control a terminal or reorder text.

mod collector;
mod error;
mod format;
mod line;
mod sampling;
mod settings;
mod sinks;
mod state;
mod writer;

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tracing::Level;
use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

use self::{
    collector::Collector,
    settings::{LogSettings, access_log_writer, main_writer},
    state::LogState,
};
pub(crate) use self::{error::LogError, line::needs_escape};
use crate::config::{Log, LogFormat};

/// The socket of systemd-journald.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// How long exiting waits for the last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// A handle of the process's log. Clones share it.
#[derive(Debug, Clone)]
pub struct Logging {
    state: Arc<LogState>,
}

/// When dropped, waits until the queued lines are written, for at most a second.
#[derive(Debug)]
#[must_use = "the last lines are lost without it"]
pub(crate) struct FlushGuard {
    state: Arc<LogState>,
}

/// Installs the log of the process. If the journal is configured and not reachable, lines go to standard error, and the
/// first of them is a warning about that.
///
/// # Errors
/// The access log file cannot be opened, or no thread can be started. Nothing is logged then.
pub(crate) fn start(log: &Log) -> Result<(Logging, FlushGuard), LogError> {
    let (state, no_journal) = LogState::new(log, Path::new(JOURNAL))?;
    let state = Arc::new(state);
    let collector = Collector { state: Arc::clone(&state) };
    tracing_subscriber::registry().with(collector).try_init().map_err(|_| LogError::Taken)?;
    // A panic is logged like any other event; the task that it ends still writes its access log line.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panic")));
    warn_about_fallback(no_journal);
    Ok((Logging { state: Arc::clone(&state) }, FlushGuard { state }))
}

fn warn_about_fallback(no_journal: Option<LogError>) {
    if let Some(error) = no_journal {
        tracing::warn!("{error}; until then, lines go to standard error");
    }
}

impl Logging {
    /// Applies a new configuration. Lines logged meanwhile go to the old destination or to the new one. If the access log
    /// file stays the same, it is reopened.
    ///
    /// # Errors
    /// As for [`start`]. Nothing has changed then.
    pub fn reconfigure(&self, log: &Log) -> Result<(), LogError> {
        let state = &self.state;
        let changes = state.lock_changes();
        let old = state.settings();
        let is_same_file = old.access_log_path() == log.sessions.as_deref();
        let is_journald = |format| format == LogFormat::Journald;
        let (format, main, no_journal) = match is_journald(old.format) == is_journald(log.format) {
            true => (log.format, Arc::clone(&old.main), None),
            false => main_writer(log.format, &state.journal, &state.dropped)?,
        };
        let access_log = match (&old.access_log, is_same_file) {
            (Some((path, writer)), true) => Some((path.clone(), Arc::clone(writer))),
            _ => access_log_writer(log.sessions.as_deref(), &state.dropped)?,
        };
        let colours = old.colours;
        state.replace_settings(LogSettings { format, level: log.level, colours, main, access_log });
        state.sampler().set_limit(log.refused_per_second.get());
        drop(changes);
        if is_same_file {
            self.reopen();
        }
        warn_about_fallback(no_journal);
        Ok(())
    }

    /// Sets the level until the next [`reconfigure`](Self::reconfigure).
    pub fn set_level(&self, level: Level) {
        let _changes = self.state.lock_changes();
        let old = self.state.settings();
        self.state.replace_settings(LogSettings { level, ..(*old).clone() });
    }

    /// Reopens the access log file, which may have been rotated. If that fails, the old file is kept and a warning
    /// logged.
    pub fn reopen(&self) {
        if let Some((_, writer)) = &self.state.settings().access_log {
            writer.reopen();
        }
    }

    /// How many lines were lost because a destination could not keep up or failed. Lines suppressed by sampling do not
    /// count.
    pub fn dropped_lines(&self) -> u64 {
        self.state.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for FlushGuard {
    fn drop(&mut self) {
        self.state.report_suppressed();
        let settings = self.state.settings();
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        settings.main.wait_until_written(deadline);
        if let Some((_, access_log)) = &settings.access_log {
            access_log.wait_until_written(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, num::NonZeroU32, thread};

    use tracing::subscriber::with_default;

    use super::{state::SUPPRESSED, *};
    use crate::outcome::ACCESS_LOG;

    /// Logs `events` with the access log in `file`. Returns its lines.
    fn logged(log: &Log, file: &Path, events: impl FnOnce(&Logging)) -> (Vec<String>, Logging) {
        let log = Log { sessions: Some(file.to_owned()), ..log.clone() };
        let (state, no_journal) = LogState::new(&log, Path::new("/nowhere")).unwrap();
        assert!(no_journal.is_none(), "{no_journal:?}");
        let state = Arc::new(state);
        let logging = Logging { state: Arc::clone(&state) };
        let collector = Collector { state: Arc::clone(&state) };
        with_default(tracing_subscriber::registry().with(collector), || events(&logging));
        drop(FlushGuard { state });
        (lines_of(file), logging)
    }

    fn lines_of(file: &Path) -> Vec<String> {
        fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
    }

    /// A text line without its timestamp.
    fn without_time(line: &str) -> &str {
        line.split_once(' ').unwrap().1.trim_start()
    }

    #[test]
    fn the_file_gets_access_log_lines_only_at_every_level() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log { level: Level::ERROR, ..Log::default() };
        let (lines, logging) = logged(&log, &directory.path().join("sessions.log"), |_| {
            tracing::error!("another line");
            tracing::info!(target: ACCESS_LOG, session = 7, "session ended");
            tracing::debug!(target: ACCESS_LOG, reason = "not_tls", "refused");
        });
        let lines: Vec<&str> = lines.iter().map(|line| without_time(line)).collect();
        assert_eq!(lines, ["INFO session ended session=7", "DEBUG refused reason=not_tls"]);
        assert_eq!(logging.dropped_lines(), 0);
    }

    #[test]
    fn lines_about_refusals_are_sampled_and_those_about_sessions_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log { refused_per_second: NonZeroU32::new(3).unwrap(), ..Log::default() };
        let (lines, logging) = logged(&log, &directory.path().join("sessions.log"), |_| {
            for _ in 0..1000 {
                tracing::debug!(target: ACCESS_LOG, reason = "origin_refused", "refused");
                tracing::info!(target: ACCESS_LOG, reason = "client_gone", "session ended");
            }
        });
        let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!(count("session ended"), 1000);
        let written = count("refused reason=origin_refused");
        let left_out = lines.iter().filter(|line| line.contains(SUPPRESSED));
        let left_out: usize =
            left_out.map(|line| line.rsplit_once("left_out=").unwrap().1.parse::<usize>().unwrap()).sum();
        assert_eq!(written + left_out, 1000, "each is written or counted");
        assert!((3..1000).contains(&written), "{written} were written");
        assert_eq!(logging.dropped_lines(), 0, "suppressed lines do not count as lost");
    }

    #[test]
    fn reconfiguring_changes_format_level_and_file() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one.log", "two.log"].map(|name| directory.path().join(name));
        let log_end = |id: u64| tracing::info!(target: ACCESS_LOG, id, "session ended");
        let json = Log { format: LogFormat::Json, sessions: Some(two.clone()), ..Log::default() };
        let (_, logging) = logged(&Log::default(), &one, |logging| {
            log_end(1);
            logging.reconfigure(&json).unwrap();
            log_end(2);
            // A configuration that cannot be applied changes nothing.
            let bad = Log { sessions: Some(directory.path().join("missing/three.log")), ..Log::default() };
            let error = logging.reconfigure(&bad).unwrap_err().to_string();
            assert!(error.starts_with("log.sessions: cannot append to /"), "{error}");
            log_end(3);
            // The same path after the file was rotated.
            fs::rename(&two, directory.path().join("two.log.1")).unwrap();
            logging.reconfigure(&json).unwrap();
            log_end(4);
            assert!(!tracing::enabled!(Level::TRACE));
            logging.set_level(Level::TRACE);
            assert!(tracing::enabled!(Level::TRACE));
            logging.reconfigure(&json).unwrap();
            assert!(!tracing::enabled!(Level::TRACE));
        });
        // The old file has its own writer thread, which the guard does not wait for.
        let start = Instant::now();
        while lines_of(&one).len() != 1 {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", lines_of(&one));
            thread::yield_now();
        }
        let ids = |file: &str| -> Vec<u64> {
            let lines = lines_of(&directory.path().join(file));
            let parsed = lines.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            parsed.map(|line| line["id"].as_u64().unwrap()).collect()
        };
        // A line queued while the file is reopened may go to either.
        assert_eq!([ids("two.log.1"), ids("two.log")].concat(), [2, 3, 4]);
        assert_eq!(ids("two.log").last(), Some(&4));
        assert_eq!(logging.dropped_lines(), 0);
    }

    #[test]
    fn without_journald_lines_go_to_standard_error() {
        let log = Log { format: LogFormat::Journald, ..Log::default() };
        let (state, no_journal) = LogState::new(&log, Path::new("/nowhere/socket")).unwrap();
        let error = no_journal.unwrap().to_string();
        assert!(error.contains("the journal does not listen on /nowhere/socket: "), "{error}");
        assert!(error.contains("write format = \"text\" where"), "{error}");
        assert_eq!(state.settings().format, LogFormat::Text);
        // A reload still succeeds. Without a collector on this thread, rebuilding the interest cache would disable
        // callsites for the whole process.
        let logging = Logging { state: Arc::new(state) };
        let collector = Collector { state: Arc::clone(&logging.state) };
        with_default(tracing_subscriber::registry().with(collector), || logging.reconfigure(&log)).unwrap();
        assert_eq!(logging.state.settings().format, LogFormat::Text);
    }
}
