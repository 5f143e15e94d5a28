//! Rows 41 to 47: frames that are invalid, oversized or too many.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::support::{BINARY, CONTINUATION, PING, PONG, Setup, eventually, frame};

/// A server whose only thread is blocked in `read`, and how often the kernel has woken it.
struct Reader {
    address: std::net::SocketAddr,
    status: mpsc::Receiver<std::path::PathBuf>,
    received: Arc<AtomicU64>,
}

impl Reader {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (sender, status) = mpsc::channel();
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("the gateway dials");
            let thread = std::fs::read_link("/proc/thread-self").expect("a thread");
            sender.send(std::path::Path::new("/proc").join(thread).join("status")).expect("the test runs");
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = socket.read(&mut buffer) {
                counter.fetch_add(length as u64, Ordering::SeqCst);
            }
        });
        Self { address, status, received }
    }
}

/// How often a thread has slept and was woken.
fn sleeps(status: &std::path::Path) -> u64 {
    let text = std::fs::read_to_string(status).expect("the thread runs");
    let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.expect("a count").trim().parse().expect("a number")
}

#[tokio::test]
async fn row_46_a_hundred_thousand_empty_frames_never_wake_the_backend() {
    let reader = Reader::start();
    let gateway =
        Setup::new().route_to("echo", "/echo", &format!("tcp://{}", reader.address), "").start().await;
    let mut session = gateway.session("/echo").await;
    let status = reader.status.recv_timeout(Duration::from_secs(30)).expect("the gateway dials");
    session.send(&frame(true, BINARY, b"first")).await;
    let mut seen = 0;
    eventually("the backend waits", Duration::from_secs(10), || {
        let (before, received) = (seen, reader.received.load(Ordering::SeqCst));
        seen = sleeps(&status);
        (received == 5 && seen == before).then_some(()).ok_or_else(|| format!("{seen} sleeps"))
    })
    .await;

    let flood =
        [frame(false, BINARY, b""), frame(true, CONTINUATION, b""), frame(true, BINARY, b"")].concat();
    for _ in 0..34 {
        session.send(&flood.repeat(1_000)).await;
    }
    // Its answer proves that the gateway has processed all frames before it.
    session.send(&frame(true, PING, b"done?")).await;
    let pong = session.frames.next().await.expect("a pong");
    assert_eq!((pong.opcode, pong.payload.as_slice()), (PONG, &b"done?"[..]));
    assert_eq!(sleeps(&status), seen, "the backend was woken by frames without payload");

    // A single byte does wake it.
    session.send(&frame(true, BINARY, b"!")).await;
    eventually("the backend reads the byte", Duration::from_secs(10), || {
        let (received, sleeps) = (reader.received.load(Ordering::SeqCst), sleeps(&status));
        (received == 6 && sleeps > seen).then_some(()).ok_or_else(|| format!("{received} bytes"))
    })
    .await;
    session.close(1000).await;
    let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
    assert_eq!(end.number("bytes_in"), Some(6));
    drop(session);
    gateway.finish().await;
}
