//! Manual pages and completions, as the program makes them for its packages.

use std::{collections::BTreeSet, fs, process::Command};

use tempfile::TempDir;

use crate::{PROGRAM, installed, output_text, run_ok};

/// The commands that `--help` shows.
pub(crate) fn commands() -> BTreeSet<String> {
    let help = run_ok(Command::new(PROGRAM).arg("--help"));
    let (_, below) = help.split_once("\nCommands:\n").expect("help lists commands");
    let lines = below.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names: BTreeSet<String> =
        names.filter(|name| !name.is_empty() && *name != "help").map(str::to_owned).collect();
    assert!(names.contains("run") && names.contains("check"), "{names:?} of {help}");
    names
}

fn generate() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let output_text = run_ok(
        Command::new(PROGRAM)
            .arg("generate")
            .arg("--man")
            .arg(directory.path().join("man"))
            .arg("--completions")
            .arg(directory.path().join("completions")),
    );
    assert_eq!(output_text, "", "no messages");
    directory
}

#[test]
fn there_is_a_page_for_each_command() {
    let directory = generate();
    let pages = fs::read_dir(directory.path().join("man")).unwrap();
    let pages: BTreeSet<String> =
        pages.map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    let wanted = commands().iter().map(|name| format!("portcullis-{name}.1")).collect::<BTreeSet<_>>();
    assert_eq!(pages, &wanted | &BTreeSet::from(["portcullis.1".to_owned()]));
    assert!(!pages.contains("portcullis-generate.1"));
}

#[test]
#[ignore = "needs groff: tests/run --only packaging"]
fn groff_accepts_the_pages() {
    let Some(groff) = installed("groff", "packaging") else { return };
    let directory = generate();
    for page in fs::read_dir(directory.path().join("man")).unwrap() {
        let path = page.unwrap().path();
        let output = Command::new(&groff)
            .args(["-man", "-ww", "-Kutf8", "-Tutf8", "-P-cbou"])
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(words.is_empty(), "{}: {words}", path.display());
        assert!(text.contains("SYNOPSIS") && text.contains("SEE ALSO"), "{}: {text}", path.display());
    }
    // A defect would have been reported.
    let wrong = directory.path().join("wrong.1");
    fs::write(&wrong, ".TH wrong 1\n.SH NAME\n.NOSUCH\nwrong\n").unwrap();
    let output = Command::new(&groff).args(["-man", "-ww", "-Tutf8"]).arg(&wrong).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("NOSUCH"), "{}", output_text(&output));
}

/// The completions that bash offers after these words.
fn offered(words: &[&str]) -> BTreeSet<String> {
    let directory = generate();
    let script = r#"
        source "$1"; shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
        _portcullis portcullis "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut bash = Command::new("bash");
    bash.args(["-c", script, "bash"]).arg(directory.path().join("completions/portcullis.bash")).args(words);
    run_ok(&mut bash).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_options_without_hidden_ones() {
    let all = offered(&["portcullis", ""]);
    for name in commands() {
        assert!(all.contains(&name), "{name} is not among {all:?}");
    }
    assert!(!all.contains("generate"), "{all:?}");
    assert_eq!(offered(&["portcullis", "expl"]), BTreeSet::from(["explain".to_owned()]));
    assert_eq!(offered(&["portcullis", "explain", "--ori"]), BTreeSet::from(["--origin".to_owned()]));
}

#[test]
fn an_unwritable_directory_is_a_one_line_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let output = Command::new(PROGRAM).arg("generate").arg("--man").arg(file.join("man")).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
    assert!(output_text(&output).contains("cannot create the directory"), "{}", output_text(&output));
    let nothing = Command::new(PROGRAM).arg("generate").output().unwrap();
    assert_eq!(nothing.status.code(), Some(64), "{}", output_text(&nothing));
}
