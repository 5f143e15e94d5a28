//! One event as a log line, with its texts sanitized and bounded.

use std::fmt::{self, Write};

use tracing::{
    Event, Level,
    field::{Field, Visit},
};

use crate::outcome::ACCESS_LOG;

/// The longest text of a field, in characters: clients choose some of them.
const MAX_FIELD: usize = 256;
/// The longest message, in characters: the gateway's own text.
const MAX_MESSAGE: usize = 1024;

/// Its texts contain no control characters and no bidirectional formatting characters.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) level: Level,
    pub(super) message: String,
    pub(super) fields: Vec<(&'static str, Value)>,
    /// Whether it is an access log line.
    pub(super) is_access_log: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Signed(number) => number.fmt(f),
            Self::Unsigned(number) => number.fmt(f),
            Self::Float(number) => number.fmt(f),
            Self::Bool(truth) => truth.fmt(f),
        }
    }
}

impl Line {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut line = Self {
            level: *event.metadata().level(),
            message: String::new(),
            fields: Vec::with_capacity(16),
            is_access_log: event.metadata().target() == ACCESS_LOG,
        };
        event.record(&mut line);
        line
    }

    /// A line that reports `count` suppressed lines with this reason.
    pub(super) fn suppressed(message: &str, reason: &str, count: u64) -> Self {
        Self {
            level: Level::DEBUG,
            message: message.to_owned(),
            fields: vec![("reason", Value::Text(reason.to_owned())), ("left_out", Value::Unsigned(count))],
            is_access_log: true,
        }
    }

    /// The reason field of an access log line; empty if there is none.
    pub(super) fn reason(&self) -> &str {
        let reason = self.fields.iter().find(|(name, _)| *name == "reason");
        match reason {
            Some((_, Value::Text(reason))) => reason,
            _ => "",
        }
    }

    fn add(&mut self, field: &Field, value: Value) {
        self.fields.push((field.name(), value));
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = sanitize(format_args!("{value:?}"), MAX_MESSAGE);
        } else {
            self.add(field, Value::Text(sanitize(format_args!("{value:?}"), MAX_FIELD)));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = sanitize(format_args!("{value}"), MAX_MESSAGE);
        } else {
            self.add(field, Value::Text(sanitize(format_args!("{value}"), MAX_FIELD)));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::Unsigned(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Bool(value));
    }
}

/// The text in at most `most` characters, with an ellipsis at the end if it was cut. What would end a line, control a
/// terminal or reorder text is escaped.
fn sanitize(text: fmt::Arguments<'_>, most: usize) -> String {
    let mut sanitizer = Sanitizer { text: String::new(), count: 0, most, kept: 0, is_cut: false };
    // The only error is the sanitizer's own, when it is full.
    let _ = sanitizer.write_fmt(text);
    let Sanitizer { mut text, kept, is_cut, .. } = sanitizer;
    if is_cut {
        text.truncate(kept);
        text.push('…');
    }
    text
}

/// Collects escaped text up to a length.
struct Sanitizer {
    text: String,
    /// The length of `text` in characters.
    count: usize,
    most: usize,
    /// The bytes of `text` to keep so that an ellipsis fits.
    kept: usize,
    is_cut: bool,
}

impl Write for Sanitizer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            let escaped = needs_escape(char).then(|| char.escape_default());
            let len = escaped.as_ref().map_or(1, ExactSizeIterator::len);
            if self.count + len > self.most {
                self.is_cut = true;
                return Err(fmt::Error);
            }
            match escaped {
                Some(escaped) => self.text.extend(escaped),
                None => self.text.push(char),
            }
            self.count += len;
            if self.count < self.most {
                self.kept = self.text.len();
            }
        }
        Ok(())
    }
}

/// Control characters, line and paragraph separators, and the marks of the bidirectional algorithm (UAX #9).
pub(crate) fn needs_escape(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sanitize(text: &str, most: usize) -> String {
        super::sanitize(format_args!("{text}"), most)
    }

    #[test]
    fn control_and_bidirectional_characters_are_escaped() {
        for (text, sanitized) in [
            ("plain ünïcode …", "plain ünïcode …"),
            ("a\r\nb", r"a\r\nb"),
            ("\u{1b}[31m", r"\u{1b}[31m"),
            ("\u{202e}txt.exe", r"\u{202e}txt.exe"),
            ("\u{2066}\u{9b}\u{85}\u{7f}\0", r"\u{2066}\u{9b}\u{85}\u{7f}\u{0}"),
            ("\u{2028}\u{200f}\u{61c}", r"\u{2028}\u{200f}\u{61c}"),
        ] {
            assert_eq!(sanitize(text, 256), sanitized);
        }
    }

    #[test]
    fn long_text_is_cut_between_escapes() {
        assert_eq!(sanitize("abcd", 4), "abcd");
        assert_eq!(sanitize("abcde", 4), "abc…");
        assert_eq!(sanitize("ab\ncd", 4), "ab…");
        assert_eq!(sanitize("ab\n", 4), r"ab\n");
        assert_eq!(sanitize("\u{1b}x", 4), "…");
        assert_eq!(sanitize(&"ö".repeat(300), 256), "ö".repeat(255) + "…");
    }

    proptest! {
        #[test]
        fn output_is_bounded_and_has_nothing_to_escape(text in any::<String>(), most in 1..40_usize) {
            let sanitized = sanitize(&text, most);
            prop_assert!(sanitized.chars().count() <= most, "{sanitized:?}");
            prop_assert!(!sanitized.chars().any(needs_escape), "{sanitized:?}");
            if text.chars().count() <= most && !text.chars().any(needs_escape) {
                prop_assert_eq!(sanitized, text);
            }
        }
    }
}
