//! The framing rules, and what happens to clients that break them (RFC 6455 §5, §7.4).

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    BINARY, Backend, CLOSE, CONTINUATION, End, MASK, PING, PLAIN, PONG, Setup, TEXT, TLS, assert_took,
    close_body, eventually, frame, header, masked, pattern, within,
};

#[tokio::test]
async fn an_invalid_frame_closes_the_session_with_1002() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let long = |first: u8, second: u8, length: &[u8]| [&[first, second], length, &MASK, &[0; 200]].concat();
    let mut broken: Vec<(String, Vec<u8>)> = Vec::new();
    let mut case = |name: &str, bytes: Vec<u8>| broken.push((name.to_owned(), bytes));
    case("unmasked data", [&[0x82, 5][..], b"hello"].concat());
    case("unmasked and empty", vec![0x82, 0]);
    case("unmasked ping", vec![0x89, 0]);
    case("unmasked Close", vec![0x88, 0]);
    for bit in [0x40, 0x20, 0x10] {
        case(
            &format!("reserved bit {bit:#x} on data"),
            [&[0x82 | bit, 0x80 | 5], &MASK[..], &[0; 5]].concat(),
        );
        case(&format!("reserved bit {bit:#x} on a ping"), [&[0x89 | bit, 0x80], &MASK[..]].concat());
        let first = frame(false, BINARY, b"x");
        case(
            &format!("reserved bit {bit:#x} on a continuation"),
            [&first[..], &[0x80 | bit, 0x80], &MASK].concat(),
        );
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        case(&format!("opcode {opcode}"), frame(true, opcode, b"hello"));
    }
    for opcode in [CLOSE, PING, PONG] {
        case(&format!("control frame {opcode} of 126 bytes"), frame(true, opcode, &[b'x'; 126]));
        case(&format!("control frame {opcode} of 70,000 bytes"), header(0x80 | opcode, 70_000));
        case(&format!("control frame {opcode} in pieces"), frame(false, opcode, b""));
    }
    case("a continuation of nothing", frame(true, CONTINUATION, b"hello"));
    case("a continuation of nothing that goes on", frame(false, CONTINUATION, b"hello"));
    case(
        "a continuation after the end",
        [frame(false, BINARY, b"a"), frame(true, CONTINUATION, b"b"), frame(true, CONTINUATION, b"c")]
            .concat(),
    );
    for opcode in [BINARY, TEXT] {
        for fin in [true, false] {
            case("data inside a message", [frame(false, BINARY, b"a"), frame(fin, opcode, b"b")].concat());
        }
    }
    case("5 in 16 bits", long(0x82, 0xfe, &[0, 5]));
    case("125 in 16 bits", long(0x82, 0xfe, &[0, 125]));
    case("5 in 64 bits", long(0x82, 0xff, &[0, 0, 0, 0, 0, 0, 0, 5]));
    case("65,535 in 64 bits", long(0x82, 0xff, &[0, 0, 0, 0, 0, 0, 0xff, 0xff]));
    case("the top bit of 64", long(0x82, 0xff, &[0x80, 0, 0, 0, 0, 0, 0, 5]));
    case("all bits of 64", long(0x82, 0xff, &[0xff; 8]));
    case("5 in 16 bits on a ping", long(0x89, 0xfe, &[0, 5]));

    for (name, bytes) in broken {
        // Both alone in its segment and directly after valid data.
        for before in [&b""[..], b"good data"] {
            let mut session = gateway.session("/echo").await;
            session.echo(b"fine so far").await;
            let mut both = if before.is_empty() { Vec::new() } else { frame(true, BINARY, before) };
            both.extend_from_slice(&bytes);
            session.send(&both).await;
            let (_, code, reason) = session.closed().await;
            assert_eq!(code, Some(1002), "{name}: {reason}");
            let end = gateway.ended(session.peer, "protocol_error", Some(1002)).await;
            let least = 11 + before.len() as u64;
            assert!(end.number("bytes_in") >= Some(least), "{name}: the valid data is counted: {end:?}");
        }
    }
    gateway.finish().await;
}

