//! What the process writes down: log lines, and the log of sessions.
//!
//! Owns the way from an event to the places it is written to, and how that changes while the process runs. Refuses to
//! know what events mean, but for one: the line that ends a connection. Invariants: nobody who logs ever waits for a
//! reader, a disk or the journal; whatever is lost on the way is counted; nothing a stranger said can end a line, colour
//! a terminal or turn its text around.

mod format;
mod line;
mod sampling;
mod sinks;
mod writer;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::{Mutex, MutexGuard, RwLock};
use tracing::{Event, Level, Metadata, Subscriber, level_filters::LevelFilter, subscriber::Interest};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

use self::{
    format::{journal, json, text},
    line::Line,
    sampling::{Sampler, SuppressedLines},
    sinks::{Journal, SessionFile, Stderr},
    writer::LogWriter,
};
use crate::{
    config::{Log, LogFormat},
    outcome::ACCESS_LOG,
};

/// Where systemd's journal listens.
pub(crate) const JOURNAL: &str = "/run/systemd/journal/socket";
/// How long the end of the process waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);
/// The message of the line that tells how many others are not there.
const HELD_BACK: &str = "refusals left out of the log";

/// Why lines cannot be written where the configuration wants them.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file of sessions cannot be opened.
    #[error("log.sessions: cannot append to {path}: {cause}; check the directory and its permissions")]
    Sessions {
        /// The file.
        path: String,
        /// What the system said.
        cause: io::Error,
    },
    /// There is no journal to write to.
    #[error(
        "log.format \"journald\": the journal does not listen on {path}: {cause}; write format = \"text\" where \
         systemd-journald does not run"
    )]
    Journal {
        /// The socket.
        path: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The system has no thread for it.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(io::Error),
    /// Something else in the process has taken the events already.
    #[error("log lines go elsewhere already")]
    Taken,
}

/// The log of the process. Clones are the same log.
#[derive(Debug, Clone)]
pub struct Logging {
    shared: Arc<LogState>,
}

/// Waits, when dropped, until the lines that were logged are written; for at most a second.
#[derive(Debug)]
#[must_use = "the last lines are lost if nobody waits for them"]
pub(crate) struct FlushGuard {
    shared: Arc<LogState>,
}

/// Sends log lines where `log` says, from now on and for the whole process. Where it says the journal and there is
/// none, they go to standard error, and the first of them says so.
///
/// # Errors
/// The file of sessions cannot be opened, or the system has no thread. Nothing is logged then.
pub(crate) fn start(log: &Log) -> Result<(Logging, FlushGuard), LogError> {
    let (shared, no_journal) = LogState::new(log, Path::new(JOURNAL))?;
    let shared = Arc::new(shared);
    let collector = Collector { shared: Arc::clone(&shared) };
    tracing_subscriber::registry().with(collector).try_init().map_err(|_| LogError::Taken)?;
    // A panic is a line like any other; the task it ends is told by its own closing line.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panic")));
    warn_of(no_journal);
    Ok((Logging { shared: Arc::clone(&shared) }, FlushGuard { shared }))
}

fn warn_of(no_journal: Option<LogError>) {
    if let Some(error) = no_journal {
        tracing::warn!("{error}; until then, lines go to standard error");
    }
}

impl Logging {
    /// Follows another reading of the configuration. Lines logged meanwhile are written to the old place or to the new.
    ///
    /// # Errors
    /// As for [`start`]. Everything stays as it was.
    pub fn reconfigure(&self, log: &Log) -> Result<(), LogError> {
        let changing = self.shared.change();
        let old = self.shared.settings();
        let (dropped, same_file) = (&self.shared.dropped, old.sessions_path() == log.sessions.as_deref());
        let is_journald = |format| format == LogFormat::Journald;
        let (format, main, no_journal) = match is_journald(old.format) == is_journald(log.format) {
            true => (log.format, Arc::clone(&old.main), None),
            false => main_outlet(log.format, &self.shared.journal, dropped)?,
        };
        let sessions = match (&old.sessions, same_file) {
            (Some((path, writer)), true) => Some((path.clone(), Arc::clone(writer))),
            _ => sessions_outlet(log.sessions.as_deref(), dropped)?,
        };
        let colours = old.colours;
        self.shared.set(LogSettings { format, level: log.level, colours, main, sessions });
        self.shared.sampler().set_most(log.refused_per_second.get());
        drop(changing);
        if same_file {
            self.reopen();
        }
        warn_of(no_journal);
        Ok(())
    }

