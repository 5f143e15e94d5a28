//! Log injection: client input cannot forge lines or control a terminal, in any format.

use std::collections::HashMap;

use serde_json::Value;

use super::journal::{JOURNAL_IN_DIRECTORY, records};
use super::{LoggingGateway, may_mount};

/// Origins that can be sent, and that are logged.
fn evil() -> Vec<Vec<u8>> {
    vec![
        b"https://evil.example/\x1b[31mred".to_vec(),
        "https://evil.example/\u{202e}txt.exe".as_bytes().to_vec(),
        "https://evil.example/\u{2066}\u{9b}31m\u{85}\u{2028}".as_bytes().to_vec(),
        b"https://evil.example/\x80\xff\xfe\" level=ERROR \\".to_vec(),
        "https://evil.example/\u{202e}".repeat(250).into_bytes(),
        vec![b'x'; 7000],
    ]
}

/// Opens a session, and is refused for every one of these Origins. Returns how many connections those were.
async fn log_evil_origins(gateway: &LoggingGateway) -> usize {
    for origin in evil() {
        let request = gateway.request().without("Origin").add_bytes("Origin", &origin);
        gateway.refused(&request.bytes()).await;
        let target = [b"GET /", origin.as_slice(), b" HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat();
        gateway.refused(&target).await;
    }
    gateway.whole_session().await;
    2 * evil().len() + 1
}

fn is_odd(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Checks the names and values of one line.
fn check(fields: &HashMap<String, String>) {
    for (name, value) in fields {
        assert!(!value.contains(is_odd), "{name} holds a control character or a bidi mark: {value:?}");
        let most = if name.eq_ignore_ascii_case("message") { 1024 } else { 256 };
        assert!(value.chars().count() <= most, "{name} has {} characters", value.chars().count());
    }
}

/// Checks that each connection has one line, and that overlong values are cut.
fn check_all(ends: &[HashMap<String, String>], connections: usize, name: fn(&str) -> String) {
    assert_eq!(ends.len(), connections, "one line for each connection");
    let of =
        |fields: &HashMap<String, String>, key: &str| fields.get(&name(key)).cloned().unwrap_or_default();
    let mut ids: Vec<String> = ends.iter().map(|fields| of(fields, "request_id")).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), connections, "each has its own id: {ids:?}");
    let details: Vec<String> = ends.iter().map(|fields| of(fields, "detail")).collect();
    assert!(details.iter().any(|detail| detail.contains(r"\u{9b}31m")), "no CSI was escaped: {details:?}");
    assert!(details.iter().any(|detail| detail.contains(r"\u{202e}")), "no mark was escaped: {details:?}");
    let cut = |detail: &String| detail.ends_with('…') && (250..=256).contains(&detail.chars().count());
    assert!(details.iter().any(cut), "nothing was cut: {details:?}");
    let session = ends.iter().find(|fields| of(fields, "reason") == "client_closed").expect("the session");
    for key in ["session", "peer", "route", "backend", "close_code", "bytes_in", "bytes_out", "duration_ms"] {
        assert!(!of(session, key).is_empty(), "{key} is missing in {session:?}");
    }
}

#[tokio::test]
async fn json_escapes_client_input() {
    let gateway =
        LoggingGateway::start("format = \"json\"\nlevel = \"debug\"\nrefused_per_second = 1000").await;
    let connections = log_evil_origins(&gateway).await;
    gateway.log.with("duration_ms", connections).await;
    let (status, lines) = gateway.finish().await;
    assert!(status.success(), "{status}");
    let parse = |line: &String| -> HashMap<String, String> {
        let fields: serde_json::Map<String, Value> =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        fields.iter().map(|(name, value)| (name.clone(), text(value))).collect()
    };
    let parsed: Vec<HashMap<String, String>> = lines.iter().map(parse).collect();
    parsed.iter().for_each(check);
    let ends: Vec<_> = parsed.into_iter().filter(|fields| fields.contains_key("duration_ms")).collect();
    check_all(&ends, connections, str::to_owned);
}

#[tokio::test]
async fn text_escapes_client_input() {
    let gateway =
        LoggingGateway::start("format = \"text\"\nlevel = \"debug\"\nrefused_per_second = 1000").await;
    let connections = log_evil_origins(&gateway).await;
    gateway.log.with("duration_ms", connections).await;
    let (status, lines) = gateway.finish().await;
    assert!(status.success(), "{status}");
    for line in &lines {
        // The time, the level, the message.
        let (time, rest) = line.split_at(27);
        assert!(time.ends_with('Z') && time.starts_with("20"), "not a line of the gateway: {line}");
        assert!([" ERROR ", "  WARN ", "  INFO ", " DEBUG "].contains(&&rest[..7]), "{line}");
        assert!(!line.contains(is_odd), "a control character or a bidi mark in {line:?}");
    }
    let ends: Vec<HashMap<String, String>> =
        lines.iter().filter(|line| line.contains("duration_ms=")).map(|line| pairs(&line[34..])).collect();
    ends.iter().for_each(check);
    check_all(&ends, connections, str::to_owned);
}

/// The `name=value` pairs of a line; values are quoted where necessary.
fn pairs(line: &str) -> HashMap<String, String> {
    let mut pairs = HashMap::new();
    let mut rest = line;
    while let Some(equals) = rest.find('=') {
        let name = rest[..equals].rsplit(' ').next().expect("a name").to_owned();
        let mut value = String::new();
        let mut chars = rest[equals + 1..].char_indices();
        let is_quoted = rest[equals + 1..].starts_with('"');
        if is_quoted {
            chars.next();
        }
        let mut end = rest.len();
        while let Some((at, char)) = chars.next() {
            match char {
                '\\' if is_quoted => value.extend(chars.next().map(|(_, char)| char)),
                '"' if is_quoted => {
                    end = equals + 2 + at;
                    break;
                }
                ' ' if !is_quoted => {
                    end = equals + 1 + at;
                    break;
                }
                char => value.push(char),
            }
        }
        assert_eq!(pairs.insert(name, value), None, "twice in {line}");
        rest = &rest[end..];
    }
    pairs
}

#[tokio::test]
async fn journal_fields_escape_client_input() {
    if !may_mount() {
        return;
    }
    let (directory, journal) = super::journal::listen();
    let log = "format = \"journald\"\nlevel = \"debug\"\nrefused_per_second = 1000";
    let gateway = LoggingGateway::start_in(JOURNAL_IN_DIRECTORY, log, Some((directory, journal))).await;
    let connections = log_evil_origins(&gateway).await;
    gateway.log.with("DURATION_MS", connections).await;
    let (status, lines) = gateway.finish().await;
    assert!(status.success(), "{status}");
    let records = records(&lines);
    // The message repeats all fields.
    for mut record in records.clone() {
        let message = record.remove("MESSAGE").expect("a message");
        assert!(!message.contains(is_odd), "a control character or a bidi mark in {message:?}");
        check(&record);
    }
    let ends: Vec<_> = records.into_iter().filter(|record| record.contains_key("DURATION_MS")).collect();
    check_all(&ends, connections, str::to_uppercase);
}
