//! `docs/dependencies.md` has a reason for every dependency in `Cargo.toml`, and for no other.

use std::collections::BTreeSet;

const MANIFEST: &str = include_str!("../Cargo.toml");
const REASONS: &str = include_str!("../docs/dependencies.md");

fn manifest() -> toml::Table {
    MANIFEST.parse().expect("Cargo.toml is TOML")
}

/// The crates in a table of the manifest.
fn in_manifest(table: &str) -> BTreeSet<String> {
    manifest()[table].as_table().expect("a table").keys().cloned().collect()
}

/// The crates that have a reason under a heading of the page.
fn with_reason(heading: &str) -> BTreeSet<String> {
    let section = REASONS
        .split("\n## ")
        .find_map(|section| section.strip_prefix(heading))
        .unwrap_or_else(|| panic!("docs/dependencies.md has no heading \"{heading}\""));
    let mut crates = BTreeSet::new();
    for line in section.lines().filter(|line| line.starts_with('-')) {
        let (name, reason) = line
            .strip_prefix("- `")
            .and_then(|line| line.split_once("`: "))
            .unwrap_or_else(|| panic!("not of the form \"- `crate`: reason\": {line}"));
        assert!(reason.len() > 10, "no reason is given for {name}");
        assert!(crates.insert(name.to_owned()), "{name} is listed twice under \"{heading}\"");
    }
    crates
}

#[test]
fn dependencies_and_reasons_match() {
    for (table, heading) in [("dependencies", "In the program"), ("dev-dependencies", "In the tests")] {
        let (named, explained) = (in_manifest(table), with_reason(heading));
        assert!(!named.is_empty(), "[{table}] of Cargo.toml is empty");
        let unexplained: Vec<_> = named.difference(&explained).collect();
        assert!(unexplained.is_empty(), "in [{table}], but not in docs/dependencies.md: {unexplained:?}");
        let unused: Vec<_> = explained.difference(&named).collect();
        assert!(unused.is_empty(), "in docs/dependencies.md, but not in [{table}]: {unused:?}");
    }
}

#[test]
fn the_manifest_has_no_other_tables_of_dependencies() {
    let manifest = manifest();
    for table in ["build-dependencies", "target", "workspace"] {
        assert!(!manifest.contains_key(table), "docs/dependencies.md has no heading for [{table}]");
    }
}
