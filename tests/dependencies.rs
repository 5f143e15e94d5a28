//! `docs/dependencies.md` has a reason for every dependency in `Cargo.toml`, and for no other; the demo adds none.

use std::collections::BTreeSet;

const MANIFEST: &str = include_str!("../Cargo.toml");
const DEMO: &str = include_str!("../examples/demo/Cargo.toml");
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
    for table in ["build-dependencies", "target"] {
        assert!(!manifest.contains_key(table), "docs/dependencies.md has no heading for [{table}]");
    }
    assert!(manifest["workspace"].get("dependencies").is_none(), "docs/dependencies.md has no such heading");
}

/// The features that a dependency asks for; with the crate's own default features as `default`.
fn features(dependency: &toml::Value) -> BTreeSet<String> {
    let named = dependency.get("features").and_then(toml::Value::as_array).into_iter().flatten();
    let mut features: BTreeSet<String> =
        named.map(|feature| feature.as_str().expect("a feature's name").to_owned()).collect();
    if dependency.get("default-features").and_then(toml::Value::as_bool) != Some(false) {
        features.insert("default".to_owned());
    }
    features
}

#[test]
fn the_demo_asks_for_no_crate_and_no_feature_that_the_program_lacks() {
    let (program, demo) =
        (manifest(), DEMO.parse::<toml::Table>().expect("examples/demo/Cargo.toml is TOML"));
    for (table, lookup) in
        [("dependencies", &["dependencies"][..]), ("dev-dependencies", &["dependencies", "dev-dependencies"])]
    {
        for (name, requested) in
            demo[table].as_table().expect("a table").iter().filter(|(name, _)| *name != "portcullis")
        {
            let present: Vec<_> = lookup.iter().filter_map(|table| program[*table].get(name)).collect();
            assert!(!present.is_empty(), "{name}: a crate that only the demo needs");
            let available: BTreeSet<_> = present.into_iter().flat_map(features).collect();
            let missing: Vec<_> = features(requested).difference(&available).cloned().collect();
            assert!(missing.is_empty(), "{name}: {missing:?} makes cargo compile it again for the demo");
        }
    }
}
