//! Somebody starts the program with the configuration of the source tree, and does what it says.

use std::{fs, process::Command};

use crate::{PROGRAM, read, said};

#[test]
fn the_certificate_that_is_missing_at_first_is_one_command_away() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.toml");
    fs::write(&file, read("gateway.toml")).unwrap();
    let check = || Command::new(PROGRAM).args(["check", "--config"]).arg(&file).output().unwrap();
    let before = check();
    assert_eq!(before.status.code(), Some(78), "{}", said(&before));
    let words = said(&before);
    let (_, command) = words.split_once("; \"portcullis ").unwrap_or_else(|| panic!("no advice: {words}"));
    let (command, _) = command.split_once('"').unwrap();
    let made = Command::new(PROGRAM).args(command.split(' ')).output().unwrap();
    assert!(made.status.success(), "{command}: {}", said(&made));
    let after = check();
    assert!(after.status.success(), "{}", said(&after));
}
