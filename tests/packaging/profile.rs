//! The profile of release builds.

use crate::read;

#[test]
fn release_builds_are_small_and_unwind_on_panic() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let profiles = manifest["profile"].as_table().unwrap();
    let release = profiles["release"].as_table().unwrap();
    let wanted = [("panic", "unwind"), ("lto", "thin"), ("strip", "symbols")];
    for (key, value) in wanted {
        assert_eq!(release[key].as_str(), Some(value), "{key}, as docs/operations.md says");
    }
    assert!(
        profiles
            .values()
            .all(|profile| profile.get("panic").is_none_or(|panic| panic.as_str() != Some("abort")))
    );
    let manual = read("docs/operations.md");
    for (key, value) in wanted {
        assert!(
            manual.contains(&format!("| `{key} = \"{value}\"` | ")),
            "docs/operations.md does not mention {key}"
        );
    }
}
