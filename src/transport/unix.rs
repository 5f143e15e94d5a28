//! Listening Unix sockets and their files.
//!
//! Owns how the file of such a socket is created, who may connect, and that it is removed with the socket. Knows nothing
//! of what is sent over it. Invariants: the file has its group and its mode before the socket listens, so that at no
//! moment another user can connect; only the file of a socket that no process listens on is replaced; a file is removed
//! only if it is still the one that was created here.

use std::{
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixSocket};

use crate::config::{Group, SocketAccess};

/// The longest path of a Unix socket, in bytes (unix(7)).
const LONGEST_PATH: usize = 107;
const GROUPS: &str = "/etc/group";

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
    /// The name of the group has no number.
    #[error("there is no group {0:?} in {GROUPS}; set group to another name, or to the number of the group")]
    NoSuchGroup(String),
    /// The group of the file cannot be set.
    #[error(
        "the socket cannot be given to group {group}: {cause}; make the gateway's user a member of that group"
    )]
    Group { group: Group, cause: io::Error },
    #[error(transparent)]
    System(#[from] io::Error),
}

impl From<UnixError> for io::Error {
    fn from(error: UnixError) -> Self {
        match error {
            UnixError::System(error) => error,
            UnixError::TooLong | UnixError::NoSuchGroup(_) | UnixError::Group { .. } => {
                Self::new(io::ErrorKind::InvalidInput, error)
            }
            UnixError::InUse => Self::new(io::ErrorKind::AddrInUse, error),
            UnixError::NotASocket => Self::new(io::ErrorKind::AlreadyExists, error),
        }
    }
}

/// Listens on `path`. The file of a socket that no process listens on any more is replaced.
///
/// # Errors
/// Another process listens there, there is another kind of file, the group is unknown, or the system refuses. Each message
/// says what to do.
pub(crate) fn bind(
    path: &Path,
    access: &SocketAccess,
    backlog: u32,
) -> io::Result<(UnixListener, SocketPath)> {
    if path.as_os_str().as_bytes().len() > LONGEST_PATH {
        return Err(UnixError::TooLong.into());
    }
    let group = access.group.as_ref().map(|group| Ok::<_, UnixError>((group, number(group)?))).transpose()?;
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(UnixError::NotASocket.into()),
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => return Err(UnixError::InUse.into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let found = fs::symlink_metadata(path)?;
    // Removes the file if a step below fails.
    let name = SocketPath { path: path.to_owned(), identity: (found.dev(), found.ino()) };
    if let Some((group, number)) = group {
        std::os::unix::fs::chown(path, None, Some(number))
            .map_err(|cause| UnixError::Group { group: group.clone(), cause })?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(access.mode))?;
    let listener = socket.listen(backlog)?;
    // Another process that is starting up may have taken this socket, which did not listen yet, for an abandoned one.
    if name.is_current() { Ok((listener, name)) } else { Err(UnixError::InUse.into()) }
}

/// Whether the file at `path` gives this access.
pub(crate) fn has_access(path: &Path, access: &SocketAccess) -> bool {
    let Ok(found) = fs::symlink_metadata(path) else { return false };
    let has_group = |group| number(group).is_ok_and(|number| number == found.gid());
    found.mode() & 0o777 == access.mode && access.group.as_ref().is_none_or(has_group)
}

/// The number of a group. Names are those of the group file: other sources of names would need the C library.
fn number(group: &Group) -> Result<u32, UnixError> {
    match group {
        Group::Number(number) => Ok(*number),
        Group::Name(name) => {
            let text = fs::read_to_string(GROUPS)?;
            let mut lines = text.lines().map(|line| line.split(':'));
            let found = lines.find_map(|mut fields| (fields.next()? == name).then(|| fields.nth(1))?);
            found.and_then(|number| number.parse().ok()).ok_or_else(|| UnixError::NoSuchGroup(name.clone()))
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
    /// Whether the file is still the one that was created here.
    fn is_current(&self) -> bool {
        let now = fs::symlink_metadata(&self.path).map(|found| (found.dev(), found.ino()));
        now.is_ok_and(|now| now == self.identity)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        if self.is_current() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: SocketAccess = SocketAccess { mode: 0o600, group: None };

    #[tokio::test]
    async fn only_an_unused_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(bind(&path, &PRIVATE, 16).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // The file is left behind, as after a crash.
        drop(other);
        let (_listener, name) = bind(&path, &PRIVATE, 16).unwrap();
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["a.sock"]);
        // Another file of the same name is not removed.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another file").unwrap();
        drop(name);
        let error = bind(&path, &PRIVATE, 16).unwrap_err();
        assert!(error.to_string().contains("is not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "another file");
    }

    #[tokio::test]
    async fn path_that_is_too_long_is_refused() {
        let error = bind(Path::new(&"x".repeat(108)), &PRIVATE, 16).unwrap_err();
        assert!(error.to_string().contains("set a shorter one"), "{error}");
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().to_str().unwrap();
        let longest = format!("{directory}/{}", "x".repeat(LONGEST_PATH - directory.len() - 1));
        assert_eq!(longest.len(), LONGEST_PATH);
        let _bound = bind(Path::new(&longest), &PRIVATE, 16).unwrap();
    }

    #[tokio::test]
    async fn a_socket_of_another_kind_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let _datagrams = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        bind(&path, &PRIVATE, 16).unwrap_err();
        assert!(path.exists());
    }

    #[tokio::test]
    async fn row_70_a_file_beside_the_socket_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a.sock.new"), "precious").unwrap();
        let _bound = bind(&directory.path().join("a.sock"), &PRIVATE, 16).unwrap();
        assert_eq!(fs::read_to_string(directory.path().join("a.sock.new")).unwrap(), "precious");
    }

    #[tokio::test]
    async fn the_file_has_the_group_and_the_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let own = fs::metadata(directory.path()).unwrap().gid();
        let access = SocketAccess { mode: 0o620, group: Some(Group::Number(own)) };
        let _bound = bind(&path, &access, 16).unwrap();
        let found = fs::symlink_metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o777, found.gid()), (0o620, own));
        assert!(has_access(&path, &access) && !has_access(&path, &PRIVATE));
    }

    #[tokio::test]
    async fn a_group_is_looked_up_by_its_name() {
        assert_eq!(number(&Group::Name("root".into())).unwrap(), 0);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let access = SocketAccess { mode: 0o660, group: Some(Group::Name("no such group".into())) };
        let error = bind(&path, &access, 16).unwrap_err().to_string();
        assert!(error.contains("no group \"no such group\"") && error.contains("number"), "{error}");
        assert!(!path.exists());
    }
}
