//! The path of a route.
//!
//! Owns the syntax; matching requests is the task of `http`. Nothing is decoded and no dot segments are resolved: a path
//! is compared with the bytes that a client sends.

use std::fmt;
use std::str::FromStr;

/// The request paths that a route matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RoutePath {
    /// Exactly this path: `/vnc`.
    Exact(String),
    /// Every path that begins with this one, which ends in `/`: `/desk/` for `/desk/*`.
    Prefix(String),
}

/// Why a text is not a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// It does not begin with a slash.
    #[error("a path must begin with \"/\"; write \"/vnc\" or \"/prefix/*\"")]
    Start,
    /// A query or fragment: routes ignore them.
    #[error("a path cannot contain \"?\" or \"#\"; remove everything from there on")]
    Query,
    /// A character that is not visible ASCII.
    #[error("a path may contain only visible ASCII characters; percent-encode others, as browsers do")]
    Character,
    /// A star that is not the last segment.
    #[error("\"*\" is allowed only at the end, after \"/\", as in \"/prefix/*\"")]
    Wildcard,
}

impl FromStr for RoutePath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.starts_with('/') {
            return Err(PathError::Start);
        }
        if text.contains(['?', '#']) {
            return Err(PathError::Query);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(PathError::Character);
        }
        let prefix = text.strip_suffix('*').filter(|rest| rest.ends_with('/'));
        if prefix.unwrap_or(text).contains('*') {
            return Err(PathError::Wildcard);
        }
        Ok(prefix.map_or_else(|| Self::Exact(text.to_owned()), |prefix| Self::Prefix(prefix.to_owned())))
    }
}

impl fmt::Display for RoutePath {
    /// As it is written in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_final_star_makes_a_prefix() {
        for (text, path) in [
            ("/vnc", RoutePath::Exact("/vnc".into())),
            ("/", RoutePath::Exact("/".into())),
            ("/a%20b;c=d/", RoutePath::Exact("/a%20b;c=d/".into())),
            ("/desk/*", RoutePath::Prefix("/desk/".into())),
            ("/*", RoutePath::Prefix("/".into())),
        ] {
            assert_eq!(text.parse(), Ok(path));
        }
    }

    #[test]
    fn each_mistake_has_its_own_error() {
        for (text, error) in [
            ("", PathError::Start),
            ("vnc", PathError::Start),
            ("wss://host/vnc", PathError::Start),
            ("/vnc?token=x", PathError::Query),
            ("/vnc#top", PathError::Query),
            ("/a b", PathError::Character),
            ("/a\tb", PathError::Character),
            ("/ü", PathError::Character),
            ("/vnc*", PathError::Wildcard),
            ("/*/vnc", PathError::Wildcard),
            ("/a/*/*", PathError::Wildcard),
        ] {
            assert_eq!(text.parse::<RoutePath>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn display_returns_what_was_written(text in "/[a-z/*%.]{0,12}|\\PC{0,12}") {
            if let Ok(path) = text.parse::<RoutePath>() {
                prop_assert_eq!(path.to_string(), text);
            }
        }
    }
}
