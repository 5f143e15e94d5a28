//! Token files as they stand on the disk.
//!
//! Owns which files are read, when two of them are the same, and what a line says. Refuses to know when to read and
//! what becomes of it. Invariant: an error names file and line, and never shows what stands there: it may be a token.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use aws_lc_rs::hmac;

use super::{Digest, Targets};
use crate::config::{Backend, BackendError};

/// Why tokens cannot be read. No message shows what stands in a line: it may be a token.
#[derive(Debug, thiserror::Error)]
pub enum TargetsError {
    /// The file, the directory, or a file in it cannot be read.
    #[error("cannot read the tokens in {path}: {cause}; check the path and its permissions", path = .path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The path leads to a socket, a device or the like.
    #[error("{path} is neither a file nor a directory; name a file with tokens", path = .path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// A line is not as it should be.
    #[error("{path}:{line}: {wrong}", path = .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        wrong: LineError,
    },
    /// The system gave no random key.
    #[error("the system has no random numbers to hide tokens with")]
    NoRandomKey,
}

/// What is wrong with a line of a token file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Bytes that are no text.
    #[error("this is not UTF-8; save the file as UTF-8")]
    Encoding,
    /// No token, no target, or nothing to tell where one ends.
    #[error("this is not of the form \"token: host:port\"; a colon and a space divide the two")]
    Form,
    /// A token that could not stand in a request.
    #[error("a token has no spaces and no control characters in it")]
    Token,
    /// The target is none.
    #[error("the target is none: {0}")]
    Target(BackendError),
    /// The target is an XMPP server that wants to be asked for a domain.
    #[error(
        "a token cannot lead to starttls+xmpp://, which needs the xmpp_domain of a route; give it a route"
    )]
    StartTls,
    /// The token has a target already.
    #[error("the same token stands in {}:{line}; remove one of them", .path.display())]
    Twice {
        /// The other line's file.
        path: PathBuf,
        /// The other line.
        line: usize,
    },
}

/// A file, and by what a change of it is noticed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct File {
    path: PathBuf,
    /// Device, inode and size.
    identity: (u64, u64, u64),
    /// Of its contents, and of anything about it, in seconds and nanoseconds.
    changed: [(i64, i64); 2],
}

/// The file at `path`, or those in the directory there, in order. Links are followed.
pub(super) fn files(path: &Path) -> Result<Vec<File>, TargetsError> {
    let unreadable = |path: &Path, cause| TargetsError::Unreadable { path: path.to_owned(), cause };
    let found = fs::metadata(path).map_err(|error| unreadable(path, error))?;
    if found.is_file() {
        return Ok(vec![File::new(path.to_owned(), &found)]);
    }
    if !found.is_dir() {
        return Err(TargetsError::Kind { path: path.to_owned() });
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| unreadable(path, error))? {
        let entry = entry.map_err(|error| unreadable(path, error))?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(b".") || name.ends_with(b"~") {
            continue;
        }
        match fs::metadata(entry.path()) {
            Ok(found) if found.is_file() => files.push(File::new(entry.path(), &found)),
            Ok(_) => {}
            // It was removed a moment ago, or is a link that leads nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(&entry.path(), error)),
        }
    }
    files.sort();
    Ok(files)
}

impl File {
    fn new(path: PathBuf, found: &fs::Metadata) -> Self {
        let identity = (found.dev(), found.ino(), found.size());
        let changed = [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())];
        Self { path, identity, changed }
    }
}

/// What stands in the files.
pub(super) struct Read {
    pub(super) targets: Targets,
    /// Whether a file is empty or ends in the middle of a line, as it does while somebody is writing it.
    pub(super) may_go_on: bool,
}

impl Read {
    pub(super) fn of(files: &[File], key: &hmac::Key) -> Result<Self, TargetsError> {
        let (mut targets, mut may_go_on) = (Targets::new(), false);
        let mut places: HashMap<Digest, (&Path, usize)> = HashMap::new();
        for File { path, .. } in files {
            let bytes =
                fs::read(path).map_err(|cause| TargetsError::Unreadable { path: path.clone(), cause })?;
            may_go_on |= bytes.last() != Some(&b'\n');
            for (line, text) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
                let wrong = |wrong| TargetsError::Line { path: path.clone(), line, wrong };
                let Some((token, backend)) = parse(text).map_err(wrong)? else { continue };
                let digest = Digest::of(key, token);
                if let Some(&(other, line)) = places.get(&digest) {
                    return Err(wrong(LineError::Twice { path: other.to_owned(), line }));
                }
                places.insert(digest, (path, line));
                targets.insert(digest, backend);
            }
        }
        Ok(Self { targets, may_go_on })
    }
}

