//! The socket that the operator comes in by.
//!
//! Owns how it is made, and that it is removed again. Refuses to know what is said on it. Invariant: a Unix socket can be
//! used by nobody else from the moment it has its name, and only the one who made it removes it.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    pin::Pin,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};

use crate::{config::AdminAddress, transport::listener::listen};

/// The longest path of a Unix socket, in bytes, less what its first name takes beyond its last.
const LONGEST_PATH: usize = 107 - SUFFIX.len();
/// What is behind the name of a socket until it is ready.
const SUFFIX: &str = ".new";

/// Why the admin address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there already.
    #[error("another program listens there; stop it, or set another address")]
    InUse,
    /// Something that is not a socket has its name.
    #[error("there is something that is not a socket; remove it, or set another path")]
    NotASocket,
    /// Its path is longer than a socket's can be.
    #[error("the path is longer than {LONGEST_PATH} bytes; set a shorter one")]
    TooLong,
    /// What the system said.
    #[error("{0}; {advice}", advice = advice(.0))]
    System(#[from] io::Error),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            "set a loopback address of this machine, such as \"127.0.0.1:9101\""
        }
        io::ErrorKind::NotFound => "create the directory, or set another path",
        io::ErrorKind::PermissionDenied => {
            "let the user who runs Portcullis write to the directory, or set another"
        }
        _ => "set another address",
    }
}

/// A socket that listens for the operator.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, Name),
}

/// Any stream; there are few of them.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}

impl Socket {
    /// Listens on `address`. A Unix socket that nobody listens on any more is replaced.
    pub(super) fn bind(address: &AdminAddress) -> Result<Self, SocketError> {
        match address {
            AdminAddress::Loopback(address) => match listen(*address) {
                Ok(listener) => Ok(Self::Tcp(listener)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(SocketError::InUse),
                Err(error) => Err(error.into()),
            },
            AdminAddress::Unix(path) => {
                let (listener, name) = bind_unix(path)?;
                Ok(Self::Unix(listener, name))
            }
        }
    }

    /// Its address, with the port that was given for port 0.
    pub(super) fn address(&self) -> io::Result<AdminAddress> {
        Ok(match self {
            Self::Tcp(listener) => AdminAddress::Loopback(listener.local_addr()?),
            Self::Unix(_, name) => AdminAddress::Unix(name.path.clone()),
        })
    }

    /// The address with its port, unless it is a Unix socket.
    pub(super) fn loopback(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<Pin<Box<dyn Stream>>> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Box::pin(stream)
            }
            Self::Unix(listener, _) => Box::pin(listener.accept().await?.0),
        })
    }
}

fn bind_unix(path: &Path) -> Result<(UnixListener, Name), SocketError> {
    if path.as_os_str().as_bytes().len() > LONGEST_PATH {
        return Err(SocketError::TooLong);
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket),
        Ok(_) => match StdUnixStream::connect(path) {
            Ok(_) => return Err(SocketError::InUse),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error.into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    // Its mode is set before it has its name: there is no moment in which others could use it.
    let mut first = path.as_os_str().to_owned();
    first.push(SUFFIX);
    let first = PathBuf::from(first);
    let _ = fs::remove_file(&first);
    let listener = UnixListener::bind(&first)?;
    let named = fs::set_permissions(&first, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&first, path))
        .and_then(|()| fs::symlink_metadata(path));
    match named {
        Ok(found) => Ok((listener, Name { path: path.to_owned(), identity: (found.dev(), found.ino()) })),
        Err(error) => {
            let _ = fs::remove_file(&first);
            Err(error.into())
        }
    }
}

/// The name of a Unix socket; removed when dropped, unless somebody else has it by then.
#[derive(Debug)]
pub(super) struct Name {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for Name {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path).map(|found| (found.dev(), found.ino()));
        if now.is_ok_and(|now| now == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdUnixListener;

    use super::*;

    fn unix(path: &Path) -> AdminAddress {
        AdminAddress::Unix(path.to_owned())
    }

    #[tokio::test]
    async fn a_socket_is_its_users_alone_and_goes_when_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let socket = Socket::bind(&unix(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(socket.address().unwrap(), unix(&path));
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["admin.sock"]);
        let (accepted, connected) = tokio::join!(socket.accept(), tokio::net::UnixStream::connect(&path));
        assert!(accepted.is_ok() && connected.is_ok());
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn only_a_socket_that_nobody_listens_on_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let other = StdUnixListener::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&unix(&path)), Err(SocketError::InUse)));
        drop(other);
        assert!(path.exists(), "a stale socket is what this test is about");
        let socket = Socket::bind(&unix(&path)).unwrap();
        // Whoever takes the name away keeps what it put there.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        drop(socket);
        assert!(path.exists());
        assert!(matches!(Socket::bind(&unix(&path)), Err(SocketError::NotASocket)));
    }

    #[tokio::test]
    async fn what_cannot_be_listened_on_is_told_with_advice() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = Socket::bind(&unix(&directory.path().join("no/admin.sock"))).unwrap_err().to_string();
        assert!(nowhere.contains("create the directory"), "{nowhere}");
        let long = Socket::bind(&unix(&directory.path().join("x".repeat(100)))).unwrap_err();
        assert!(matches!(long, SocketError::TooLong), "{long}");
        let first = Socket::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let second = Socket::bind(&first.address().unwrap());
        assert!(matches!(second, Err(SocketError::InUse)), "{second:?}");
    }
}
