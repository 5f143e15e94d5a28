//! Sockets of the simulated network: what a program holds of a connection or of a listening address.

use std::{
    fmt,
    future::poll_fn,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    pin::Pin,
    sync::OnceLock,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    network::Network,
    packet::Kind,
    world::{Backlog, World},
};

/// A connection. Dropping it closes it.
pub struct Stream {
    network: Network,
    socket: usize,
}

impl Network {
    /// Listens on an address.
    pub(crate) fn listen(&self, address: SocketAddr) -> io::Result<Listener> {
        let mut world = self.world();
        if world.listeners.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        world.listeners.insert(address, Backlog::default());
        Ok(Listener { network: self.clone(), address })
    }

    /// Connects from the gateway's host.
    pub(crate) fn dial(&self, to: SocketAddr) -> impl Future<Output = io::Result<Stream>> + use<> {
        let (network, from) = (self.clone(), self.world().gateway);
        async move { network.connect(from, to).await }
    }

    /// Connects from a host.
    pub(super) async fn connect(&self, from: IpAddr, to: SocketAddr) -> io::Result<Stream> {
        let socket = self.change(|world| world.open(from, to));
        // Dropped with this future, which closes the socket.
        let stream = Stream { network: self.clone(), socket };
        poll_fn(|cx| {
            let endpoint = &mut self.world().sockets[socket];
            match endpoint.failed {
                Some(kind) => Poll::Ready(Err(io::Error::from(kind))),
                None if endpoint.connected => Poll::Ready(Ok(())),
                None => {
                    endpoint.writer = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await?;
        Ok(stream)
    }
}

impl Stream {
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.network.world().sockets[self.socket].local
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        self.network.world().sockets[self.socket].remote
    }

    pub(super) fn socket(&self) -> usize {
        self.socket
    }

    /// Copies the first received bytes without consuming them. Waits for at least one.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn peek(&self, first: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| {
            let endpoint = &mut self.network.world().sockets[self.socket];
            if !endpoint.received.is_empty() || endpoint.read_closed {
                let received = endpoint.received.iter().take(first.len()).copied();
                return Poll::Ready(Ok(first.iter_mut().zip(received).map(|(to, from)| *to = from).count()));
            }
            match endpoint.failed {
                Some(kind) => Poll::Ready(Err(kind.into())),
                None => {
                    endpoint.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// How many of `len` bytes a read or a write takes.
fn taken(world: &mut World, len: usize) -> usize {
    if len > 1 && world.conditions.short && world.random.per_mille(250) {
        world.random.between(1, len as u64) as usize
    } else {
        len
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.network.change(|world| {
            let available = world.sockets[self.socket].received.len().min(buffer.remaining());
            let len = taken(world, available);
            let endpoint = &mut world.sockets[self.socket];
            if len > 0 {
                let bytes: Vec<u8> = endpoint.received.drain(..len).collect();
                buffer.put_slice(&bytes);
                world.transmit(self.socket, Kind::Ack(len));
                return Poll::Ready(Ok(()));
            }
            match endpoint.failed {
                Some(kind) => Poll::Ready(Err(kind.into())),
                None if endpoint.read_closed || buffer.remaining() == 0 => Poll::Ready(Ok(())),
                None => {
                    endpoint.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.network.change(|world| {
            let window = world.conditions.window;
            let endpoint = &mut world.sockets[self.socket];
            if endpoint.failed.is_some() || endpoint.write_closed {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let space = window - endpoint.in_flight - endpoint.held_back.len();
            if space == 0 {
                endpoint.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let holds_back = world.conditions.holds_back == Some(endpoint.local.ip());
            let len = taken(world, bytes.len().min(space));
            world.sockets[self.socket].held_back.extend(&bytes[..len]);
            world.flush(self.socket, !holds_back);
            Poll::Ready(Ok(len))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.network.change(|world| match world.sockets[self.socket].failed {
            Some(_) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            None => {
                world.flush(self.socket, true);
                Poll::Ready(Ok(()))
            }
        })
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.network.change(|world| match world.sockets[self.socket].failed {
            Some(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            None => {
                world.shut_down(self.socket);
                Poll::Ready(Ok(()))
            }
        })
    }
}

impl AsFd for Stream {
    /// A socket whose buffer is full. The descriptor serves only to try a write although the runtime has not reported
    /// the socket as writable; in a simulated network it does so as soon as there is space.
    fn as_fd(&self) -> BorrowedFd<'_> {
        static FULL: OnceLock<(UnixStream, UnixStream)> = OnceLock::new();
        let (full, _) = FULL.get_or_init(|| {
            let (mut full, unread) = UnixStream::pair().unwrap();
            full.set_nonblocking(true).unwrap();
            while full.write(&[0; 1024]).is_ok() {}
            (full, unread)
        });
        full.as_fd()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.network.change(|world| world.close(self.socket));
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// A listening address. Dropping it closes it, and resets the connections that wait.
pub(crate) struct Listener {
    network: Network,
    address: SocketAddr,
}

impl Listener {
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the next connection; for ever on a host that failed.
    pub(crate) async fn accept(&self) -> Stream {
        poll_fn(|cx| {
            let mut world = self.network.world();
            let Some(backlog) = world.listeners.get_mut(&self.address) else { return Poll::Pending };
            match backlog.waiting.pop_front() {
                Some(socket) => {
                    drop(world);
                    Poll::Ready(self.accepted(socket))
                }
                None => {
                    backlog.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Stops listening; returns the connections that wait.
    pub(crate) fn into_waiting(self) -> Vec<Stream> {
        let backlog = self.network.world().listeners.remove(&self.address);
        backlog.into_iter().flat_map(|backlog| backlog.waiting).map(|socket| self.accepted(socket)).collect()
    }

    fn accepted(&self, socket: usize) -> Stream {
        *self.network.world().accepted.entry(self.address).or_default() += 1;
        Stream { network: self.network.clone(), socket }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.network.change(|world| {
            for socket in
                world.listeners.remove(&self.address).into_iter().flat_map(|backlog| backlog.waiting)
            {
                world.close(socket);
            }
        });
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("address", &self.address).finish_non_exhaustive()
    }
}
