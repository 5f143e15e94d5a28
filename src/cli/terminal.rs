//! What is written to the terminal.
//!
//! Owns the last step before standard output and standard error. A hostile server chooses parts of what is printed (the
//! text of an error, the names in a certificate), and a terminal obeys escape sequences. Invariant: every line that this
//! program prints passes through here, and has no control characters and no bidirectional marks in it.

use std::fmt::Display;

use crate::service::logging::needs_escape;

/// Writes one line to standard output.
pub(super) fn print_line(line: impl Display) {
    println!("{}", escaped(&line.to_string()));
}

/// Writes one line to standard error.
pub(super) fn print_error(line: impl Display) {
    eprintln!("{}", escaped(&line.to_string()));
}

/// The text without anything that a terminal would act on. What is escaped looks as in the log.
pub(super) fn escaped(text: &str) -> String {
    replaced(text, |char, escaped| escaped.extend(char.escape_default()))
}

/// The same for JSON text, in which only strings can contain such characters (RFC 8259 §7).
pub(super) fn escaped_json(json: &str) -> String {
    replaced(json, |char, escaped| {
        for unit in char.encode_utf16(&mut [0; 2]) {
            escaped.push_str(&format!("\\u{unit:04x}"));
        }
    })
}

fn replaced(text: &str, escape: impl Fn(char, &mut String)) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        if needs_escape(char) {
            escape(char, &mut escaped);
        } else {
            escaped.push(char);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_73_nothing_that_a_terminal_acts_on_is_printed() {
        let hostile = "a\x1b[2J\x1b]0;title\x07\r\nb\u{9b}31m\u{202e}c\u{2066}d\u{200f}\0é–…";
        assert_eq!(
            escaped(hostile),
            r"a\u{1b}[2J\u{1b}]0;title\u{7}\r\nb\u{9b}31m\u{202e}c\u{2066}d\u{200f}\u{0}é–…"
        );
    }

    #[test]
    fn row_73_escaped_json_has_the_same_value() {
        let value = serde_json::json!({ "peer": "a\x1b[2J\u{9b}\u{202e}\u{7f}é", "n": 1 });
        let text = serde_json::to_string(&value).unwrap();
        let escaped = escaped_json(&text);
        assert!(!escaped.contains(needs_escape), "{escaped:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
    }
}
