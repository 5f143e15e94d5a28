//! Listening sockets: opened here, or inherited from the service manager (socket activation).
//!
//! Owns how a socket is opened and closed, and how long to pause when accepting fails. Knows nothing of what
//! connections are used for. Several processes may share an inherited socket. Invariant: connections that the kernel
//! queued before a socket was closed are not lost.

use std::{
    env, io,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use super::{
    socket::{LOCAL, Socket},
    unix::{self, SocketPath},
};
#[cfg(test)]
use crate::simulation::{self, Network};
use crate::{
    config::{Address, SocketAccess},
    socket_buffer::SocketBuffer,
};

/// How many connections the kernel queues until they are accepted.
pub(crate) const BACKLOG: u32 = 4096;
/// The gateway's user, and root.
pub(crate) const OWNER_ONLY: SocketAccess = SocketAccess { mode: 0o600, group: None };
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(640);

#[derive(Debug)]
pub(crate) struct ListeningSocket {
    socket: ListenerKind,
    /// Whether other processes may accept on it as well, now or later.
    shared: bool,
    name: Option<SocketPath>,
}

#[derive(Debug)]
enum ListenerKind {
    Tcp(TcpListener, BufferSize),
    Unix(UnixListener),
    #[cfg(test)]
    Simulated(simulation::Listener),
}

/// The buffer size that accepted sockets inherit.
#[derive(Debug)]
struct BufferSize {
    wanted: SocketBuffer,
    applied: AtomicU32,
}

impl BufferSize {
    fn new(wanted: &SocketBuffer) -> Self {
        Self { wanted: wanted.clone(), applied: AtomicU32::new(0) }
    }

    /// Configures the listening socket, at first and after a change.
    fn apply(&self, listener: &TcpListener) {
        let wanted = self.wanted.get();
        if self.applied.swap(wanted, Ordering::Relaxed) != wanted {
            // If this fails, connections work with the system's defaults.
            let _ = self.wanted.apply(listener);
        }
    }
}

impl ListeningSocket {
    /// Waits for the next connection; returns it with the peer's address.
    ///
    /// # Errors
    /// See [`Backoff`].
    pub(crate) async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        match &self.socket {
            ListenerKind::Tcp(listener, buffer) => {
                buffer.apply(listener);
                let (stream, peer) = listener.accept().await?;
                Ok((Socket::Tcp(stream), peer))
            }
            ListenerKind::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Socket::Unix(stream), LOCAL))
            }
            #[cfg(test)]
            ListenerKind::Simulated(listener) => {
                let stream = listener.accept().await;
                let peer = stream.peer_addr();
                Ok((Socket::Simulated(stream), peer))
            }
        }
    }

    /// Stops listening; returns the connections that are queued already. Those of a shared socket stay queued for the
    /// other processes.
    pub(crate) fn into_waiting(self) -> Vec<(Socket, SocketAddr)> {
        let Self { socket, shared, name: _name } = self;
        if shared {
            return Vec::new();
        }
        // Not through the runtime, which may not know of the newest connections yet. Errors are ignored: there is no
        // retry.
        match socket {
            ListenerKind::Tcp(listener, _) => {
                let Ok(listener) = listener.into_std() else { return Vec::new() };
                waiting(
                    || listener.accept(),
                    |(stream, peer)| {
                        stream.set_nonblocking(true)?;
                        Ok((Socket::Tcp(TcpStream::from_std(stream)?), peer))
                    },
                )
            }
            ListenerKind::Unix(listener) => {
                let Ok(listener) = listener.into_std() else { return Vec::new() };
                waiting(
                    || listener.accept(),
                    |(stream, _)| {
                        stream.set_nonblocking(true)?;
                        Ok((Socket::Unix(UnixStream::from_std(stream)?), LOCAL))
                    },
                )
            }
            #[cfg(test)]
            ListenerKind::Simulated(listener) => {
                let accepted = |stream: simulation::Stream| {
                    let peer = stream.peer_addr();
                    (Socket::Simulated(stream), peer)
                };
                listener.into_waiting().into_iter().map(accepted).collect()
            }
        }
    }

    /// The address it listens on, with the port that the kernel chose for port 0.
    pub(crate) fn address(&self) -> Address {
        match &self.socket {
            ListenerKind::Tcp(listener, _) => {
                Address::Ip(listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0; 4], 0))))
            }
            ListenerKind::Unix(listener) => {
                let bound = listener.local_addr().ok();
                let bound = bound.as_ref().and_then(|address| address.as_pathname());
                let path = self.name.as_ref().map(SocketPath::path).or(bound);
                Address::Unix(path.unwrap_or(Path::new("")).to_path_buf())
            }
            #[cfg(test)]
            ListenerKind::Simulated(listener) => Address::Ip(listener.local_addr()),
        }
    }
}

