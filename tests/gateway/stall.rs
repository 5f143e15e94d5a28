//! Backpressure: how much is buffered for peers that do not read, how long they may stall, and that no other session
//! waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    BINARY, Backend, CONTINUATION, Check, Frames, MASK, PLAIN, Session, Setup, TLS, eventually, header,
    pattern, within,
};

const MIB: u64 = 1 << 20;

/// Writes the pattern for ever, and counts the bytes that were accepted.
async fn talk(mut socket: TcpStream, taken: Arc<AtomicU64>) {
    loop {
        let at = taken.load(Ordering::SeqCst);
        let Ok(length) = socket.write(&pattern(at, 64 * 1024)).await else { return };
        taken.fetch_add(length as u64, Ordering::SeqCst);
    }
}

/// Waits until a counter stops moving.
async fn until_still(what: &str, count: impl Fn() -> u64) -> u64 {
    let mut seen = (count(), Instant::now());
    eventually(what, Duration::from_secs(20), || {
        let now = count();
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        if seen.1.elapsed() > Duration::from_millis(300) { Ok(()) } else { Err(format!("{now} and rising")) }
    })
    .await;
    seen.0
}

#[tokio::test]
async fn a_client_that_never_reads_pauses_its_backend() {
    let backend = Backend::scripted_with_small_buffers().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    for listener in [TLS, PLAIN] {
        let connection = gateway.connect_with_small_buffers(listener).await;
        let session = gateway.open(connection, &gateway.upgrade(listener, "/echo")).await;
        let taken = Arc::new(AtomicU64::new(0));
        let before = gateway.memory();
        let talking = tokio::spawn(talk(backend.accept().await, taken.clone()));
        // Of the GiB that the backend would send, only what the kernel's buffers and the gateway hold is accepted.
        let taken = until_still("the backend is paused", || taken.load(Ordering::SeqCst)).await;
        assert!(taken < 64 * MIB, "{taken} bytes were accepted for a client that reads none");
        let grown = gateway.memory().saturating_sub(before);
        assert!(grown < MIB, "{grown} bytes for a client that reads none");
        let peer = session.peer;
        drop(session);
        within("the backend to be disconnected", talking).await.unwrap();
        let end = gateway.ended(peer, "client_gone", None).await;
        assert!(end.number("bytes_out") <= Some(taken), "{end:?}, {taken} bytes");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_closed() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).timeouts("stall = \"1s\"").start().await;
    for listener in [TLS, PLAIN] {
        let mut session = gateway.session_by(listener, "/echo").await;
        let mut served = backend.accept().await;
        // An idle session, however long, is not stalled.
        tokio::time::sleep(Duration::from_millis(1_300)).await;
        served.write_all(b"hello").await.unwrap();
        assert_eq!(session.frames.payload(5).await, b"hello");
        let start = Instant::now();
        let talking = tokio::spawn(talk(served, Arc::default()));
        within("the backend to be disconnected", talking).await.unwrap();
        // The kernel may accept a little more for a while, and each time the stall timeout starts again.
        let took = start.elapsed();
        assert!((Duration::from_millis(950)..Duration::from_secs(10)).contains(&took), "{took:?}");
        gateway.ended(session.peer, "client_stalled", None).await;
        drop(session);
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_backend_that_never_reads_pauses_its_client_and_the_session_is_closed() {
    let backend = Backend::scripted().await;
    // The client answers no Ping: the gateway cannot know, because it does not read from the client meanwhile.
    let timeouts = "stall = \"2s\"\nping = \"300ms\"\npong = \"300ms\"";
    let gateway = Setup::new().route("echo", &backend).timeouts(timeouts).start().await;
    for listener in [TLS, PLAIN] {
        let session = gateway.session_by(listener, "/echo").await;
        let served = backend.accept().await;
        let start = Instant::now();
        let Session { peer, mut frames, mut writer } = session;
        let taken = Arc::new(AtomicU64::new(0));
        let talking = tokio::spawn({
            let taken = taken.clone();
            async move {
                let length = 1 << 40;
                writer.write_all(&header(0x82, length)).await.unwrap();
                while let Ok(length) = writer.write(&[0; 16 * 1024]).await {
                    taken.fetch_add(length as u64, Ordering::SeqCst);
                }
                writer
            }
        });
        let (_, code, reason) = frames.until_close().await;
        let taken = taken.load(Ordering::SeqCst);
        assert_eq!(code, Some(1011), "{reason}");
        // The kernel may accept a little more for a while, and each time the stall timeout starts again.
        let took = start.elapsed();
        assert!((Duration::from_millis(1_950)..Duration::from_secs(12)).contains(&took), "{took:?}");
        assert!(taken < 64 * MIB, "{taken} bytes were accepted for a backend that reads none");
        // What it sends after that is discarded until its time to answer the Close is over.
        let writer = within("the client to be disconnected", talking).await.unwrap();
        gateway.ended(peer, "backend_stalled", Some(1011)).await;
        drop((frames, writer, served));
    }
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_128_kib_are_buffered_for_a_stalled_peer() {
    const SESSIONS: usize = 40;
    let backend = Backend::scripted_with_small_buffers().await;
    let gateway = Setup::new().route("echo", &backend).timeouts("stall = \"60s\"").start().await;

    // Idle sessions first: their memory is not the buffers'.
    let mut sessions = Vec::new();
    let mut served = Vec::new();
    for _ in 0..SESSIONS {
        let connection = gateway.connect_with_small_buffers(TLS).await;
        sessions.push(gateway.open(connection, &gateway.upgrade(TLS, "/echo")).await);
        served.push(backend.accept().await);
    }
    let before = gateway.memory();

    // Every backend sends, no client reads.
    let taken = Arc::new(AtomicU64::new(0));
    let talking: Vec<_> =
        served.into_iter().map(|socket| tokio::spawn(talk(socket, Arc::new(AtomicU64::new(0))))).collect();
    // Every client sends, no backend reads.
    let (mut readers, mut writers) = (Vec::new(), Vec::new());
    for session in sessions {
        let Session { frames, mut writer, .. } = session;
        readers.push(frames);
        let taken = taken.clone();
        writers.push(tokio::spawn(async move {
            if writer.write_all(&header(0x82, 1 << 40)).await.is_err() {
                return;
            }
            while let Ok(length) = writer.write(&[0; 16 * 1024]).await {
                taken.fetch_add(length as u64, Ordering::SeqCst);
            }
        }));
    }
    until_still("both sides are full", || taken.load(Ordering::SeqCst)).await;
    let held = gateway.memory().saturating_sub(before);
    let each = held / SESSIONS as u64;
    // Two stalled directions: 64 KiB each, and as much again of TLS for the one to the client.
    assert!(each <= 3 * 64 * 1024 + 16 * 1024, "{each} bytes are buffered for each session");

    // Other sessions do not wait.
    let start = Instant::now();
    let mut other = gateway.session("/canary").await;
    other.echo(b"hello").await;
    other.close(1000).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());

    for task in talking.iter().chain(&writers) {
        task.abort();
    }
    drop((readers, other));
    for task in talking.into_iter().chain(writers) {
        let _ = task.await;
    }
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_stall_at_once_and_resume() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).timeouts("stall = \"120s\"").start().await;
    for listener in [TLS, PLAIN] {
        // More than the kernel's buffers on the path can hold.
        let total = 80 * MIB;
        let session = gateway.session_by(listener, "/echo").await;
        let (mut received, mut say) = backend.accept().await.into_split();
        let Session { peer, mut frames, mut writer } = session;
        let (up, down) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));

        let client = tokio::spawn({
            let up = up.clone();
            async move {
                let mut at = 0;
                while at < total {
                    let part = pattern(at, 48 * 1024).into_iter().take((total - at) as usize);
                    let part: Vec<u8> = part.collect();
                    let opcode = if at == 0 { BINARY } else { CONTINUATION };
                    let last = at + part.len() as u64 == total;
                    writer
                        .write_all(&crate::support::frame(last, opcode, &part))
                        .await
                        .expect("it accepts more");
                    at += part.len() as u64;
                    up.store(at, Ordering::SeqCst);
                }
                writer.flush().await.expect("it accepts more");
                writer
            }
        });
        let server = tokio::spawn({
            let down = down.clone();
            async move {
                let mut at = 0;
                while at < total {
                    let length = (total - at).min(48 * 1024) as usize;
                    say.write_all(&pattern(at + 7, length)).await.expect("it accepts more");
                    at += length as u64;
                    down.store(at, Ordering::SeqCst);
                }
                say
            }
        });
        let count = || up.load(Ordering::SeqCst) + down.load(Ordering::SeqCst);
        until_still("both directions stand still", count).await;
        assert!(up.load(Ordering::SeqCst) < total && down.load(Ordering::SeqCst) < total, "nothing stalled");

        // First the backend reads, while the client still does not.
        let mut check = Check::default();
        let mut buffer = vec![0; 64 * 1024];
        while check.at < total {
            let length = within("bytes of the client", received.read(&mut buffer)).await.unwrap();
            assert!(length > 0, "the end after {} bytes", check.at);
            check.feed(&buffer[..length]);
        }
        assert_eq!(check.at, total);
        let writer = within("the client to send everything", client).await.unwrap();
        assert!(down.load(Ordering::SeqCst) < total, "the other direction did not wait");

        // Then the client reads.
        let mut check = Check::from(7);
        frames.pattern(&mut check, total + 7).await;
        drop((within("the backend to send everything", server).await.unwrap(), received));
        assert_eq!(frames.until_close().await.1, Some(1000));
        drop((frames, writer));
        let end = gateway.ended(peer, "backend_closed", Some(1000)).await;
        assert_eq!((end.number("bytes_in"), end.number("bytes_out")), (Some(total), Some(total)));
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_slow_reader_does_not_count_as_stalled() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).timeouts("stall = \"1s\"").start().await;
    let session = gateway.session_by(PLAIN, "/echo").await;
    let Session { peer, mut frames, writer } = session;
    let talking = tokio::spawn(talk(backend.accept().await, Arc::default()));
    // Some MiB every 600 ms, for three times the stall timeout. In between, the gateway waits.
    let mut tick = tokio::time::interval(Duration::from_millis(600));
    let mut check = Check::default();
    for burst in 1..=6 {
        tick.tick().await;
        while check.at < burst * 6 * MIB {
            check.feed(&frames.data().await.payload);
        }
    }
    assert!(!talking.is_finished(), "a slow reader was ended");
    drop((frames, writer));
    within("the backend to be disconnected", talking).await.unwrap();
    gateway.ended(peer, "client_gone", None).await;
    gateway.finish().await;
}

