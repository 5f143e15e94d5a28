//! A server that decides who may enter, as the test says, well or badly.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

/// What the authority sends, and what it does then.
#[derive(Clone)]
pub(crate) struct Reply {
    bytes: Vec<u8>,
    then: Then,
}

#[derive(Clone)]
enum Then {
    Next,
    Close,
    Hold,
    /// Sends these bytes again and again.
    Repeat(Vec<u8>),
}

impl Reply {
    /// A response without a body, after which the connection can be used again.
    pub(crate) fn new(status: &str, fields: &[(&str, &str)]) -> Self {
        let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        Self::raw(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n{fields}\r\n"))
    }

    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), then: Then::Next }
    }

    pub(crate) fn and_close(self) -> Self {
        Self { then: Then::Close, ..self }
    }

    pub(crate) fn and_hold(self) -> Self {
        Self { then: Then::Hold, ..self }
    }

    pub(crate) fn and_repeat(self, bytes: impl Into<Vec<u8>>) -> Self {
        Self { then: Then::Repeat(bytes.into()), ..self }
    }
}

#[derive(Default)]
struct Seen {
    heads: Mutex<Vec<String>>,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

/// A running authority. Dropping it closes its connections.
pub(crate) struct DecidingServer {
    pub(crate) address: SocketAddr,
    /// A request is answered when it has one of these permits.
    pub(crate) gate: Arc<Semaphore>,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

impl DecidingServer {
    /// Answers each request head.
    pub(crate) async fn start(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        Self::behind(Semaphore::MAX_PERMITS, answer).await
    }

    /// Answers as many requests as there are permits.
    pub(crate) async fn behind(
        permits: usize,
        answer: impl Fn(&str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (seen, gate, answer) =
            (Arc::<Seen>::default(), Arc::new(Semaphore::new(permits)), Arc::new(answer));
        let (counted, waited) = (Arc::clone(&seen), Arc::clone(&gate));
        let task = tokio::spawn(async move {
            // Ends with this task.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counted.connections.fetch_add(1, Ordering::SeqCst);
                let (seen, gate, answer) = (Arc::clone(&counted), Arc::clone(&waited), Arc::clone(&answer));
                connections.spawn(async move { serve(stream, &seen, &gate, &*answer).await });
            }
        });
        Self { address, gate, seen, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/check", self.address)
    }

    /// The request heads so far.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.seen.heads.lock().expect("no panic").clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn most_in_flight(&self) -> usize {
        self.seen.most_in_flight.load(Ordering::SeqCst)
    }
}

impl Drop for DecidingServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: &Seen,
    gate: &Semaphore,
    answer: &(impl Fn(&str) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut head = Vec::new();
    loop {
        head.push(stream.read_u8().await?);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        seen.heads.lock().expect("no panic").push(text.clone());
        let in_flight = seen.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        seen.most_in_flight.fetch_max(in_flight, Ordering::SeqCst);
        gate.acquire().await.expect("an open gate").forget();
        seen.in_flight.fetch_sub(1, Ordering::SeqCst);
        let reply = answer(&text);
        stream.write_all(&reply.bytes).await?;
        match reply.then {
            Then::Next => head.clear(),
            Then::Close => return Ok(()),
            Then::Hold => std::future::pending().await,
            Then::Repeat(bytes) => loop {
                stream.write_all(&bytes).await?;
                // A peer that reads all of it must not keep the others waiting.
                tokio::task::yield_now().await;
            },
        }
    }
}
