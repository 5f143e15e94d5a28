//! `[web]`: the directory of static files.
//!
//! Owns the rule that the directory exists and contains no file that must stay private. Which files those are is an
//! argument.

use std::fs;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::error::{ConfigWarning, quoted};
use super::scalar::OptionalKey;
use super::values::{Result, base_of, invalid, missing, resolve_path};

const KEY: &str = "web.root";

/// Static files on the same listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Web {
    /// The directory whose files any client may read.
    pub root: PathBuf,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWeb {
    root: OptionalKey<String>,
}

/// A file that no client may read, as in "private key", "a.key".
pub(super) type PrivateFile<'a> = (&'static str, &'a Path);

/// Converts `[web]` of the configuration `file`. The directory may contain neither one of `private` nor the file or
/// future file `access_log`.
pub(super) fn web(
    raw: Spanned<RawWeb>,
    file: &Path,
    private: &[PrivateFile<'_>],
    access_log: Option<&Path>,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Web> {
    let at = raw.span();
    let Some(text) = raw.into_inner().root else {
        return Err(missing(at, KEY, "add root = \"web\", or leave [web] out"));
    };
    let root = resolve_path(KEY, &text, base_of(file))?;
    match fs::metadata(&root) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => {
            let wrong = "this is not a directory; name the directory that holds the files";
            return Err(invalid(KEY, &text, wrong));
        }
        Err(error) => {
            let wrong = format!("{}: {error}; create the directory, or leave [web] out", root.display());
            return Err(invalid(KEY, &text, wrong));
        }
    }
    let published = |what: &str, path: &Path| {
        let path = path.display();
        let wrong =
            format!("any client could download the {what} {path} from this directory; move it elsewhere");
        Err(invalid(KEY, &text, wrong))
    };
    if let Some((what, path)) = private.iter().find(|(_, path)| is_below(path, &root)) {
        return published(what, path);
    }
    if let Some(path) = access_log.filter(|path| is_or_will_be_below(path, &root)) {
        return published("log", path);
    }
    if is_below(file, &root) {
        let written = quoted(text.get_ref());
        let sentence = format!(
            "{KEY} {written} publishes this configuration file; give the pages a directory of their own."
        );
        warnings.push(ConfigWarning { at: text.span(), sentence });
    }
    Ok(Web { root })
}

/// Whether a file is below a directory, symbolic links resolved. A file that does not exist is not.
fn is_below(file: &Path, directory: &Path) -> bool {
    let real = |path| fs::canonicalize(path).ok();
    real(file).zip(real(directory)).is_some_and(|(file, directory)| file.starts_with(directory))
}

/// The same for a file that may not have been created yet.
fn is_or_will_be_below(file: &Path, directory: &Path) -> bool {
    is_below(file, directory) || file.parent().is_some_and(|parent| is_below(parent, directory))
}
