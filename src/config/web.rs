//! `[web]`: the directory of static files.
//!
//! Owns the rule that the directory exists and contains no file that must stay private. Which files those are is an
//! argument.

use std::fs;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::auth::{AuthKind, AuthMethod, required};
use super::error::{ConfigWarning, quoted};
use super::scalar::{OptionalKey, StringOrList};
use super::values::{Result, base_of, invalid, missing, resolve_path};

const KEY: &str = "web.root";
const AUTH_KEY: &str = "web.auth";

/// Static files on the same listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Web {
    /// The directory whose files clients may read.
    pub root: PathBuf,
    /// The methods that authenticate a user, all of them; if empty, any client may read the files.
    pub auth: Vec<String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWeb {
    root: OptionalKey<String>,
    auth: OptionalKey<StringOrList>,
}

/// A file that no client may read, as in "private key", "a.key".
pub(super) type PrivateFile<'a> = (&'static str, &'a Path);

/// Converts `[web]` of the configuration `file`. The directory may contain neither one of `private` nor the file or
/// future file `access_log`.
pub(super) fn web(
    raw: Spanned<RawWeb>,
    file: &Path,
    methods: &[AuthMethod],
    private: &[PrivateFile<'_>],
    access_log: Option<&Path>,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Web> {
    let at = raw.span();
    let RawWeb { root, auth } = raw.into_inner();
    let Some(text) = root else {
        return Err(missing(at, KEY, "add root = \"web\", or leave [web] out"));
    };
    let auth = self::auth(auth, methods)?;
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
    Ok(Web { root, auth })
}

/// The methods for files. None of them may use up what it checks: a page consists of many files.
fn auth(written: OptionalKey<StringOrList>, methods: &[AuthMethod]) -> Result<Vec<String>> {
    let names = required(AUTH_KEY, written, methods)?;
    for name in &names {
        let sufficient = methods.iter().find_map(|method| match &method.kind {
            AuthKind::Any(others) if method.name == *name.get_ref() => Some(others.as_slice()),
            _ => None,
        });
        let names = sufficient.unwrap_or(std::slice::from_ref(name.get_ref()));
        let is_ticket =
            |method: &&AuthMethod| matches!(method.kind, AuthKind::Ticket(_)) && names.contains(&method.name);
        if let Some(method) = methods.iter().find(is_ticket) {
            let wrong = format!(
                "[auth.{}] accepts tickets, and a ticket is used up by one request, but a page consists of many files; name another method",
                method.name
            );
            return Err(invalid(AUTH_KEY, name, wrong));
        }
    }
    Ok(names.into_iter().map(Spanned::into_inner).collect())
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

#[cfg(test)]
mod tests {
    use super::super::Config;

    const METHODS: &str = "[auth.team]\nkind = \"basic\"\nfile = \"team.htpasswd\"\n[auth.portal]\nkind = \"forward\"\nurl = \"http://127.0.0.1:1/\"\n[auth.links]\nkind = \"ticket\"\n[auth.either]\nany = [\"team\", \"links\"]\n[auth.good]\nany = [\"team\", \"portal\"]\n";

    /// Parses `[web]` with the files in a directory of its own, and the passwords at a path beside or below them.
    fn parse(auth: &str, passwords: &str) -> Result<Vec<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("web")).unwrap();
        for file in ["team.htpasswd", "web/team.htpasswd"] {
            std::fs::write(directory.path().join(file), "").unwrap();
        }
        let methods = METHODS.replace("team.htpasswd", passwords);
        let text = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{methods}[web]\nroot = \"web\"\n{auth}");
        let config = Config::parse(&text, &directory.path().join("gateway.toml"));
        config.map(|config| config.web.unwrap().auth).map_err(|error| error.to_string())
    }

    #[test]
    fn files_may_require_any_method_but_tickets() {
        let good = |auth: &str| parse(auth, "team.htpasswd").unwrap();
        assert_eq!(good(""), Vec::<String>::new());
        assert_eq!(good("auth = \"team\""), ["team"]);
        assert_eq!(good("auth = [\"team\", \"portal\"]"), ["team", "portal"]);
        assert_eq!(good("auth = \"good\""), ["good"]);
        for (auth, expected) in [
            ("auth = \"links\"", "web.auth \"links\": [auth.links] accepts tickets"),
            ("auth = [\"team\", \"links\"]", "web.auth \"links\": [auth.links] accepts tickets"),
            ("auth = \"either\"", "web.auth \"either\": [auth.links] accepts tickets"),
            ("auth = \"tam\"", "there is no [auth.tam]; did you mean \"team\"?"),
            ("auth = []", "web.auth []: an empty list"),
            ("auth = [\"team\", \"team\"]", "listed twice"),
        ] {
            let error = parse(auth, "team.htpasswd").unwrap_err();
            assert!(error.contains(expected), "{auth}: {error}");
        }
    }

    #[test]
    fn a_password_file_is_not_published() {
        let error = parse("", "web/team.htpasswd").unwrap_err();
        assert!(error.contains("any client could download the passwords in"), "{error}");
    }
}
