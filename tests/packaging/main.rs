//! What is shipped around the program: units, packages, a container image, dashboards and alerts.
//!
//! Tests that need more than Rust are ignored by default: `tests/run --only packaging` installs what
//! they need and runs them. Where something is missing they print so and are skipped; with `CI=true` they fail.

mod booted;
mod container;
mod deb;
mod first_start;
mod generated;
mod observability;
mod profile;
mod promql;
mod scratch;
mod service_lifecycle;
mod systemd;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_portcullis");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The path of a program. `None`, with a message, if it is not installed; with `CI=true` that is a failure.
fn installed(program: &str, part: &str) -> Option<PathBuf> {
    let places = env::var_os("PATH").unwrap_or_default();
    // As in tests/run; sbin is not on every user's PATH.
    let more = [tools(), PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    let found =
        env::split_paths(&places).chain(more).map(|place| place.join(program)).find(|path| path.is_file());
    if found.is_none() {
        skip(&format!("{program} is not installed: tests/install {part}"));
    }
    found
}

/// Prints why a test is skipped, which is a failure with `CI=true`.
fn skip(why: &str) {
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
    eprintln!("skipped: {why}");
}

/// The directory of the profile that the program was built with, and its parent.
fn built() -> (&'static Path, &'static Path) {
    let profile = Path::new(PROGRAM).parent().expect("the program lies in a directory");
    (profile, profile.parent().expect("which lies in the target directory"))
}

/// The directory of the tools that `tests/install` builds.
fn tools() -> PathBuf {
    built().1.join("tools/bin")
}

/// The output of a command on both streams; fails if the command does.
#[track_caller]
fn run_ok(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}: {}", output.status, output_text(&output));
    output_text(&output)
}

fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