    /// From now on writes lines of this level and of the graver ones, until the next [`reconfigure`](Self::reconfigure).
    pub fn set_level(&self, level: Level) {
        let _changing = self.shared.change();
        let old = self.shared.settings();
        self.shared.set(LogSettings { level, ..(*old).clone() });
    }

    /// Opens the file of sessions again, which somebody may have moved away. If that fails the old one is kept, and a
    /// warning says why.
    pub fn reopen(&self) {
        if let Some((_, writer)) = &self.shared.settings().sessions {
            writer.reopen();
        }
    }

    /// How many lines were lost so far, because a place they go to could not take them. Lines about refused connections
    /// that were left out on purpose are not among them.
    pub fn dropped_lines(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for FlushGuard {
    fn drop(&mut self) {
        self.shared.tell_of_held_back();
        let settings = self.shared.settings();
        let end = Instant::now() + LAST_LINES;
        settings.main.wait_until_written(end);
        if let Some((_, sessions)) = &settings.sessions {
            sessions.wait_until_written(end);
        }
    }
}

/// The way to standard error, or to the journal. Where that does not listen, text and standard error, and why.
fn main_outlet(
    format: LogFormat,
    journal: &Path,
    dropped: &Arc<AtomicU64>,
) -> Result<(LogFormat, Arc<LogWriter>, Option<LogError>), LogError> {
    let stderr = || LogWriter::start("log", Stderr, Arc::clone(dropped));
    let (format, writer, no_journal) = match format {
        LogFormat::Text | LogFormat::Json => (format, stderr(), None),
        LogFormat::Journald => match Journal::find(journal) {
            Ok(journal) => (format, LogWriter::start("log", journal, Arc::clone(dropped)), None),
            Err(cause) => {
                let error = LogError::Journal { path: journal.display().to_string(), cause };
                (LogFormat::Text, stderr(), Some(error))
            }
        },
    };
    Ok((format, writer.map(Arc::new).map_err(LogError::Thread)?, no_journal))
}

fn sessions_outlet(
    path: Option<&Path>,
    dropped: &Arc<AtomicU64>,
) -> Result<Option<(PathBuf, Arc<LogWriter>)>, LogError> {
    let Some(path) = path else { return Ok(None) };
    let file = SessionFile::open(path)
        .map_err(|cause| LogError::Sessions { path: path.display().to_string(), cause })?;
    let writer = LogWriter::start("log-sessions", file, Arc::clone(dropped)).map_err(LogError::Thread)?;
    Ok(Some((path.to_owned(), Arc::new(writer))))
}

/// What is logged how, and where to.
#[derive(Clone)]
struct LogSettings {
    format: LogFormat,
    level: Level,
    /// Whether a person reads standard error.
    colours: bool,
    main: Arc<LogWriter>,
    sessions: Option<(PathBuf, Arc<LogWriter>)>,
}

impl LogSettings {
    fn sessions_path(&self) -> Option<&Path> {
        self.sessions.as_ref().map(|(path, _)| path.as_path())
    }

    fn wants(&self, event: &Metadata<'_>) -> bool {
        // Some events are asked about before they happen.
        !event.is_span()
            && (*event.level() <= self.level || self.sessions.is_some() && event.target() == ACCESS_LOG)
    }

    /// Gives a line to whom it concerns.
    fn write(&self, line: &Line) {
        let now = SystemTime::now();
        // The journal has no use for the log of sessions, which is for people and their tools.
        let for_file =
            || if self.format == LogFormat::Json { json(line, now) } else { text(line, now, false) };
        if line.level <= self.level {
            self.main.push(match self.format {
                LogFormat::Text => text(line, now, self.colours),
                LogFormat::Json => json(line, now),
                LogFormat::Journald => journal(line),
            });
        }
        if let Some((_, sessions)) = self.sessions.as_ref().filter(|_| line.is_end) {
            sessions.push(for_file());
        }
    }
}

struct LogState {
    settings: RwLock<Arc<LogSettings>>,
    /// Held by whoever replaces the settings.
    changing: Mutex<()>,
    sampler: Mutex<Sampler>,
    /// Where the journal listens.
    journal: PathBuf,
    dropped: Arc<AtomicU64>,
}

impl fmt::Debug for LogState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logging").field("dropped", &self.dropped).finish_non_exhaustive()
    }
}