#[tokio::test]
async fn compression_is_neither_negotiated_nor_accepted() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let request = gateway.upgrade(PLAIN, "/echo").add("Sec-WebSocket-Extensions", "permessage-deflate");
    let mut connection = gateway.connect(PLAIN).await;
    let peer = connection.peer();
    let response = crate::support::send_request(&mut connection, &request).await;
    assert_eq!((response.status, response.header("Sec-WebSocket-Extensions")), (101, None));
    let mut session = crate::support::Session::new(connection, peer, &response.rest);
    session.send(&[&[0xc2, 0x87], &MASK[..], &masked(b"\xf2\x48\xcd\xc9\xc9\x07\x00", 0)].concat()).await;
    assert_eq!(session.closed().await.1, Some(1002));
    let end = gateway.ended(peer, "protocol_error", Some(1002)).await;
    assert_eq!(end.number("bytes_in"), Some(0));
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_close_is_answered_with_its_own_code() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    for code in
        [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
    {
        let mut session = gateway.session("/echo").await;
        session.echo(b"hello").await;
        session.send(&frame(true, CLOSE, &close_body(code, "für heute".as_bytes()))).await;
        let (data, answered, _) = session.frames.until_close().await;
        assert_eq!((data.len(), answered), (0, Some(code)));
        session.end().await;
        gateway.ended(session.peer, "client_closed", Some(code)).await;
    }
    // Without a code: the answer has none either.
    let mut session = gateway.session("/echo").await;
    session.send(&frame(true, CLOSE, b"")).await;
    assert_eq!(session.frames.until_close().await, (Vec::new(), None, String::new()));
    session.end().await;
    gateway.ended(session.peer, "client_closed", None).await;
    // The longest possible reason.
    let mut session = gateway.session("/echo").await;
    session.send(&frame(true, CLOSE, &close_body(1000, &[b'x'; 123]))).await;
    assert_eq!(session.frames.until_close().await.1, Some(1000));
    session.end().await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_close_may_come_in_the_middle_of_a_message() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let mut session = gateway.session("/echo").await;
    let mut served = backend.accept().await;
    let close = frame(true, CLOSE, &close_body(1001, b"leaving"));
    session.send(&[frame(false, BINARY, b"half a message"), close].concat()).await;
    let mut received = Vec::new();
    within("the backend's end", served.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received, b"half a message");
    drop(served);
    assert_eq!(session.frames.until_close().await.1, Some(1001));
    session.end().await;
    gateway.ended(session.peer, "client_closed", Some(1001)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn an_invalid_close_is_answered_with_the_violation() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let mut cases = vec![(vec![3], 1002, "protocol_error")];
    for code in [0, 999, 1004, 1005, 1006, 1015, 5000, 65535] {
        cases.push((close_body(code, b""), 1002, "protocol_error"));
    }
    for reason in [&b"\xff"[..], b"caf\xe9", b"cut off \xf0\x9f", b"\xed\xa0\x80"] {
        cases.push((close_body(1000, reason), 1007, "invalid_text"));
    }
    for (body, answer, reason) in cases {
        let mut session = gateway.session("/echo").await;
        session.echo(b"hello").await;
        session.send(&frame(true, CLOSE, &body)).await;
        let (_, code, _) = session.frames.until_close().await;
        assert_eq!(code, Some(answer), "to {body:02x?}");
        session.end().await;
        gateway.ended(session.peer, reason, Some(answer)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn nothing_after_a_close_is_delivered() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let mut session = gateway.session("/echo").await;
    let mut served = backend.accept().await;
    let mut bytes = frame(true, BINARY, b"before");
    bytes.extend(frame(true, CLOSE, &close_body(1000, b"")));
    bytes.extend(frame(true, BINARY, b"behind"));
    bytes.extend(frame(true, PING, b"behind"));
    bytes.extend([0xff; 100]);
    session.send(&bytes).await;
    let mut received = Vec::new();
    within("the backend's end", served.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received, b"before");
    drop(served);
    assert_eq!(session.frames.until_close().await.1, Some(1000));
    // The gateway has closed its direction, and reads on: a socket closed with unread bytes is reset.
    assert_eq!((session.frames.next().await, session.frames.ended()), (None, Some(End::Closed)));
    for _ in 0..64 {
        session.send(&[0xff; 16 * 1024]).await;
    }
    session.end().await;
    let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
    assert_eq!(end.number("bytes_in"), Some(6));
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn nothing_follows_a_close_although_the_backend_and_the_client_send_more() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).admin().start().await;
    for ordered in [false, true] {
        let mut session = gateway.session("/echo").await;
        let (unread, mut say) = backend.accept().await.into_split();
        let talking = tokio::spawn(async move { while say.write_all(&[b'.'; 1000]).await.is_ok() {} });
        session.frames.data().await;
        if ordered {
            let kill = gateway.request("POST", "/api/sessions/kill", "{\"route\":\"echo\"}").await;
            assert_eq!(kill.status, 200, "{}", kill.text());
            session.frames.until_close().await;
            session.send(&frame(true, PING, b"late")).await;
            session.send(&frame(true, CLOSE, &close_body(1008, b""))).await;
        } else {
            session.send(&frame(true, CLOSE, &close_body(1000, b""))).await;
            session.frames.until_close().await;
        }
        session.end().await;
        gateway.access_log_line(session.peer).await;
        drop((session, unread));
        within("the talking to end", talking).await.unwrap();
    }
    gateway.finish().await;
}

#[tokio::test]
async fn the_wait_for_an_answer_to_a_close_is_limited() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).timeouts("close = \"700ms\"").start().await;
    for listener in [TLS, PLAIN] {
        let mut session = gateway.session_by(listener, "/echo").await;
        drop(backend.accept().await);
        let (data, code, _) = session.frames.until_close().await;
        assert_eq!((data.len(), code), (0, Some(1000)));
        let start = Instant::now();
        // Other frames are no answer to a Close.
        session.send(&frame(true, BINARY, b"too late")).await;
        assert_eq!(session.frames.next().await, None);
        assert_took(start, Duration::from_millis(700));
        assert_eq!(
            session.frames.ended(),
            Some(End::Closed),
            "TLS and TCP are closed in good order all the same"
        );
        gateway.ended(session.peer, "backend_closed", Some(1000)).await;
        drop(session);
    }
    gateway.finish().await;
}

