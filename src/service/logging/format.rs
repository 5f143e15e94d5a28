//! Log line formats: text, JSON, journald. Pure.
//!
//! Each format ends with its own line separator. None escapes anything but its own syntax: the texts of a [`Line`] are
//! sanitized already.

use std::{fmt::Write, time::SystemTime};

use tracing::Level;

use super::line::{Line, Value};

/// Time, level, message, fields.
pub(super) fn text(line: &Line, now: SystemTime, colours: bool) -> Vec<u8> {
    let (on, off) = if colours { (colour(line.level), "\x1b[0m") } else { ("", "") };
    let mut text = String::with_capacity(256);
    // Writing to a String cannot fail; the same goes for every `let _` below.
    let _ = write!(text, "{} {on}{:>5}{off} ", micros(now), line.level.as_str());
    message_and_fields(line, &mut text);
    text.push('\n');
    text.into_bytes()
}

pub(super) fn json(line: &Line, now: SystemTime) -> Vec<u8> {
    let mut text = String::with_capacity(384);
    let _ = write!(text, "{{\"timestamp\":\"{}\",\"level\":\"{}\",\"message\":", micros(now), line.level);
    push_quoted(&line.message, &mut text);
    for (name, value) in &line.fields {
        text.push(',');
        push_quoted(name, &mut text);
        text.push(':');
        match value {
            Value::Text(value) => push_quoted(value, &mut text),
            // JSON has neither infinities nor NaN.
            Value::Float(value) if !value.is_finite() => push_quoted(&value.to_string(), &mut text),
            value => drop(write!(text, "{value}")),
        }
    }
    text.push_str("}\n");
    text.into_bytes()
}

/// For systemd-journald, in its native protocol: MESSAGE has all fields as text, and each is a journal field as well.
/// Source: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.
pub(super) fn journal(line: &Line) -> Vec<u8> {
    let mut text = String::with_capacity(512);
    let _ = write!(text, "PRIORITY={}\nSYSLOG_IDENTIFIER=portcullis\nMESSAGE=", priority(line.level));
    message_and_fields(line, &mut text);
    text.push('\n');
    for (name, value) in &line.fields {
        journal_name(name, &mut text);
        let _ = writeln!(text, "={value}");
    }
    text.into_bytes()
}

fn message_and_fields(line: &Line, text: &mut String) {
    text.push_str(&line.message);
    for (name, value) in &line.fields {
        let _ = write!(text, " {name}=");
        match value {
            Value::Text(value) if is_bare(value) => text.push_str(value),
            Value::Text(value) => push_quoted(value, text),
            value => drop(write!(text, "{value}")),
        }
    }
}

/// Whether the end of the value is unambiguous without quotes.
fn is_bare(value: &str) -> bool {
    !value.is_empty()
        && !value.contains(|char: char| char.is_whitespace() || matches!(char, '"' | '=' | '\\'))
}

/// As a JSON string. Sanitized text has no control characters, so only quotes and backslashes need escapes.
fn push_quoted(value: &str, text: &mut String) {
    text.push('"');
    for char in value.chars() {
        if matches!(char, '"' | '\\') {
            text.push('\\');
        }
        text.push(char);
    }
    text.push('"');
}

/// Journal field names consist of capital letters, digits and underscores; names with a leading underscore are reserved
/// for journald.
fn journal_name(name: &str, text: &mut String) {
    let allowed =
        name.chars().map(|char| if char.is_ascii_alphanumeric() { char.to_ascii_uppercase() } else { '_' });
    text.extend(allowed.skip_while(|char| !char.is_ascii_alphabetic()).take(64));
}

/// The syslog severity (RFC 5424 §6.2.1).
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

/// RFC 3339 with microseconds.
fn micros(now: SystemTime) -> impl std::fmt::Display {
    // The formatter has no times before 1970.
    humantime::format_rfc3339_micros(now.max(SystemTime::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn line(fields: Vec<(&'static str, Value)>) -> Line {
        Line { level: Level::INFO, message: "session ended".to_owned(), fields, is_access_log: true }
    }

    fn string(value: &str) -> Value {
        Value::Text(value.to_owned())
    }

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_176_000_000_001)
    }

    fn example() -> Line {
        line(vec![
            ("session", Value::Unsigned(7)),
            ("peer", string("192.0.2.1:5555")),
            ("detail", string("no \"such\" host")),
            ("empty", string("")),
            ("path", string(r"a\b")),
            ("ok", Value::Bool(true)),
        ])
    }

    #[test]
    fn text_is_a_single_line() {
        let written = String::from_utf8(text(&example(), noon(), false)).unwrap();
        let expected = "2026-11-20T12:00:00.000001Z  INFO session ended session=7 peer=192.0.2.1:5555 \
             detail=\"no \\\"such\\\" host\" empty=\"\" path=\"a\\\\b\" ok=true\n";
        assert_eq!(written, expected);
        let coloured = String::from_utf8(text(&example(), noon(), true)).unwrap();
        assert!(coloured.contains("Z \x1b[32m INFO\x1b[0m session ended"), "{coloured:?}");
    }

    #[test]
    fn journal_entries_have_a_field_for_each_value() {
        let written = String::from_utf8(journal(&example())).unwrap();
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
    fn non_finite_numbers_are_json_strings() {
        let written = json(&line(vec![("a", Value::Float(f64::NAN)), ("b", Value::Float(0.5))]), noon());
        let read: serde_json::Value = serde_json::from_slice(&written).unwrap();
        assert_eq!((&read["a"], &read["b"]), (&"NaN".into(), &0.5.into()));
    }

    proptest! {
        #[test]
        fn json_round_trips_every_value(value in "[^\\p{C}]*", number: i64, count: u64, truth: bool) {
            let fields = vec![
                ("text", string(&value)),
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