/// What one line says, if anything. The first colon with a space behind it divides it, as in websockify.
fn parse(line: &[u8]) -> Result<Option<(&str, Backend)>, LineError> {
    let line = std::str::from_utf8(line).map_err(|_| LineError::Encoding)?.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let is_divider = |at: &usize| line[at + 1..].starts_with(char::is_whitespace);
    let colon = line.match_indices(':').map(|(at, _)| at).find(is_divider).ok_or(LineError::Form)?;
    let (token, target) = (&line[..colon], line[colon + 1..].trim_start());
    if token.is_empty() {
        return Err(LineError::Form);
    }
    if token.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(LineError::Token);
    }
    let backend = if target.contains("://") || target.starts_with("unix:") {
        target.parse()
    } else if let Some(path) = target.strip_prefix("unix_socket:") {
        // As websockify writes it.
        format!("unix:{path}").parse()
    } else {
        format!("tcp://{target}").parse()
    };
    match backend.map_err(LineError::Target)? {
        Backend::StartTlsXmpp { .. } => Err(LineError::StartTls),
        backend => Ok(Some((token, backend))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(line: &str) -> Result<Option<(String, String)>, LineError> {
        parse(line.as_bytes())
            .map(|said| said.map(|(token, backend)| (token.to_owned(), backend.to_string())))
    }

    #[test]
    fn lines_are_read_as_websockify_reads_them() {
        for (line, token, backend) in [
            ("alice: 10.0.0.1:5900", "alice", "tcp://10.0.0.1:5900"),
            ("  alice:\t vnc.example:5900 \r", "alice", "tcp://vnc.example:5900"),
            ("a:b:c: [::1]:5900", "a:b:c", "tcp://[::1]:5900"),
            ("büro/3+=%: desk:1", "büro/3+=%", "tcp://desk:1"),
            ("alice: unix_socket:/run/vnc.sock", "alice", "unix:/run/vnc.sock"),
            ("alice: unix:/run/a b: c.sock", "alice", "unix:/run/a b: c.sock"),
            ("alice: tcp://10.0.0.1:5900", "alice", "tcp://10.0.0.1:5900"),
            ("alice: tls://desk:5901", "alice", "tls://desk:5901"),
        ] {
            assert_eq!(parsed(line), Ok(Some((token.to_owned(), backend.to_owned()))), "{line:?}");
        }
        for line in ["", "  ", "\r", "# alice: 10.0.0.1:5900", "  #"] {
            assert_eq!(parsed(line), Ok(None), "{line:?}");
        }
    }

    #[test]
    fn everything_else_is_refused_by_its_true_name() {
        for (line, error) in [
            ("alice", LineError::Form),
            ("alice:", LineError::Form),
            ("alice: ", LineError::Form),
            (": 10.0.0.1:5900", LineError::Form),
            ("alice:10.0.0.1:5900", LineError::Form),
            ("alice 10.0.0.1:5900", LineError::Form),
            ("alice : 10.0.0.1:5900", LineError::Token),
            ("alice bob: 10.0.0.1:5900", LineError::Token),
            ("al\u{7}ice: 10.0.0.1:5900", LineError::Token),
            ("alice: 10.0.0.1", LineError::Target(BackendError::NoPort("tcp"))),
            ("alice: ::1:5900", LineError::Target(BackendError::Brackets("tcp"))),
            ("alice: 10.0.0.1:0", LineError::Target(BackendError::Port("tcp"))),
            ("alice: 10.0.0.1:5900 # desk", LineError::Target(BackendError::Tail("tcp"))),
            ("alice: http://desk:80", LineError::Target(BackendError::Scheme)),
            ("alice: unix:run/vnc.sock", LineError::Target(BackendError::NotAbsolute)),
            ("alice: unix_socket:vnc.sock", LineError::Target(BackendError::NotAbsolute)),
            ("alice: starttls+xmpp://xmpp:5222", LineError::StartTls),
        ] {
            assert_eq!(parsed(line), Err(error), "{line:?}");
        }
        assert_eq!(parse(b"\xff: 10.0.0.1:5900"), Err(LineError::Encoding));
    }

    #[test]
    fn a_token_that_stands_twice_is_refused_with_both_places() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&a, "# ours\nalice: 10.0.0.1:5900\n").unwrap();
        fs::write(&b, "bob: 10.0.0.2:5900\n\nalice: 10.0.0.1:5900\n").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"any");
        let error = Read::of(&files(directory.path()).unwrap(), &key).err().map(|error| error.to_string());
        let (a, b) = (a.display(), b.display());
        assert_eq!(error, Some(format!("{b}:3: the same token stands in {a}:2; remove one of them")));
    }

    proptest! {
        #[test]
        fn whatever_stands_there_nothing_panics_and_no_error_shows_it(
            line in prop::collection::vec(any::<u8>(), 0..40), token in "[A-Z]{12}", target in "[ :0-9/#a-f-]{0,12}",
        ) {
            let _ = parse(&line);
            for line in [format!("{token}: {target}"), format!("x: {token} {target}"), format!("{token}{target}")] {
                if let Err(error) = parse(line.as_bytes()) {
                    prop_assert!(!format!("{error} {error:?}").contains(&token), "{line:?}: {error}");
                }
            }
        }
    }
}
