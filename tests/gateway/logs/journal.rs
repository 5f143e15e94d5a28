//! The journal: here a socket of the test's own, which takes what systemd-journald would take.

use std::collections::HashMap;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use std::sync::atomic::Ordering;

use tempfile::TempDir;

use super::{Bare, Lines};
use crate::support::within;

/// Puts the directory of the test in the place of the journal's.
pub(super) const JOURNAL_IN_DIRECTORY: &str = "mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/journal; \
     mount --bind DIRECTORY /run/systemd/journal";
/// There is no journal.
const NO_JOURNAL: &str = "mount -t tmpfs tmpfs /run";

/// Listens on `socket` in a new directory. Each datagram becomes one of the lines.
pub(super) fn listen() -> (TempDir, Arc<Lines>) {
    let directory = TempDir::new().expect("a directory");
    let socket = UnixDatagram::bind(directory.path().join("socket")).expect("a socket");
    let lines = Arc::new(Lines::default());
    let reader = Arc::downgrade(&lines);
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    std::thread::spawn(move || {
        let mut buffer = vec![0; 256 * 1024];
        // As long as the test looks.
        while let Some(lines) = reader.upgrade() {
            if lines.is_stopped.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(5));
            } else if let Ok(length) = socket.recv(&mut buffer) {
                lines.lines().push(String::from_utf8(buffer[..length].to_vec()).expect("text"));
            }
        }
    });
    (directory, lines)
}

/// The fields of each datagram: lines of `NAME=value`, in the simple form of the protocol.
pub(super) fn records(datagrams: &[String]) -> Vec<HashMap<String, String>> {
    let field = |line: &str| {
        let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("no field: {line:?}"));
        let is_fit = |char: char| char.is_ascii_uppercase() || char.is_ascii_digit() || char == '_';
        assert!(name.chars().all(is_fit) && !name.starts_with('_'), "no name for a field: {name:?}");
        (name.to_owned(), value.to_owned())
    };
    datagrams
        .iter()
        .map(|datagram| {
            assert!(datagram.ends_with('\n'), "{datagram:?}");
            let fields: HashMap<String, String> = datagram.lines().map(field).collect();
            assert_eq!(fields.len(), datagram.lines().count(), "a field stands twice: {datagram}");
            fields
        })
        .collect()
}

#[tokio::test]
async fn everything_that_is_said_is_a_field() {
    let (directory, journal) = listen();
    let gateway =
        Bare::start_in(JOURNAL_IN_DIRECTORY, "format = \"journald\"", Some((directory, journal))).await;
    let peer = gateway.whole_session().await;
    gateway.refused(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n").await;
    gateway.log.with("DURATION_MS", 1).await;
    let (status, lines) = gateway.finish().await;
    assert!(status.success(), "{status}");
    let records = records(&lines);
    for record in &records {
        assert_eq!(record["SYSLOG_IDENTIFIER"], "portcullis");
        assert_eq!(record["PRIORITY"], "6", "nothing here is a warning: {record:?}");
    }
    let ends: Vec<_> = records.iter().filter(|record| record.contains_key("REASON")).collect();
    let [end] = ends[..] else { panic!("one session, one line, and none for a stranger: {ends:#?}") };
    let of = |name: &str| end.get(name).map_or("", String::as_str);
    assert_eq!((of("PEER"), of("ROUTE")), (peer.to_string().as_str(), "echo"));
    assert_eq!((of("REASON"), of("CLOSE_CODE")), ("client_closed", "1000"));
    assert_eq!((of("BYTES_IN"), of("BYTES_OUT")), ("5", "5"));
    let message = of("MESSAGE");
    assert!(message.starts_with("session ended ") && message.contains(" reason=client_closed "), "{message}");
    assert!(message.contains(&format!(" request_id={} ", of("REQUEST_ID"))), "{message}");
}

#[tokio::test]
async fn a_journal_that_does_not_read_stops_no_session() {
    let (directory, journal) = listen();
    let gateway =
        Bare::start_in(JOURNAL_IN_DIRECTORY, "format = \"journald\"", Some((directory, journal))).await;
    gateway.log.is_stopped.store(true, Ordering::Release);
    // Far more than its socket holds.
    let mut session = gateway.session().await;
    for _ in 0..100 {
        gateway.whole_session().await;
    }
    within("an echo beside a stuck journal", session.echo(b"hello")).await;
    session.close(1000).await;
    gateway.log.is_stopped.store(false, Ordering::Release);
    let ends = gateway.log.with("DURATION_MS", 101).await;
    assert_eq!(ends.len(), 101, "each session has its line");
    let (status, _) = gateway.finish().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn where_there_is_no_journal_standard_error_says_so() {
    let gateway = Bare::start_in(NO_JOURNAL, "format = \"journald\"", None).await;
    let warning = gateway.log.with("WARN", 1).await.remove(0);
    for words in [
        "log.format \\\"journald\\\": the journal does not listen on /run/systemd/journal/socket: No such file",
        "write format = \\\"text\\\" where systemd-journald does not run",
        "until then, lines go to standard error",
    ] {
        assert!(warning.contains(&words.replace("\\\"", "\"")), "{warning}");
    }
    gateway.whole_session().await;
    gateway.log.with("session ended", 1).await;
    let (status, _) = gateway.finish().await;
    assert!(status.success(), "{status}");
}
