//! Row 66: peers that read slowly, while there is always more for them: however slowly, they are not stalled.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::version::TLS13;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::authority::{Authority, Server};
use crate::support::{Backend, ClientStream, Gateway, ListenerIndex, PLAIN, Setup, TLS, header, within};

const KIB: usize = 1024;
/// The stall timeout of these tests, and how long the peers read.
const STALL: &str = "stall = \"12s\"\nping = \"0s\"";
const WATCHED: Duration = Duration::from_secs(36);
/// How often a slow peer reads.
const TICK: Duration = Duration::from_millis(250);

/// A slow peer: bytes per second, and the size of its receive buffer if it is not the system's default. The path of
/// this machine has packets of 64 KiB, and a receiver announces new space only in whole packets or halves of its
/// buffer; on a real path, with its small packets, it does so as often as here with a small buffer.
const SLOW: [(usize, Option<u32>); 3] =
    [(KIB, Some(4 * KIB as u32)), (8 * KIB, Some(32 * KIB as u32)), (32 * KIB, None)];

/// Writes for ever.
async fn talk(mut writer: impl AsyncWrite + Unpin) {
    while writer.write_all(&[0; 16 * KIB]).await.is_ok() {}
}

/// Reads at a rate for the time of the test; fails if the stream ends before.
async fn read_slowly(what: &str, rate: usize, mut reader: impl AsyncRead + Unpin) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut buffer = vec![0; rate / 4];
    let (start, mut total) = (Instant::now(), 0);
    while start.elapsed() < WATCHED {
        ticks.tick().await;
        match timeout(TICK, reader.read(&mut buffer)).await {
            Err(_) => {}
            Ok(Ok(length @ 1..)) => total += length,
            Ok(end) => panic!("{what}: {end:?} after {:?} and {total} bytes", start.elapsed()),
        }
    }
    assert!(total >= rate * 9, "{what}: only {total} bytes within {WATCHED:?}");
}

/// Reads what is in the socket's buffer, below TLS.
struct Raw<'a>(&'a TcpStream);

impl AsyncRead for Raw<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|length| buf.advance(length))),
            }
        }
    }
}

async fn slow_client(gateway: &Gateway, listener: ListenerIndex, (rate, buffer): (usize, Option<u32>)) {
    let socket = gateway
        .untracked_socket(None, listener, |socket| {
            if let Some(buffer) = buffer {
                socket.set_recv_buffer_size(buffer).expect("a receive buffer");
            }
        })
        .await;
    gateway.expect_log_line(socket.local_addr().expect("a connected socket"));
    let connection = if listener == TLS { gateway.secure(socket).await } else { ClientStream::Plain(socket) };
    let session = gateway.open(connection, &gateway.upgrade(listener, "/talks")).await;
    let peer = session.peer;
    let stream = session.into_stream();
    let what = format!("a client on listener {listener} that reads {rate} bytes per second");
    read_slowly(&what, rate, Raw(stream.socket())).await;
    drop(stream);
    gateway.ended(peer, "client_gone", None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_66_a_client_that_reads_1_kib_per_second_is_never_stalled() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("talks", &backend).timeouts(STALL).start().await;
    let talking = tokio::spawn(async move {
        for _ in 0..2 * SLOW.len() {
            tokio::spawn(talk(backend.accept().await));
        }
        backend
    });
    let [a, b, c] = SLOW;
    tokio::join!(
        slow_client(&gateway, PLAIN, a),
        slow_client(&gateway, PLAIN, b),
        slow_client(&gateway, PLAIN, c),
        slow_client(&gateway, TLS, a),
        slow_client(&gateway, TLS, b),
        slow_client(&gateway, TLS, c),
    );
    drop(within("all connections of the backend", talking).await.expect("no panic"));
    gateway.finish().await;
}

/// Sends to `path` for ever; the session must end only when the test ends it.
async fn sending_client(gateway: &Gateway, listener: ListenerIndex, path: &str, reading: JoinHandle<()>) {
    let session = gateway.session_by(listener, path).await;
    let peer = session.peer;
    let mut stream = session.into_stream();
    let sending = async {
        stream.write_all(&header(0x82, 1 << 40)).await.expect("the session is open");
        talk(&mut stream).await;
    };
    tokio::select! {
        () = sending => panic!("{path}: the session ended; {:?}", gateway.access_log_line(peer).await),
        read = reading => read.unwrap_or_else(|error| panic!("{path}: {error}")),
    }
    drop(stream);
    let end = gateway.access_log_line(peer).await;
    // The backend ends its connection first, and the client's data is lost with it.
    assert!(["client_gone", "backend_closed", "backend_failed"].contains(&end.reason()), "{path}: {end:?}");
}

/// A TCP server that reads one connection slowly.
async fn slow_server((rate, buffer): (usize, Option<u32>)) -> (String, JoinHandle<()>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    if let Some(buffer) = buffer {
        socket.set_recv_buffer_size(buffer).expect("a receive buffer");
    }
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
    let listener = socket.listen(16).expect("a listener");
    let url = format!("tcp://{}", listener.local_addr().expect("its address"));
    let reading = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let what = format!("a TCP backend that reads {rate} bytes per second");
        read_slowly(&what, rate, &mut stream).await;
    });
    (url, reading)
}

/// The same on a Unix socket.
fn slow_unix_server(path: &Path, rate: usize) -> (String, JoinHandle<()>) {
    let listener = UnixListener::bind(path).expect("a socket");
    let reading = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let what = format!("a Unix backend that reads {rate} bytes per second");
        read_slowly(&what, rate, &mut stream).await;
    });
    (format!("unix:{}", path.display()), reading)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_66_a_backend_that_reads_slowly_is_never_stalled() {
    let directory = TempDir::new().expect("a directory");
    let [a, b, c] = SLOW;
    // A Unix socket has packets of up to 64 KiB, and frees each only when the whole is read.
    let unix = slow_unix_server(&directory.path().join("slow.sock"), 8 * KIB);
    let servers = [slow_server(a).await, slow_server(b).await, slow_server(c).await, unix];
    let authority = Authority::new();
    let (read, mut reads) = mpsc::unbounded_channel();
    let tls = Server::over_tls(authority.leaf("localhost").server(&[&TLS13]), move |mut stream| {
        let read = read.clone();
        async move {
            let what = "a TLS backend that reads 32 KiB per second";
            read_slowly(what, 32 * KIB, &mut stream).await;
            let _ = read.send(());
        }
    });
    let tls = tls.await;
    let tls_reading = tokio::spawn(async move { reads.recv().await.expect("it reads to the end") });

    let mut setup = Setup::new().timeouts(STALL);
    for (index, (url, _)) in servers.iter().enumerate() {
        setup = setup.route_to(&format!("slow{index}"), &format!("/slow{index}"), url, "");
    }
    let url = format!("tls://localhost:{}", tls.port());
    let gateway = setup.route_to("tls", "/tls", &url, &authority.trusted()).start().await;
    let [one, two, three, unix] = servers.map(|(_, reading)| reading);
    tokio::join!(
        sending_client(&gateway, PLAIN, "/slow0", one),
        sending_client(&gateway, TLS, "/slow1", two),
        sending_client(&gateway, PLAIN, "/slow2", three),
        sending_client(&gateway, TLS, "/slow3", unix),
        sending_client(&gateway, PLAIN, "/tls", tls_reading),
    );
    gateway.finish().await;
}
