//! The first start: the error about the missing certificate names the command that creates it.

use std::{fs, process::Command};

use crate::{PROGRAM, output_text, read};

#[test]
fn the_error_about_a_missing_certificate_names_the_command_that_creates_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.toml");
    fs::write(&file, read("gateway.toml")).unwrap();
    let check = || Command::new(PROGRAM).args(["check", "--config"]).arg(&file).output().unwrap();
    let before = check();
    assert_eq!(before.status.code(), Some(78), "{}", output_text(&before));
    let words = output_text(&before);
    let (_, command) = words.split_once("; \"portcullis ").unwrap_or_else(|| panic!("no advice: {words}"));
    let (command, _) = command.split_once('"').unwrap();
    let made = Command::new(PROGRAM).args(command.split(' ')).output().unwrap();
    assert!(made.status.success(), "{command}: {}", output_text(&made));
    let after = check();
    assert!(after.status.success(), "{}", output_text(&after));
}