#[tokio::test]
async fn pings_are_answered_and_pongs_are_not() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let mut session = gateway.session("/echo").await;
    for length in [0, 1, 4, 5, 124, 125] {
        let payload = pattern(7, length);
        session.send(&frame(true, PING, &payload)).await;
        let pong = session.frames.next().await.expect("a pong");
        assert_eq!((pong.opcode, pong.payload), (PONG, payload));
    }
    // Between the fragments of a message too.
    session.send(&[frame(false, BINARY, b"one "), frame(true, PING, b"?")].concat()).await;
    let mut data = Vec::new();
    let mut pongs = Vec::new();
    while data.len() < 4 || pongs.is_empty() {
        let frame = session.frames.next().await.expect("data or a pong");
        if frame.opcode == PONG { pongs.push(frame.payload) } else { data.extend(frame.payload) }
    }
    assert_eq!((data, pongs), (b"one ".to_vec(), vec![b"?".to_vec()]));
    session.send(&frame(true, CONTINUATION, b"two")).await;
    assert_eq!(session.frames.payload(3).await, b"two");
    // Unsolicited Pongs have no effect.
    for _ in 0..100 {
        session.send(&frame(true, PONG, b"unsolicited")).await;
    }
    session.echo(b"hello").await;
    session.close(1000).await;
    let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
    assert_eq!(
        (end.number("bytes_in"), end.number("bytes_out")),
        (Some(12), Some(12)),
        "only payload counts"
    );
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn every_ping_is_answered_while_the_client_reads() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let mut session = gateway.session("/echo").await;
    for number in 0..2_000_u32 {
        session.send(&frame(true, PING, &number.to_be_bytes())).await;
        let pong = session.frames.next().await.expect("a pong");
        assert_eq!((pong.opcode, pong.payload), (PONG, number.to_be_bytes().to_vec()));
    }
    session.close(1000).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_flood_of_pings_costs_no_memory_and_the_newest_is_answered() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let mut warm = gateway.session("/echo").await;
    warm.echo(&pattern(0, 100_000)).await;
    let before = gateway.memory();

    // 20 MiB of Pings to a client that does not read, then one whose Pong it waits for.
    let connection = gateway.connect_with_small_buffers(PLAIN).await;
    let mut session = gateway.open(connection, &gateway.upgrade(PLAIN, "/echo")).await;
    let mut number = 0_u32;
    for _ in 0..1_600 {
        let mut flood = Vec::new();
        for _ in 0..100 {
            number += 1;
            let payload = [&number.to_be_bytes()[..], &[b'.'; 121]].concat();
            flood.extend(frame(true, PING, &payload));
        }
        session.send(&flood).await;
    }
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 512 * 1024, "{grown} bytes for a flood of pings");

    session.send(&frame(true, PING, b"the last")).await;
    let mut newest = 0;
    loop {
        let pong = session.frames.next().await.expect("a pong");
        assert_eq!(pong.opcode, PONG);
        if pong.payload == b"the last" {
            break;
        }
        let number = u32::from_be_bytes(*pong.payload.first_chunk().expect("a number"));
        assert!(number > newest, "{number} after {newest}");
        newest = number;
    }
    session.echo(b"hello").await;
    session.close(1000).await;
    warm.close(1000).await;
    drop((session, warm));
    gateway.finish().await;
}

