//! Errors and warnings about a configuration, each one line.
//!
//! Owns the wording, the names of keys in messages and the `file:line:column` prefix. Knows no key and no rule.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A configuration that cannot be used. Its `Display` is one line: where, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no such file.
    #[error(
        "{}: no such file; name another with --config, or copy the gateway.toml that ships with Portcullis",
        file.display()
    )]
    Missing {
        /// The file, as it was named.
        file: PathBuf,
    },
    /// It is a directory.
    #[error(
        "{}: this is a directory; name the file in it with --config {}",
        file.display(),
        file.join("gateway.toml").display()
    )]
    Directory {
        /// The file, as it was named.
        file: PathBuf,
    },
    /// The operating system reported an error.
    #[error("{}: cannot be read: {cause}; make it readable by the user that runs Portcullis", file.display())]
    Unreadable {
        /// The file, as it was named.
        file: PathBuf,
        /// What the operating system reported.
        cause: std::io::Error,
    },
    /// It is too large for a configuration.
    #[error(
        "{}: larger than {limit} bytes, so not a configuration file; name another file with --config",
        file.display()
    )]
    TooLarge {
        /// The file, as it was named.
        file: PathBuf,
        /// The largest size that is read, in bytes.
        limit: u64,
    },
    /// It is not UTF-8, as TOML must be.
    #[error("{}:{line}:{column}: not UTF-8 from here on; save the file as UTF-8", file.display())]
    NotUtf8 {
        /// The file, as it was named.
        file: PathBuf,
        /// Line of the first bad byte, counted from 1.
        line: usize,
        /// Column of the first bad byte in characters, counted from 1.
        column: usize,
    },
    /// Its content is wrong.
    #[error("{}:{line}:{column}: {problem}", file.display())]
    Invalid {
        /// The file, as it was named.
        file: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Column in characters, counted from 1.
        column: usize,
        /// What is wrong at that position.
        problem: Problem,
    },
}

impl ConfigError {
    pub(super) fn invalid(file: &Path, text: &str, fault: ConfigFault) -> Self {
        let (line, column) = position(text, fault.at.start);
        Self::Invalid { file: file.to_path_buf(), line, column, problem: fault.problem }
    }
}

/// What is wrong at one position of a configuration file. `key` is the key with its table, as in
/// `limits.max_sessions` or `route "vnc": backend`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It is not TOML.
    #[error("{message}")]
    Syntax {
        /// The message of the TOML parser.
        message: String,
    },
    /// No such key exists in this table.
    #[error("unknown key {} {table}; {advice}", quoted(key))]
    UnknownKey {
        /// The key, as it was written.
        key: String,
        /// `in [[route]]`, `at the top level`.
        table: String,
        /// The key that was probably meant, or all keys of the table.
        advice: String,
    },
    /// A table that is written as a list, a list of tables that is written as one table, or either as another type.
    #[error("{key} is a table: write {header} with {brackets} on a line of its own, and its keys below")]
    Header {
        /// The table.
        key: String,
        /// Its header, as it must be written.
        header: String,
        /// The number of brackets, in words.
        brackets: String,
    },
    /// The value has the wrong TOML type.
    #[error("{key} must be {expected}, found {found}")]
    WrongType {
        /// The key.
        key: String,
        /// The type it needs, with an article.
        expected: String,
        /// The type it has, with an article.
        found: String,
    },
    /// A required key is absent.
    #[error("{key} is missing; {advice}")]
    Missing {
        /// The key.
        key: String,
        /// What to add.
        advice: String,
    },
    /// A value that is invalid or out of range.
    #[error("{key} {value}: {wrong}")]
    Value {
        /// The key.
        key: String,
        /// The value: a string in quotes, or a literal.
        value: String,
        /// What is wrong with it, and what to write.
        wrong: String,
    },
    /// Two parts of the file contradict each other, or a required table is absent.
    #[error("{0}")]
    Conflict(String),
}

/// A [`Problem`] and its position in the text, in bytes.
#[derive(Debug)]
pub(super) struct ConfigFault {
    pub(super) at: Range<usize>,
    pub(super) problem: Problem,
}

/// A warning: a sentence and its position in the text, in bytes.
#[derive(Debug)]
pub(super) struct ConfigWarning {
    pub(super) at: Range<usize>,
    pub(super) sentence: String,
}