/// All connections that `accept` returns at this moment, converted by `adopt`; those that cannot be are dropped.
fn waiting<S>(
    accept: impl Fn() -> io::Result<S>,
    adopt: impl Fn(S) -> io::Result<(Socket, SocketAddr)>,
) -> Vec<(Socket, SocketAddr)> {
    (0..BACKLOG).map_while(|_| accept().ok()).filter_map(|accepted| adopt(accepted).ok()).collect()
}

/// The sockets inherited from the service manager by socket activation, by name (sd_listen_fds(3)). Kept until the
/// process ends, so that a listener can be closed and opened again.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    sockets: Vec<(String, InheritedSocket)>,
}

#[derive(Debug)]
enum InheritedSocket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl InheritedSockets {
    /// Takes the sockets that the environment describes (`LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`). To be called
    /// once.
    ///
    /// # Errors
    /// A descriptor is not that of a listening stream socket.
    pub fn from_env() -> io::Result<Self> {
        let mut inherited = ListenFd::from_env();
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = Vec::with_capacity(inherited.len());
        for index in 0..inherited.len() {
            // systemd's name for a socket without a name.
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned();
            let socket = match inherited.take_tcp_listener(index) {
                Ok(socket) => socket.map(InheritedSocket::Tcp),
                Err(_) => inherited.take_unix_listener(index)?.map(InheritedSocket::Unix),
            };
            sockets.extend(socket.map(|socket| (name, socket)));
        }
        Ok(Self { sockets })
    }

    /// The names of the inherited sockets.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sockets.iter().map(|(name, _)| name.as_str())
    }

    fn open(&self, name: &str, buffer: &SocketBuffer) -> io::Result<Vec<ListeningSocket>> {
        let named = self.sockets.iter().filter(|(given, _)| given == name);
        let opened = named.map(|(_, socket)| {
            let socket = match socket {
                InheritedSocket::Tcp(listener) => {
                    listener.set_nonblocking(true)?;
                    ListenerKind::Tcp(TcpListener::from_std(listener.try_clone()?)?, BufferSize::new(buffer))
                }
                InheritedSocket::Unix(listener) => {
                    listener.set_nonblocking(true)?;
                    ListenerKind::Unix(UnixListener::from_std(listener.try_clone()?)?)
                }
            };
            Ok(ListeningSocket { socket, shared: true, name: None })
        });
        let opened = opened.collect::<io::Result<Vec<ListeningSocket>>>()?;
        if opened.is_empty() {
            let all: Vec<&str> = self.names().collect();
            let inherited =
                if all.is_empty() { "none was".to_owned() } else { format!("only {}", all.join(", ")) };
            let error = format!("no socket of that name was inherited ({inherited})");
            return Err(io::Error::new(io::ErrorKind::NotFound, error));
        }
        Ok(opened)
    }
}

/// Listens on `address`; on several sockets if several were inherited by that name. `access` is for a Unix socket; accepted
/// TCP sockets get `buffer`.
///
/// # Errors
/// The address is in use, is not one of this machine, or its port needs a privilege; no such socket was inherited.
pub(crate) fn listen(
    address: &Address,
    access: &SocketAccess,
    inherited: &InheritedSockets,
    buffer: &SocketBuffer,
) -> io::Result<Vec<ListeningSocket>> {
    #[cfg(test)]
    if let (Address::Ip(address), Some(network)) = (address, Network::current()) {
        let socket = ListenerKind::Simulated(network.listen(*address)?);
        return Ok(vec![ListeningSocket { socket, shared: false, name: None }]);
    }
    match address {
        Address::Ip(address) => Ok(vec![ListeningSocket {
            socket: ListenerKind::Tcp(on_ip(*address, buffer)?, BufferSize::new(buffer)),
            shared: false,
            name: None,
        }]),
        Address::Unix(path) => Ok(vec![on_path(path, access)?]),
        Address::Inherited(name) => inherited.open(name, buffer),
    }
}

