//! TCP servers that are the backends of the gateway.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::within;

#[derive(Default)]
struct Counts {
    accepted: AtomicUsize,
    probes: std::sync::Mutex<HashMap<SocketAddr, Option<oneshot::Sender<usize>>>>,
    open: AtomicUsize,
    received: AtomicU64,
}

/// A server on its own port that counts its connections and the bytes it received.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
    sockets: Mutex<mpsc::UnboundedReceiver<TcpStream>>,
    task: JoinHandle<()>,
}

impl Backend {
    /// Sends back everything it receives, until the other side closes its direction.
    pub(crate) async fn echo() -> Self {
        Self::serve(None, |mut socket, counts| async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = socket.read(&mut buffer).await {
                counts.received.fetch_add(length as u64, Ordering::SeqCst);
                if socket.write_all(&buffer[..length]).await.is_err() {
                    break;
                }
            }
        })
        .await
    }

    /// Reads everything and sends nothing.
    pub(crate) async fn sink() -> Self {
        Self::serve(None, |mut socket, counts| async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = socket.read(&mut buffer).await {
                counts.received.fetch_add(length as u64, Ordering::SeqCst);
            }
        })
        .await
    }

    /// Does nothing by itself: the test accepts each connection with [`Backend::accept`] and plays the server.
    pub(crate) async fn scripted() -> Self {
        Self::scripted_on(TcpSocket::new_v4().expect("a socket")).await
    }

    /// A scripted backend whose sockets buffer only a few KiB, so that backpressure reaches the peer early.
    pub(crate) async fn scripted_with_small_buffers() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(8 * 1024).expect("a small receive buffer");
        socket.set_send_buffer_size(8 * 1024).expect("a small send buffer");
        Self::scripted_on(socket).await
    }

    async fn scripted_on(socket: TcpSocket) -> Self {
        let (given, taken) = mpsc::unbounded_channel();
        let mut backend = Self::serve(Some(socket), move |socket, _| {
            // A test that has ended needs no more connections.
            let _ = given.send(socket);
            std::future::ready(())
        })
        .await;
        backend.sockets = Mutex::new(taken);
        backend
    }

    async fn serve<F>(
        socket: Option<TcpSocket>,
        session: impl Fn(TcpStream, Arc<Counts>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let socket = socket.unwrap_or_else(|| TcpSocket::new_v4().expect("a socket"));
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let listener: TcpListener = socket.listen(1024).expect("a listener");
        let address = listener.local_addr().expect("its address");
        let counts = Arc::new(Counts::default());
        let task = tokio::spawn({
            let counts = counts.clone();
            async move {
                while let Ok((socket, peer)) = listener.accept().await {
                    let probe = counts.probes.lock().expect("no panic").get_mut(&peer).and_then(Option::take);
                    if let Some(probe) = probe {
                        let _ = probe.send(counts.accepted.load(Ordering::SeqCst));
                        continue;
                    }
                    socket.set_nodelay(true).expect("TCP_NODELAY");
                    counts.accepted.fetch_add(1, Ordering::SeqCst);
                    counts.open.fetch_add(1, Ordering::SeqCst);
                    let session = session(socket, counts.clone());
                    let counts = counts.clone();
                    tokio::spawn(async move {
                        session.await;
                        counts.open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        });
        Self { address, counts, sockets: Mutex::new(mpsc::unbounded_channel().1), task }
    }

    /// The next connection of a scripted backend.
    pub(crate) async fn accept(&self) -> TcpStream {
        let mut sockets = self.sockets.lock().await;
        within("the gateway to dial the backend", sockets.recv()).await.expect("the backend is there")
    }

    /// How many connections the gateway has made so far, including those that wait to be accepted: a probe
    /// connection is queued after them and counts.
    pub(crate) async fn connections(&self) -> usize {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let (counted, count) = oneshot::channel();
        let own = socket.local_addr().expect("its address");
        self.counts.probes.lock().expect("no panic").insert(own, Some(counted));
        let _probe =
            within("the probe of the backend", socket.connect(self.address)).await.expect("it listens");
        within("the backend to count", count).await.expect("it counts")
    }

    /// How many sessions of an echo or a sink are open.
    pub(crate) fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }

    /// How many bytes an echo or a sink has received.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.counts.received.load(Ordering::SeqCst)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}
