//! Request targets that two servers could read differently.
//!
//! A proxy in front may normalise the path before it matches its own rules, and pass the original on. A target that
//! changes under any normalisation is therefore refused as a whole. Pure.

/// What no segment of a path may contain, in lower case: a second spelling of `.`, `/` or `\`, and NUL.
const AMBIGUOUS: [&[u8; 3]; 4] = [b"%2e", b"%2f", b"%5c", b"%00"];

/// Whether every server reads `path` alike: no segment is `.`, `..` or, except the last, empty, and none contains a
/// backslash or an encoded `.`, `/`, `\` or NUL.
pub(super) fn is_unambiguous(path: &str) -> bool {
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
