//! For tests of `[[route]]`: parses a route that consists of a name, a path and the lines under test.

use std::path::Path;

use super::{Config, ConfigError, UpstreamConfig};

pub(super) fn parse(lines: &str) -> Result<Config, ConfigError> {
    const BEFORE: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"a\"\npath = \"/a\"\n";
    Config::parse(&format!("{BEFORE}{lines}\n"), Path::new("gateway.toml"))
}

/// The upstream of a route with these lines, which cause no warning.
pub(super) fn upstream(lines: &str) -> UpstreamConfig {
    let mut config = parse(lines).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.warnings, Vec::<String>::new(), "for {lines}");
    config.routes.remove(0).upstream
}

/// The warnings about a route with these lines, of which the first is line 6.
pub(super) fn warnings(lines: &str) -> Vec<String> {
    parse(lines).unwrap_or_else(|error| panic!("{error}")).warnings
}

/// Asserts the errors of routes with these lines, of which the first is line 6.
pub(super) fn assert_errors(cases: &[(&str, &str)]) {
    for (lines, message) in cases {
        let error = parse(lines).unwrap_err().to_string();
        assert_eq!(error, format!("gateway.toml:{message}"), "for {lines}");
    }
}
