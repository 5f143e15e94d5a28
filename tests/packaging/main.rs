//! What is shipped around the program: units, packages, a container image, dashboards and alerts.
//!
//! Tests that need more than Rust are left out unless they are asked for: `tests/run --only packaging` installs what
//! they need and runs them. Where something is missing they say so and do nothing, and fail with `CI=true`.

mod booted;
mod container;
mod deb;
mod first_steps;
mod generated;
mod living;
mod observability;
mod profile;
mod promql;
mod scratch;
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

/// Where this program is; nothing, and a word why, if it is nowhere. Where CI must have it, that is a failure.
fn installed(program: &str, part: &str) -> Option<PathBuf> {
    let places = env::var_os("PATH").unwrap_or_default();
    // As tests/run does it; and sbin is not on everybody's PATH.
    let more = [tools(), PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    let found =
        env::split_paths(&places).chain(more).map(|place| place.join(program)).find(|path| path.is_file());
    if found.is_none() {
        skip(&format!("{program} is not installed: tests/install {part}"));
    }
    found
}

/// Says why a test does nothing, which a complete run does not forgive.
fn skip(why: &str) {
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
    eprintln!("skipped: {why}");
}

/// The directory of the profile that the program was built with, and the one above it.
fn built() -> (&'static Path, &'static Path) {
    let profile = Path::new(PROGRAM).parent().expect("the program lies in a directory");
    (profile, profile.parent().expect("which lies in the target directory"))
}

/// Where `tests/install` puts what it builds.
fn tools() -> PathBuf {
    built().1.join("tools/bin")
}

/// What a command said, on both streams; it must have gone well.
#[track_caller]
fn well(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}: {}", output.status, said(&output));
    said(&output)
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
