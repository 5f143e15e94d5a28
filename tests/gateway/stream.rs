//! Frames that are larger than any buffer of the gateway.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    BINARY, Backend, Check, Frames, Gateway, ListenerIndex, PLAIN, Session, Setup, TLS, frame, header,
    masked, pattern, read_response, within,
};

const MIB: u64 = 1 << 20;

/// The longest repeating stretch of the pattern in whole masks, so that it needs masking only once.
const STRETCH: usize = 4 * 65_521;

/// Sends one frame of `length` bytes from the client to the backend. Its first half arrives before the second is
/// sent, and the gateway's memory grows by less than a MiB.
async fn one_frame(gateway: &Gateway, backend: &Backend, listener: ListenerIndex, length: u64) {
    let mut session = gateway.session_by(listener, "/big").await;
    let mut served = backend.accept().await;
    // One round first, for everything that a session allocates once.
    session.send(&frame(true, BINARY, &pattern(0, 1 << 20))).await;
    let mut warm = vec![0; 1 << 20];
    within("a first MiB", served.read_exact(&mut warm)).await.expect("the session is open");
    let before = gateway.memory();

    let half = length / 2;
    let (reached, wait) = tokio::sync::oneshot::channel();
    let hearing = tokio::spawn(async move {
        let mut check = Check::default();
        let mut buffer = vec![0; STRETCH];
        let mut reached = Some(reached);
        while check.at < length {
            let received = served.read(&mut buffer).await.expect("the session is open");
            assert!(received > 0, "the end after {} bytes", check.at);
            check.feed(&buffer[..received]);
            if check.at >= half {
                reached.take().map(|reached| reached.send(()));
            }
        }
        assert_eq!(check.at, length, "more than was sent");
        served
    });

    let stretch = masked(&pattern(0, STRETCH), 0);
    let send = async |session: &mut Session, from: u64, to: u64| {
        let mut at = from;
        while at < to {
            let start = (at % STRETCH as u64) as usize;
            let end = STRETCH.min(start + (to - at) as usize);
            session.writer.write_all(&stretch[start..end]).await.expect("the session is open");
            at += (end - start) as u64;
        }
        session.writer.flush().await.expect("the session is open");
    };
    session.send(&header(0x82, length)).await;
    send(&mut session, 0, half).await;
    within("the first half at the backend", wait).await.expect("the backend is running");
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < MIB, "{grown} bytes for half a frame of {length}");
    send(&mut session, half, length).await;
    let served =
        tokio::time::timeout(Duration::from_secs(120), hearing).await.expect("all of it").expect("exact");
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < MIB, "{grown} bytes for a frame of {length}");

    session.close(1000).await;
    let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
    assert_eq!(end.number("bytes_in"), Some(length + MIB));
    drop((session, served));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_of_a_gibibyte_is_streamed_without_buffering() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("big", &backend).start().await;
    one_frame(&gateway, &backend, PLAIN, 1024 * MIB).await;
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_frame_is_streamed_through_tls_without_buffering() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("big", &backend).start().await;
    one_frame(&gateway, &backend, TLS, 128 * MIB).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_frame_of_the_maximum_length_is_streamed_and_not_allocated() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("big", &backend).start().await;
    let mut session = gateway.session("/big").await;
    let mut served = backend.accept().await;
    session.send(&frame(true, BINARY, &pattern(0, 300_000))).await;
    let mut received = vec![0; 300_000];
    within("a first frame", served.read_exact(&mut received)).await.unwrap();
    let before = gateway.memory();
    for length in [1 << 62, (1 << 63) - 1] {
        let mut session = gateway.session("/big").await;
        let mut served = backend.accept().await;
        session.send(&header(0x82, length)).await;
        session.send(&masked(b"hello", 0)).await;
        let mut received = [0; 5];
        within("its first bytes", served.read_exact(&mut received)).await.unwrap();
        assert_eq!(&received, b"hello");
        let grown = gateway.memory().saturating_sub(before);
        assert!(grown < MIB, "{grown} bytes");
        let peer = session.peer;
        drop(session);
        assert_eq!(within("the end", served.read(&mut received)).await.unwrap_or(0), 0);
        drop(served);
        let end = gateway.ended(peer, "client_gone", None).await;
        assert_eq!(end.number("bytes_in"), Some(5));
    }
    session.close(1000).await;
    drop((session, served));
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_in_small_writes_arrives_complete() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("big", &backend).start().await;
    let length = 16 * MIB;
    let mut session = gateway.session_by(PLAIN, "/big").await;
    let mut served = backend.accept().await;
    session.send(&frame(true, BINARY, &pattern(0, 300_000))).await;
    let mut received = vec![0; 300_000];
    within("a first frame", served.read_exact(&mut received)).await.unwrap();
    let before = gateway.memory();
    let hearing = tokio::spawn(async move {
        let mut check = Check::default();
        let mut buffer = vec![0; 64 * 1024];
        while check.at < length {
            let received = served.read(&mut buffer).await.expect("the session is open");
            assert!(received > 0, "the end after {} bytes", check.at);
            check.feed(&buffer[..received]);
        }
        served
    });
    session.send(&header(0x82, length)).await;
    let stretch = masked(&pattern(0, STRETCH), 0);
    let mut at = 0;
    while at < length {
        let start = (at % STRETCH as u64) as usize;
        let end = STRETCH.min(start + 64).min(start + (length - at) as usize);
        session.writer.write_all(&stretch[start..end]).await.expect("the session is open");
        at += (end - start) as u64;
    }
    session.writer.flush().await.expect("the session is open");
    let served = within("16 MiB", hearing).await.expect("exact");
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < MIB, "{grown} bytes");
    session.close(1000).await;
    drop((session, served));
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_data_from_a_backend_is_streamed_without_buffering() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("big", &backend).start().await;
    for (listener, length) in [(PLAIN, 256 * MIB), (TLS, 64 * MIB)] {
        let mut connection = gateway.connect(listener).await;
        let peer = connection.peer();
        connection.write_all(&gateway.upgrade(listener, "/big").bytes()).await.unwrap();
        connection.flush().await.unwrap();
        let mut served = backend.accept().await;
        let response = read_response(&mut connection, true).await;
        let (reader, _writer) = tokio::io::split(connection);
        let mut frames = Frames::new(reader, &response.rest);
        served.write_all(&pattern(0, 1 << 20)).await.unwrap();
        frames.pattern(&mut Check::default(), MIB).await;
        let before = gateway.memory();
        let talking = tokio::spawn(async move {
            let mut at = 0;
            while at < length {
                let part = pattern(at, (length - at).min(256 * 1024) as usize);
                served.write_all(&part).await.expect("the session is open");
                at += part.len() as u64;
            }
        });
        let mut check = Check::default();
        frames.pattern(&mut check, length).await;
        talking.await.expect("the backend");
        assert_eq!(frames.until_close().await.1, Some(1000));
        let grown = gateway.memory().saturating_sub(before);
        assert!(grown < MIB, "{grown} bytes");
        drop((frames, _writer));
        let end = gateway.ended(peer, "backend_closed", Some(1000)).await;
        assert_eq!(end.number("bytes_out"), Some(length + MIB));
    }
    gateway.finish().await;
}
