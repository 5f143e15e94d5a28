//! `portcullis check --capacity`: the limit that is reached first on this machine.

use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Runs the check with this limit of descriptors.
fn check(lines: &str, descriptors: usize) -> (i32, String, String) {
    let directory = TempDir::new().expect("a directory");
    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"desk\"\npath = \"/desk\"\n\
         backend = \"tcp://127.0.0.1:5900\"\n{lines}"
    );
    std::fs::write(directory.path().join("gateway.toml"), config).expect("a file of the test");
    let Output { status, stdout, stderr } = Command::new("sh")
        .args(["-c", "ulimit -n $0 && exec \"$@\""])
        .arg(descriptors.to_string())
        .args([env!("CARGO_BIN_EXE_portcullis"), "check", "--capacity", "--config"])
        .arg(directory.path().join("gateway.toml"))
        .stdin(Stdio::null())
        .output()
        .expect("the gateway's binary");
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
    (status.code().expect("an exit code"), stdout, stderr)
}

#[test]
fn the_configured_limits_are_reached_first_with_enough_resources() {
    let (code, stdout, errors) = check("[limits]\nmax_sessions = 100\n", 2000);
    assert_eq!((code, errors.as_str()), (0, ""), "{stdout}");
    for words in [
        "good, 1 listener(s), 1 route(s)",
        "       100  limits.max_sessions: as configured",
        // 2,000 less 1,024 handshakes, a listener and 64 others.
        "       455  descriptors: (2000 - 1089 for handshakes, listeners and spares) / 2 per session",
        "route \"desk\", local ports: 1 backend address(es)",
        "MiB available / 11 KiB per idle session",
        "limits.max_sessions is reached first, at 100; no other limit is lower",
    ] {
        assert!(stdout.contains(words), "no {words:?} in:\n{stdout}");
    }
}

#[test]
fn a_limit_below_the_configured_one_is_named_and_fails() {
    let (code, stdout, errors) = check("[limits]\nmax_sessions = 5000\n", 3000);
    assert_eq!(code, 1, "{stdout}{errors}");
    let named = "portcullis: descriptors allow(s) only 955 sessions, fewer than limits.max_sessions = 5000: \
         raise LimitNOFILE= in the unit, or ulimit -Hn";
    assert!(errors.contains(named), "{errors}");
    let first = stdout.lines().nth(2).expect("a table");
    assert!(first.starts_with("       955  descriptors: "), "the lowest limit comes first: {stdout}");
}
