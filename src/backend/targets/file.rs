//! Token files on disk.
//!
//! Owns which files are read, and how a line is parsed. Knows nothing of when they are read and what the result is
//! used for. Invariant: an error names file and line, and never quotes the line: it may contain a token.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use aws_lc_rs::hmac;

use super::{Digest, Targets};
use crate::{
    config::{Backend, BackendError},
    watched_file::Stamp,
};

/// Why tokens cannot be read. No message quotes a line: it may contain a token.
#[derive(Debug, thiserror::Error)]
pub enum TargetsError {
    /// The file, the directory, or a file in it cannot be read.
    #[error("cannot read the tokens in {path}: {cause}; check the path and its permissions", path = .path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        cause: io::Error,
    },
    /// The path is that of a socket, a device or the like.
    #[error("{path} is neither a file nor a directory; name a file with tokens", path = .path.display())]
    Kind { path: PathBuf },
    /// A line is invalid.
    #[error("{path}:{line}: {problem}", path = .path.display())]
    Line {
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: LineError,
    },
    /// The system gave no random key.
    #[error("the system has no random numbers, which are needed to protect tokens")]
    NoRandomKey,
}

/// What is wrong with a line of a token file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It is not UTF-8.
    #[error("this is not UTF-8; save the file as UTF-8")]
    Encoding,
    /// The token, the backend or the separator is missing.
    #[error("this is not of the form \"token: host:port\"; separate the two by a colon and a space")]
    Form,
    /// A token that could not be part of a request.
    #[error("a token has no spaces and no control characters in it")]
    Token,
    /// The backend is invalid.
    #[error("invalid target: {0}")]
    Target(BackendError),
    /// The backend is an XMPP server, which needs a domain besides.
    #[error(
        "a token cannot select starttls+xmpp://, which needs the xmpp_domain of a route; give it a route"
    )]
    StartTls,
    /// An address that the route does not allow.
    #[error("this address is not in the route's allowed_networks; add its network there")]
    AddressNotAllowed,
    /// A Unix socket that the route does not allow.
    #[error("this Unix socket is not below targets.unix; set that to its directory")]
    UnixNotAllowed,
    /// An address of the gateway.
    #[error("this gateway itself listens there, and no route leads to it; remove the line")]
    Own,
    /// An earlier line has the same token.
    #[error("the same token is in {}:{line}; remove one of them", .path.display())]
    Twice {
        /// The other line's file.
        path: PathBuf,
        line: usize,
    },
}

/// A token file and its version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct File {
    path: PathBuf,
    stamp: Stamp,
}

/// The file at `path`, or those in the directory there, sorted. Links are followed.
pub(super) fn files(path: &Path) -> Result<Vec<File>, TargetsError> {
    let unreadable = |path: &Path, cause| TargetsError::Unreadable { path: path.to_owned(), cause };
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, error))?;
    if metadata.is_file() {
        return Ok(vec![File { path: path.to_owned(), stamp: Stamp::new(&metadata) }]);
    }
    if !metadata.is_dir() {
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
        let path = entry.path();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => files.push(File { path, stamp: Stamp::new(&metadata) }),
            Ok(_) => {}
            // It was removed since the directory was read, or is a dangling link.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(&path, error)),
        }
    }
    files.sort();
    Ok(files)
}

/// The contents of the files.
pub(super) struct Contents {
    pub(super) targets: Targets,
    /// Whether a file is empty or ends in the middle of a line, as it does while it is being written.
    pub(super) is_partial: bool,
}

impl Contents {
    /// Reads the files. `check` says whether a line may name a target.
    pub(super) fn read(
        files: &[File],
        key: &hmac::Key,
        check: impl Fn(&Backend) -> Result<(), LineError>,
    ) -> Result<Self, TargetsError> {
        let (mut targets, mut is_partial) = (Targets::new(), false);
        let mut lines: HashMap<Digest, (&Path, usize)> = HashMap::new();
        for File { path, .. } in files {
            let bytes =
                fs::read(path).map_err(|cause| TargetsError::Unreadable { path: path.clone(), cause })?;
            is_partial |= bytes.last() != Some(&b'\n');
            for (line, text) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
                let invalid = |problem| TargetsError::Line { path: path.clone(), line, problem };
                let Some((token, backend)) = parse(text).map_err(invalid)? else { continue };
                check(&backend).map_err(invalid)?;
                let digest = Digest::of(key, token);
                if let Some(&(other, line)) = lines.get(&digest) {
                    return Err(invalid(LineError::Twice { path: other.to_owned(), line }));
                }
                lines.insert(digest, (path, line));
                targets.insert(digest, backend);
            }
        }
        Ok(Self { targets, is_partial })
    }
}

/// The token and the backend of a line; `None` for a comment or an empty line. The first colon with white space
/// behind it separates the two, as in websockify.
pub(crate) fn parse(line: &[u8]) -> Result<Option<(&str, Backend)>, LineError> {
    let line = std::str::from_utf8(line).map_err(|_| LineError::Encoding)?.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let is_separator = |at: &usize| line[at + 1..].starts_with(char::is_whitespace);
    let colon = line.match_indices(':').map(|(at, _)| at).find(is_separator).ok_or(LineError::Form)?;
    let (token, target) = (&line[..colon], line[colon + 1..].trim_start());
    if token.is_empty() {
        return Err(LineError::Form);
    }
    if token.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(LineError::Token);
    }
    let backend: Result<Backend, BackendError> = if target.contains("://") || target.starts_with("unix:") {
        target.parse()
    } else if let Some(path) = target.strip_prefix("unix_socket:") {
        // websockify's notation.
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
            .map(|line| line.map(|(token, backend)| (token.to_owned(), backend.to_string())))
    }

    #[test]
    fn lines_are_parsed_as_by_websockify() {
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
    fn each_invalid_line_has_its_own_error() {
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
    fn duplicate_token_is_refused_with_both_lines() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&a, "# ours\nalice: 10.0.0.1:5900\n").unwrap();
        fs::write(&b, "bob: 10.0.0.2:5900\n\nalice: 10.0.0.1:5900\n").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"any");
        let error = Contents::read(&files(directory.path()).unwrap(), &key, |_| Ok(()))
            .err()
            .map(|error| error.to_string());
        let (a, b) = (a.display(), b.display());
        assert_eq!(error, Some(format!("{b}:3: the same token is in {a}:2; remove one of them")));
    }

    proptest! {
        #[test]
        fn no_line_panics_and_no_error_shows_a_token(
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
