//! `docs/dependencies.md` has a reason and `docs/supply-chain.md` a review for every dependency in `Cargo.toml`, and for no
//! other; a review is of the version in `Cargo.lock`. The demo adds no dependency.

use std::collections::{BTreeMap, BTreeSet};

const MANIFEST: &str = include_str!("../Cargo.toml");
const DEMO: &str = include_str!("../examples/demo/Cargo.toml");
const LOCK: &str = include_str!("../Cargo.lock");
const REASONS: &str = include_str!("../docs/dependencies.md");
const REVIEWS: &str = include_str!("../docs/supply-chain.md");

fn manifest() -> toml::Table {
    MANIFEST.parse().expect("Cargo.toml is TOML")
}

/// The crates in a table of the manifest.
fn in_manifest(table: &str) -> BTreeSet<String> {
    manifest()[table].as_table().expect("a table").keys().cloned().collect()
}

/// What a page has under a heading.
fn section(page: &'static str, heading: &str) -> &'static str {
    let mut sections = page.split("\n## ");
    sections
        .find_map(|section| section.strip_prefix(heading))
        .unwrap_or_else(|| panic!("no heading \"{heading}\" in {:?}", page.lines().next()))
}

/// The crates that have a reason under a heading of the page.
fn with_reason(heading: &str) -> BTreeSet<String> {
    let section = section(REASONS, heading);
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

/// Major and minor version.
fn series(version: &str) -> String {
    let mut numbers = version.split('.');
    format!("{}.{}", numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

/// The version of each direct dependency in `Cargo.lock`, by its name: as major and minor number.
fn locked() -> BTreeMap<String, String> {
    let lock: toml::Table = LOCK.parse().expect("Cargo.lock is TOML");
    let packages: Vec<_> = lock["package"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| package.as_table().expect("a table"))
        .collect();
    let text = |package: &toml::Table, key: &str| package[key].as_str().expect("a text").to_owned();
    let program = packages.iter().find(|package| text(package, "name") == "portcullis").expect("portcullis");
    let dependencies = program["dependencies"].as_array().expect("dependencies").iter();
    let version = |dependency: &toml::Value| {
        // "name version" if there are several versions of the crate, otherwise "name".
        let mut words = dependency.as_str().expect("a text").split(' ');
        let name = words.next().expect("a name").to_owned();
        let of_name = || packages.iter().find(|package| text(package, "name") == name);
        let version = words.next().map(str::to_owned);
        let version = version.unwrap_or_else(|| text(of_name().expect("locked"), "version"));
        (name, series(&version))
    };
    dependencies.map(version).collect()
}

/// The crates in the table under a heading, with the version that was reviewed.
fn reviewed(heading: &str) -> BTreeMap<String, String> {
    let rows = section(REVIEWS, heading).lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 6, "{line}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "an empty cell: {line}");
        (cells[0].trim_matches('`').to_owned(), cells[1].to_owned())
    };
    let rows: Vec<_> = rows.map(row).collect();
    let by_name: BTreeMap<_, _> = rows.iter().cloned().collect();
    assert_eq!(rows.len(), by_name.len(), "a crate is listed twice under \"{heading}\"");
    by_name
}

#[test]
fn every_dependency_is_reviewed_in_the_version_that_is_locked() {
    let locked = locked();
    for (table, heading) in [("dependencies", "In the program"), ("dev-dependencies", "In the tests")] {
        let (named, reviewed) = (in_manifest(table), reviewed(heading));
        assert!(!named.is_empty(), "[{table}] of Cargo.toml is empty");
        let names: BTreeSet<_> = reviewed.keys().cloned().collect();
        let missing: Vec<_> = named.symmetric_difference(&names).collect();
        assert!(missing.is_empty(), "only one of [{table}] and docs/supply-chain.md has {missing:?}");
        for (name, version) in &reviewed {
            let locked = &locked[name];
            assert_eq!(
                version, locked,
                "{name}: {version} was reviewed, but {locked} is locked; see docs/supply-chain.md, \"How to review an update\""
            );
        }
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
