//! Rows 48 to 51: a session whose peers are slow, silent or gone.

use std::any::Any;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    BINARY, Backend, Gateway, PLAIN, Session, Setup, TLS, eventually, frame, header, isolated, within,
};

/// How many sessions are stalled at once, so that what one of them holds can be told from the rest.
const STALLED: usize = 48;
/// What a stalled direction may hold (docs/architecture.md).
const PROMISED: u64 = 64 * 1024;
/// For what the allocator and the runtime add to each session.
const SLACK: u64 = 8 * 1024;

/// Waits until a counter stops moving.
async fn until_still(what: &str, count: &AtomicU64) {
    let mut seen = (0, Instant::now());
    eventually(what, Duration::from_secs(30), || {
        let now = count.load(Ordering::SeqCst);
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        if now > 0 && seen.1.elapsed() > Duration::from_millis(500) {
            Ok(())
        } else {
            Err(format!("{now} and rising"))
        }
    })
    .await;
}

/// Opens sessions whose kernel buffers are small; the other ends are those of the backend.
async fn open_small(gateway: &Gateway, backend: &Backend, listener: usize) -> (Vec<Session>, Vec<TcpStream>) {
    let (mut sessions, mut served) = (Vec::new(), Vec::new());
    for _ in 0..STALLED {
        let connection = gateway.connect_with_small_buffers(listener).await;
        sessions.push(gateway.open(connection, &gateway.upgrade(listener, "/echo")).await);
        served.push(backend.accept().await);
    }
    (sessions, served)
}

/// The end of a session that sends for ever, and what must stay open without being read meanwhile.
type Ends = (Box<dyn AsyncWrite + Send + Unpin>, Box<dyn Any + Send>);

