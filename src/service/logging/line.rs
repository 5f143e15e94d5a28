//! One event, taken apart and made fit to be read.

use std::fmt::{self, Write};

use tracing::{
    Event, Level,
    field::{Field, Visit},
};

use crate::outcome::ACCESS_LOG;

/// The longest text of a field, in characters: others can put much into one.
const FIELD: usize = 256;
/// The longest message, in characters: these are the gateway's own words.
const MESSAGE: usize = 1024;

/// An event. Its texts hold no control character and no mark that turns text around.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) level: Level,
    pub(super) message: String,
    pub(super) fields: Vec<(&'static str, Value)>,
    /// Whether it tells how a connection ended.
    pub(super) is_end: bool,
}

/// What a field says.
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
            is_end: event.metadata().target() == ACCESS_LOG,
        };
        event.record(&mut line);
        line
    }

    /// That `count` lines about connections which ended for `reason` are not in the log.
    pub(super) fn about_held_back(message: &str, reason: &str, count: u64) -> Self {
        Self {
            level: Level::DEBUG,
            message: message.to_owned(),
            fields: vec![("reason", Value::Text(reason.to_owned())), ("left_out", Value::Unsigned(count))],
            is_end: true,
        }
    }

    /// Why the connection ended, if the line tells that.
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
            self.message = clean(format_args!("{value:?}"), MESSAGE);
        } else {
            self.add(field, Value::Text(clean(format_args!("{value:?}"), FIELD)));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = clean(format_args!("{value}"), MESSAGE);
        } else {
            self.add(field, Value::Text(clean(format_args!("{value}"), FIELD)));
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

/// The text in at most `most` characters, the last of which is an ellipsis if something is missing. What would end a
/// line, steer a terminal or turn text around is written as an escape.
fn clean(text: fmt::Arguments<'_>, most: usize) -> String {
    let mut cleaner = Sanitizer { text: String::new(), count: 0, most, whole: 0, is_cut: false };
    // The cleaner stops the writing when it is full; other errors do not come from formatting.
    let _ = cleaner.write_fmt(text);
    let Sanitizer { mut text, whole, is_cut, .. } = cleaner;
    if is_cut {
        text.truncate(whole);
        text.push('…');
    }
    text
}

/// Takes text until it is full.
struct Sanitizer {
    text: String,
    /// Of the text, in characters.
    count: usize,
    most: usize,
    /// How many bytes of the text leave room for an ellipsis.
    whole: usize,
    is_cut: bool,
}

impl Write for Sanitizer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            let escaped = is_unfit(char).then(|| char.escape_default());
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
                self.whole = self.text.len();
            }
        }
        Ok(())
    }
}

/// Control characters, line and paragraph separators, and the marks of the bidirectional algorithm (UAX #9).
fn is_unfit(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn clean(text: &str, most: usize) -> String {
        super::clean(format_args!("{text}"), most)
    }

    #[test]
    fn what_could_harm_is_escaped() {
        for (text, cleaned) in [
            ("plain ünïcode …", "plain ünïcode …"),
            ("a\r\nb", r"a\r\nb"),
            ("\u{1b}[31m", r"\u{1b}[31m"),
            ("\u{202e}txt.exe", r"\u{202e}txt.exe"),
            ("\u{2066}\u{9b}\u{85}\u{7f}\0", r"\u{2066}\u{9b}\u{85}\u{7f}\u{0}"),
            ("\u{2028}\u{200f}\u{61c}", r"\u{2028}\u{200f}\u{61c}"),
        ] {
            assert_eq!(clean(text, 256), cleaned);
        }
    }

    #[test]
    fn what_is_long_is_cut_and_no_escape_in_two() {
        assert_eq!(clean("abcd", 4), "abcd");
        assert_eq!(clean("abcde", 4), "abc…");
        assert_eq!(clean("ab\ncd", 4), "ab…");
        assert_eq!(clean("ab\n", 4), r"ab\n");
        assert_eq!(clean("\u{1b}x", 4), "…");
        assert_eq!(clean(&"ö".repeat(300), 256), "ö".repeat(255) + "…");
    }

    proptest! {
        #[test]
        fn nothing_unfit_and_nothing_long_gets_through(text in any::<String>(), most in 1..40_usize) {
            let cleaned = clean(&text, most);
            prop_assert!(cleaned.chars().count() <= most, "{cleaned:?}");
            prop_assert!(!cleaned.chars().any(is_unfit), "{cleaned:?}");
            if text.chars().count() <= most && !text.chars().any(is_unfit) {
                prop_assert_eq!(cleaned, text);
            }
        }
    }
}
