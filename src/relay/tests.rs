//! The relay over in-memory pipes, on a paused clock.

use std::{io, sync::Arc, time::SystemTime};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    session::{Registry, SessionInfo},
    websocket::client::frame,
};

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// An in-memory pipe that counts the bytes written to it, as a `CountingStream` does for a socket.
struct Pipe {
    inner: DuplexStream,
    bytes_written: u64,
    /// After a write that had to wait, waits until it is forced: like a socket that is never reported as writable.
    is_reluctant: bool,
    waits: bool,
    /// Holds what is written until it is flushed, as TLS does with records for which the socket has no space.
    holds: bool,
    held: Vec<u8>,
}

impl Pipe {
    fn new(inner: DuplexStream) -> Self {
        Self { inner, bytes_written: 0, is_reluctant: false, waits: false, holds: false, held: Vec::new() }
    }

    fn reluctant(inner: DuplexStream) -> Self {
        Self { is_reluctant: true, ..Self::new(inner) }
    }

    fn holding(inner: DuplexStream) -> Self {
        Self { holds: true, ..Self::new(inner) }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.waits {
            return Poll::Pending;
        }
        if self.holds {
            self.held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(len)) = written {
            self.bytes_written += len as u64;
        }
        self.waits = self.is_reluctant && written.is_pending();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, held, bytes_written, .. } = &mut *self;
        while !held.is_empty() {
            let len = std::task::ready!(Pin::new(&mut *inner).poll_write(cx, held))?;
            held.drain(..len);
            *bytes_written += len as u64;
        }
        Pin::new(inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl RelayStream for Pipe {
    fn bytes_written(&self) -> u64 {
        self.bytes_written
    }

    fn force_write(&mut self) {
        self.waits = false;
    }
}

pub(super) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The default settings of a gateway, but a shorter stall timeout.
pub(super) fn settings() -> RelaySettings {
    RelaySettings {
        accept_text: true,
        send_text: false,
        close: secs(2),
        stall: Some(secs(30)),
        ping: Some(secs(30)),
        pong: Some(secs(20)),
        idle: None,
        lifetime: None,
        expires: None,
    }
}

fn session_info() -> SessionInfo<'static> {
    let peer = ([192, 0, 2, 7], 4711).into();
    SessionInfo { peer, route: "test", since: SystemTime::UNIX_EPOCH, identity: None }
}

/// A session between two pipes, with their far ends.
struct Harness {
    client: DuplexStream,
    backend: DuplexStream,
    registry: Arc<Registry>,
    session: JoinHandle<SessionEnd>,
}

impl Harness {
    fn new(settings: RelaySettings) -> Self {
        Self::with_pipes(settings, 64 * 1024, b"")
    }

    fn with_pipes(settings: RelaySettings, size: usize, pipelined: &'static [u8]) -> Self {
        let ((client, near_client), (backend, near_backend)) = (duplex(size), duplex(size));
        let registry = Arc::new(Registry::default());
        let entry = registry.open(session_info());
        let session = tokio::spawn(async move {
            let client = Pipe::new(near_client);
            let backend = Pipe::new(near_backend);
            relay(client, Bytes::from_static(pipelined), backend, &settings, &entry).await
        });
        Self { client, backend, registry, session }
    }

    async fn send(&mut self, first: u8, payload: &[u8]) {
        self.client.write_all(&frame(first, payload)).await.unwrap();
    }

    /// The next `len` bytes that the backend receives.
    async fn backend_receives(&mut self, len: usize) -> Vec<u8> {
        let mut received = vec![0; len];
        let read = timeout(secs(3600), self.backend.read_exact(&mut received)).await;
        read.expect("the backend received too little within an hour").unwrap();
        received
    }

    async fn receive(&mut self) -> (u8, Vec<u8>) {
        timeout(secs(3600), receive(&mut self.client)).await.expect("no frame within an hour").unwrap()
    }