/// Stalls sessions on each listener: of both ends, one sends `first` and then bytes for ever, the other reads nothing.
/// Compares what the gateway holds for each session with what is promised.
async fn a_stalled_session_costs_what_is_promised(first: &[u8], ends: impl Fn(Session, TcpStream) -> Ends) {
    let backend = Backend::scripted_with_small_buffers().await;
    let gateway = Setup::new().route("echo", &backend).timeouts("stall = \"120s\"").start().await;
    // To a client, TLS keeps the records that the socket has not taken, as long as the direction itself. From a client, what
    // a TLS record holds beyond the direction's own 64 KiB has been decrypted, but not been read: at most 64 KiB.
    for (listener, promised) in [(PLAIN, PROMISED), (TLS, 2 * PROMISED)] {
        let (sessions, served) = open_small(&gateway, &backend, listener).await;
        let before = gateway.memory();
        let accepted = Arc::new(AtomicU64::new(0));
        let (mut silent, mut talking) = (Vec::new(), Vec::new());
        for (session, socket) in sessions.into_iter().zip(served) {
            let (mut writer, unread) = ends(session, socket);
            silent.push(unread);
            let (accepted, first) = (Arc::clone(&accepted), first.to_owned());
            talking.push(tokio::spawn(async move {
                writer.write_all(&first).await.expect("the session is open");
                while let Ok(length) = writer.write(&[7; 16 * 1024]).await {
                    accepted.fetch_add(length as u64, Ordering::SeqCst);
                }
            }));
        }
        until_still("every sender is paused", &accepted).await;
        let each = gateway.memory().saturating_sub(before) / STALLED as u64;
        eprintln!("{each} bytes for each session, {promised} are promised");
        assert!(each <= promised + SLACK, "{each} bytes for each session, {promised} are promised");
        drop(silent);
        for task in talking {
            within("the sender to be disconnected", task).await.expect("no panic");
        }
    }
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_48_a_client_that_never_reads_costs_what_is_promised() {
    let ends = |session, served| -> Ends { (Box::new(served), Box::new(session)) };
    a_stalled_session_costs_what_is_promised(b"", ends).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_48_a_backend_that_never_reads_costs_what_is_promised() {
    let ends =
        |Session { frames, writer, .. }, served| -> Ends { (Box::new(writer), Box::new((frames, served))) };
    a_stalled_session_costs_what_is_promised(&header(0x82, 1 << 40), ends).await;
}

#[tokio::test]
async fn row_50_half_of_all_banners_arrive_within_10_ms() {
    const BANNER: &[u8] = b"RFB 003.008\n";
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let mut took = Vec::new();
    for _ in 0..41 {
        let mut session = gateway.session("/echo").await;
        let mut served = backend.accept().await;
        let start = Instant::now();
        served.write_all(BANNER).await.unwrap();
        assert_eq!(session.frames.payload(BANNER.len()).await, BANNER);
        took.push(start.elapsed());
        session.close(1000).await;
    }
    took.sort();
    let median = took[took.len() / 2];
    assert!(median < Duration::from_millis(10), "the median banner took {median:?}: {took:?}");
    gateway.finish().await;
}

/// Sends single bytes in one direction only, and returns how long half of them took at most: the receiver acknowledges none
/// at once, so that a sender that waits for acknowledgements (Nagle's algorithm) takes 40 ms for each.
async fn median_beat(
    mut send: impl AsyncWrite + Unpin,
    received: &TcpStream,
    beat: &[u8],
    length: usize,
) -> Duration {
    let mut took = Vec::new();
    let mut buffer = [0; 64];
    for _ in 0..41 {
        rustix::net::sockopt::set_tcp_quickack(received, false).expect("TCP_QUICKACK");
        let start = Instant::now();
        // Two of them: the second would wait for the acknowledgement of the first.
        for _ in 0..2 {
            send.write_all(beat).await.expect("the session is open");
            let mut seen = 0;
            while seen < length {
                within("a beat", received.readable()).await.expect("the session is open");
                match received.try_read(&mut buffer) {
                    Ok(read) => seen += read,
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                }
            }
        }
        took.push(start.elapsed());
    }
    took.sort();
    took[took.len() / 2]
}

#[tokio::test]
async fn row_50_a_byte_does_not_wait_for_the_acknowledgement_of_the_one_before() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let session = gateway.session_by(PLAIN, "/echo").await;
    let (peer, mut served) = (session.peer, backend.accept().await);
    let mut client = session.into_stream();
    let to_client = median_beat(&mut served, client.socket(), b"!", 3).await;
    let to_backend = median_beat(&mut client, &served, &frame(true, BINARY, b"!"), 1).await;
    for (took, receiver) in [(to_client, "client"), (to_backend, "backend")] {
        assert!(took < Duration::from_millis(10), "half of the beats took the {receiver} {took:?} or longer");
    }
    drop((client, served));
    gateway.access_log_line(peer).await;
    gateway.finish().await;
}

/// Drops every packet of one client's connection, in both directions.
fn drop_packets(port: u16) {
    let rules = format!(
        "table inet test {{\nchain input {{\ntype filter hook input priority 0\ntcp sport {port} drop\n\
         tcp dport {port} drop\n}}\n}}\n"
    );
    let mut child = Command::new("/usr/sbin/nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("nft: {error}: tests/install test"));
    child.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("nft reads");
    assert!(child.wait().expect("a child").success(), "nft refuses {rules}");
}

#[tokio::test]
async fn row_51_a_client_whose_packets_are_dropped_is_gone_within_ping_and_pong() {
    // In a network namespace of its own, because the packet filter is the machine's.
    if !isolated("relay::row_51_a_client_whose_packets_are_dropped_is_gone_within_ping_and_pong") {
        return;
    }
    const PING: Duration = Duration::from_secs(1);
    const PONG: Duration = Duration::from_secs(1);
    /// How late a busy machine may notice it.
    const SCHEDULING: Duration = Duration::from_secs(1);
    let backend = Backend::scripted().await;
    let timeouts = "ping = \"1s\"\npong = \"1s\"";
    let gateway = Setup::new().route("echo", &backend).timeouts(timeouts).start().await;
    for listener in [PLAIN, TLS] {
        let mut session = gateway.session_by(listener, "/echo").await;
        let mut served = backend.accept().await;
        served.write_all(b"hello").await.unwrap();
        assert_eq!(session.frames.payload(5).await, b"hello");
        drop_packets(session.peer.port());
        let start = Instant::now();
        let mut rest = Vec::new();
        within("the backend to be disconnected", served.read_to_end(&mut rest)).await.ok();
        let took = start.elapsed();
        assert!(took < PING + PONG + SCHEDULING, "the session lived for {took:?}");
        gateway.ended(session.peer, "pong_timeout", None).await;
        drop(session);
    }
    gateway.finish().await;
}
