//! `kind = "basic"`: users and passwords in a file.
//!
//! Reads no file: whether its hashes can be verified is found out when it is loaded.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::RawAuth;
use crate::config::values::{Result, invalid, missing, resolve_path};

/// What a browser shows when it asks for the password, unless the configuration says otherwise.
const REALM: &str = "portcullis";

/// Users and passwords in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basic {
    /// The file, with lines `user:hash` as `htpasswd` writes them.
    pub file: PathBuf,
    /// What the password is for: visible ASCII characters and spaces, no quotes and no backslash.
    pub realm: String,
}

/// Takes the keys of this kind. `at` is where the table is, `key` writes one in full.
pub(super) fn basic(
    table: &mut RawAuth,
    at: Range<usize>,
    key: &dyn Fn(&str) -> String,
    base: &Path,
) -> Result<Basic> {
    let Some(file) = table.file.take() else {
        return Err(missing(at, key("file"), "add file = \"team.htpasswd\""));
    };
    let realm = match table.realm.take() {
        None => REALM.to_owned(),
        Some(written) => {
            let is_quotable = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
            let realm = written.get_ref();
            if realm.is_empty() || realm.len() > 100 || !realm.bytes().all(is_quotable) {
                let wrong = "must have 1 to 100 ASCII characters, without quotation marks, backslashes and control characters";
                return Err(invalid(key("realm"), &written, wrong));
            }
            written.into_inner()
        }
    };
    Ok(Basic { file: resolve_path(&key("file"), &file, base)?, realm })
}

#[cfg(test)]
mod tests {
    use super::super::{super::Config, AuthKind};
    use super::*;

    fn parse(lines: &str) -> std::result::Result<Basic, String> {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"desk\"\npath = \"/\"\nbackend = \"tcp://127.0.0.1:1\"\nauth = \"team\"\n[auth.team]\nkind = \"basic\"\n{lines}"
        );
        let config = Config::parse(&text, Path::new("/etc/g.toml")).map_err(|error| error.to_string())?;
        match config.auth.into_iter().next().unwrap().kind {
            AuthKind::Basic(basic) => Ok(basic),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_file_is_required_and_the_realm_is_not() {
        let basic = parse("file = \"team.htpasswd\"").unwrap();
        assert_eq!(basic, Basic { file: "/etc/team.htpasswd".into(), realm: "portcullis".to_owned() });
        assert_eq!(parse("file = \"a\"\nrealm = \"Desks of the team\"").unwrap().realm, "Desks of the team");
        for (lines, expected) in [
            ("", "auth.team.file is missing; add file = "),
            ("file = \"\"", "auth.team.file \"\": the path is empty"),
            ("file = \"a\"\nrealm = \"\"", "auth.team.realm \"\": must have 1 to 100"),
            ("file = \"a\"\nrealm = 'a\"b'", "must have 1 to 100"),
            ("file = \"a\"\nrealm = \"a\\nb\"", "must have 1 to 100"),
            ("file = \"a\"\nurl = \"http://127.0.0.1\"", "auth.team.url does not belong to this kind"),
        ] {
            let error = parse(lines).unwrap_err();
            assert!(error.contains(expected), "{lines}: {error}");
        }
    }
}