impl LogState {
    /// Also returns why lines do not go to the journal, if they should.
    fn new(log: &Log, journal: &Path) -> Result<(Self, Option<LogError>), LogError> {
        let dropped = Arc::new(AtomicU64::new(0));
        let (format, main, no_journal) = main_outlet(log.format, journal, &dropped)?;
        let colours = io::IsTerminal::is_terminal(&io::stderr());
        let sessions = sessions_outlet(log.sessions.as_deref(), &dropped)?;
        let settings = LogSettings { format, level: log.level, colours, main, sessions };
        let shared = Self {
            settings: RwLock::new(Arc::new(settings)),
            changing: Mutex::default(),
            sampler: Mutex::new(Sampler::new(log.refused_per_second.get())),
            journal: journal.to_owned(),
            dropped,
        };
        Ok((shared, no_journal))
    }

    fn settings(&self) -> Arc<LogSettings> {
        Arc::clone(&self.settings.read())
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    fn set(&self, settings: LogSettings) {
        *self.settings.write() = Arc::new(settings);
        // Every place in the program that logs remembers whether anybody listens.
        tracing::callsite::rebuild_interest_cache();
    }

    fn sampler(&self) -> MutexGuard<'_, Sampler> {
        self.sampler.lock()
    }

    /// Writes how many lines were held back since it was last told.
    fn tell_of_held_back(&self) {
        let held = self.sampler().take_held();
        for SuppressedLines { reason, count } in held {
            self.settings().write(&Line::about_held_back(HELD_BACK, &reason, count));
        }
    }
}

/// Takes every event of the process.
struct Collector {
    shared: Arc<LogState>,
}

impl<S: Subscriber> Layer<S> for Collector {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self.shared.settings().wants(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.shared.settings().wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let settings = self.shared.settings();
        // Closing lines are at debug or above.
        let ends = settings.sessions.as_ref().map_or(settings.level, |_| settings.level.max(Level::DEBUG));
        Some(LevelFilter::from_level(ends))
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = Line::of(event);
        // Strangers can cause as many of these as they like.
        if line.is_end && line.level > Level::INFO {
            let verdict = self.shared.sampler().judge(line.reason(), Instant::now());
            if verdict.begins_to_hold {
                let shared = Arc::clone(&self.shared);
                // Without a thread, the next line of this reason tells.
                let _ = thread::Builder::new().name("log-held".to_owned()).spawn(move || {
                    thread::sleep(sampling::SPAN);
                    shared.tell_of_held_back();
                });
            }
            if !verdict.is_written {
                return;
            }
        }
        self.shared.settings().write(&line);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, num::NonZeroU32};

    use tracing::subscriber::with_default;

    use super::*;

    /// A log that writes sessions to `file`, and what it makes of `events`.
    fn logged(log: &Log, file: &Path, events: impl FnOnce(&Logging)) -> (Vec<String>, Logging) {
        let log = Log { sessions: Some(file.to_owned()), ..log.clone() };
        let (shared, no_journal) = LogState::new(&log, Path::new("/nowhere")).unwrap();
        assert!(no_journal.is_none(), "{no_journal:?}");
        let shared = Arc::new(shared);
        let logging = Logging { shared: Arc::clone(&shared) };
        let collector = Collector { shared: Arc::clone(&shared) };
        with_default(tracing_subscriber::registry().with(collector), || events(&logging));
        drop(FlushGuard { shared });
        (lines_of(file), logging)
    }

    fn lines_of(file: &Path) -> Vec<String> {
        fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
    }

    /// Of a line of text, what follows the time.
    fn untimed(line: &str) -> &str {
        line.split_once(' ').unwrap().1.trim_start()
    }

