//! Tests that run again in a process of their own: with an isolated network, or in a role for another test.

use std::env;
use std::process::{Command, Stdio};

/// The environment variable with the role of a process that a test started.
const ROLE: &str = "PORTCULLIS_TEST_ROLE";
/// The role of a test that runs isolated.
const ISOLATED: &str = "isolated";

/// The role of this process, if a test started it.
pub(crate) fn role() -> Option<String> {
    env::var(ROLE).ok()
}

/// A command that runs one test of this binary, given by its full name, in a role. Its output is not captured.
pub(crate) fn rerun(test: &str, role: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("the test binary"));
    command.args(["--exact", test, "--nocapture", "--include-ignored"]).env(ROLE, role);
    command
}

/// Runs a test in its own network and mount namespace, in which every port is free. The test begins with
/// `if !isolated("its::full::name") { return; }`: it runs again in a new process, and there this returns true.
pub(crate) fn isolated(test: &str) -> bool {
    if role().as_deref() == Some(ISOLATED) {
        return true;
    }
    let Some(command_prefix) = namespace_command() else {
        let why =
            "no network namespace can be created: `unshare --net --mount` or `ip link` (iproute2) fails";
        assert!(env::var("CI").as_deref() != Ok("true"), "{test}: {why}");
        eprintln!("{test}: skipped, {why}");
        return false;
    };
    let this = env::current_exe().expect("the test binary");
    let run = unshare(command_prefix)
        .args(["ip link set lo up && exec env \"$@\"", "sh", &format!("{ROLE}={ISOLATED}")])
        .arg(this)
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .output()
        .expect("unshare");
    let output = [&run.stdout, &run.stderr].map(|output| String::from_utf8_lossy(output).into_owned());
    let passed = run.status.success() && output[0].contains("test result: ok. 1 passed");
    assert!(passed, "{test}, isolated: {}\n{}\n{}", run.status, output[0], output[1]);
    eprint!("{}", output[1]);
    false
}

/// The command with which this user can create namespaces, if there is one.
fn namespace_command() -> Option<&'static [&'static str]> {
    const CANDIDATES: [&[&str]; 3] =
        [&["unshare"], &["unshare", "--map-root-user"], &["sudo", "-n", "unshare"]];
    CANDIDATES.into_iter().find(|command_prefix| {
        let mut attempt = unshare(command_prefix);
        attempt.arg("ip link set lo up").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        attempt.status().is_ok_and(|status| status.success())
    })
}

/// A shell in a new network and mount namespace; its script is the next argument.
fn unshare(command_prefix: &[&str]) -> Command {
    let mut command = Command::new(command_prefix[0]);
    command.args(&command_prefix[1..]).args(["--net", "--mount", "--", "sh", "-c"]);
    command
}