#[tokio::test]
async fn what_tls_has_buffered_arrives_while_both_peers_are_silent() {
    // TLS takes up to 64 KiB more than the socket has space for. Of these lengths, one or two end there.
    const STEP: usize = 40 * 1024;
    const SESSIONS: usize = 12;
    let backend = Backend::scripted_with_small_buffers().await;
    let limits = "socket_buffer = 65536";
    let gateway = Setup::new().route("echo", &backend).limits(limits).timeouts("ping = \"0s\"").start().await;
    let taken = Arc::new(AtomicU64::new(0));
    let (mut sessions, mut sending) = (Vec::new(), Vec::new());
    for number in 1..=SESSIONS {
        let connection = gateway.connect_with_small_buffers(TLS).await;
        sessions.push(gateway.open(connection, &gateway.upgrade(TLS, "/echo")).await);
        let (mut served, taken) = (backend.accept().await, taken.clone());
        sending.push(tokio::spawn(async move {
            for part in pattern(0, number * STEP).chunks(10_000) {
                served.write_all(part).await.expect("the gateway accepts more");
                taken.fetch_add(part.len() as u64, Ordering::SeqCst);
            }
            served
        }));
    }
    // The clients read nothing until the gateway has taken what it can. Then they read, and the backend says nothing more.
    until_still("the backends are paused or have sent everything", || taken.load(Ordering::SeqCst)).await;
    for (number, session) in (1..).zip(&mut sessions) {
        session.frames.pattern(&mut Check::default(), (number * STEP) as u64).await;
        session.close(1000).await;
    }
    for served in sending {
        drop(within("everything to be sent", served).await.expect("the backend"));
    }
    drop(sessions);
    gateway.finish().await;
}

