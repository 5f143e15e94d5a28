//! `[route.targets]`: the file in which a client's token selects the backend.
//!
//! Only checks that the file or directory exists; `backend` reads it.

use std::fs;
use std::path::{Component, Path, PathBuf};

use toml::Spanned;

use super::scalar::OptionalKey;
use super::values::{Result, RouteKey, invalid, keyword, missing, resolve_path};

/// Where tokens are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile {
    /// A file of lines `token: host:port`, or a directory of such files.
    pub path: PathBuf,
    /// The directory of the Unix sockets that a line may name; `None` allows none.
    pub unix: Option<PathBuf>,
    /// Whether the sessions of a line end when it is removed.
    pub end_sessions: bool,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTargets {
    from: OptionalKey<String>,
    path: OptionalKey<String>,
    unix: OptionalKey<String>,
    end_sessions: OptionalKey<bool>,
}

pub(super) fn targets(key: RouteKey<'_>, table: Spanned<RawTargets>, base: &Path) -> Result<TokenFile> {
    let at = table.span();
    let RawTargets { from, path, unix, end_sessions } = table.into_inner();
    if from.is_none() {
        return Err(missing(at, key("targets.from"), "add from = \"file\""));
    }
    keyword(&key("targets.from"), from, &[("file", ())])?;
    let Some(text) = path else {
        return Err(missing(at, key("targets.path"), "add path = \"tokens.cfg\""));
    };
    let path = resolve_path(&key("targets.path"), &text, base)?;
    let unix = unix.map(|text| socket_directory(&key("targets.unix"), &text)).transpose()?;
    let end_sessions = end_sessions.is_some_and(|on| *on.get_ref());
    match fs::metadata(&path) {
        Ok(found) if found.is_file() || found.is_dir() => Ok(TokenFile { path, unix, end_sessions }),
        Ok(_) => {
            let wrong = "this is neither a file nor a directory; name the file with the tokens";
            Err(invalid(key("targets.path"), &text, wrong))
        }
        Err(error) => {
            let wrong = format!(
                "{}: {error}; create the file, with a line such as \"token: host:port\" for each target",
                path.display()
            );
            Err(invalid(key("targets.path"), &text, wrong))
        }
    }
}

fn socket_directory(key: &str, text: &Spanned<String>) -> Result<PathBuf> {
    let path = PathBuf::from(text.get_ref());
    if path.is_absolute() && path.components().all(|part| part != Component::ParentDir) {
        return Ok(path);
    }
    Err(invalid(key, text, "write an absolute path without \"..\", such as \"/run/desks\""))
}
