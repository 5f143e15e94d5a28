//! Listening Unix sockets and their files.
//!
//! Owns how the file of such a socket is created, and that it is removed with the socket. Knows nothing of what is
//! sent over it. Invariants: the file has its permissions before it has its final name; only the file of a socket
//! that no process listens on is replaced; a file is removed only if it is still the one that was created here.

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

/// The longest path of a Unix socket, in bytes (unix(7)), less the suffix of its temporary name.
const LONGEST_PATH: usize = 107 - SUFFIX.len();
/// The suffix of a socket's temporary name, which it has until its permissions are set.
const SUFFIX: &str = ".new";

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
enum UnixError {
    /// Another process listens there.
    #[error("another program listens there")]
    InUse,
    /// There is a file that is not a socket.
    #[error("the path exists and is not a socket; remove it, or set another path")]
    NotASocket,
    /// The path is longer than that of a socket can be.
    #[error("the path is longer than {LONGEST_PATH} bytes; set a shorter one")]
    TooLong,
    /// The system's error.
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

/// Listens on `path`, with these permissions. The file of a socket that no process listens on any more is replaced.
///
/// # Errors
/// Another process listens there, there is another kind of file, or the system refuses. Each message says what to do.
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
    // The mode is set under a temporary name, so that others can at no moment connect.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(SUFFIX);
    let temporary = PathBuf::from(temporary);
    let _ = fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)?;
    let renamed = fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| fs::symlink_metadata(path));
    match renamed {
        Ok(found) => {
            Ok((listener, SocketPath { path: path.to_owned(), identity: (found.dev(), found.ino()) }))
        }
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
    }
}

/// The file of a Unix socket; removed when dropped, unless another file has its name by then.
#[derive(Debug)]
pub(crate) struct SocketPath {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketPath {
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
    async fn only_an_unused_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(bind(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // The file is left behind, as after a crash.
        drop(other);
        let (_listener, name) = bind(&path, 0o600).unwrap();
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["a.sock"]);
        // Another file of the same name is not removed.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another file").unwrap();
        drop(name);
        let error = bind(&path, 0o600).unwrap_err();
        assert!(error.to_string().contains("is not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "another file");
    }

    #[tokio::test]
    async fn path_that_is_too_long_is_refused() {
        let error = bind(Path::new(&"x".repeat(108)), 0o600).unwrap_err();
        assert!(error.to_string().contains("set a shorter one"), "{error}");
    }
}