    async fn end(self) -> SessionEnd {
        timeout(secs(3600), self.session).await.expect("the session did not end within an hour").unwrap()
    }
}

/// The next frame from the gateway: its first byte and its payload.
async fn receive(client: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let first = client.read_u8().await?;
    let len = match client.read_u8().await? {
        126 => u64::from(client.read_u16().await?),
        127 => client.read_u64().await?,
        short => u64::from(short),
    };
    let mut payload = vec![0; len as usize];
    client.read_exact(&mut payload).await?;
    Ok((first, payload))
}

fn close_code(payload: &[u8]) -> Option<u16> {
    payload.first_chunk().map(|code| u16::from_be_bytes(*code))
}

#[tokio::test(start_paused = true)]
async fn client_close_delivers_everything_before_it() {
    let mut harness = Harness::new(settings());
    let start = Instant::now();
    harness.send(BINARY, b"final data").await;
    harness.send(CLOSE, b"\x0f\xa1bye").await;
    assert_eq!(harness.backend_receives(10).await, b"final data");
    assert_eq!(harness.backend.read(&mut [0]).await.unwrap(), 0, "the backend receives end-of-file");
    assert_eq!(harness.receive().await, (CLOSE, b"\x0f\xa1".to_vec()), "the code is echoed");
    assert_eq!(harness.client.read(&mut [0]).await.unwrap(), 0, "and the connection is closed");
    assert_eq!(start.elapsed().as_secs(), 0, "both are shut down at once, not dropped at a deadline");
    drop((harness.backend, harness.client));
    let end = harness.session.await.unwrap();
    assert_eq!(
        end,
        SessionEnd { reason: Reason::ClientClosed, close_code: Some(4001), bytes_in: 10, bytes_out: 0 }
    );
}

#[tokio::test(start_paused = true)]
async fn close_without_code_is_echoed_without_code() {
    let mut harness = Harness::new(settings());
    harness.send(CLOSE, b"").await;
    assert_eq!(harness.receive().await, (CLOSE, Vec::new()));
    assert_eq!(harness.end().await.close_code, None);
}

#[tokio::test(start_paused = true)]
async fn data_after_a_close_is_ignored() {
    let mut harness = Harness::new(settings());
    let bytes = [frame(CLOSE, b"\x03\xe8"), frame(BINARY, b"ignored"), vec![0xff; 100]].concat();
    harness.client.write_all(&bytes).await.unwrap();
    assert_eq!(harness.receive().await.0, CLOSE);
    assert_eq!(harness.backend.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(harness.end().await.bytes_in, 0);
}

#[tokio::test(start_paused = true)]
async fn backend_close_delivers_everything_before_it() {
    let mut harness = Harness::new(settings());
    harness.backend.write_all(&[7; 100_000]).await.unwrap();
    harness.backend.shutdown().await.unwrap();
    let mut received = 0;
    let close = loop {
        match harness.receive().await {
            (BINARY, payload) => received += payload.len(),
            (CLOSE, payload) => break payload,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(received, 100_000);
    assert_eq!(close_code(&close), Some(1000));
    // The backend has closed only its own direction (half-close): data from the client still reaches it.
    harness.send(BINARY, b"thanks").await;
    harness.send(CLOSE, &close).await;
    assert_eq!(harness.backend_receives(6).await, b"thanks");
    assert_eq!(harness.client.read(&mut [0]).await.unwrap(), 0);
    let Harness { client, session, .. } = harness;
    drop(client);
    let end = session.await.unwrap();
    assert_eq!((end.reason, end.bytes_out), (Reason::BackendClosed, 100_000));
}

#[tokio::test(start_paused = true)]
async fn unanswered_close_times_out() {
    let mut harness = Harness::new(settings());
    harness.backend.shutdown().await.unwrap();
    let start = Instant::now();
    assert_eq!(close_code(&harness.receive().await.1), Some(1000));
    assert_eq!(harness.client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(start.elapsed().as_secs(), 2);
    drop(harness.backend);
    assert_eq!(harness.session.await.unwrap().reason, Reason::BackendClosed);
}

#[tokio::test(start_paused = true)]
async fn client_disconnect_delivers_everything_before_it() {
    let Harness { mut client, mut backend, session, .. } = Harness::new(settings());
    client.write_all(&frame(BINARY, b"unfinished")).await.unwrap();
    drop(client);
    let mut received = Vec::new();
    backend.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"unfinished");
    drop(backend);
    assert_eq!(session.await.unwrap().reason, Reason::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn violation_is_answered_and_data_before_it_is_delivered() {
    let mut harness = Harness::new(settings());
    let bytes = [frame(BINARY, b"good"), vec![0x02, 0x01, 0x00]].concat();
    harness.client.write_all(&bytes).await.unwrap();
    assert_eq!(harness.backend_receives(4).await, b"good");
    let (first, payload) = harness.receive().await;
    assert_eq!((first, close_code(&payload)), (CLOSE, Some(1002)));
    assert_eq!(&payload[2..], b"frame is not masked");
    assert_eq!(harness.end().await.reason, Reason::ProtocolError);
}

#[tokio::test(start_paused = true)]
async fn text_is_only_checked_for_utf8() {
    let mut harness = Harness::new(settings());
    harness.send(0x01, b"\xe2\x82").await;
    harness.send(PING, b"between").await;
    harness.send(0x80, b"\xac").await;
    assert_eq!(harness.backend_receives(3).await, "€".as_bytes());
    assert_eq!(harness.receive().await, (PONG, b"between".to_vec()));
    harness.send(TEXT, b"\xe2\x82").await;
    assert_eq!(close_code(&harness.receive().await.1), Some(1007));
    assert_eq!(harness.end().await.reason, Reason::InvalidText);
}

#[tokio::test(start_paused = true)]
async fn text_is_refused_on_binary_only_routes() {
    let mut harness = Harness::new(RelaySettings { accept_text: false, ..settings() });
    harness.send(BINARY, b"fine").await;
    harness.send(TEXT, b"not").await;
    assert_eq!(harness.backend_receives(4).await, b"fine");
    assert_eq!(close_code(&harness.receive().await.1), Some(1003));
    assert_eq!(harness.end().await.reason, Reason::TextRefused);
}

#[tokio::test(start_paused = true)]
async fn text_is_sent_in_complete_code_points() {
    let mut harness = Harness::new(RelaySettings { send_text: true, ..settings() });
    harness.backend.write_all(b"a\xe2").await.unwrap();
    assert_eq!(harness.receive().await, (TEXT, b"a".to_vec()));
    harness.backend.write_all(b"\x82").await.unwrap();
    tokio::task::yield_now().await;
    harness.backend.write_all(b"\xacb").await.unwrap();
    assert_eq!(harness.receive().await, (TEXT, "€b".as_bytes().to_vec()));
    harness.backend.write_all(b"\xff").await.unwrap();
    assert_eq!(close_code(&harness.receive().await.1), Some(1011));
    assert_eq!(harness.end().await.reason, Reason::BackendFailed);
}

#[tokio::test(start_paused = true)]
async fn client_that_never_reads_is_stalled_with_bounded_buffering() {
    let Harness { client, mut backend, session, .. } = Harness::with_pipes(settings(), 1024, b"");
    let start = Instant::now();
    let mut written = 0;
    while let Ok(len) = timeout(secs(10), backend.write(&[1; 1024])).await {
        written += len.unwrap();
    }
    // A full pipe on each side, and the buffer of the direction.
    assert!(written <= scratch::SIZE + 2 * 1024, "{written} bytes were read from the backend");
    assert_eq!(backend.read(&mut [0]).await.unwrap(), 0, "the backend receives end-of-file");
    assert_eq!(start.elapsed().as_secs(), 30);
    drop(backend);
    assert_eq!(session.await.unwrap().reason, Reason::ClientStalled);
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn client_that_reads_slowly_is_not_stalled() {
    let mut harness = Harness::with_pipes(settings(), 16, b"");
    harness.backend.write_all(&[1; 12]).await.unwrap();
    harness.backend.shutdown().await.unwrap();
    for _ in 0..14 {
        sleep(secs(20)).await;
        harness.client.read_u8().await.unwrap();
    }
    assert_eq!(harness.receive().await.0, CLOSE, "14 bytes in 280 s, and then the Close");
    assert_eq!(harness.end().await.reason, Reason::BackendClosed);
}

#[tokio::test(start_paused = true)]
async fn backend_that_never_reads_is_stalled_and_the_client_is_not() {
    let Harness { mut client, backend, session, .. } = Harness::with_pipes(settings(), 1024, b"");
    let (mut reader, mut writer) = tokio::io::split(client);
    let start = Instant::now();
    let payload = frame(BINARY, &[1; 200_000]);
    let writing = tokio::spawn(async move {
        let mut written = 0;
        while written < payload.len() {
            match writer.write(&payload[written..]).await {
                Ok(len) => written += len,
                Err(_) => break,
            }
        }
        (writer, written)
    });
    let (first, payload) = receive(&mut reader).await.unwrap();
    assert_eq!((first, close_code(&payload)), (CLOSE, Some(1011)));
    assert_eq!(start.elapsed().as_secs(), 30);
    let end = session.await.unwrap();
    assert_eq!((end.reason, start.elapsed().as_secs()), (Reason::BackendStalled, 32), "no second limit");
    drop(backend);
    let (writer, _) = writing.await.unwrap();
    client = reader.unsplit(writer);
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn both_directions_recover_from_a_simultaneous_stall() {
    let Harness { client, backend, session, .. } = Harness::with_pipes(settings(), 512, b"");
    let payload: Vec<u8> = (0..300_000_u32).map(|byte| byte as u8).collect();
    let up = frame(BINARY, &payload);
    let down = payload.clone();
    let (mut client_reader, mut client_writer) = tokio::io::split(client);
    let (mut backend_reader, mut backend_writer) = tokio::io::split(backend);
    let writing_up = tokio::spawn(async move { client_writer.write_all(&up).await.map(|()| client_writer) });
    let writing_down =
        tokio::spawn(async move { backend_writer.write_all(&down).await.map(|()| backend_writer) });
    // Neither side reads for a while: both directions fill up.
    sleep(secs(20)).await;
    let mut received_up = vec![0; payload.len()];
    backend_reader.read_exact(&mut received_up).await.unwrap();
    let mut received_down = Vec::new();
    while received_down.len() < payload.len() {
        received_down.extend(receive(&mut client_reader).await.unwrap().1);
    }
    assert!(received_up == payload && received_down == payload, "the bytes differ");
    let mut client = client_reader.unsplit(writing_up.await.unwrap().unwrap());
    client.write_all(&frame(CLOSE, b"")).await.unwrap();
    drop(backend_reader.unsplit(writing_down.await.unwrap().unwrap()));
    assert_eq!(receive(&mut client).await.unwrap().0, CLOSE);
    drop(client);
    assert_eq!(session.await.unwrap().reason, Reason::ClientClosed);
}

#[tokio::test(start_paused = true)]
async fn silent_client_is_pinged_and_pong_keeps_it_open() {
    let mut harness = Harness::new(settings());
    let start = Instant::now();
    for round in 1..=3 {
        assert_eq!(harness.receive().await.0, PING);
        assert_eq!(start.elapsed().as_secs(), 30 * round);
        harness.send(PONG, b"").await;
    }
    assert_eq!(harness.receive().await.0, PING);
    assert_eq!(harness.client.read(&mut [0]).await.unwrap(), 0, "a dead client gets no closing handshake");
    assert_eq!(start.elapsed().as_secs(), 140);
    drop(harness.backend);
    assert_eq!(harness.session.await.unwrap().reason, Reason::PongTimeout);
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_and_collapse_to_the_newest_under_backpressure() {
    let mut harness = Harness::with_pipes(settings(), 64, b"");
    for round in 0..100_u8 {
        harness.send(PING, &[round]).await;
        assert_eq!(harness.receive().await, (PONG, vec![round]));
    }
    // 1,000 Pings whose Pongs the client does not read: the pipe holds 21 Pongs, the session two more.
    let (mut reader, mut writer) = tokio::io::split(harness.client);
    for round in 0..1000_u32 {
        writer.write_all(&frame(PING, &round.to_be_bytes())).await.unwrap();
    }
    writer.write_all(&frame(BINARY, b"!")).await.unwrap();
    harness.backend.read_u8().await.unwrap();
    let mut pongs = Vec::new();
    while pongs.last() != Some(&999) {
        let (first, payload) = receive(&mut reader).await.unwrap();
        assert_eq!(first, PONG);
        pongs.push(u32::from_be_bytes(payload.try_into().unwrap()));
    }
    assert!(pongs.len() < 30 && pongs.is_sorted(), "{pongs:?}");
}

#[tokio::test(start_paused = true)]
async fn idle_timeout_lifetime_and_expiry_close_in_good_order() {
    let (idle, lifetime, expires) = (Some(secs(100)), Some(secs(100)), Some(secs(100)));
    let limits = [
        ((idle, None, None), Reason::IdleTimeout, 1000, 110),
        ((None, lifetime, None), Reason::LifetimeReached, 1000, 100),
        ((None, None, expires), Reason::CredentialExpired, 1008, 100),
    ];
    for ((idle, lifetime, expires), reason, code, at) in limits {
        let start = Instant::now();
        let expires = expires.map(|after| start + after);
        let mut harness = Harness::new(RelaySettings { ping: None, idle, lifetime, expires, ..settings() });
        sleep(secs(10)).await;
        harness.send(BINARY, b"x").await;
        let (first, payload) = harness.receive().await;
        assert_eq!(
            (first, close_code(&payload), start.elapsed().as_secs()),
            (CLOSE, Some(code), at),
            "{reason}"
        );
        // Its Close is awaited, and what comes before it is not forwarded: the gateway has ordered the end.
        harness.send(BINARY, b"late").await;
        harness.send(CLOSE, &payload).await;
        let mut forwarded = Vec::new();
        harness.backend.read_to_end(&mut forwarded).await.unwrap();
        assert_eq!(forwarded, b"x", "{reason}");
        assert_eq!(harness.end().await.reason, reason);
    }
}

#[tokio::test(start_paused = true)]
async fn incomplete_frame_header_is_a_stall() {
    let mut harness = Harness::new(RelaySettings { ping: None, ..settings() });
    let start = Instant::now();
    for byte in [BINARY, 0xff, 0, 0] {
        harness.client.write_u8(byte).await.unwrap();
        sleep(secs(9)).await;
    }
    assert_eq!(harness.client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(start.elapsed().as_secs(), 36, "the stall came at 30 s");
    drop(harness.backend);
    assert_eq!(harness.session.await.unwrap().reason, Reason::ClientStalled);
}

#[tokio::test(start_paused = true)]
async fn draining_closes_a_session() {
    let mut harness = Harness::new(settings());
    tokio::task::yield_now().await;
    assert!(harness.registry.end(1, Reason::Draining));
    let (first, payload) = harness.receive().await;
    assert_eq!((first, close_code(&payload)), (CLOSE, Some(1001)));
    // What the client sent before it received the Close is delivered.
    harness.send(BINARY, b"unaware").await;
    harness.send(CLOSE, &payload).await;
    assert_eq!(harness.backend_receives(7).await, b"unaware");
    assert_eq!(harness.end().await.reason, Reason::Draining);
}

#[tokio::test(start_paused = true)]
async fn operator_message_is_sent_in_the_close() {
    let mut harness = Harness::new(settings());
    assert!(harness.registry.end_with_message(1, Reason::Killed, Some("back to work")));
    let (first, payload) = harness.receive().await;
    assert_eq!((first, close_code(&payload), &payload[2..]), (CLOSE, Some(1008), &b"back to work"[..]));
    harness.send(CLOSE, &payload).await;
    assert_eq!(harness.end().await.reason, Reason::Killed);
}

#[tokio::test(start_paused = true)]
async fn registry_shows_progress_of_a_session() {
    let mut harness = Harness::with_pipes(settings(), 1024, b"");
    harness.send(BINARY, b"hello").await;
    harness.backend_receives(5).await;
    harness.backend.write_all(b"hi").await.unwrap();
    harness.receive().await;
    let registry = Arc::clone(&harness.registry);
    let snapshot = || registry.get(1).unwrap();
    assert_eq!(snapshot().payload, Payload { bytes_in: 5, bytes_out: 2 });
    assert_eq!((snapshot().buffered, snapshot().round_trip), (0, None));
    // The backend reads nothing: a part of the frame stays buffered here, because the pipe holds 1024 bytes.
    harness.send(BINARY, &[7; 1500]).await;
    sleep(secs(1)).await;
    assert_eq!((snapshot().payload.bytes_in, snapshot().buffered), (1505, 476));
    harness.backend_receives(1500).await;
    sleep(secs(1)).await;
    assert_eq!(snapshot().buffered, 0);
    // After 30 s of silence the client is pinged; it answers the first Ping at once, the second after 70 ms.
    assert_eq!(harness.receive().await.0, PING);
    harness.send(PONG, b"").await;
    sleep(secs(1)).await;
    assert_eq!(snapshot().round_trip, Some(Duration::from_micros(1)), "it answered at once");
    assert_eq!(harness.receive().await.0, PING);
    sleep(Duration::from_millis(70)).await;
    harness.send(PONG, b"").await;
    sleep(secs(1)).await;
    assert_eq!(snapshot().round_trip, Some(Duration::from_millis(70)));
    // An unsolicited Pong is no measurement.
    harness.send(PONG, b"").await;
    sleep(secs(1)).await;
    assert_eq!(snapshot().round_trip, Some(Duration::from_millis(70)));
    harness.session.abort();
    let _ = harness.session.await;
    assert_eq!(registry.payload()["test"], Payload { bytes_in: 1505, bytes_out: 2 });
}

#[tokio::test(start_paused = true)]
async fn session_without_backend_is_closed_with_the_reason() {
    let (mut client, near) = duplex(1024);
    let session = Arc::new(Registry::default()).open(session_info());
    let refused = tokio::spawn(async move {
        let client = Pipe::new(near);
        refuse(client, Bytes::new(), Reason::BackendRefused, &settings(), &session).await
    });
    let (first, payload) = receive(&mut client).await.unwrap();
    assert_eq!((first, &payload[2..]), (CLOSE, Reason::BackendRefused.explanation().as_bytes()));
    client.write_all(&frame(CLOSE, &payload)).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    drop(client);
    let end = refused.await.unwrap();
    assert_eq!((end.reason, end.close_code), (Reason::BackendRefused, Some(1011)));
}

#[tokio::test(start_paused = true)]
async fn data_of_a_backend_that_stopped_reading_is_delivered() {
    let mut harness = Harness::new(settings());
    harness.backend.write_all(b"goodbye").await.unwrap();
    drop(harness.backend);
    harness.client.write_all(&frame(BINARY, &[0; 1000])).await.unwrap();
    assert_eq!(receive(&mut harness.client).await.unwrap(), (BINARY, b"goodbye".to_vec()));
    assert_eq!(close_code(&receive(&mut harness.client).await.unwrap().1), Some(1000));
    drop(harness.client);
    assert_eq!(harness.session.await.unwrap().reason, Reason::BackendClosed);
}

#[test]
fn session_is_small() {
    let (settings, session) = (settings(), Arc::new(Registry::default()).open(session_info()));
    let pipe = || Pipe::new(duplex(1).0);
    let streams = 2 * size_of::<Pipe>();
    let size = size_of_val(&relay(pipe(), Bytes::new(), pipe(), &settings, &session));
    assert!(size <= streams + 768, "{size} bytes, {streams} of them for the streams");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Both directions are exact for any sizes of frames, pieces and pipes, with Pings in between.
    #[test]
    fn bytes_are_exact_in_both_directions(
        messages in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..3000), any::<bool>(), any::<bool>()), 1..8),
        answer in prop::collection::vec(any::<u8>(), 0..5000),
        pieces in prop::collection::vec(1_usize..700, 1..20),
        pipe in prop_oneof![Just(1_usize), 2_usize..40, Just(64 * 1024)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (mut bytes, mut expected, mut pings, mut open) = (Vec::new(), Vec::<u8>::new(), 0, false);
            for (payload, last, ping) in &messages {
                bytes.extend(frame((u8::from(*last) << 7) | if open { 0 } else { 2 }, payload));
                expected.extend(payload);
                open = !last;
                if *ping {
                    bytes.extend(frame(PING, b"?"));
                    pings += 1;
                }
            }
            bytes.extend(frame(CLOSE, b"\x03\xe8"));
            let Harness { client, backend, session, .. } = Harness::with_pipes(settings(), pipe, b"");
            let (mut reader, mut writer) = tokio::io::split(client);
            let (mut backend_reader, mut backend_writer) = tokio::io::split(backend);
            let (sent, cuts) = (answer.clone(), pieces.clone());
            let backend_sends = tokio::spawn(async move {
                for piece in sent.chunks(cuts[0]) {
                    backend_writer.write_all(piece).await.unwrap();
                }
                backend_writer
            });
            let backend_receives = tokio::spawn(async move {
                let mut received = Vec::new();
                backend_reader.read_to_end(&mut received).await.unwrap();
                (received, backend_reader)
            });
            let answer_len = answer.len();
            let client_receives = tokio::spawn(async move {
                let (mut received, mut pongs) = (Vec::new(), 0);
                while received.len() < answer_len {
                    match receive(&mut reader).await.unwrap() {
                        (BINARY, payload) => received.extend(payload),
                        (PONG, payload) => { assert_eq!(payload, b"?"); pongs += 1 }
                        other => panic!("{other:?}"),
                    }
                }
                (received, pongs, reader)
            });
            // The Close is sent after the answer is complete.
            let close = bytes.split_off(bytes.len() - 8);
            let mut unsent = &bytes[..];
            for piece in pieces.iter().cycle() {
                if unsent.is_empty() { break }
                let (piece, after) = unsent.split_at((*piece).min(unsent.len()));
                writer.write_all(piece).await.unwrap();
                unsent = after;
            }
            let (received, mut pongs, mut reader) = client_receives.await.unwrap();
            writer.write_all(&close).await.unwrap();
            loop {
                match receive(&mut reader).await.unwrap() {
                    (PONG, _) => pongs += 1,
                    (CLOSE, payload) => { assert_eq!(payload, b"\x03\xe8"); break }
                    other => panic!("{other:?}"),
                }
            }
            let (received_up, backend_reader) = backend_receives.await.unwrap();
            assert!(received == answer, "the client received other bytes");
            assert!(received_up == expected, "the backend received other bytes");
            assert!(pongs <= pings, "{pongs} pongs to {pings} pings");
            drop(backend_reader.unsplit(backend_sends.await.unwrap()));
            drop(reader.unsplit(writer));
            let end = session.await.unwrap();
            assert_eq!(end.reason, Reason::ClientClosed);
            assert_eq!((end.bytes_in, end.bytes_out), (expected.len() as u64, answer.len() as u64));
        });
    }
}

/// A relay between two pipes of a test's own.
fn relay_between(client: Pipe, backend: Pipe) -> JoinHandle<SessionEnd> {
    tokio::spawn(async move {
        let entry = Arc::new(Registry::default()).open(session_info());
        relay(client, Bytes::new(), backend, &settings(), &entry).await
    })
}

#[tokio::test(start_paused = true)]
async fn client_whose_socket_is_never_reported_as_writable_is_not_stalled_while_it_reads() {
    let ((mut client, near_client), (mut backend, near_backend)) = (duplex(16), duplex(1024));
    let session = relay_between(Pipe::reluctant(near_client), Pipe::new(near_backend));
    backend.write_all(&[1; 60]).await.unwrap();
    backend.shutdown().await.unwrap();
    for _ in 0..62 {
        sleep(secs(20)).await;
        client.read_u8().await.unwrap();
    }
    assert_eq!(timeout(secs(60), receive(&mut client)).await.unwrap().unwrap().0, CLOSE);
    drop((client, backend));
    assert_eq!(session.await.unwrap().reason, Reason::BackendClosed);
}

#[tokio::test(start_paused = true)]
async fn backend_whose_socket_is_never_reported_as_writable_is_not_stalled_while_it_reads() {
    let ((mut client, near_client), (mut backend, near_backend)) = (duplex(1024), duplex(16));
    let session = relay_between(Pipe::new(near_client), Pipe::reluctant(near_backend));
    client.write_all(&frame(BINARY, &[1; 40])).await.unwrap();
    client.write_all(&frame(CLOSE, b"\x03\xe8")).await.unwrap();
    for _ in 0..40 {
        sleep(secs(20)).await;
        backend.read_u8().await.unwrap();
    }
    assert_eq!(backend.read(&mut [0]).await.unwrap(), 0);
    drop((client, backend));
    assert_eq!(session.await.unwrap().reason, Reason::ClientClosed);
}

#[tokio::test(start_paused = true)]
async fn killed_client_that_does_not_read_types_no_more() {
    let mut harness = Harness::with_pipes(settings(), 1024, b"");
    harness.send(BINARY, b"before").await;
    assert_eq!(harness.backend_receives(6).await, b"before");
    // The client reads nothing of this.
    harness.backend.write_all(&[1; 2048]).await.unwrap();
    sleep(secs(1)).await;
    assert!(harness.registry.end(1, Reason::Killed));
    let start = Instant::now();
    harness.send(BINARY, b"after").await;
    assert_eq!(harness.backend.read(&mut [0]).await.unwrap(), 0, "nothing but the end");
    let Harness { client, backend, session, .. } = harness;
    drop(backend);
    let end = session.await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 2, "bounded by timeouts.close");
    assert_eq!((end.reason, end.bytes_in), (Reason::Killed, 6));
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn killed_session_delivers_what_it_accepted_and_nothing_else() {
    let mut harness = Harness::with_pipes(settings(), 16, b"");
    // More than the backend's pipe holds: the rest is pending when the order comes.
    let (mut client, sent) = (harness.client, frame(BINARY, &[7; 40]));
    client.write_all(&sent).await.unwrap();
    sleep(secs(1)).await;
    assert!(harness.registry.end(1, Reason::Killed));
    sleep(Duration::from_millis(1)).await;
    let writing = tokio::spawn(async move {
        let _ = client.write_all(&frame(BINARY, &[8; 50])).await;
        client
    });
    let mut received = Vec::new();
    harness.backend.read_to_end(&mut received).await.unwrap();
    assert_eq!(received.iter().filter(|byte| **byte == 8).count(), 0, "{received:?}");
    let client = timeout(secs(10), writing).await.unwrap().unwrap();
    drop((client, harness.backend));
    let end = harness.session.await.unwrap();
    assert_eq!((end.reason, end.bytes_in), (Reason::Killed, received.len() as u64));
}

#[tokio::test(start_paused = true)]
async fn ordered_end_has_one_deadline_for_all_stages() {
    // Neither peer reads: nothing can be delivered.
    let mut harness = Harness::with_pipes(settings(), 16, b"");
    harness.backend.write_all(&[1; 16]).await.unwrap();
    harness.backend.write_all(&[1; 16]).await.unwrap();
    harness.client.write_all(&frame(BINARY, &[7; 40])).await.unwrap();
    sleep(secs(1)).await;
    assert!(harness.registry.end(1, Reason::Killed));
    let start = Instant::now();
    assert_eq!(harness.session.await.unwrap().reason, Reason::Killed);
    assert_eq!(start.elapsed().as_secs(), 2);
}

/// Kills a session that is closing for `reason`, while its client types: what it typed before still arrives, and all is over
/// after `timeouts.close`.
async fn kill_ends_a_closing_session(mut harness: Harness, reason: Reason) {
    harness.send(BINARY, b"before").await;
    assert_eq!(harness.backend_receives(6).await, b"before");
    assert!(harness.registry.end(1, Reason::Killed));
    let start = Instant::now();
    sleep(Duration::from_millis(1)).await;
    harness.send(BINARY, b"after").await;
    assert_eq!(harness.backend.read(&mut [0]).await.unwrap(), 0, "nothing but the end");
    drop(harness.backend);
    let end = harness.session.await.unwrap();
    assert_eq!((end.reason, end.bytes_in, start.elapsed().as_secs()), (reason, 6, 2));
}

#[tokio::test(start_paused = true)]
async fn kill_ends_a_session_that_is_closing_for_another_reason() {
    let mut harness = Harness::with_pipes(settings(), 16, b"");
    // The client leaves no space for the Close that follows this, and goes on typing.
    harness.backend.write_all(&[1; 14]).await.unwrap();
    harness.backend.shutdown().await.unwrap();
    sleep(secs(1)).await;
    kill_ends_a_closing_session(harness, Reason::BackendClosed).await;
}

#[tokio::test(start_paused = true)]
async fn kill_ends_a_session_that_is_draining() {
    let mut harness = Harness::with_pipes(settings(), 16, b"");
    // The client leaves no space for the Close that follows this, and goes on typing.
    harness.backend.write_all(&[1; 14]).await.unwrap();
    sleep(secs(1)).await;
    assert!(harness.registry.end(1, Reason::Draining));
    kill_ends_a_closing_session(harness, Reason::Draining).await;
}

#[tokio::test(start_paused = true)]
async fn no_pong_follows_our_close() {
    let mut harness = Harness::new(settings());
    assert!(harness.registry.end(1, Reason::Draining));
    assert_eq!(close_code(&harness.receive().await.1), Some(1001));
    harness.send(PING, b"late").await;
    assert_eq!(harness.client.read(&mut [0]).await.unwrap(), 0, "nothing follows a Close");
}

/// What the clocks decide for `activity` at each of `seconds` after the start.
fn clock_events(activity: Activity, seconds: impl IntoIterator<Item = u64>) -> Vec<ClockEvent> {
    let start = Instant::now();
    let mut clocks = Clocks::new(start);
    seconds.into_iter().map(|second| clocks.check(start + secs(second), activity, &settings())).collect()
}

#[tokio::test(start_paused = true)]
async fn blocked_client_is_sent_no_ping() {
    let activity = Activity { client_blocked: true, ..Activity::default() };
    let settings = RelaySettings { stall: None, ..settings() };
    let start = Instant::now();
    let mut clocks = Clocks::new(start);
    let events = [0, 30, 60, 90].map(|at| clocks.check(start + secs(at), activity, &settings));
    assert!(!events.contains(&ClockEvent::Ping), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn pong_clock_is_suspended_while_the_backend_blocks_reading() {
    let start = Instant::now();
    let mut clocks = Clocks::new(start);
    let blocked = Activity { backend_blocked: true, ..Activity::default() };
    let settings = RelaySettings { stall: None, ..settings() };
    assert_eq!(clocks.check(start + secs(30), Activity::default(), &settings), ClockEvent::Ping);
    for at in [31, 50, 51, 60] {
        let event = clocks.check(start + secs(at), blocked, &settings);
        assert!(matches!(event, ClockEvent::Wait(_)), "{at} s: {event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn client_that_takes_data_counts_as_alive() {
    let start = Instant::now();
    let mut clocks = Clocks::new(start);
    assert_eq!(clocks.check(start + secs(30), Activity::default(), &settings()), ClockEvent::Ping);
    for at in 31..100 {
        let activity = Activity { client_blocked: true, client_written: at, ..Activity::default() };
        let event = clocks.check(start + secs(at), activity, &settings());
        assert!(matches!(event, ClockEvent::Wait(_)), "{at} s: {event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn header_clock_is_suspended_while_the_backend_blocks() {
    let in_header = Activity { in_header: true, received: true, ..Activity::default() };
    let events = clock_events(in_header, [0, 10, 20, 30]);
    assert_eq!(events.last(), Some(&ClockEvent::End(Reason::ClientStalled)));
    let start = Instant::now();
    let mut clocks = Clocks::new(start);
    for at in [0, 10, 20, 30, 40] {
        // The backend takes a byte now and then, so that it is not stalled itself.
        let blocked = Activity { backend_blocked: true, backend_written: at, ..in_header };
        let event = clocks.check(start + secs(at), blocked, &settings());
        assert!(matches!(event, ClockEvent::Wait(_)), "{at} s: {event:?}");
    }
}

/// Sends data and a Close at once to a relay whose backend has space for a part of the data.
async fn close_with_data_that_waits(
    settings: RelaySettings,
    len: usize,
) -> (DuplexStream, DuplexStream, JoinHandle<SessionEnd>) {
    let ((mut client, near_client), (backend, near_backend)) = (duplex(1024), duplex(16));
    let session = tokio::spawn(async move {
        let entry = Arc::new(Registry::default()).open(session_info());
        relay(Pipe::new(near_client), Bytes::new(), Pipe::new(near_backend), &settings, &entry).await
    });
    let bytes = [frame(BINARY, &vec![7; len]), frame(CLOSE, b"\x03\xe8")].concat();
    client.write_all(&bytes).await.unwrap();
    assert_eq!(receive(&mut client).await.unwrap(), (CLOSE, b"\x03\xe8".to_vec()));
    (client, backend, session)
}

#[tokio::test(start_paused = true)]
async fn close_of_the_client_delivers_what_the_backend_had_not_read() {
    let (client, mut backend, session) = close_with_data_that_waits(settings(), 120).await;
    drop(client);
    let mut received = Vec::new();
    for _ in 0..120 {
        sleep(secs(20)).await;
        received.push(backend.read_u8().await.unwrap());
    }
    assert_eq!(received, [7; 120]);
    assert_eq!(backend.read(&mut [0]).await.unwrap(), 0);
    drop(backend);
    assert_eq!(session.await.unwrap().bytes_in, 120);
}

#[tokio::test(start_paused = true)]
async fn backend_that_reads_nothing_of_what_was_left_at_a_close_is_dropped_when_it_stalls() {
    for (stall, expected) in [(Some(secs(30)), 30), (None, 2)] {
        let start = Instant::now();
        let (client, backend, session) =
            close_with_data_that_waits(RelaySettings { stall, ..settings() }, 120).await;
        drop(client);
        let end =
            timeout(secs(3600), session).await.expect("the session did not end within an hour").unwrap();
        assert_eq!((end.reason, start.elapsed().as_secs()), (Reason::ClientClosed, expected));
        drop(backend);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_stream_buffers_is_flushed_while_the_peers_are_silent() {
    let ((mut client, near_client), (mut backend, near_backend)) = (duplex(16), duplex(16));
    let _session = relay_between(Pipe::holding(near_client), Pipe::holding(near_backend));
    let soon = secs(1);
    let sending = tokio::spawn(async move {
        backend.write_all(&[1; 100]).await.unwrap();
        backend
    });
    let mut received = Vec::new();
    while received.len() < 100 {
        let frame = timeout(soon, receive(&mut client)).await.expect("a frame is not flushed").unwrap();
        received.extend(frame.1);
    }
    let mut backend = sending.await.unwrap();
    let sending = tokio::spawn(async move {
        client.write_all(&frame(BINARY, &[2; 100])).await.unwrap();
        client
    });
    let read = timeout(soon, backend.read_exact(&mut [0; 100])).await;
    read.expect("payload is not flushed").unwrap();
    drop(sending.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_decoded_after_a_violation() {
    let mut harness = Harness::new(settings());
    harness.client.write_all(&[0x02, 0x01, 0x00]).await.unwrap();
    harness.send(BINARY, b"later").await;
    assert_eq!(close_code(&harness.receive().await.1), Some(1002));
    harness.send(BINARY, b"much later").await;
    assert_eq!(harness.backend.read(&mut [0]).await.unwrap(), 0, "the backend receives nothing");
    drop(harness.backend);
    assert_eq!(harness.session.await.unwrap().bytes_in, 0);
}

#[tokio::test(start_paused = true)]
async fn registry_shows_what_waits_for_either_side() {
    let mut harness = Harness::with_pipes(settings(), 16, b"");
    let registry = Arc::clone(&harness.registry);
    let buffered = || registry.get(1).unwrap().buffered;
    // The pipe takes 16 of 2 + 14 + 2 + 10 bytes: all but the second frame.
    harness.backend.write_all(&[1; 14]).await.unwrap();
    sleep(secs(1)).await;
    assert_eq!(buffered(), 0);
    harness.backend.write_all(&[1; 10]).await.unwrap();
    sleep(secs(1)).await;
    assert_eq!(buffered(), 12);
    // A part of it has gone.
    harness.client.read_exact(&mut [0; 5]).await.unwrap();
    sleep(secs(1)).await;
    assert_eq!(buffered(), 7);
    harness.client.write_all(&frame(BINARY, &[2; 30])).await.unwrap();
    sleep(secs(1)).await;
    assert!(buffered() > 7, "{}", buffered());
}

#[tokio::test(start_paused = true)]
async fn end_of_the_lifetime_orders_the_end_of_a_session_that_is_closing() {
    let lifetime = Some(secs(100));
    let mut harness = Harness::new(RelaySettings { lifetime, close: secs(50), ping: None, ..settings() });
    let start = Instant::now();
    sleep(secs(90)).await;
    harness.backend.shutdown().await.unwrap();
    assert_eq!(close_code(&harness.receive().await.1), Some(1000));
    harness.send(BINARY, b"in time").await;
    assert_eq!(harness.backend_receives(7).await, b"in time");
    assert_eq!(harness.backend.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(start.elapsed().as_secs(), 100, "nothing is forwarded beyond the lifetime");
    drop(harness.backend);
    let end = harness.session.await.unwrap();
    assert_eq!((end.reason, end.bytes_in), (Reason::BackendClosed, 7));
}

#[tokio::test(start_paused = true)]
async fn backend_may_go_on_for_some_time_after_the_close_of_the_client() {
    let mut harness = Harness::new(settings());
    harness.send(CLOSE, b"\x03\xe8").await;
    assert_eq!(harness.backend.read(&mut [0]).await.unwrap(), 0, "the backend receives end-of-file");
    sleep(secs(1)).await;
    harness.backend.write_all(b"unread").await.expect("the backend is still read");
    sleep(secs(2)).await;
    assert!(harness.backend.write_all(b"unread").await.is_err(), "the backend is read beyond timeouts.close");
}

/// A pipe that shows whether it was shut down; a pipe that is dropped looks the same at its far end.
struct Watched {
    pipe: Pipe,
    is_shut_down: Arc<std::sync::atomic::AtomicBool>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_shut_down.store(true, std::sync::atomic::Ordering::Relaxed);
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

impl RelayStream for Watched {
    fn bytes_written(&self) -> u64 {
        self.pipe.bytes_written()
    }

    fn force_write(&mut self) {
        self.pipe.force_write();
    }
}

/// Whether a client that answers the Close with these bytes was shut down at the end, and after how many seconds it ended.
async fn shut_down_after(answer: Option<&[u8]>) -> (bool, u64) {
    let ((mut client, near_client), (mut backend, near_backend)) = (duplex(1024), duplex(1024));
    let is_shut_down = Arc::default();
    let watched = Watched { pipe: Pipe::new(near_client), is_shut_down: Arc::clone(&is_shut_down) };
    let session = tokio::spawn(async move {
        let entry = Arc::new(Registry::default()).open(session_info());
        relay(watched, Bytes::new(), Pipe::new(near_backend), &settings(), &entry).await
    });
    backend.shutdown().await.unwrap();
    let start = Instant::now();
    assert_eq!(close_code(&receive(&mut client).await.unwrap().1), Some(1000));
    if let Some(answer) = answer {
        client.write_all(answer).await.unwrap();
    }
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    let seconds = start.elapsed().as_secs();
    drop((client, backend));
    assert_eq!(session.await.unwrap().reason, Reason::BackendClosed);
    (is_shut_down.load(std::sync::atomic::Ordering::Relaxed), seconds)
}

#[tokio::test(start_paused = true)]
async fn client_is_shut_down_and_not_only_dropped() {
    assert_eq!(shut_down_after(Some(&frame(CLOSE, b"\x03\xe8"))).await, (true, 0), "it answers");
    assert_eq!(shut_down_after(Some(&[0xff, 0xff])).await, (true, 0), "it answers with a violation");
    assert_eq!(shut_down_after(None).await, (true, 2), "it does not answer");
}

#[tokio::test(start_paused = true)]
async fn close_of_the_client_while_data_waits_for_it_drops_nothing() {
    let mut harness = Harness::with_pipes(settings(), 16, b"");
    // The client leaves no space for the Close that follows this.
    harness.backend.write_all(&[1; 14]).await.unwrap();
    harness.backend.shutdown().await.unwrap();
    sleep(secs(1)).await;
    // Its own Close arrives before it has read anything.
    harness.send(CLOSE, b"\x03\xe8").await;
    sleep(secs(1)).await;
    assert_eq!(harness.receive().await, (BINARY, vec![1; 14]));
    assert_eq!(close_code(&harness.receive().await.1), Some(1000));
}

#[tokio::test(start_paused = true)]
async fn client_that_disconnects_while_its_session_closes_is_not_waited_for() {
    let mut harness = Harness::with_pipes(settings(), 16, b"");
    // The client leaves no space for the Close that follows this.
    harness.backend.write_all(&[1; 14]).await.unwrap();
    harness.backend.shutdown().await.unwrap();
    sleep(secs(1)).await;
    let start = Instant::now();
    harness.client.shutdown().await.unwrap();
    assert_eq!(harness.backend.read(&mut [0]).await.unwrap(), 0, "the backend receives end-of-file");
    let Harness { client, backend, session, .. } = harness;
    drop(backend);
    let end = timeout(secs(3600), session).await.expect("the session did not end within an hour").unwrap();
    assert_eq!((end.reason, start.elapsed().as_secs()), (Reason::BackendClosed, 0));
    drop(client);
}