#[tokio::test]
async fn a_client_that_closes_and_reads_nothing_is_disconnected() {
    // The answer to its Close is queued behind data that it does not read.
    let backend = Backend::scripted().await;
    let timeouts = "stall = \"2s\"\nclose = \"1s\"";
    let gateway = Setup::new().route("echo", &backend).timeouts(timeouts).start().await;
    let mut session = gateway.session("/echo").await;
    let taken = Arc::new(AtomicU64::new(0));
    let talking = tokio::spawn(talk(backend.accept().await, taken.clone()));
    until_still("the backend is paused", || taken.load(Ordering::SeqCst)).await;
    let start = Instant::now();
    session.send(&crate::support::frame(true, 8, &[3, 232])).await;
    let end = gateway.access_log_line(session.peer).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(["client_closed", "client_stalled"].contains(&end.reason()), "{end:?}");
    within("the backend to be disconnected", talking).await.unwrap();
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_client_that_sends_one_long_frame_is_not_timed_out() {
    // A client that sends for a long time, but reads and answers, is not timed out.
    let backend = Backend::sink().await;
    let timeouts = "ping = \"200ms\"\npong = \"300ms\"";
    let gateway = Setup::echo(&backend).timeouts(timeouts).start().await;
    let session = gateway.session("/echo").await;
    let Session { peer, mut frames, mut writer } = session;
    let start = Instant::now();
    // One frame that takes 1.5 s: a Pong cannot be sent inside it, so its bytes must count as activity.
    writer.write_all(&header(0x82, 30_000)).await.unwrap();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    for part in 0..30 {
        tick.tick().await;
        let bytes: Vec<u8> = (0..1000).map(|i| 0x55 ^ MASK[(part * 1000 + i) % 4]).collect();
        writer.write_all(&bytes).await.expect("the session is open");
        writer.flush().await.expect("the session is open");
    }
    assert!(start.elapsed() > Duration::from_secs(1));
    drain_pings(&mut frames).await;
    eventually("the backend received it", Duration::from_secs(2), || match backend.received_bytes() {
        30_000 => Ok(()),
        received => Err(format!("{received} bytes")),
    })
    .await;
    writer.write_all(&crate::support::frame(true, 8, &[3, 232])).await.unwrap();
    writer.flush().await.unwrap();
    frames.until_close().await;
    gateway.ended(peer, "client_closed", Some(1000)).await;
    drop((frames, writer));
    gateway.finish().await;
}

async fn drain_pings<R: tokio::io::AsyncRead + Unpin>(frames: &mut Frames<R>) {
    while let Ok(frame) = tokio::time::timeout(Duration::from_millis(1), frames.next_without_deadline()).await
    {
        assert!(frame.is_some(), "the session ended under a client that was sending");
    }
}
