//! A test that runs once more, in a process of its own: alone on a machine of its own, or as a part it plays for others.

use std::env;
use std::process::{Command, Stdio};

/// Tells a process that it was started by a test, and what for.
const PART: &str = "PORTCULLIS_TEST_PART";
/// The part of a test that has the machine to itself.
const ALONE: &str = "alone";

/// What this process was started for, if a test started it.
pub(crate) fn part() -> Option<String> {
    env::var(PART).ok()
}

/// This test binary with one of its tests, named in full, to play a part. What it prints is not held back.
pub(crate) fn again(test: &str, part: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("the test binary"));
    command.args(["--exact", test, "--nocapture"]).env(PART, part);
    command
}

/// Gives a test a network and a file system of its own to change: every port is free there, and there is nobody else. It
/// begins with `if !alone("its::full::name") { return; }`, runs once more, and that run is not sent away.
pub(crate) fn alone(test: &str) -> bool {
    if part().as_deref() == Some(ALONE) {
        return true;
    }
    let Some(way) = way_out() else {
        let why = "no network of its own is to be had: `unshare --net --mount` or `ip link` (iproute2) fails";
        assert!(env::var("CI").as_deref() != Ok("true"), "{test}: {why}");
        eprintln!("{test}: skipped, {why}");
        return false;
    };
    let this = env::current_exe().expect("the test binary");
    let run = unshare(way)
        .args(["ip link set lo up && exec env \"$@\"", "sh", &format!("{PART}={ALONE}")])
        .arg(this)
        .args(["--exact", test, "--nocapture"])
        .output()
        .expect("unshare");
    let said = [&run.stdout, &run.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
    let passed = run.status.success() && said[0].contains("test result: ok. 1 passed");
    assert!(passed, "{test}, alone: {}\n{}\n{}", run.status, said[0], said[1]);
    false
}

/// How this user may leave the network that all share, if at all.
fn way_out() -> Option<&'static [&'static str]> {
    const WAYS: [&[&str]; 3] = [&["unshare"], &["unshare", "--map-root-user"], &["sudo", "-n", "unshare"]];
    WAYS.into_iter().find(|way| {
        let mut tried = unshare(way);
        tried.arg("ip link set lo up").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        tried.status().is_ok_and(|status| status.success())
    })
}

/// A shell in a network and a file system of its own; its script comes next.
fn unshare(way: &[&str]) -> Command {
    let mut command = Command::new(way[0]);
    command.args(&way[1..]).args(["--net", "--mount", "--", "sh", "-c"]);
    command
}
