//! The log of sessions, and how it is rotated.

use std::collections::HashSet;
use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Bare, mode_of, text_of};
use crate::support::{PATIENCE, eventually, run};

const FILE: &str = "format = \"json\"\nsessions = \"sessions.log\"";

/// Waits for so many lines in a file.
async fn lines_in(gateway: &Bare, name: &str, count: usize) -> Vec<Value> {
    let path = gateway.path(name);
    let mut lines = Vec::new();
    eventually(&format!("{count} lines in {name}"), PATIENCE, || {
        lines = fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect();
        (lines.len() >= count).then_some(()).ok_or_else(|| format!("{} lines", lines.len()))
    })
    .await;
    parsed(&lines.join("\n"))
}

fn parsed(text: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
    text.lines().map(parse).collect()
}

#[tokio::test]
async fn each_connection_has_a_line_whatever_the_level() {
    let gateway = Bare::start(FILE).await;
    let peer = gateway.whole_session().await;
    let stranger = gateway.refused(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let lines = lines_in(&gateway, "sessions.log", 2).await;
    assert_eq!(mode_of(&gateway.path("sessions.log")) & !0o640, 0, "others may not read who was there");
    let line_of = |peer: String| lines.iter().find(|line| line["peer"] == peer.as_str()).expect("its line");
    let [session, refused] = [peer, stranger].map(|peer| line_of(peer.to_string()));
    assert_eq!((&session["message"], &session["reason"]), (&"session ended".into(), &"client_closed".into()));
    assert_eq!((&refused["message"], &refused["reason"]), (&"refused".into(), &"unknown_route".into()));
    let (status, log) = gateway.finish().await;
    assert!(status.success(), "{status}");
    let ends = parsed(&log.join("\n")).into_iter().filter(|line| line.get("reason").is_some());
    let ends: Vec<Value> = ends.collect();
    let [end] = &ends[..] else { panic!("one session, and no stranger: {ends:#?}") };
    assert_eq!(end["request_id"], session["request_id"], "the same line in both");
}

#[tokio::test]
async fn rotation_loses_and_tears_no_line() {
    let gateway = Bare::start(FILE).await;
    let current = gateway.path("sessions.log");
    let (rounds, each) = (12, 8);
    for round in 0..rounds {
        // Sessions end before, while and after the file is moved.
        let sessions = (0..each).map(|_| gateway.whole_session());
        let moving = async {
            let old = gateway.path(&format!("sessions.log.{round}"));
            fs::rename(&current, &old).expect("the file is there");
            gateway.signal(Signal::SIGUSR1);
            eventually("a new file", PATIENCE, || {
                current.exists().then_some(()).ok_or_else(|| "there is none".to_owned())
            })
            .await;
        };
        tokio::join!(futures_util::future::join_all(sessions), moving);
    }
    let total = rounds * each;
    let names: Vec<String> = (0..rounds).map(|round| format!("sessions.log.{round}")).collect();
    let mut all = Vec::new();
    eventually("every line", PATIENCE, || {
        let texts = names.iter().map(|name| text_of(&gateway.path(name)));
        let texts: Vec<String> = texts.chain([text_of(&current)]).collect();
        all = texts.concat().lines().map(str::to_owned).collect();
        (all.len() >= total).then_some(()).ok_or_else(|| format!("{} of {total}", all.len()))
    })
    .await;
    let ids: HashSet<String> =
        parsed(&all.join("\n")).iter().map(|line| line["request_id"].to_string()).collect();
    assert_eq!((all.len(), ids.len()), (total, total), "each session once");
    let (status, log) = gateway.finish().await;
    assert!(status.success(), "{status}");
    assert!(!log.iter().any(|line| line.contains("WARN")), "{log:#?}");
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_again_goes_on() {
    let elsewhere = tempfile::tempdir().expect("a directory");
    let logs = elsewhere.path().join("logs");
    fs::create_dir(&logs).expect("a directory");
    let file = logs.join("sessions.log");
    let gateway = Bare::start(&format!("format = \"json\"\nsessions = {file:?}")).await;
    let moved = elsewhere.path().join("moved");
    fs::rename(&logs, &moved).expect("the directory is there");
    gateway.signal(Signal::SIGUSR1);
    let warning = gateway.log.with("WARN", 1).await.remove(0);
    for words in ["cannot open the log of sessions again; the old file is written on", "No such file"] {
        assert!(warning.contains(words), "{warning}");
    }
    gateway.whole_session().await;
    eventually("the line in the old file", PATIENCE, || {
        let text = text_of(&moved.join("sessions.log"));
        (parsed(&text).len() == 1).then_some(()).ok_or(text)
    })
    .await;
    let (status, _) = gateway.finish().await;
    assert!(status.success(), "{status}");
}

#[test]
fn a_file_that_cannot_be_made_keeps_the_gateway_from_starting() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"a\"\npath = \"/a\"\n\
         backend = \"tcp://127.0.0.1:1\"\n[log]\nsessions = \"missing/sessions.log\"\n";
    fs::write(directory.path().join("gateway.toml"), config).expect("a file of the test");
    let output = run(directory.path(), &["run"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("gateway.toml: log.sessions: cannot append to "), "{said}");
    assert!(said.contains("missing/sessions.log: No such file or directory"), "{said}");
    assert!(said.contains("check the directory and its permissions"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[tokio::test]
async fn a_full_disk_is_told_once_and_ends_nothing() {
    let gateway = Bare::start("format = \"json\"\nsessions = \"/dev/full\"").await;
    for _ in 0..5 {
        gateway.whole_session().await;
        gateway.log.with("\"session ended\"", 1).await;
    }
    gateway.log.with("\"session ended\"", 5).await;
    gateway.log.with("cannot write the log of sessions", 1).await;
    let (status, log) = gateway.finish().await;
    assert!(status.success(), "{status}");
    let warnings: Vec<&String> = log.iter().filter(|line| line.contains("WARN")).collect();
    let [warning] = warnings[..] else { panic!("one warning: {warnings:#?}") };
    for words in ["cannot write the log of sessions; sessions go on", "/dev/full", "No space left on device"]
    {
        assert!(warning.contains(words), "{warning}");
    }
}
