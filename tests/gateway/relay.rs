//! The relay: both directions carry every byte, in order.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Message};

use crate::support::{
    BINARY, Backend, CONTINUATION, Check, ClientStream, Gateway, ListenerIndex, PING, PLAIN, PONG, Session,
    Setup, SmallWrites, TEXT, TLS, assert_took, close_body, eventually, frame, pattern, read_response,
    within,
};

/// A session of an independent WebSocket client.
async fn tungstenite(gateway: &Gateway, listener: ListenerIndex) -> WebSocketStream<ClientStream> {
    let scheme = if listener == TLS { ("wss", "https") } else { ("ws", "http") };
    let host = gateway.host(listener);
    let uri = format!("{}://{host}/echo", scheme.0).parse().expect("an address");
    let request = ClientRequestBuilder::new(uri).with_header("Origin", format!("{}://{host}", scheme.1));
    let connection = gateway.connect(listener).await;
    let connecting = tokio_tungstenite::client_async(request, connection);
    within("an upgrade", connecting).await.expect("an upgrade").0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_every_size_are_echoed_to_an_independent_client() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    for listener in [TLS, PLAIN] {
        let mut client = tungstenite(&gateway, listener).await;
        let peer = client.get_ref().peer();
        let sizes = [0, 1, 2, 125, 126, 127, 1000, 65_535, 65_536, 65_537, 1 << 20, 5 << 20];
        let mut sent = 0;
        for size in sizes {
            let payload = pattern(size as u64, size);
            sent += size as u64;
            let (mut to, mut from) = client.split();
            let writing = async {
                to.send(Message::Ping(b"before".to_vec().into())).await.unwrap();
                to.send(Message::Binary(payload.clone().into())).await.unwrap();
            };
            let reading = async {
                let (mut data, mut pongs) = (Vec::new(), 0);
                while data.len() < size || pongs == 0 {
                    match from.next().await.expect("an open session").expect("a message") {
                        Message::Binary(bytes) => data.extend_from_slice(&bytes),
                        Message::Pong(bytes) => {
                            assert_eq!(bytes, &b"before"[..]);
                            pongs += 1;
                        }
                        other => panic!("{other:?}"),
                    }
                }
                data
            };
            let ((), data) = within("an echo", async { tokio::join!(writing, reading) }).await;
            assert!(data == payload, "{size} bytes came back as {} others", data.len());
            client = to.reunite(from).expect("two halves of one");
        }
        client.close(Some(CloseFrame { code: CloseCode::Normal, reason: "done".into() })).await.unwrap();
        let closing = within("the answer to a Close", client.next()).await;
        assert!(
            matches!(&closing, Some(Ok(Message::Close(Some(frame)))) if frame.code == CloseCode::Normal),
            "{closing:?}"
        );
        let end = gateway.ended(peer, "client_closed", Some(1000)).await;
        assert_eq!((end.number("bytes_in"), end.number("bytes_out")), (Some(sent), Some(sent)));
        drop(client);
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_session_over_ipv6_works() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).address(TLS, "[::1]:0").address(PLAIN, "[::1]:0").start().await;
    for listener in [TLS, PLAIN] {
        let mut session = gateway.session_by(listener, "/echo").await;
        session.echo(b"hello").await;
        session.close(1000).await;
        assert!(session.peer.is_ipv6());
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

/// One message: how it is split into frames, and the Pings between them.
#[derive(Debug, Clone)]
struct SentMessage {
    fragments: Vec<usize>,
    pings: Vec<Option<usize>>,
    text: bool,
}

fn sent_message() -> impl Strategy<Value = SentMessage> {
    let size = prop_oneof![
        3 => 0..40_usize,
        2 => prop::sample::select(vec![0, 1, 124, 125, 126, 127, 128]),
        1 => 200..3000_usize,
    ];
    (vec(size, 1..5), vec(prop::option::weighted(0.3, 0..=125_usize), 5), any::<bool>())
        .prop_map(|(fragments, pings, text)| SentMessage { fragments, pings, text })
}

/// The messages as frames, the number of bytes they carry, and the Pings among them.
fn encode(messages: &[SentMessage]) -> (Vec<u8>, usize, Vec<Vec<u8>>) {
    let (mut bytes, mut at, mut pings) = (Vec::new(), 0, Vec::new());
    for message in messages {
        for (index, &size) in message.fragments.iter().enumerate() {
            if let Some(size) = message.pings[index] {
                let payload = pattern(at as u64 + 13, size);
                bytes.extend(frame(true, PING, &payload));
                pings.push(payload);
            }
            // Text must be UTF-8, so it carries no data here: the bytes are in the binary messages.
            let payload = if message.text { Vec::new() } else { pattern(at as u64, size) };
            at += payload.len();
            let opcode = match (index, message.text) {
                (0, true) => TEXT,
                (0, false) => BINARY,
                _ => CONTINUATION,
            };
            bytes.extend(frame(index + 1 == message.fragments.len(), opcode, &payload));
        }
    }
    (bytes, at, pings)
}

/// An echo server that reads and writes a few bytes at a time.
async fn echo_in_chunks(mut socket: TcpStream, sizes: Vec<usize>) {
    let mut buffer = [0; 4096];
    let mut turn = 0;
    loop {
        let size = sizes[turn % sizes.len()];
        turn += 1;
        let Ok(length @ 1..) = socket.read(&mut buffer[..size]).await else { return };
        if socket.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

fn chunks() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(vec![1]), vec(1..64_usize, 1..6), vec(1..4096_usize, 1..6)]
}

#[test]
fn every_byte_arrives_however_both_ends_split_them() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (backend, gateway) = runtime.block_on(async {
        let backend = Backend::scripted().await;
        let gateway = Setup::new().route("echo", &backend).start().await;
        (backend, gateway)
    });
    let mut runner = TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    let strategy =
        (vec(sent_message(), 1..6), chunks(), chunks(), any::<bool>(), any::<prop::sample::Index>());
    let outcome = runner.run(&strategy, |(messages, writes, reads, secure, pipelined)| {
        let listener = if secure { TLS } else { PLAIN };
        runtime.block_on(async {
            let (bytes, length, pings) = encode(&messages);
            let cut = pipelined.index(bytes.len() + 1);
            let connection = gateway.connect(listener).await;
            let peer = connection.peer();
            let mut connection = SmallWrites::new(connection, writes);
            let head = gateway.upgrade(listener, "/echo").then(&bytes[..cut]).bytes();
            let asking = async {
                connection.write_all(&head).await.expect("the head is sent");
                connection.flush().await.expect("the head is sent");
                read_response(&mut connection, true).await
            };
            let (served, response) = tokio::join!(backend.accept(), asking);
            let served = tokio::spawn(echo_in_chunks(served, reads));
            let seen = response.status;
            if seen != 101 {
                return Err(TestCaseError::fail(format!("{response:?}")));
            }
            let Session { mut frames, mut writer, .. } = Session::new(connection, peer, &response.rest);
            let writing = async {
                writer.write_all(&bytes[cut..]).await.expect("the frames are sent");
                writer.write_all(&frame(true, PING, b"the last")).await.expect("the frames are sent");
                writer.flush().await.expect("the frames are sent");
                writer
            };
            let reading = async {
                let (mut data, mut pongs) = (Vec::new(), Vec::new());
                while data.len() < length || pongs.last().is_none_or(|pong| pong != b"the last") {
                    let frame = frames.next().await.expect("data or a pong");
                    match frame.opcode {
                        PONG => pongs.push(frame.payload),
                        BINARY | CONTINUATION => data.extend(frame.payload),
                        _ => panic!("{frame:?}"),
                    }
                }
                (data, pongs)
            };
            let (mut writer, (data, pongs)) =
                within("the echo", async { tokio::join!(writing, reading) }).await;
            prop_assert!(
                data == pattern(0, length),
                "{} bytes came back, not the {} sent",
                data.len(),
                length
            );
            // Pings that arrive together may be answered by one Pong, but never out of order.
            let mut asked = pings
                .iter()
                .chain(std::iter::once(&b"the last".to_vec()))
                .cloned()
                .collect::<Vec<_>>()
                .into_iter();
            for pong in pongs {
                prop_assert!(asked.any(|ping| ping == pong), "a pong that answers nothing: {pong:?}");
            }
            writer.write_all(&frame(true, 8, &close_body(1000, b""))).await.expect("a Close is sent");
            writer.flush().await.expect("a Close is sent");
            prop_assert_eq!(frames.until_close().await.1, Some(1000));
            writer.shutdown().await.expect("the shutdown");
            let end = gateway.access_log_line(peer).await;
            prop_assert_eq!(end.reason(), "client_closed");
            prop_assert_eq!(end.number("bytes_in"), Some(length as u64));
            prop_assert_eq!(end.number("bytes_out"), Some(length as u64));
            served.await.expect("the backend");
            Ok(())
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    runtime.block_on(gateway.finish());
    drop(backend);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_data_arrives_at_a_backend_that_reads_one_byte_at_a_time() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let length = 1 << 20;
    let mut session = gateway.session("/echo").await;
    let mut served = backend.accept().await;
    let writing = async {
        let payload = pattern(0, length);
        for (index, part) in payload.chunks(300_000).enumerate() {
            let opcode = if index == 0 { BINARY } else { CONTINUATION };
            session.send(&frame((index + 1) * 300_000 >= length, opcode, part)).await;
        }
    };
    let reading = async {
        let (mut received, mut byte) = (Vec::new(), [0]);
        while received.len() < length {
            assert_eq!(served.read(&mut byte).await.unwrap(), 1, "after {} bytes", received.len());
            received.push(byte[0]);
        }
        assert!(received == pattern(0, length), "not what was sent");
    };
    within("every byte", async { tokio::join!(writing, reading) }).await;
    session.close(1000).await;
    drop((session, served));
    gateway.finish().await;
}

#[tokio::test]
async fn a_banner_and_a_heartbeat_arrive_without_delay() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let mut session = gateway.session("/echo").await;
        let mut served = backend.accept().await;
        let start = Instant::now();
        served.write_all(b"RFB 003.008\n").await.unwrap();
        assert_eq!(session.frames.payload(12).await, b"RFB 003.008\n");
        fastest = fastest.min(start.elapsed());
        session.close(1000).await;
    }
    assert!(fastest < Duration::from_millis(10), "the fastest of 20 banners took {fastest:?}");

    let mut session = gateway.session("/echo").await;
    let mut served = backend.accept().await;
    let mut took = Vec::new();
    let mut byte = [0];
    for beat in 0..50_u8 {
        let start = Instant::now();
        served.write_all(&[beat]).await.unwrap();
        assert_eq!(session.frames.payload(1).await, [beat]);
        session.send(&frame(true, BINARY, &[beat])).await;
        within("the beat's echo", served.read_exact(&mut byte)).await.unwrap();
        assert_eq!(byte, [beat]);
        took.push(start.elapsed());
    }
    took.sort();
    assert!(took[25] < Duration::from_millis(10), "half of the beats took longer than {:?}", took[25]);
    session.close(1000).await;
    drop((session, served));
    gateway.finish().await;
}

#[tokio::test]
async fn a_banner_sent_before_the_101_is_not_lost() {
    // The backend sends data, and even closes, before the gateway has answered the client.
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    for _ in 0..20 {
        let mut connection = gateway.connect(TLS).await;
        let peer = connection.peer();
        connection.write_all(&gateway.upgrade(TLS, "/echo").bytes()).await.unwrap();
        connection.flush().await.unwrap();
        let mut served = backend.accept().await;
        served.write_all(b"220 welcome, and goodbye\r\n").await.unwrap();
        drop(served);
        let response = read_response(&mut connection, true).await;
        assert_eq!(response.status, 101);
        let mut session = Session::new(connection, peer, &response.rest);
        let (data, code, _) = session.closed().await;
        assert_eq!((data.as_slice(), code), (&b"220 welcome, and goodbye\r\n"[..], Some(1000)));
        gateway.ended(peer, "backend_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_a_backend_is_delivered_before_the_close() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let length = 16 << 20;
    for listener in [TLS, PLAIN] {
        let mut session = gateway.session_by(listener, "/echo").await;
        let mut served = backend.accept().await;
        let speaking = async {
            served.write_all(&pattern(0, length)).await.unwrap();
            drop(served);
        };
        let hearing = async {
            let mut check = Check::default();
            session.frames.pattern(&mut check, length as u64).await;
            let (data, code, _) = session.closed().await;
            assert_eq!((data.len(), code), (0, Some(1000)));
        };
        within("16 MiB", async { tokio::join!(speaking, hearing) }).await;
        let end = gateway.ended(session.peer, "backend_closed", Some(1000)).await;
        assert_eq!(end.number("bytes_out"), Some(length as u64));
    }
    gateway.finish().await;
}

#[tokio::test]
async fn data_from_the_client_reaches_a_half_closed_backend() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let mut session = gateway.session("/echo").await;
    let mut served = backend.accept().await;
    served.write_all(b"goodbye").await.unwrap();
    served.shutdown().await.unwrap();
    let (data, code, _) = session.frames.until_close().await;
    assert_eq!((data.as_slice(), code), (&b"goodbye"[..], Some(1000)));
    // What the client sends before it receives the Close.
    session.send(&frame(true, BINARY, b"one last thing")).await;
    session.send(&frame(true, 8, &close_body(1000, b""))).await;
    let mut received = Vec::new();
    within("the backend's end", served.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received, b"one last thing");
    session.end().await;
    gateway.ended(session.peer, "backend_closed", Some(1000)).await;
    drop((session, served));
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_before_a_clients_close_reaches_a_slow_backend() {
    let backend = Backend::scripted_with_small_buffers().await;
    let gateway = Setup::new().route("echo", &backend).timeouts("close = \"20s\"").start().await;
    let length = 4 << 20;
    let mut session = gateway.session("/echo").await;
    let mut served = backend.accept().await;
    let speaking = async {
        session.send(&frame(true, BINARY, &pattern(0, length))).await;
        session.close(1000).await;
    };
    let hearing = async {
        let mut check = Check::default();
        let mut buffer = vec![0; 10_000];
        loop {
            match served.read(&mut buffer).await.unwrap() {
                0 => break,
                received => check.feed(&buffer[..received]),
            }
        }
        assert_eq!(check.at, length as u64);
        // The backend received a FIN, not a reset: it may still send, without an error.
        for _ in 0..64 {
            served.write_all(&[b'.'; 16 * 1024]).await.expect("the gateway reads on");
        }
        drop(served);
    };
    within("4 MiB", async { tokio::join!(speaking, hearing) }).await;
    let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
    assert_eq!(end.number("bytes_in"), Some(length as u64));
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_backend_that_keeps_sending_after_the_client_closed_is_drained_for_a_limited_time() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).timeouts("close = \"700ms\"").start().await;
    let mut session = gateway.session("/echo").await;
    let (mut received, mut say) = backend.accept().await.into_split();
    let talking = tokio::spawn(async move { while say.write_all(&[b'.'; 1000]).await.is_ok() {} });
    session.frames.data().await;
    let start = Instant::now();
    session.send(&frame(true, 8, &close_body(1000, b"enough"))).await;
    assert_eq!(session.frames.until_close().await.1, Some(1000));
    let mut rest = Vec::new();
    within("the backend's end", received.read_to_end(&mut rest)).await.ok();
    within("the talking to end", talking).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    drop((session, received));
    gateway.finish().await;
}

#[tokio::test]
async fn a_backend_error_closes_the_session_with_1011() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let mut session = gateway.session("/echo").await;
    let mut served = backend.accept().await;
    served.write_all(b"hello").await.unwrap();
    assert_eq!(session.frames.payload(5).await, b"hello");
    served.set_zero_linger().unwrap();
    drop(served);
    let (_, code, reason) = session.closed().await;
    assert_eq!(code, Some(1011));
    assert!(!reason.is_empty(), "the reason for the page is empty");
    gateway.ended(session.peer, "backend_failed", Some(1011)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_client_failure_closes_the_backend_within_a_second() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    for listener in [TLS, PLAIN] {
        for leaving in ["reset", "fin"] {
            let mut session = gateway.session_by(listener, "/echo").await;
            let mut served = backend.accept().await;
            session.send(&frame(true, BINARY, b"hello")).await;
            let mut received = [0; 5];
            within("the hello", served.read_exact(&mut received)).await.unwrap();
            let peer = session.peer;
            let connection = session.into_stream();
            let start = Instant::now();
            if leaving == "reset" {
                connection.reset()
            } else {
                drop(connection)
            }
            let mut rest = Vec::new();
            within("the backend's end", served.read_to_end(&mut rest)).await.ok();
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
            assert_eq!(rest, b"");
            drop(served);
            gateway.ended(peer, "client_gone", None).await;
        }
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_killed_backend_ends_only_its_own_sessions() {
    let killable = Backend::scripted().await;
    let other = Backend::echo().await;
    let gateway = Setup::new().route("mortal", &killable).route("echo", &other).start().await;
    let (mut dying, mut served, mut survivors) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..150 {
        dying.push(gateway.session_by(number % 2, "/mortal").await);
        served.push(killable.accept().await);
        if number % 10 == 0 {
            survivors.push(gateway.session("/echo").await);
        }
    }
    // What the kernel does for a killed process: it closes all its sockets at once.
    drop(served);
    for mut session in dying {
        assert_eq!(session.closed().await.1, Some(1000));
        gateway.ended(session.peer, "backend_closed", Some(1000)).await;
    }
    for mut session in survivors {
        session.echo(b"still here").await;
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn an_idle_client_is_pinged_and_closed_without_a_pong() {
    let backend = Backend::scripted().await;
    let timeouts = "ping = \"400ms\"\npong = \"600ms\"";
    let gateway = Setup::new().route("echo", &backend).timeouts(timeouts).start().await;
    let mut session = gateway.session("/echo").await;
    let mut served = backend.accept().await;
    // It answers three times, and then stops.
    for _ in 0..3 {
        let ping = session.frames.next().await.expect("a ping");
        assert_eq!(ping.opcode, PING);
        session.send(&frame(true, PONG, &ping.payload)).await;
    }
    let start = Instant::now();
    assert_eq!(session.frames.next().await.expect("a ping").opcode, PING);
    while let Some(frame) = session.frames.next().await {
        assert_eq!(frame.opcode, PING, "a Close for a client that does not answer: {frame:?}");
    }
    assert_took(start, Duration::from_millis(1_000));
    let mut rest = Vec::new();
    within("the backend's end", served.read_to_end(&mut rest)).await.ok();
    gateway.ended(session.peer, "pong_timeout", None).await;
    drop((session, served));
    gateway.finish().await;
}

#[tokio::test]
async fn the_idle_timeout_closes_a_session() {
    let backend = Backend::echo().await;
    let timeouts = "idle = \"900ms\"\nping = \"200ms\"";
    let gateway = Setup::echo(&backend).timeouts(timeouts).start().await;
    // Before the first handshake: the idle clock starts in it, and the second one may take long.
    let start = Instant::now();
    let mut session = gateway.session("/echo").await;
    let mut talking = gateway.session("/echo").await;
    let idle = async {
        loop {
            // Pings and Pongs are no payload.
            let frame = session.frames.next().await.expect("a ping or a Close");
            if frame.opcode == PING {
                session.send(&crate::support::frame(true, PONG, &frame.payload)).await;
                continue;
            }
            assert_eq!(frame.close().0, Some(1000));
            break start.elapsed();
        }
    };
    let busy = async {
        let mut tick = tokio::time::interval(Duration::from_millis(150));
        for _ in 0..12 {
            tick.tick().await;
            talking.echo(b"not idle").await;
        }
        talking.close(1000).await;
    };
    let (took, ()) = tokio::join!(idle, busy);
    assert!((Duration::from_millis(850)..Duration::from_millis(2_400)).contains(&took), "{took:?}");
    gateway.ended(session.peer, "idle_timeout", Some(1000)).await;
    gateway.ended(talking.peer, "client_closed", Some(1000)).await;
    drop((session, talking));
    gateway.finish().await;
}

#[tokio::test]
async fn max_lifetime_closes_even_a_busy_session() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).timeouts("lifetime = \"900ms\"").start().await;
    let mut session = gateway.session("/echo").await;
    let start = Instant::now();
    let Session { frames, writer, .. } = &mut session;
    let talking = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            if writer.write_all(&frame(true, BINARY, b"busy")).await.is_err() || writer.flush().await.is_err()
            {
                std::future::pending::<()>().await;
            }
        }
    };
    let (data, code, _) = tokio::select! {
        closed = frames.until_close() => closed,
        () = talking => unreachable!("it talks for ever"),
    };
    assert_took(start, Duration::from_millis(900));
    assert_eq!(code, Some(1000));
    assert!(!data.is_empty() && data.len() % 4 == 0, "{} bytes", data.len());
    gateway.ended(session.peer, "lifetime_reached", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn sessions_end_in_any_order_and_all_are_logged() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let mut sessions = Vec::new();
    for number in 0..60 {
        sessions.push(gateway.session_by(number % 2, "/echo").await);
    }
    for (number, mut session) in sessions.into_iter().enumerate() {
        let peer = session.peer;
        match number % 3 {
            0 => {
                session.close(4000).await;
                gateway.ended(peer, "client_closed", Some(4000)).await;
            }
            1 => {
                session.into_stream().reset();
                gateway.ended(peer, "client_gone", None).await;
            }
            _ => {
                session.send(&[0xff; 20]).await;
                assert_eq!(session.closed().await.1, Some(1002));
                gateway.ended(peer, "protocol_error", Some(1002)).await;
            }
        }
    }
    eventually("the backend's session ends", Duration::from_secs(1), || match backend.open() {
        0 => Ok(()),
        open => Err(format!("{open} sessions are open")),
    })
    .await;
    gateway.finish().await;
}