#[tokio::test]
async fn empty_frames_do_not_reach_the_backend_and_delay_no_session() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let mut flooding = gateway.session("/echo").await;
    let mut served = backend.accept().await;
    let mut other = gateway.session("/canary").await;
    let flood =
        [frame(false, BINARY, b""), frame(true, CONTINUATION, b""), frame(true, BINARY, b"")].concat();
    let flood = flood.repeat(100);
    let (mut slowest, mut silence) = (Duration::ZERO, [0; 16]);
    for _ in 0..350 {
        flooding.send(&flood).await;
        let start = Instant::now();
        other.echo(b"am I late?").await;
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "another session waited {slowest:?}");
    flooding.send(&frame(true, BINARY, b"at last")).await;
    let received = within("the only bytes", served.read(&mut silence)).await.unwrap();
    assert_eq!(&silence[..received], b"at last");
    other.close(1000).await;
    flooding.close(1000).await;
    let end = gateway.ended(flooding.peer, "client_closed", Some(1000)).await;
    assert_eq!(end.number("bytes_in"), Some(7));
    drop((flooding, other, served));
    gateway.finish().await;
}

#[tokio::test]
async fn endless_one_byte_continuations_cost_no_memory() {
    let backend = Backend::sink().await;
    let gateway = Setup::echo(&backend).start().await;
    let mut session = gateway.session_by(PLAIN, "/echo").await;
    session.send(&frame(false, BINARY, b"x")).await;
    let many = frame(false, CONTINUATION, b"y").repeat(10_000);
    session.send(&many).await;
    let before = gateway.memory();
    for _ in 0..100 {
        session.send(&many).await;
    }
    eventually("the backend receives them", Duration::from_secs(20), || match backend.received_bytes() {
        1_010_001 => Ok(()),
        received => Err(format!("it received {received} bytes")),
    })
    .await;
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 256 * 1024, "{grown} bytes for a million fragments");
    session.close(1000).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_header_that_never_ends_is_a_stalled_client() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).timeouts("stall = \"800ms\"").start().await;
    // A header of 14 bytes, one byte every 200 ms: each byte arrives in time, the header does not.
    let mut session = gateway.session("/echo").await;
    session.echo(b"hello").await;
    let start = Instant::now();
    let bytes = header(0x82, 100_000);
    let peer = session.peer;
    let (frames, writer) = (&mut session.frames, &mut session.writer);
    let drip = async {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        for byte in bytes {
            tick.tick().await;
            if writer.write_all(&[byte]).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        end = frames.next() => assert_eq!(end, None, "no Close is sent to it"),
        () = drip => {}
    }
    assert_took(start, Duration::from_millis(800));
    gateway.ended(peer, "client_stalled", None).await;
    drop(session);

    // A session that is idle, or idle inside a payload, is not stalled.
    let mut silent = gateway.session("/echo").await;
    let mut slow = gateway.session("/echo").await;
    slow.send(&header(0x82, 5)).await;
    slow.send(&masked(b"he", 0)).await;
    assert_eq!(slow.frames.payload(2).await, b"he");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    slow.send(&masked(b"llo", 2)).await;
    assert_eq!(slow.frames.payload(3).await, b"llo");
    silent.echo(b"hello").await;
    silent.close(1000).await;
    slow.close(1000).await;
    drop((silent, slow));
    gateway.finish().await;
}
