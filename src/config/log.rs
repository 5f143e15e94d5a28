//! `[log]`: the format and level of log lines, the access log file, and the sampling of refused connections.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use tracing::Level;

use super::scalar::{Integer, OptionalKey};
use super::values::{Result, integer, keyword, resolve_path};

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The format of log lines.
    pub format: LogFormat,
    /// The least severe level that is written.
    pub level: Level,
    /// The access log: a file that gets one line when a connection ends, in addition to the log.
    pub sessions: Option<PathBuf>,
    /// At most this many lines per second and reason are written about connections that did not become sessions.
    pub refused_per_second: NonZeroU32,
}

impl Default for Log {
    fn default() -> Self {
        const REFUSED: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
        Self { format: LogFormat::default(), level: Level::INFO, sessions: None, refused_per_second: REFUSED }
    }
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Plain text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
    /// The protocol of systemd's journal, with a journal field for each log field.
    Journald,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    format: OptionalKey<String>,
    level: OptionalKey<String>,
    sessions: OptionalKey<String>,
    refused_per_second: OptionalKey<Integer>,
}

pub(super) fn log(raw: RawLog, base: &Path) -> Result<Log> {
    let default = Log::default();
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json), ("journald", LogFormat::Journald)];
    let levels = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    let sessions = raw.sessions.map(|path| resolve_path("log.sessions", &path, base)).transpose()?;
    let refused_per_second = integer("log.refused_per_second", raw.refused_per_second, u32::MAX)?;
    Ok(Log {
        sessions,
        refused_per_second: refused_per_second.unwrap_or(default.refused_per_second),
        format: keyword("log.format", raw.format, &formats)?.unwrap_or(default.format),
        level: keyword("log.level", raw.level, &levels)?.unwrap_or(default.level),
    })
}
