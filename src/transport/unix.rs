//! Unix sockets and their names.
//!
//! Owns how such a socket gets its name, and that the name goes with it. Refuses to know what is said on it. Invariants: a
//! socket can be used by nobody else from the moment it has its name; only one that nobody listens on is replaced; only the
//! one who made a name removes it.

use std::{
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

/// The longest path of a Unix socket, in bytes (unix(7)), less what its first name takes beyond its last.
const LONGEST_PATH: usize = 107 - SUFFIX.len();
/// What is behind the name of a socket until it is ready.
const SUFFIX: &str = ".new";

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
enum UnixError {
    /// Somebody listens there already.
    #[error("another program listens there")]
    InUse,
    /// Something that is not a socket has its name.
    #[error("there is something that is not a socket; remove it, or set another path")]
    NotASocket,
    /// Its path is longer than a socket's can be.
    #[error("the path is longer than {LONGEST_PATH} bytes; set a shorter one")]
    TooLong,
    /// What the system said.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl From<UnixError> for io::Error {
    fn from(error: UnixError) -> Self {
        match error {
            UnixError::System(error) => error,
            UnixError::TooLong => Self::new(io::ErrorKind::InvalidInput, error),
            UnixError::InUse => Self::new(io::ErrorKind::AddrInUse, error),
            UnixError::NotASocket => Self::new(io::ErrorKind::AlreadyExists, error),
        }
    }
}

/// Listens on `path`, with these permissions. A socket that nobody listens on any more is replaced.
///
/// # Errors
/// Somebody listens there, something else has the name, or the system refuses. Each says what to do.
pub(crate) fn bind(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketPath)> {
    if path.as_os_str().as_bytes().len() > LONGEST_PATH {
        return Err(UnixError::TooLong.into());
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(UnixError::NotASocket.into()),
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => return Err(UnixError::InUse.into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Its mode is set before it has its name: there is no moment in which others could use it.
    let mut first = path.as_os_str().to_owned();
    first.push(SUFFIX);
    let first = PathBuf::from(first);
    let _ = fs::remove_file(&first);
    let listener = UnixListener::bind(&first)?;
    let named = fs::set_permissions(&first, fs::Permissions::from_mode(mode))
        .and_then(|()| fs::rename(&first, path))
        .and_then(|()| fs::symlink_metadata(path));
    match named {
        Ok(found) => {
            Ok((listener, SocketPath { path: path.to_owned(), identity: (found.dev(), found.ino()) }))
        }
        Err(error) => {
            let _ = fs::remove_file(&first);
            Err(error)
        }
    }
}

/// The name of a Unix socket; removed when dropped, unless somebody else has it by then.
#[derive(Debug)]
pub(crate) struct SocketPath {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketPath {
    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path).map(|found| (found.dev(), found.ino()));
        if now.is_ok_and(|now| now == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_socket_that_nobody_listens_on_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(bind(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // Dropped without its file being removed, as after a crash.
        drop(other);
        let (_listener, name) = bind(&path, 0o600).unwrap();
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["a.sock"]);
        // Whoever takes the name away keeps what it put there.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file of somebody").unwrap();
        drop(name);
        let error = bind(&path, 0o600).unwrap_err();
        assert!(error.to_string().contains("not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file of somebody");
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_told_so() {
        let error = bind(Path::new(&"x".repeat(108)), 0o600).unwrap_err();
        assert!(error.to_string().contains("set a shorter one"), "{error}");
    }
}