/// The sentence with the prefix `file:line:column: `.
pub(super) fn located(file: &Path, text: &str, warning: &ConfigWarning) -> String {
    let (line, column) = position(text, warning.at.start);
    format!("{}:{line}:{column}: {}", file.display(), warning.sentence)
}

/// `listener 2: address`, the name of a listener's key in messages. `index` counts from 0, messages from 1.
pub(super) fn listener_key(index: usize, key: &str) -> String {
    format!("listener {}: {key}", index + 1)
}

/// `route "vnc": backend`, the name of a route's key in messages; a route without a name goes by its number.
pub(super) fn route_key(index: usize, name: Option<&str>, key: &str) -> String {
    match name {
        Some(name) => format!("route {}: {key}", quoted(name)),
        None => format!("route {}: {key}", index + 1),
    }
}

/// Line and column, in characters and from 1, of a byte of the text.
pub(super) fn position(text: &str, byte: usize) -> (usize, usize) {
    let end = (0..=byte.min(text.len())).rfind(|end| text.is_char_boundary(*end)).unwrap_or_default();
    let before = &text[..end];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].trim_start_matches('\u{feff}').chars().count() + 1,
    )
}

/// The text in quotes on one line, shortened if it is long.
pub(super) fn quoted(text: impl AsRef<str>) -> String {
    const MAX_CHARS: usize = 80;
    let text = text.as_ref();
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn alternatives(words: impl IntoIterator<Item = impl fmt::Display>) -> String {
    let mut words: Vec<String> = words.into_iter().map(|word| word.to_string()).collect();
    match (words.pop(), words.is_empty()) {
        (Some(last), false) => format!("{} or {last}", words.join(", ")),
        (Some(only), true) => only,
        (None, _) => String::new(),
    }
}

/// The word with the smallest edit distance to what was written, if it is close enough to be a typing error.
pub(super) fn nearest<'a>(written: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // "cert" for "certificate" and "warning" for "warn" are guesses, not typing errors; their edit distance is large, so
    // a common stem counts as well.
    const MIN_STEM: usize = 3;
    const MAX_ENDING: usize = 4;
    let written = written.to_lowercase().replace('-', "_");
    let stem = |word: &str| match word.len() < written.len() {
        true => written.starts_with(word) && written.len() - word.len() <= MAX_ENDING,
        false => word.starts_with(&written) && written.len() >= MIN_STEM,
    };
    let mistakes = |word: &str| strsim::damerau_levenshtein(&written, &word.replace('-', "_"));
    words
        .into_iter()
        .map(|word| (if stem(word) { 1 } else { mistakes(word) }, word))
        .filter(|(mistakes, word)| *mistakes <= word.len().div_ceil(4))
        .min_by_key(|(mistakes, _)| *mistakes)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let text = "a = 1\r\nüb = 2\n\nlast";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, text.find("= 2").unwrap()), (2, 4));
        assert_eq!(position(text, text.find("last").unwrap()), (4, 1));
        assert_eq!(position(text, text.len()), (4, 5));
        assert_eq!(position(text, usize::MAX), (4, 5));
        assert_eq!(position("ü", 1), (1, 1), "within a character");
        assert_eq!(position("\u{feff}key", 3), (1, 1), "a byte order mark is not counted");
    }

    #[test]
    fn quoted_text_stays_on_one_short_line() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert_eq!(quoted("é".repeat(5000)).chars().count(), 83);
    }

    #[test]
    fn nearest_finds_typing_errors_and_stems_only() {
        let route = ["name", "path", "host", "backend", "origins", "missing_origin"];
        assert_eq!(nearest("orgins", route), Some("origins"));
        assert_eq!(nearest("missing-origin", route), Some("missing_origin"));
        assert_eq!(nearest("PATH", route), Some("path"));
        assert_eq!(nearest("cert", ["address", "certificate"]), Some("certificate"));
        assert_eq!(nearest("warning", ["error", "warn", "info"]), Some("warn"));
        assert_eq!(nearest("auth", route), None);
        assert_eq!(nearest("", route), None);
    }

    #[test]
    fn alternatives_are_joined_with_commas_and_or() {
        assert_eq!(alternatives(["a"]), "a");
        assert_eq!(alternatives(["a", "b", "c"]), "a, b or c");
    }
}
