//! The socket that the operator comes in by.
//!
//! Owns who may use it. Refuses to know what is said on it. Invariant: nobody but the gateway's own user, or a program of
//! this machine where it is a port, reaches it.

use std::{io, net::SocketAddr, path::PathBuf, pin::Pin};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};

use crate::{
    config::AdminAddress,
    transport::{
        listener,
        unix::{self, Name, UnixError},
    },
};

/// Nobody but the user who runs the gateway may use a Unix socket (and root, who may everything).
const MODE: u32 = 0o600;

/// Why the admin address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there already.
    #[error("another program listens there; stop it, or set another address")]
    InUse,
    /// No socket can have that path.
    #[error(transparent)]
    Path(UnixError),
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

impl From<UnixError> for SocketError {
    fn from(error: UnixError) -> Self {
        match error {
            UnixError::InUse => Self::InUse,
            UnixError::System(error) => Self::System(error),
            error => Self::Path(error),
        }
    }
}

/// A socket that listens for the operator.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: PathBuf, _name: Name },
}

/// Any stream; there are few of them.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}

impl Socket {
    /// Listens on `address`. A Unix socket that nobody listens on any more is replaced.
    pub(super) fn bind(address: &AdminAddress) -> Result<Self, SocketError> {
        match address {
            AdminAddress::Loopback(address) => match listener::on_ip(*address) {
                Ok(listener) => Ok(Self::Tcp(listener)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(SocketError::InUse),
                Err(error) => Err(error.into()),
            },
            AdminAddress::Unix(path) => {
                let (listener, name) = unix::bind(path, MODE)?;
                Ok(Self::Unix { listener, path: path.clone(), _name: name })
            }
        }
    }

    /// Its address, with the port that was given for port 0.
    pub(super) fn address(&self) -> io::Result<AdminAddress> {
        Ok(match self {
            Self::Tcp(listener) => AdminAddress::Loopback(listener.local_addr()?),
            Self::Unix { path, .. } => AdminAddress::Unix(path.clone()),
        })
    }

    /// The address with its port, unless it is a Unix socket.
    pub(super) fn loopback(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix { .. } => None,
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
            Self::Unix { listener, .. } => Box::pin(listener.accept().await?.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{fs::PermissionsExt, net::UnixListener as StdUnixListener},
        path::Path,
    };

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
        assert!(matches!(Socket::bind(&unix(&path)), Err(SocketError::Path(UnixError::NotASocket))));
    }

    #[tokio::test]
    async fn what_cannot_be_listened_on_is_told_with_advice() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = Socket::bind(&unix(&directory.path().join("no/admin.sock"))).unwrap_err().to_string();
        assert!(nowhere.contains("create the directory"), "{nowhere}");
        let long = Socket::bind(&unix(&directory.path().join("x".repeat(100)))).unwrap_err();
        assert!(matches!(long, SocketError::Path(UnixError::TooLong)), "{long}");
        let first = Socket::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let second = Socket::bind(&first.address().unwrap());
        assert!(matches!(second, Err(SocketError::InUse)), "{second:?}");
    }
}