fn on_path(path: &Path, access: &SocketAccess) -> io::Result<ListeningSocket> {
    let (listener, name) = unix::bind(path, access, BACKLOG)?;
    Ok(ListeningSocket { socket: ListenerKind::Unix(listener), shared: false, name: Some(name) })
}

fn on_ip(address: SocketAddr, buffer: &SocketBuffer) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Without this, a restart fails while old connections are in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    // If this fails, connections work with the system's defaults.
    let _ = buffer.apply(&socket);
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How long to pause after a failed accept. Some failures concern one connection only; the others (no descriptors, no
/// memory) last until resources are freed, and retrying at once would be a busy loop.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    pause: Duration,
}

impl Backoff {
    pub(crate) fn reset(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// An accept failed. Returns how long to pause, if at all.
    pub(crate) fn after(&mut self, error: &io::Error) -> Option<Duration> {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, TimedOut};
        // The client closed the connection before it was accepted.
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
    fn pause_doubles_while_resources_are_lacking() {
        let mut backoff = Backoff::default();
        let full = io::Error::from_raw_os_error(24);
        let pauses: Vec<u64> =
            (0..8).map(|_| backoff.after(&full).map_or(0, |pause| pause.as_millis() as u64)).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 640]);
        backoff.reset();
        assert_eq!(backoff.after(&full), Some(FIRST_PAUSE));
    }

    #[tokio::test]
    async fn private_socket_is_accessible_to_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let (inherited, buffer) = (InheritedSockets::default(), SocketBuffer::default());
        let listening = listen(&Address::Unix(path.clone()), &OWNER_ONLY, &inherited, &buffer);
        let listening = listening.unwrap().remove(0);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (accepted, connected) = tokio::join!(listening.accept(), UnixStream::connect(&path));
        assert!(accepted.is_ok() && connected.is_ok());
        assert_eq!(listening.address(), Address::Unix(path.clone()));
        drop(listening);
        assert!(!path.exists(), "the file is removed with its listener");
    }

    #[tokio::test]
    async fn connections_have_the_receive_buffer_of_the_configuration_as_it_is_now() {
        let (inherited, buffer) = (InheritedSockets::default(), SocketBuffer::default());
        let address = Address::Ip(([127, 0, 0, 1], 0).into());
        let listening = listen(&address, &OWNER_ONLY, &inherited, &buffer).unwrap().remove(0);
        let Address::Ip(address) = listening.address() else { panic!("another address") };
        for bytes in [16 * 1024, 64 * 1024] {
            buffer.set(bytes);
            // A connection may have been accepted by the system before the listener has the new size.
            for _ in 0..2 {
                let (accepted, _connected) = tokio::join!(listening.accept(), TcpStream::connect(address));
                drop(accepted.unwrap());
            }
            let (accepted, _connected) = tokio::join!(listening.accept(), TcpStream::connect(address));
            let Socket::Tcp(socket) = accepted.unwrap().0 else { panic!("no TCP connection") };
            // Linux doubles it, for its own needs.
            assert_eq!(socket2::SockRef::from(&socket).recv_buffer_size().unwrap(), 2 * bytes as usize);
        }
    }

    #[tokio::test]
    async fn error_for_an_unknown_inherited_name_lists_the_names() {
        let (address, buffer) = (Address::Inherited("web".into()), SocketBuffer::default());
        let error = listen(&address, &OWNER_ONLY, &InheritedSockets::default(), &buffer).unwrap_err();
        assert_eq!(error.to_string(), "no socket of that name was inherited (none was)");
    }

    #[test]
    fn aborted_connection_causes_no_pause() {
        assert_eq!(Backoff::default().after(&io::ErrorKind::ConnectionAborted.into()), None);
    }
}
