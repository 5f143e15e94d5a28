//! The access log file, and its rotation.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{LoggingGateway, may_mount, mode_of, skipped, text_of};
use crate::support::{TIMEOUT, eventually, run};

const FILE: &str = "format = \"json\"\nsessions = \"sessions.log\"";

/// Waits for `count` lines in a file.
async fn lines_in(gateway: &LoggingGateway, name: &str, count: usize) -> Vec<Value> {
    let path = gateway.path(name);
    let mut lines = Vec::new();
    eventually(&format!("{count} lines in {name}"), TIMEOUT, || {
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
async fn each_connection_has_a_line_at_every_log_level() {
    let gateway = LoggingGateway::start(FILE).await;
    let peer = gateway.whole_session().await;
    let refused_peer = gateway.refused(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let lines = lines_in(&gateway, "sessions.log", 2).await;
    assert_eq!(mode_of(&gateway.path("sessions.log")) & !0o640, 0, "other users can read the file");
    let line_of = |peer: String| lines.iter().find(|line| line["peer"] == peer.as_str()).expect("its line");
    let [session, refused] = [peer, refused_peer].map(|peer| line_of(peer.to_string()));
    assert_eq!((&session["message"], &session["reason"]), (&"session ended".into(), &"client_closed".into()));
    assert_eq!((&refused["message"], &refused["reason"]), (&"refused".into(), &"unknown_route".into()));
    let (status, log) = gateway.finish().await;
    assert!(status.success(), "{status}");
    let ends = parsed(&log.join("\n")).into_iter().filter(|line| line.get("reason").is_some());
    let ends: Vec<Value> = ends.collect();
    let [end] = &ends[..] else { panic!("one session, and no refused client: {ends:#?}") };
    assert_eq!(end["request_id"], session["request_id"], "the same line in both");
}

#[tokio::test]
async fn rotation_neither_loses_nor_splits_lines() {
    let gateway = LoggingGateway::start(FILE).await;
    let current = gateway.path("sessions.log");
    let (rounds, each) = (12, 8);
    for round in 0..rounds {
        // Sessions end before, while and after the file is moved.
        let sessions = (0..each).map(|_| gateway.whole_session());
        let moving = async {
            let old = gateway.path(&format!("sessions.log.{round}"));
            fs::rename(&current, &old).expect("the file is there");
            gateway.signal(Signal::SIGUSR1);
            eventually("a new file", TIMEOUT, || {
                current.exists().then_some(()).ok_or_else(|| "there is none".to_owned())
            })
            .await;
        };
        tokio::join!(futures_util::future::join_all(sessions), moving);
    }
    let total = rounds * each;
    let names: Vec<String> = (0..rounds).map(|round| format!("sessions.log.{round}")).collect();
    let mut all = Vec::new();
    eventually("every line", TIMEOUT, || {
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

/// The shipped configuration of logrotate.
const LOGROTATE: &str = include_str!("../../../packaging/logrotate/portcullis");

#[tokio::test]
#[ignore = "needs logrotate: tests/run --only servers"]
async fn logrotate_rotates_as_shipped() {
    if let Err(error) = Command::new("logrotate").arg("--version").output() {
        skipped(&format!("logrotate: {error}: tests/install servers"));
        return;
    }
    let gateway = LoggingGateway::start(FILE).await;
    let mut config = LOGROTATE.to_owned();
    for (shipped, here) in [
        ("/var/log/portcullis/*.log", format!("{}/*.log", gateway.directory.path().display())),
        (
            "systemctl kill --kill-whom=main --signal=SIGUSR1 portcullis.service",
            format!("kill -USR1 {}", gateway.child.id()),
        ),
    ] {
        assert!(config.contains(shipped), "{shipped} is not in the shipped file");
        config = config.replace(shipped, &here);
    }
    let file = gateway.path("logrotate.conf");
    fs::write(&file, config).expect("a file of the test");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a file of the test");
    let current = gateway.path("sessions.log");
    gateway.whole_session().await;
    lines_in(&gateway, "sessions.log", 1).await;
    let output = Command::new("logrotate")
        .args(["--force", "--verbose", "--state"])
        .args([gateway.path("state"), file])
        .output()
        .expect("logrotate runs");
    assert!(output.status.success(), "{output:?}");
    eventually("a new file", TIMEOUT, || {
        current.exists().then_some(()).ok_or_else(|| format!("there is none; {output:?}"))
    })
    .await;
    gateway.whole_session().await;
    let new = lines_in(&gateway, "sessions.log", 1).await;
    let listed = fs::read_dir(gateway.directory.path()).expect("a directory");
    let names = listed.map(|entry| entry.expect("a file").file_name().into_string().expect("text"));
    let rotated: Vec<String> = names.filter(|name| name.starts_with("sessions.log-")).collect();
    let [rotated] = &rotated[..] else { panic!("one rotated file: {rotated:?}") };
    let old = parsed(&text_of(&gateway.path(rotated)));
    assert_eq!((old.len(), new.len()), (1, 1));
    assert_ne!(old[0]["request_id"], new[0]["request_id"]);
    let (status, _) = gateway.finish().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_reload_reopens_the_log_file() {
    let gateway = LoggingGateway::start(FILE).await;
    let (current, old) = (gateway.path("sessions.log"), gateway.path("sessions.log.1"));
    gateway.whole_session().await;
    lines_in(&gateway, "sessions.log", 1).await;
    fs::rename(&current, &old).expect("the file is there");
    gateway.signal(Signal::SIGHUP);
    eventually("a new file", TIMEOUT, || {
        current.exists().then_some(()).ok_or_else(|| "there is none".to_owned())
    })
    .await;
    // From now on as text, and to another file.
    let file = gateway.path("gateway.toml");
    let config = text_of(&file).replace("\"json\"", "\"text\"").replace("sessions.log", "others.log");
    fs::write(&file, config).expect("a file of the test");
    gateway.signal(Signal::SIGHUP);
    let other = gateway.path("others.log");
    eventually("another file", TIMEOUT, || {
        other.exists().then_some(()).ok_or_else(|| "there is none".to_owned())
    })
    .await;
    gateway.log.with("INFO reloaded", 1).await;
    gateway.whole_session().await;
    eventually("a line in it", TIMEOUT, || {
        let text = text_of(&other);
        (text.lines().count() == 1 && text.contains(" INFO session ended request_id="))
            .then_some(())
            .ok_or(text)
    })
    .await;
    let (status, _) = gateway.finish().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn the_old_file_stays_in_use_if_it_cannot_be_reopened() {
    let elsewhere = tempfile::tempdir().expect("a directory");
    let logs = elsewhere.path().join("logs");
    fs::create_dir(&logs).expect("a directory");
    let file = logs.join("sessions.log");
    let gateway = LoggingGateway::start(&format!("format = \"json\"\nsessions = {file:?}")).await;
    let moved = elsewhere.path().join("moved");
    fs::rename(&logs, &moved).expect("the directory is there");
    gateway.signal(Signal::SIGUSR1);
    let warning = gateway.log.with("WARN", 1).await.remove(0);
    for words in ["cannot reopen the access log; still writing to the old file", "No such file"] {
        assert!(warning.contains(words), "{warning}");
    }
    gateway.whole_session().await;
    eventually("the line in the old file", TIMEOUT, || {
        let text = text_of(&moved.join("sessions.log"));
        (parsed(&text).len() == 1).then_some(()).ok_or(text)
    })
    .await;
    let (status, _) = gateway.finish().await;
    assert!(status.success(), "{status}");
}

#[test]
fn a_log_file_that_cannot_be_created_prevents_the_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"a\"\npath = \"/a\"\n\
         backend = \"tcp://127.0.0.1:1\"\n[log]\nsessions = \"missing/sessions.log\"\n";
    fs::write(directory.path().join("gateway.toml"), config).expect("a file of the test");
    let output = run(directory.path(), &["run"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("gateway.toml: log.sessions: cannot append to "), "{stderr}");
    assert!(stderr.contains("missing/sessions.log: No such file or directory"), "{stderr}");
    assert!(stderr.contains("check the directory and its permissions"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[tokio::test]
async fn lines_are_whole_once_the_disk_has_space_again() {
    if !may_mount() {
        return;
    }
    let script = "mkdir DIRECTORY/small; mount -t tmpfs -o size=16k tmpfs DIRECTORY/small; \
         head -c 12288 /dev/zero > DIRECTORY/small/filler";
    let gateway =
        LoggingGateway::start_in(script, "format = \"json\"\nsessions = \"small/sessions.log\"", None).await;
    // The one page that is left holds a dozen lines.
    let mut count = 0;
    while !gateway.log.lines().iter().any(|line| line.contains("cannot write the access log")) {
        assert!(count < 200, "the disk is never full");
        gateway.whole_session().await;
        count += 1;
        gateway.log.with("\"session ended\"", count).await;
    }
    let inside =
        PathBuf::from(format!("/proc/{}/root{}", gateway.child.id(), gateway.path("small").display()));
    fs::remove_file(inside.join("filler")).expect("the filler is there");
    gateway.whole_session().await;
    let again = gateway.log.with("the access log is writable again", 1).await.remove(0);
    let lost = parsed(&again)[0]["lost"].as_u64().expect("a number") as usize;
    let text = text_of(&inside.join("sessions.log"));
    let (whole, torn): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| serde_json::from_str::<Value>(line).is_ok());
    assert!(torn.len() <= 1 && lost >= 1, "{torn:?}, {lost} lost");
    assert_eq!(whole.len() + lost, count + 1, "each line is there or counted: {text}");
    let (status, log) = gateway.finish().await;
    assert!(status.success(), "{status}");
    assert_eq!(log.iter().filter(|line| line.contains("WARN")).count(), 1, "warned more than once: {log:#?}");
}

#[tokio::test]
async fn a_full_disk_is_reported_once_and_closes_no_session() {
    let gateway = LoggingGateway::start("format = \"json\"\nsessions = \"/dev/full\"").await;
    for _ in 0..5 {
        gateway.whole_session().await;
        gateway.log.with("\"session ended\"", 1).await;
    }
    gateway.log.with("\"session ended\"", 5).await;
    gateway.log.with("cannot write the access log", 1).await;
    let (status, log) = gateway.finish().await;
    assert!(status.success(), "{status}");
    let warnings: Vec<&String> = log.iter().filter(|line| line.contains("WARN")).collect();
    let [warning] = warnings[..] else { panic!("one warning: {warnings:#?}") };
    for words in ["cannot write the access log; sessions continue", "/dev/full", "No space left on device"] {
        assert!(warning.contains(words), "{warning}");
    }
}
