//! What a line looks like: for people, for programs, for the journal. Pure.
//!
//! Each format ends with what its reader needs between two lines; none has to escape anything but its own signs, for
//! the texts of a [`Line`] are clean.

use std::{
    fmt::Write,
    time::{Duration, SystemTime},
};

use tracing::Level;

use super::line::{Line, Value};

/// For people: time, level, message, fields.
pub(super) fn text(line: &Line, now: SystemTime, colours: bool) -> Vec<u8> {
    let (on, off) = if colours { (colour(line.level), "\x1b[0m") } else { ("", "") };
    let mut text = String::with_capacity(256);
    // Writing to a String cannot fail, here and below.
    let _ = write!(text, "{} {on}{:>5}{off} ", micros(now), line.level.as_str());
    in_words(line, &mut text);
    text.push('\n');
    text.into_bytes()
}

/// For programs: one JSON object.
pub(super) fn json(line: &Line, now: SystemTime) -> Vec<u8> {
    let mut text = String::with_capacity(384);
    let _ = write!(text, "{{\"timestamp\":\"{}\",\"level\":\"{}\",\"message\":", micros(now), line.level);
    in_quotes(&line.message, &mut text);
    for (name, value) in &line.fields {
        text.push(',');
        in_quotes(name, &mut text);
        text.push(':');
        match value {
            Value::Text(value) => in_quotes(value, &mut text),
            // JSON has no such numbers.
            Value::Float(value) if !value.is_finite() => in_quotes(&value.to_string(), &mut text),
            value => drop(write!(text, "{value}")),
        }
    }
    text.push_str("}\n");
    text.into_bytes()
}

/// For systemd-journald, in its own protocol: the message says all, and every field stands for itself as well.
/// Source: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.
pub(super) fn journal(line: &Line) -> Vec<u8> {
    let mut text = String::with_capacity(512);
    let _ = write!(text, "PRIORITY={}\nSYSLOG_IDENTIFIER=portcullis\nMESSAGE=", priority(line.level));
    in_words(line, &mut text);
    text.push('\n');
    for (name, value) in &line.fields {
        journal_name(name, &mut text);
        let _ = writeln!(text, "={value}");
    }
    text.into_bytes()
}

/// The message and its fields.
fn in_words(line: &Line, text: &mut String) {
    text.push_str(&line.message);
    for (name, value) in &line.fields {
        let _ = write!(text, " {name}=");
        match value {
            Value::Text(value) if is_bare(value) => text.push_str(value),
            Value::Text(value) => in_quotes(value, text),
            value => drop(write!(text, "{value}")),
        }
    }
}

/// Whether it is clear without quotes where a value ends.
fn is_bare(value: &str) -> bool {
    !value.is_empty()
        && !value.contains(|char: char| char.is_whitespace() || matches!(char, '"' | '=' | '\\'))
}

/// In quotes, as JSON has them: what is quoted here has no control characters.
fn in_quotes(value: &str, text: &mut String) {
    text.push('"');
    for char in value.chars() {
        if matches!(char, '"' | '\\') {
            text.push('\\');
        }
        text.push(char);
    }
    text.push('"');
}

/// The journal's fields have names of capital letters, digits and underscores; those that begin with an underscore are
/// its own.
fn journal_name(name: &str, text: &mut String) {
    let fit =
        name.chars().map(|char| if char.is_ascii_alphanumeric() { char.to_ascii_uppercase() } else { '_' });
    text.extend(fit.skip_while(|char| !char.is_ascii_alphabetic()).take(64));
}

/// As syslog counts (RFC 5424 §6.2.1).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[2m",
    }
}

/// RFC 3339, in microseconds.
fn micros(now: SystemTime) -> impl std::fmt::Display {
    // A clock that is set before 1970 has no time to tell.
    humantime::format_rfc3339_micros(now.max(SystemTime::UNIX_EPOCH + Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(fields: Vec<(&'static str, Value)>) -> Line {
        Line { level: Level::INFO, message: "session ended".to_owned(), fields, is_end: true }
    }

    fn words(value: &str) -> Value {
        Value::Text(value.to_owned())
    }

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_176_000_000_001)
    }

    fn some() -> Line {
        line(vec![
            ("session", Value::Unsigned(7)),
            ("peer", words("192.0.2.1:5555")),
            ("detail", words("no \"such\" host")),
            ("empty", words("")),
            ("path", words(r"a\b")),
            ("ok", Value::Bool(true)),
        ])
    }

    #[test]
    fn text_is_one_line() {
        let written = String::from_utf8(text(&some(), noon(), false)).unwrap();
        let expected = "2026-11-20T12:00:00.000001Z  INFO session ended session=7 peer=192.0.2.1:5555 \
             detail=\"no \\\"such\\\" host\" empty=\"\" path=\"a\\\\b\" ok=true\n";
        assert_eq!(written, expected);
        let coloured = String::from_utf8(text(&some(), noon(), true)).unwrap();
        assert!(coloured.contains("Z \x1b[32m INFO\x1b[0m session ended"), "{coloured:?}");
    }

    #[test]
    fn the_journal_gets_fields() {
        let written = String::from_utf8(journal(&some())).unwrap();
        let lines: Vec<&str> = written.lines().collect();
        assert_eq!(lines[..2], ["PRIORITY=6", "SYSLOG_IDENTIFIER=portcullis"]);
        assert!(
            lines[2].starts_with("MESSAGE=session ended session=7 peer=192.0.2.1:5555 detail="),
            "{lines:?}"
        );
        assert_eq!(
            lines[3..],
            ["SESSION=7", "PEER=192.0.2.1:5555", "DETAIL=no \"such\" host", "EMPTY=", r"PATH=a\b", "OK=true"]
        );
        let mut odd = String::new();
        journal_name("_trusted.by-1", &mut odd);
        assert_eq!(odd, "TRUSTED_BY_1");
    }

    #[test]
    fn numbers_that_json_has_not_are_texts() {
        let written = json(&line(vec![("a", Value::Float(f64::NAN)), ("b", Value::Float(0.5))]), noon());
        let read: serde_json::Value = serde_json::from_slice(&written).unwrap();
        assert_eq!((&read["a"], &read["b"]), (&"NaN".into(), &0.5.into()));
    }

    proptest! {
        #[test]
        fn json_says_what_the_line_says(value in "[^\\p{C}]*", number: i64, count: u64, truth: bool) {
            let fields = vec![
                ("text", words(&value)),
                ("number", Value::Signed(number)),
                ("count", Value::Unsigned(count)),
                ("truth", Value::Bool(truth)),
            ];
            let written = json(&line(fields), noon());
            prop_assert_eq!(written.iter().filter(|byte| **byte == b'\n').count(), 1);
            let read: serde_json::Value = serde_json::from_slice(&written).unwrap();
            prop_assert_eq!(&read["timestamp"], "2026-11-20T12:00:00.000001Z");
            prop_assert_eq!((&read["level"], &read["message"]), (&"INFO".into(), &"session ended".into()));
            prop_assert_eq!(&read["text"], &value);
            prop_assert_eq!((&read["number"], &read["count"]), (&number.into(), &count.into()));
            prop_assert_eq!(&read["truth"], truth);
        }
    }
}