    #[test]
    fn ends_and_nothing_else_go_to_the_file_whatever_the_level() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log { level: Level::ERROR, ..Log::default() };
        let (lines, logging) = logged(&log, &directory.path().join("sessions.log"), |_| {
            tracing::error!("another line");
            tracing::info!(target: ACCESS_LOG, session = 7, "session ended");
            tracing::debug!(target: ACCESS_LOG, reason = "not_tls", "refused");
        });
        let lines: Vec<&str> = lines.iter().map(|line| untimed(line)).collect();
        assert_eq!(lines, ["INFO session ended session=7", "DEBUG refused reason=not_tls"]);
        assert_eq!(logging.dropped_lines(), 0);
    }

    #[test]
    fn refusals_are_bounded_and_counted_and_sessions_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log { refused_per_second: NonZeroU32::new(3).unwrap(), ..Log::default() };
        let (lines, logging) = logged(&log, &directory.path().join("sessions.log"), |_| {
            for _ in 0..1000 {
                tracing::debug!(target: ACCESS_LOG, reason = "origin_refused", "refused");
                tracing::info!(target: ACCESS_LOG, reason = "client_gone", "session ended");
            }
        });
        let count = |words: &str| lines.iter().filter(|line| line.contains(words)).count();
        assert_eq!(count("session ended"), 1000);
        let written = count("refused reason=origin_refused");
        let left_out = lines.iter().filter(|line| line.contains(HELD_BACK));
        let left_out: usize =
            left_out.map(|line| line.rsplit_once("left_out=").unwrap().1.parse::<usize>().unwrap()).sum();
        assert_eq!(written + left_out, 1000, "each is written or counted");
        assert!((3..1000).contains(&written), "{written} were written");
        assert_eq!(logging.dropped_lines(), 0, "what is left out on purpose is not lost");
    }

    #[test]
    fn a_new_configuration_changes_format_level_and_file() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one.log", "two.log"].map(|name| directory.path().join(name));
        let end = |id: u64| tracing::info!(target: ACCESS_LOG, id, "session ended");
        let json = Log { format: LogFormat::Json, sessions: Some(two.clone()), ..Log::default() };
        let (_, logging) = logged(&Log::default(), &one, |logging| {
            end(1);
            logging.reconfigure(&json).unwrap();
            end(2);
            // What cannot be followed changes nothing.
            let bad = Log { sessions: Some(directory.path().join("missing/three.log")), ..Log::default() };
            let error = logging.reconfigure(&bad).unwrap_err().to_string();
            assert!(error.starts_with("log.sessions: cannot append to /"), "{error}");
            end(3);
            // The same file again, which has been moved away.
            fs::rename(&two, directory.path().join("two.log.1")).unwrap();
            logging.reconfigure(&json).unwrap();
            end(4);
            assert!(!tracing::enabled!(Level::TRACE));
            logging.set_level(Level::TRACE);
            assert!(tracing::enabled!(Level::TRACE));
            logging.reconfigure(&json).unwrap();
            assert!(!tracing::enabled!(Level::TRACE));
        });
        // The file that was left is written by a thread of its own, for which nobody waits.
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
        // A line on its way while the file is opened again may go to either.
        assert_eq!([ids("two.log.1"), ids("two.log")].concat(), [2, 3, 4]);
        assert_eq!(ids("two.log").last(), Some(&4));
        assert_eq!(logging.dropped_lines(), 0);
    }

    #[test]
    fn without_a_journal_lines_go_to_standard_error() {
        let log = Log { format: LogFormat::Journald, ..Log::default() };
        let (shared, no_journal) = LogState::new(&log, Path::new("/nowhere/socket")).unwrap();
        let error = no_journal.unwrap().to_string();
        assert!(error.contains("the journal does not listen on /nowhere/socket: "), "{error}");
        assert!(error.contains("write format = \"text\" where"), "{error}");
        assert_eq!(shared.settings().format, LogFormat::Text);
        // Nor is a reload for other reasons hindered by that. Without a collector of its own, this thread would tell the
        // whole process that nobody listens.
        let logging = Logging { shared: Arc::new(shared) };
        let collector = Collector { shared: Arc::clone(&logging.shared) };
        with_default(tracing_subscriber::registry().with(collector), || logging.reconfigure(&log)).unwrap();
        assert_eq!(logging.shared.settings().format, LogFormat::Text);
    }
}
