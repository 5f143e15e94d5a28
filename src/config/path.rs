//! The path of a route, and the paths that every server reads alike.
//!
//! Owns the syntax; matching requests is the task of `http`. Nothing is decoded and no dot segments are resolved: a path
//! is compared with the bytes that a client sends. A proxy in front may normalise a path before it matches its own rules, and
//! pass the original on: a request whose path changes under any normalisation is refused, and no route can have such a
//! path. Pure.

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
    /// A path that no request can have: proxies could read it in different ways.
    #[error(
        "requests for such a path are refused, because proxies read it differently; remove empty, \".\" and \"..\" segments, \
         backslashes, and encoded \".\", \"/\", \"\\\" and NUL"
    )]
    Ambiguous,
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
        if !is_unambiguous(prefix.unwrap_or(text)) {
            return Err(PathError::Ambiguous);
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

/// What no segment of a path may contain, in lower case: a second spelling of `.`, `/` or `\`, and NUL.
const AMBIGUOUS: [&[u8; 3]; 4] = [b"%2e", b"%2f", b"%5c", b"%00"];

/// Whether every server reads `path` alike: no segment is `.`, `..` or, except the last, empty, and none contains a
/// backslash or an encoded `.`, `/`, `\` or NUL.
pub(crate) fn is_unambiguous(path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else { return false };
    let mut segments = path.split('/').rev();
    // The trailing slash of a directory.
    let last = segments.next().unwrap_or_default();
    (last.is_empty() || is_plain(last)) && segments.all(|segment| !segment.is_empty() && is_plain(segment))
}

fn is_plain(segment: &str) -> bool {
    let is_ambiguous = |window: &[u8]| AMBIGUOUS.iter().any(|code| window.eq_ignore_ascii_case(&code[..]));
    !matches!(segment, "." | "..")
        && !segment.contains(['\\', '\0'])
        && !segment.as_bytes().windows(3).any(is_ambiguous)
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
            ("//", PathError::Ambiguous),
            ("//*", PathError::Ambiguous),
            ("/desk//vnc", PathError::Ambiguous),
            ("/desk/../vnc", PathError::Ambiguous),
            ("/desk/./*", PathError::Ambiguous),
            ("/a%2Fb", PathError::Ambiguous),
            ("/a\\b", PathError::Ambiguous),
        ] {
            assert_eq!(text.parse::<RoutePath>(), Err(error), "{text}");
        }
    }

    #[test]
    fn ordinary_paths_are_unambiguous() {
        for path in [
            "/",
            "/vnc",
            "/desk/",
            "/desk/one",
            "/a.b/..c/d..",
            "/.../x",
            "/a%20b",
            "/%ff",
            "/%",
            "/a%2",
            "/~x",
        ] {
            assert!(is_unambiguous(path), "{path}");
        }
    }

    #[test]
    fn paths_that_a_normalisation_changes_are_ambiguous() {
        for path in [
            "",
            "vnc",
            "//",
            "//vnc",
            "/desk//vnc",
            "/desk//",
            "/.",
            "/..",
            "/./",
            "/../",
            "/desk/../vnc",
            "/desk/.",
            "/desk/..",
            "/desk/./vnc",
            "/%2e%2e/vnc",
            "/.%2E/vnc",
            "/a%2eb",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a%5C",
            "/%00",
            "/vnc%00",
            "/a\\b",
            "/\\",
        ] {
            assert!(!is_unambiguous(path), "{path}");
        }
    }

    /// RFC 3986 §5.2.4 after decoding, with empty segments and backslashes as many servers treat them.
    fn normalised(path: &str) -> String {
        let mut decoded = path.to_ascii_lowercase();
        for (code, character) in [("%2e", "."), ("%2f", "/"), ("%5c", "/"), ("%00", "\0")] {
            decoded = decoded.replace(code, character);
        }
        let decoded = decoded.replace('\\', "/").split('\0').next().unwrap_or_default().to_owned();
        let mut kept: Vec<&str> = Vec::new();
        for segment in decoded.split('/') {
            match segment {
                "" | "." => {}
                ".." => {
                    kept.pop();
                }
                segment => kept.push(segment),
            }
        }
        let slash = if decoded.ends_with('/') && !kept.is_empty() { "/" } else { "" };
        format!("/{}{slash}", kept.join("/"))
    }

    proptest! {
        #[test]
        fn display_returns_what_was_written(text in "/[a-z/*%.]{0,12}|\\PC{0,12}") {
            if let Ok(path) = text.parse::<RoutePath>() {
                prop_assert_eq!(path.to_string(), text);
            }
        }

        #[test]
        fn an_unambiguous_path_is_its_own_normal_form(path in "/([a-b./%\\\\]|%2e|%2F|%5c|%00|\\.\\.){0,12}") {
            if is_unambiguous(&path) {
                prop_assert_eq!(normalised(&path), path);
            }
        }

        #[test]
        fn a_path_that_normalisation_changes_is_refused(path in "(/(a|b|\\.|\\.\\.||%2e|c%2Fd|e%5C|%00)){1,5}/?") {
            prop_assert_eq!(is_unambiguous(&path), normalised(&path) == path);
        }
    }
}
