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

/// A pipe that counts what its other end took, as a socket's meter does.
struct Pipe {
    inner: DuplexStream,
    bytes_written: u64,
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
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(len)) = written {
            self.bytes_written += len as u64;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl RelayStream for Pipe {
    fn bytes_written(&self) -> u64 {
        self.bytes_written
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The defaults of a gateway.
fn settings() -> RelaySettings {
    RelaySettings {
        accept_text: true,
        send_text: false,
        close: secs(2),
        stall: Some(secs(30)),
        ping: Some(secs(30)),
        pong: Some(secs(20)),
        idle: None,
        lifetime: None,
    }
}

fn facts() -> SessionInfo<'static> {
    let peer = ([192, 0, 2, 7], 4711).into();
    SessionInfo { peer, route: "test", since: SystemTime::UNIX_EPOCH }
}

/// A session between two pipes, seen from their far ends.
struct World {
    client: DuplexStream,
    backend: DuplexStream,
    registry: Arc<Registry>,
    session: JoinHandle<SessionEnd>,
}

impl World {
    fn new(settings: RelaySettings) -> Self {
        Self::with_pipes(settings, 64 * 1024, b"")
    }

    fn with_pipes(settings: RelaySettings, size: usize, pipelined: &'static [u8]) -> Self {
        let ((client, near_client), (backend, near_backend)) = (duplex(size), duplex(size));
        let registry = Arc::new(Registry::default());
        let entry = registry.open(facts());
        let session = tokio::spawn(async move {
            let client = Pipe { inner: near_client, bytes_written: 0 };
            let backend = Pipe { inner: near_backend, bytes_written: 0 };
            relay(client, Bytes::from_static(pipelined), backend, &settings, &entry).await
        });
        Self { client, backend, registry, session }
    }

    async fn send(&mut self, first: u8, payload: &[u8]) {
        self.client.write_all(&frame(first, payload)).await.unwrap();
    }

    /// What the backend heard next, exactly this long.
    async fn backend_hears(&mut self, len: usize) -> Vec<u8> {
        let mut heard = vec![0; len];
        let read = timeout(secs(3600), self.backend.read_exact(&mut heard)).await;
        read.expect("the backend heard less than it should within an hour").unwrap();
        heard
    }

    async fn receive(&mut self) -> (u8, Vec<u8>) {
        timeout(secs(3600), receive(&mut self.client)).await.expect("no frame within an hour").unwrap()
    }

    async fn ended(self) -> SessionEnd {
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
async fn the_client_closes_and_everything_it_said_is_delivered() {
    let mut world = World::new(settings());
    world.send(BINARY, b"last words").await;
    world.send(CLOSE, b"\x0f\xa1bye").await;
    assert_eq!(world.backend_hears(10).await, b"last words");
    assert_eq!(world.backend.read(&mut [0]).await.unwrap(), 0, "the backend is told that no more comes");
    assert_eq!(world.receive().await, (CLOSE, b"\x0f\xa1".to_vec()), "the code is echoed");
    assert_eq!(world.client.read(&mut [0]).await.unwrap(), 0, "and the connection ends");
    drop((world.backend, world.client));
    let ended = world.session.await.unwrap();
    assert_eq!(
        ended,
        SessionEnd { reason: Reason::ClientClosed, close_code: Some(4001), bytes_in: 10, bytes_out: 0 }
    );
}

#[tokio::test(start_paused = true)]
async fn a_close_without_a_code_is_answered_without_one() {
    let mut world = World::new(settings());
    world.send(CLOSE, b"").await;
    assert_eq!(world.receive().await, (CLOSE, Vec::new()));
    assert_eq!(world.ended().await.close_code, None);
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_close_is_ignored() {
    let mut world = World::new(settings());
    let bytes = [frame(CLOSE, b"\x03\xe8"), frame(BINARY, b"ignored"), vec![0xff; 100]].concat();
    world.client.write_all(&bytes).await.unwrap();
    assert_eq!(world.receive().await.0, CLOSE);
    assert_eq!(world.backend.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(world.ended().await.bytes_in, 0);
}

#[tokio::test(start_paused = true)]
async fn the_backend_ends_and_everything_it_said_is_delivered() {
    let mut world = World::new(settings());
    world.backend.write_all(&[7; 100_000]).await.unwrap();
    world.backend.shutdown().await.unwrap();
    let mut heard = 0;
    let close = loop {
        match world.receive().await {
            (BINARY, payload) => heard += payload.len(),
            (CLOSE, payload) => break payload,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(heard, 100_000);
    assert_eq!(close_code(&close), Some(1000));
    // The backend ended its direction only: what the client still says reaches it.
    world.send(BINARY, b"thanks").await;
    world.send(CLOSE, &close).await;
    assert_eq!(world.backend_hears(6).await, b"thanks");
    assert_eq!(world.client.read(&mut [0]).await.unwrap(), 0);
    let World { client, session, .. } = world;
    drop(client);
    let ended = session.await.unwrap();
    assert_eq!((ended.reason, ended.bytes_out), (Reason::BackendClosed, 100_000));
}

#[tokio::test(start_paused = true)]
async fn a_close_that_is_never_answered_is_waited_for_no_longer_than_its_time() {
    let mut world = World::new(settings());
    world.backend.shutdown().await.unwrap();
    let start = Instant::now();
    assert_eq!(close_code(&world.receive().await.1), Some(1000));
    assert_eq!(world.client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(start.elapsed().as_secs(), 2);
    drop(world.backend);
    assert_eq!(world.session.await.unwrap().reason, Reason::BackendClosed);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_vanishes_ends_the_backend_after_what_it_said() {
    let World { mut client, mut backend, session, .. } = World::new(settings());
    client.write_all(&frame(BINARY, b"half a word")).await.unwrap();
    drop(client);
    let mut heard = Vec::new();
    backend.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"half a word");
    drop(backend);
    assert_eq!(session.await.unwrap().reason, Reason::ClientGone);
}

#[tokio::test(start_paused = true)]
async fn a_violation_is_answered_and_what_came_before_it_delivered() {
    let mut world = World::new(settings());
    let bytes = [frame(BINARY, b"good"), vec![0x02, 0x01, 0x00]].concat();
    world.client.write_all(&bytes).await.unwrap();
    assert_eq!(world.backend_hears(4).await, b"good");
    let (first, payload) = world.receive().await;
    assert_eq!((first, close_code(&payload)), (CLOSE, Some(1002)));
    assert_eq!(&payload[2..], b"frame is not masked");
    assert_eq!(world.ended().await.reason, Reason::ProtocolError);
}

#[tokio::test(start_paused = true)]
async fn text_is_checked_only_for_being_text() {
    let mut world = World::new(settings());
    world.send(0x01, b"\xe2\x82").await;
    world.send(PING, b"between").await;
    world.send(0x80, b"\xac").await;
    assert_eq!(world.backend_hears(3).await, "€".as_bytes());
    assert_eq!(world.receive().await, (PONG, b"between".to_vec()));
    world.send(TEXT, b"\xe2\x82").await;
    assert_eq!(close_code(&world.receive().await.1), Some(1007));
    assert_eq!(world.ended().await.reason, Reason::InvalidText);
}

#[tokio::test(start_paused = true)]
async fn text_is_refused_where_only_binary_is_received() {
    let mut world = World::new(RelaySettings { accept_text: false, ..settings() });
    world.send(BINARY, b"fine").await;
    world.send(TEXT, b"not").await;
    assert_eq!(world.backend_hears(4).await, b"fine");
    assert_eq!(close_code(&world.receive().await.1), Some(1003));
    assert_eq!(world.ended().await.reason, Reason::TextRefused);
}

#[tokio::test(start_paused = true)]
async fn text_is_sent_in_whole_code_points() {
    let mut world = World::new(RelaySettings { send_text: true, ..settings() });
    world.backend.write_all(b"a\xe2").await.unwrap();
    assert_eq!(world.receive().await, (TEXT, b"a".to_vec()));
    world.backend.write_all(b"\x82").await.unwrap();
    tokio::task::yield_now().await;
    world.backend.write_all(b"\xacb").await.unwrap();
    assert_eq!(world.receive().await, (TEXT, "€b".as_bytes().to_vec()));
    world.backend.write_all(b"\xff").await.unwrap();
    assert_eq!(close_code(&world.receive().await.1), Some(1011));
    assert_eq!(world.ended().await.reason, Reason::BackendFailed);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_is_stalled_and_little_is_held_for_it() {
    let World { client, mut backend, session, .. } = World::with_pipes(settings(), 1024, b"");
    let start = Instant::now();
    let mut written = 0;
    while let Ok(len) = timeout(secs(10), backend.write(&[1; 1024])).await {
        written += len.unwrap();
    }
    // One pipe full on either side, and what the direction may own.
    assert!(written <= scratch::SIZE + 2 * 1024, "{written} bytes were taken from the backend");
    assert_eq!(backend.read(&mut [0]).await.unwrap(), 0, "the backend is told that no more comes");
    assert_eq!(start.elapsed().as_secs(), 30);
    drop(backend);
    assert_eq!(session.await.unwrap().reason, Reason::ClientStalled);
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_is_not_stalled() {
    let mut world = World::with_pipes(settings(), 16, b"");
    world.backend.write_all(&[1; 12]).await.unwrap();
    world.backend.shutdown().await.unwrap();
    for _ in 0..14 {
        sleep(secs(20)).await;
        world.client.read_u8().await.unwrap();
    }
    assert_eq!(world.receive().await.0, CLOSE, "14 bytes in 280 s, and then the end");
    assert_eq!(world.ended().await.reason, Reason::BackendClosed);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_never_reads_is_stalled_while_the_client_is_not_blamed() {
    let World { mut client, backend, session, .. } = World::with_pipes(settings(), 1024, b"");
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
    let ended = session.await.unwrap();
    assert_eq!(ended.reason, Reason::BackendStalled);
    drop(backend);
    let (writer, _) = writing.await.unwrap();
    client = reader.unsplit(writer);
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn both_directions_stalled_at_once_go_on_when_they_can() {
    let World { client, backend, session, .. } = World::with_pipes(settings(), 512, b"");
    let payload: Vec<u8> = (0..300_000_u32).map(|byte| byte as u8).collect();
    let up = frame(BINARY, &payload);
    let down = payload.clone();
    let (mut client_reader, mut client_writer) = tokio::io::split(client);
    let (mut backend_reader, mut backend_writer) = tokio::io::split(backend);
    let writing_up = tokio::spawn(async move { client_writer.write_all(&up).await.map(|()| client_writer) });
    let writing_down =
        tokio::spawn(async move { backend_writer.write_all(&down).await.map(|()| backend_writer) });
    // Nobody reads for a while: both directions fill up.
    sleep(secs(20)).await;
    let mut heard_up = vec![0; payload.len()];
    backend_reader.read_exact(&mut heard_up).await.unwrap();
    let mut heard_down = Vec::new();
    while heard_down.len() < payload.len() {
        heard_down.extend(receive(&mut client_reader).await.unwrap().1);
    }
    assert!(heard_up == payload && heard_down == payload, "bytes were changed");
    let mut client = client_reader.unsplit(writing_up.await.unwrap().unwrap());
    client.write_all(&frame(CLOSE, b"")).await.unwrap();
    drop(backend_reader.unsplit(writing_down.await.unwrap().unwrap()));
    assert_eq!(receive(&mut client).await.unwrap().0, CLOSE);
    drop(client);
    assert_eq!(session.await.unwrap().reason, Reason::ClientClosed);
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_asked_and_one_that_answers_stays() {
    let mut world = World::new(settings());
    let start = Instant::now();
    for round in 1..=3 {
        assert_eq!(world.receive().await.0, PING);
        assert_eq!(start.elapsed().as_secs(), 30 * round);
        world.send(PONG, b"").await;
    }
    assert_eq!(world.receive().await.0, PING);
    assert_eq!(world.client.read(&mut [0]).await.unwrap(), 0, "a client that is gone is not waited for");
    assert_eq!(start.elapsed().as_secs(), 140);
    drop(world.backend);
    assert_eq!(world.session.await.unwrap().reason, Reason::PongTimeout);
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_while_the_client_reads_and_collapsed_to_the_newest_otherwise() {
    let mut world = World::with_pipes(settings(), 64, b"");
    for round in 0..100_u8 {
        world.send(PING, &[round]).await;
        assert_eq!(world.receive().await, (PONG, vec![round]));
    }
    // 1,000 pings, none of whose answers are read: the pipe holds 21 of them, the session two more.
    let (mut reader, mut writer) = tokio::io::split(world.client);
    for round in 0..1000_u32 {
        writer.write_all(&frame(PING, &round.to_be_bytes())).await.unwrap();
    }
    writer.write_all(&frame(BINARY, b"!")).await.unwrap();
    world.backend.read_u8().await.unwrap();
    let mut pongs = Vec::new();
    while pongs.last() != Some(&999) {
        let (first, payload) = receive(&mut reader).await.unwrap();
        assert_eq!(first, PONG);
        pongs.push(u32::from_be_bytes(payload.try_into().unwrap()));
    }
    assert!(pongs.len() < 30 && pongs.is_sorted(), "{pongs:?}");
}

#[tokio::test(start_paused = true)]
async fn idle_and_old_sessions_end_well() {
    let limits = [
        (RelaySettings { idle: Some(secs(100)), ..settings() }, Reason::IdleTimeout, 110),
        (RelaySettings { lifetime: Some(secs(100)), ..settings() }, Reason::LifetimeReached, 100),
    ];
    for (settings, reason, at) in limits {
        let mut world = World::new(RelaySettings { ping: None, ..settings });
        let start = Instant::now();
        sleep(secs(10)).await;
        world.send(BINARY, b"x").await;
        let (first, payload) = world.receive().await;
        assert_eq!(
            (first, close_code(&payload), start.elapsed().as_secs()),
            (CLOSE, Some(1000), at),
            "{reason}"
        );
        world.send(CLOSE, &payload).await;
        assert_eq!(world.ended().await.reason, reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_left_unfinished_is_a_stall() {
    let mut world = World::new(RelaySettings { ping: None, ..settings() });
    let start = Instant::now();
    for byte in [BINARY, 0xff, 0, 0] {
        world.client.write_u8(byte).await.unwrap();
        sleep(secs(9)).await;
    }
    assert_eq!(world.client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(start.elapsed().as_secs(), 36, "the stall came at 30 s");
    drop(world.backend);
    assert_eq!(world.session.await.unwrap().reason, Reason::ClientStalled);
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_when_told_to() {
    let mut world = World::new(settings());
    tokio::task::yield_now().await;
    assert!(world.registry.end(1, Reason::Draining));
    let (first, payload) = world.receive().await;
    assert_eq!((first, close_code(&payload)), (CLOSE, Some(1001)));
    // What the client said before it heard of the end is delivered.
    world.send(BINARY, b"unaware").await;
    world.send(CLOSE, &payload).await;
    assert_eq!(world.backend_hears(7).await, b"unaware");
    assert_eq!(world.ended().await.reason, Reason::Draining);
}

#[tokio::test(start_paused = true)]
async fn an_operator_ends_it_with_words_of_his_own() {
    let mut world = World::new(settings());
    assert!(world.registry.end_with_message(1, Reason::Killed, Some("back to work")));
    let (first, payload) = world.receive().await;
    assert_eq!((first, close_code(&payload), &payload[2..]), (CLOSE, Some(1008), &b"back to work"[..]));
    world.send(CLOSE, &payload).await;
    assert_eq!(world.ended().await.reason, Reason::Killed);
}

#[tokio::test(start_paused = true)]
async fn the_registry_knows_how_far_a_session_has_got() {
    let mut world = World::with_pipes(settings(), 1024, b"");
    world.send(BINARY, b"hello").await;
    world.backend_hears(5).await;
    world.backend.write_all(b"hi").await.unwrap();
    world.receive().await;
    let registry = Arc::clone(&world.registry);
    let seen = || registry.get(1).unwrap();
    assert_eq!(seen().payload, Payload { bytes_in: 5, bytes_out: 2 });
    assert_eq!((seen().buffered, seen().round_trip), (0, None));
    // A backend that takes nothing leaves a part of the frame here: a pipe holds 1024 of its bytes.
    world.send(BINARY, &[7; 1500]).await;
    sleep(secs(1)).await;
    assert_eq!((seen().payload.bytes_in, seen().buffered), (1505, 476));
    world.backend_hears(1500).await;
    sleep(secs(1)).await;
    assert_eq!(seen().buffered, 0);
    // Silent for half a minute, it is asked, and answers after 70 ms.
    assert_eq!(world.receive().await.0, PING);
    world.send(PONG, b"").await;
    sleep(secs(1)).await;
    assert_eq!(seen().round_trip, Some(Duration::from_micros(1)), "it answered at once");
    assert_eq!(world.receive().await.0, PING);
    sleep(Duration::from_millis(70)).await;
    world.send(PONG, b"").await;
    sleep(secs(1)).await;
    assert_eq!(seen().round_trip, Some(Duration::from_millis(70)));
    // A Pong that nobody asked for says nothing.
    world.send(PONG, b"").await;
    sleep(secs(1)).await;
    assert_eq!(seen().round_trip, Some(Duration::from_millis(70)));
    world.session.abort();
    let _ = world.session.await;
    assert_eq!(registry.payload()["test"], Payload { bytes_in: 1505, bytes_out: 2 });
}

#[tokio::test(start_paused = true)]
async fn a_session_that_never_had_a_backend_says_why() {
    let (mut client, near) = duplex(1024);
    let session = Arc::new(Registry::default()).open(facts());
    let refused = tokio::spawn(async move {
        let why = (Reason::BackendRefused, "the desktop is off");
        refuse(Pipe { inner: near, bytes_written: 0 }, Bytes::new(), why, &settings(), &session).await
    });
    let (first, payload) = receive(&mut client).await.unwrap();
    assert_eq!((first, &payload[2..]), (CLOSE, &b"the desktop is off"[..]));
    client.write_all(&frame(CLOSE, &payload)).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    drop(client);
    let ended = refused.await.unwrap();
    assert_eq!((ended.reason, ended.close_code), (Reason::BackendRefused, Some(1011)));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_takes_nothing_more_may_finish_what_it_says() {
    let mut world = World::new(settings());
    world.backend.write_all(b"goodbye").await.unwrap();
    drop(world.backend);
    world.client.write_all(&frame(BINARY, &[0; 1000])).await.unwrap();
    assert_eq!(receive(&mut world.client).await.unwrap(), (BINARY, b"goodbye".to_vec()));
    assert_eq!(close_code(&receive(&mut world.client).await.unwrap().1), Some(1000));
    drop(world.client);
    assert_eq!(world.session.await.unwrap().reason, Reason::BackendClosed);
}

#[test]
fn a_session_is_small() {
    let (settings, session) = (settings(), Arc::new(Registry::default()).open(facts()));
    let pipe = || Pipe { inner: duplex(1).0, bytes_written: 0 };
    let links = 2 * size_of::<Pipe>();
    let size = size_of_val(&relay(pipe(), Bytes::new(), pipe(), &settings, &session));
    assert!(size <= links + 768, "{size} bytes, {links} of them for the links");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the sizes of frames, pieces and pipes, with pings in between: both ways exact.
    #[test]
    fn bytes_are_exact_both_ways(
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
            let World { client, backend, session, .. } = World::with_pipes(settings(), pipe, b"");
            let (mut reader, mut writer) = tokio::io::split(client);
            let (mut backend_reader, mut backend_writer) = tokio::io::split(backend);
            let (said, cuts) = (answer.clone(), pieces.clone());
            let backend_says = tokio::spawn(async move {
                for piece in said.chunks(cuts[0]) {
                    backend_writer.write_all(piece).await.unwrap();
                }
                backend_writer
            });
            let backend_hears = tokio::spawn(async move {
                let mut heard = Vec::new();
                backend_reader.read_to_end(&mut heard).await.unwrap();
                (heard, backend_reader)
            });
            let whole = answer.len();
            let client_hears = tokio::spawn(async move {
                let (mut heard, mut pongs) = (Vec::new(), 0);
                while heard.len() < whole {
                    match receive(&mut reader).await.unwrap() {
                        (BINARY, payload) => heard.extend(payload),
                        (PONG, payload) => { assert_eq!(payload, b"?"); pongs += 1 }
                        other => panic!("{other:?}"),
                    }
                }
                (heard, pongs, reader)
            });
            // The answer is whole before the Close, which ends it.
            let close = bytes.split_off(bytes.len() - 8);
            let mut rest = &bytes[..];
            for piece in pieces.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, after) = rest.split_at((*piece).min(rest.len()));
                writer.write_all(piece).await.unwrap();
                rest = after;
            }
            let (heard, mut pongs, mut reader) = client_hears.await.unwrap();
            writer.write_all(&close).await.unwrap();
            loop {
                match receive(&mut reader).await.unwrap() {
                    (PONG, _) => pongs += 1,
                    (CLOSE, payload) => { assert_eq!(payload, b"\x03\xe8"); break }
                    other => panic!("{other:?}"),
                }
            }
            let (heard_up, backend_reader) = backend_hears.await.unwrap();
            assert!(heard == answer, "the client heard something else");
            assert!(heard_up == expected, "the backend heard something else");
            assert!(pongs <= pings, "{pongs} pongs to {pings} pings");
            drop(backend_reader.unsplit(backend_says.await.unwrap()));
            drop(reader.unsplit(writer));
            let ended = session.await.unwrap();
            assert_eq!(ended.reason, Reason::ClientClosed);
            assert_eq!((ended.bytes_in, ended.bytes_out), (expected.len() as u64, answer.len() as u64));
        });
    }
}
