//! The journal: a socket of the test's own that receives what systemd-journald would, and systemd-journald itself.

use std::collections::HashMap;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{Lines, LoggingGateway, may_mount, skipped};
use crate::support::within;

/// Mounts the test's directory in place of the journal's.
pub(super) const JOURNAL_IN_DIRECTORY: &str = "mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/journal; \
     mount --bind DIRECTORY /run/systemd/journal";
/// A machine without a journal.
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
        // For as long as the test holds the lines.
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
        assert!(name.chars().all(is_fit) && !name.starts_with('_'), "not a field name: {name:?}");
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
async fn every_value_is_a_journal_field() {
    if !may_mount() {
        return;
    }
    let (directory, journal) = listen();
    let gateway =
        LoggingGateway::start_in(JOURNAL_IN_DIRECTORY, "format = \"journald\"", Some((directory, journal)))
            .await;
    let peer = gateway.whole_session().await;
    gateway.refused(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    gateway.log.with("DURATION_MS", 1).await;
    let (status, lines) = gateway.finish().await;
    assert!(status.success(), "{status}");
    let records = records(&lines);
    for record in &records {
        assert_eq!(record["SYSLOG_IDENTIFIER"], "portcullis");
        assert_eq!(record["PRIORITY"], "6", "nothing here is a warning: {record:?}");
    }
    let ends: Vec<_> = records.iter().filter(|record| record.contains_key("REASON")).collect();
    let [end] = ends[..] else { panic!("one line for the session, none for the refused client: {ends:#?}") };
    let of = |name: &str| end.get(name).map_or("", String::as_str);
    assert_eq!((of("PEER"), of("ROUTE")), (peer.to_string().as_str(), "echo"));
    assert_eq!((of("REASON"), of("CLOSE_CODE")), ("client_closed", "1000"));
    assert_eq!((of("BYTES_IN"), of("BYTES_OUT")), ("5", "5"));
    let message = of("MESSAGE");
    assert!(message.starts_with("session ended ") && message.contains(" reason=client_closed "), "{message}");
    assert!(message.contains(&format!(" request_id={} ", of("REQUEST_ID"))), "{message}");
}

#[tokio::test]
async fn a_stalled_journal_blocks_no_session() {
    if !may_mount() {
        return;
    }
    let (directory, journal) = listen();
    let gateway =
        LoggingGateway::start_in(JOURNAL_IN_DIRECTORY, "format = \"journald\"", Some((directory, journal)))
            .await;
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
async fn without_a_journal_the_log_goes_to_standard_error_with_a_warning() {
    if !may_mount() {
        return;
    }
    let gateway = LoggingGateway::start_in(NO_JOURNAL, "format = \"journald\"", None).await;
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

/// Starts a journal of its own in place of the system's, and waits until it listens.
const REAL: &str = "mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/journal /run/systemd/journald.conf.d /run/log/journal; \
     printf '[Journal]\\nAudit=no\\nReadKMsg=no\\n' > /run/systemd/journald.conf.d/test.conf; \
     /lib/systemd/systemd-journald >/dev/null 2>&1 & echo $! > PLACE/journald.pid; echo $$ > DIRECTORY/gateway.pid; \
     until [ -S /run/systemd/journal/socket ]; do sleep 0.02; done";

/// Queries the journal of the gateway repeatedly, for as long as the test holds the lines.
fn follow(directory: PathBuf) -> Arc<Lines> {
    let lines = Arc::new(Lines::default());
    let reader = Arc::downgrade(&lines);
    std::thread::spawn(move || {
        while let Some(lines) = reader.upgrade() {
            std::thread::sleep(Duration::from_millis(50));
            let Ok(pid) = std::fs::read_to_string(directory.join("gateway.pid")) else { continue };
            let journal = format!("--directory=/proc/{}/root/run/log/journal", pid.trim());
            let journalctl =
                Command::new("journalctl").args([&journal, "-o", "json", "-t", "portcullis"]).output();
            let Ok(output) = journalctl else { continue };
            let entries: Vec<String> =
                String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
            // When the gateway has exited, its mount namespace and journal are gone.
            if entries.len() > lines.lines().len() {
                *lines.lines() = entries;
            }
        }
    });
    lines
}

/// Ends a process that the test's own gateway left behind.
struct Ended(TempDir);

impl Drop for Ended {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.0.path().join("journald.pid"))
            .ok()
            .and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

#[tokio::test]
#[ignore = "needs systemd-journald and root: tests/run --only servers"]
async fn systemd_journald_accepts_the_fields() {
    if !may_mount() {
        return;
    }
    let journald = Path::new("/lib/systemd/systemd-journald");
    if !nix::unistd::geteuid().is_root() || !journald.exists() {
        skipped("systemd-journald is not installed, or the test does not run as root");
        return;
    }
    let place = TempDir::new().expect("a directory");
    let script = REAL.replace("PLACE", place.path().to_str().expect("a path of text"));
    let _journald = Ended(place);
    let directory = TempDir::new().expect("a directory");
    let lines = follow(directory.path().to_owned());
    let log = "format = \"journald\"\nlevel = \"debug\"";
    let gateway = LoggingGateway::start_in(&script, log, Some((directory, lines))).await;
    let peer = gateway.whole_session().await;
    let origin = "https://evil.example/\u{202e}txt.exe";
    gateway.refused(&gateway.request().without("Origin").add("Origin", origin).bytes()).await;
    let entries = gateway.log.with("\"DURATION_MS\"", 2).await;
    let entries: Vec<Value> =
        entries.iter().map(|entry| serde_json::from_str(entry).expect("JSON")).collect();
    let of = |reason: &str| {
        let found = entries.iter().find(|entry| entry["REASON"] == reason);
        found.unwrap_or_else(|| panic!("no {reason} in {entries:#?}"))
    };
    let (session, refused) = (of("client_closed"), of("origin_refused"));
    let pid = gateway.child.id().to_string();
    for (field, value) in [
        ("PEER", peer.to_string().as_str()),
        ("ROUTE", "echo"),
        ("CLOSE_CODE", "1000"),
        ("BYTES_IN", "5"),
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "portcullis"),
        ("_TRANSPORT", "journal"),
        ("_PID", &pid),
    ] {
        assert_eq!(session[field], value, "{field} in {session:#}");
    }
    assert_eq!(refused["PRIORITY"], "7");
    let detail = refused["DETAIL"].as_str().expect("text");
    assert!(detail.ends_with(r#"https://evil.example/\u{202e}txt.exe""#), "{detail}");
    let ids: Vec<&str> = [session, refused].map(|entry| entry["REQUEST_ID"].as_str().expect("text")).to_vec();
    assert_ne!(ids[0], ids[1]);
    drop(gateway);
}
