//! Listening sockets, and what to do when one cannot accept.
//!
//! Owns how a socket comes to be: opened here, or inherited from the service manager, which may hand the same one to
//! several processes. Refuses to know what is accepted for. Invariant: nobody who had come before a socket was closed is
//! turned away.

use std::{env, io, net::SocketAddr, path::Path, time::Duration};

use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use super::{
    socket::{LOCAL, Socket},
    unix::{self, SocketPath},
};
use crate::config::Address;

/// How many connections the kernel holds for us while we are busy.
pub(crate) const BACKLOG: u32 = 4096;
/// A proxy in front mostly runs as a user of its own: who may reach the directory may connect.
const EVERYBODY: u32 = 0o666;
/// Our own user, and root, who may everything.
const NOBODY_ELSE: u32 = 0o600;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(640);

/// A socket that accepts.
#[derive(Debug)]
pub(crate) struct ListeningSocket {
    socket: Socket2,
    /// Whether others may accept on it as well, now or later.
    shared: bool,
    name: Option<SocketPath>,
}

#[derive(Debug)]
enum Socket2 {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl ListeningSocket {
    /// Waits for the next connection, and says where it comes from.
    ///
    /// # Errors
    /// See [`Backoff`].
    pub(crate) async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        match &self.socket {
            Socket2::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Socket::Tcp(stream), peer))
            }
            Socket2::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), LOCAL))
            }
        }
    }

    /// Stops listening; returns those who had already come. On a socket that others share, they wait for the others.
    pub(crate) fn into_waiting(self) -> Vec<(Socket, SocketAddr)> {
        let Self { socket, shared, name: _name } = self;
        if shared {
            return Vec::new();
        }
        // Not through the runtime, which may not have heard of the newest. What fails now cannot be helped.
        match socket {
            Socket2::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return Vec::new() };
                waiting(
                    || listener.accept(),
                    |(stream, peer)| {
                        stream.set_nonblocking(true)?;
                        Ok((Socket::Tcp(TcpStream::from_std(stream)?), peer))
                    },
                )
            }
            Socket2::Unix(listener) => {
                let Ok(listener) = listener.into_std() else { return Vec::new() };
                waiting(
                    || listener.accept(),
                    |(stream, _)| {
                        stream.set_nonblocking(true)?;
                        Ok((Socket::Unix(UnixStream::from_std(stream)?), LOCAL))
                    },
                )
            }
        }
    }

    /// Where it listens, with the port that was given for port 0.
    pub(crate) fn address(&self) -> Address {
        match &self.socket {
            Socket2::Tcp(listener) => {
                Address::Ip(listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0; 4], 0))))
            }
            Socket2::Unix(listener) => {
                // A socket keeps the path that it was first bound to, which is not the name that it was given then.
                let bound = listener.local_addr().ok();
                let bound = bound.as_ref().and_then(|address| address.as_pathname());
                let path = self.name.as_ref().map(SocketPath::path).or(bound);
                Address::Unix(path.unwrap_or(Path::new("")).to_path_buf())
            }
        }
    }
}

/// All that `accept` has at this moment, each taken over by `adopt`; who cannot be, is let go.
fn waiting<S>(
    accept: impl Fn() -> io::Result<S>,
    adopt: impl Fn(S) -> io::Result<(Socket, SocketAddr)>,
) -> Vec<(Socket, SocketAddr)> {
    (0..BACKLOG).map_while(|_| accept().ok()).filter_map(|come| adopt(come).ok()).collect()
}

/// The sockets that the service manager handed over, by name (sd_listen_fds(3)). Kept for the life of the process, so
/// that a listener can be given up and taken again.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    sockets: Vec<(String, Handed)>,
}

#[derive(Debug)]
enum Handed {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl InheritedSockets {
    /// Takes over what the environment tells of (`LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`). To be called once.
    ///
    /// # Errors
    /// Something was handed over that is no listening stream socket.
    pub fn from_env() -> io::Result<Self> {
        let mut handed = ListenFd::from_env();
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = Vec::with_capacity(handed.len());
        for index in 0..handed.len() {
            // systemd's own word for a socket without a name.
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned();
            let socket = match handed.take_tcp_listener(index) {
                Ok(socket) => socket.map(Handed::Tcp),
                Err(_) => handed.take_unix_listener(index)?.map(Handed::Unix),
            };
            sockets.extend(socket.map(|socket| (name, socket)));
        }
        Ok(Self { sockets })
    }

    /// The names of what was handed over.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sockets.iter().map(|(name, _)| name.as_str())
    }

    fn open(&self, name: &str) -> io::Result<Vec<ListeningSocket>> {
        let named = self.sockets.iter().filter(|(given, _)| given == name);
        let opened = named.map(|(_, socket)| {
            let socket = match socket {
                Handed::Tcp(listener) => {
                    listener.set_nonblocking(true)?;
                    Socket2::Tcp(TcpListener::from_std(listener.try_clone()?)?)
                }
                Handed::Unix(listener) => {
                    listener.set_nonblocking(true)?;
                    Socket2::Unix(UnixListener::from_std(listener.try_clone()?)?)
                }
            };
            Ok(ListeningSocket { socket, shared: true, name: None })
        });
        let opened = opened.collect::<io::Result<Vec<ListeningSocket>>>()?;
        if opened.is_empty() {
            let all: Vec<&str> = self.names().collect();
            let there =
                if all.is_empty() { "none was".to_owned() } else { format!("there is {}", all.join(", ")) };
            let wrong = format!("no socket of that name was handed over ({there})");
            return Err(io::Error::new(io::ErrorKind::NotFound, wrong));
        }
        Ok(opened)
    }
}

/// Listens on `address`; on several sockets where an inherited name stands for several.
///
/// # Errors
/// The address is in use, is not ours, or its port needs a privilege we do not have; no such socket was inherited.
pub(crate) fn listen(address: &Address, inherited: &InheritedSockets) -> io::Result<Vec<ListeningSocket>> {
    match address {
        Address::Ip(address) => {
            Ok(vec![ListeningSocket { socket: Socket2::Tcp(on_ip(*address)?), shared: false, name: None }])
        }
        Address::Unix(path) => Ok(vec![on_path(path, EVERYBODY)?]),
        Address::Inherited(name) => inherited.open(name),
    }
}

/// Listens on a Unix socket that nobody but our own user, and root, can ever connect to.
///
/// # Errors
/// Somebody listens there, something else has the name, or the system refused.
pub(crate) fn listen_privately(path: &Path) -> io::Result<ListeningSocket> {
    on_path(path, NOBODY_ELSE)
}

fn on_path(path: &Path, mode: u32) -> io::Result<ListeningSocket> {
    let (listener, name) = unix::bind(path, mode)?;
    Ok(ListeningSocket { socket: Socket2::Unix(listener), shared: false, name: Some(name) })
}

/// Listens on `address`.
///
/// # Errors
/// It is in use, is not ours, or its port needs a privilege we do not have.
fn on_ip(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait for old connections to leave TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How long to pause after failed accepts: some failures concern one connection only, the others (no descriptors,
/// no memory) pass when somebody frees something, and asking again at once would burn a processor.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    pause: Duration,
}

impl Backoff {
    /// An accept went well.
    pub(crate) fn reset(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// An accept failed: how long to pause, if at all.
    pub(crate) fn after(&mut self, error: &io::Error) -> Option<Duration> {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, TimedOut};
        // The peer gave up between its SYN and our accept.
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | TimedOut) {
            return None;
        }
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        Some(self.pause)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_lack_of_resources_is_waited_out_ever_longer() {
        let mut backoff = Backoff::default();
        let full = io::Error::from_raw_os_error(24);
        let pauses: Vec<u64> =
            (0..8).map(|_| backoff.after(&full).map_or(0, |pause| pause.as_millis() as u64)).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 640]);
        backoff.reset();
        assert_eq!(backoff.after(&full), Some(FIRST_PAUSE));
    }

    #[tokio::test]
    async fn a_private_socket_is_its_users_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let listening = listen_privately(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (accepted, connected) = tokio::join!(listening.accept(), UnixStream::connect(&path));
        assert!(accepted.is_ok() && connected.is_ok());
        assert_eq!(listening.address(), Address::Unix(path.clone()));
        drop(listening);
        assert!(!path.exists(), "the file goes with its listener");
    }

    #[tokio::test]
    async fn a_name_that_nothing_was_handed_over_for_says_what_there_is() {
        let error = listen(&Address::Inherited("web".into()), &InheritedSockets::default()).unwrap_err();
        assert_eq!(error.to_string(), "no socket of that name was handed over (none was)");
    }

    #[test]
    fn a_peer_that_gave_up_costs_no_pause() {
        assert_eq!(Backoff::default().after(&io::ErrorKind::ConnectionAborted.into()), None);
    }
}
