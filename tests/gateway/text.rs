//! Text messages, which must be UTF-8.

use tokio::io::AsyncWriteExt;

use crate::support::{BINARY, Backend, CONTINUATION, Frame, Setup, TEXT, frame, within};

/// Characters of one to four bytes, at the limits of each length.
const WORDS: &str = "a\u{7f}\u{80}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff} \u{bb}gr\u{fc}\u{df}e\u{ab} \u{1f980}";

#[tokio::test]
async fn text_is_relayed_as_bytes() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let mut session = gateway.session("/echo").await;
    session.send(&frame(true, TEXT, WORDS.as_bytes())).await;
    let echo = session.frames.data().await;
    assert_eq!((echo.opcode, echo.payload), (BINARY, WORDS.as_bytes().to_vec()));
    session.send(&frame(true, TEXT, b"")).await;

    // A message may be split anywhere, even in the middle of a character.
    for cut in 0..=WORDS.len() {
        let (one, two) = WORDS.as_bytes().split_at(cut);
        session.send(&[frame(false, TEXT, one), frame(true, CONTINUATION, two)].concat()).await;
        assert_eq!(session.frames.payload(WORDS.len()).await, WORDS.as_bytes(), "cut at {cut}");
    }
    // And byte by byte.
    let bytes = WORDS.as_bytes();
    for (index, byte) in bytes.iter().enumerate() {
        let opcode = if index == 0 { TEXT } else { CONTINUATION };
        session.send(&frame(index + 1 == bytes.len(), opcode, &[*byte])).await;
    }
    assert_eq!(session.frames.payload(bytes.len()).await, bytes);
    // Binary messages in between are not validated.
    session.echo(&[0xff, 0xfe, 0xc0, 0x80]).await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn invalid_utf8_text_is_refused() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let bad: &[&[u8]] = &[
        b"\xff",
        b"\x80",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",
        b"\xf0\x80\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xc3\x28",
        b"\xe2\x82\x28",
        b"good, then \xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80 bad",
        // Ends inside a character.
        b"\xc3",
        b"\xe2\x82",
        b"\xf0\x9f\xa6",
        b"good, then \xf0\x9f",
    ];
    for bytes in bad {
        let mut messages = vec![frame(true, TEXT, bytes)];
        // Split into single bytes.
        messages.push(
            bytes
                .iter()
                .enumerate()
                .flat_map(|(index, &byte)| {
                    let opcode = if index == 0 { TEXT } else { CONTINUATION };
                    frame(index + 1 == bytes.len(), opcode, &[byte])
                })
                .collect(),
        );
        // With the end in an empty frame of its own, and with a Ping in between.
        messages.push([frame(false, TEXT, bytes), frame(true, CONTINUATION, b"")].concat());
        let (one, two) = bytes.split_at(bytes.len() / 2);
        messages.push(
            [frame(false, TEXT, one), frame(true, 9, b"\xff"), frame(true, CONTINUATION, two)].concat(),
        );
        for message in messages {
            let mut session = gateway.session("/echo").await;
            session.echo(b"fine so far").await;
            session.send(&message).await;
            let (_, code, _) = session.closed().await;
            assert_eq!(code, Some(1007), "{bytes:02x?}");
            gateway.ended(session.peer, "invalid_text", Some(1007)).await;
        }
    }
    gateway.finish().await;
}

#[tokio::test]
async fn text_is_refused_at_the_first_invalid_byte() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let mut session = gateway.session("/echo").await;
    // The message continues, but its end need not arrive.
    session.send(&frame(false, TEXT, b"good\xed\xa0")).await;
    let (_, code, _) = session.closed().await;
    assert_eq!(code, Some(1007));
    gateway.ended(session.peer, "invalid_text", Some(1007)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn a_binary_route_refuses_text() {
    let backend = Backend::echo().await;
    let gateway = Setup::new().route_with("echo", "/echo", &backend, "receive = \"binary\"").start().await;
    for message in [frame(true, TEXT, b"words"), frame(true, TEXT, b""), frame(false, TEXT, b"wor")] {
        let mut session = gateway.session("/echo").await;
        session.echo(b"bytes").await;
        session.send(&message).await;
        let (data, code, _) = session.closed().await;
        assert_eq!((data, code), (Vec::new(), Some(1003)));
        let end = gateway.ended(session.peer, "text_refused", Some(1003)).await;
        assert_eq!(end.number("bytes_in"), Some(5), "the text did not reach the backend: {end:?}");
    }
    gateway.finish().await;
}

fn assert_text(frames: &[Frame]) {
    for (index, frame) in frames.iter().enumerate() {
        assert_eq!((frame.fin, frame.opcode), (true, TEXT), "frame {index}");
        assert!(std::str::from_utf8(&frame.payload).is_ok(), "frame {index}: {:02x?}", frame.payload);
        assert!(!frame.payload.is_empty(), "frame {index} is empty");
    }
}

#[tokio::test]
async fn a_text_route_sends_whole_characters_however_the_backend_splits_them() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route_with("words", "/words", &backend, "send = \"text\"").start().await;
    let mut session = gateway.session("/words").await;
    let mut served = backend.accept().await;
    let bytes = WORDS.as_bytes();
    for cut in 0..=bytes.len() {
        let (one, two) = bytes.split_at(cut);
        served.write_all(one).await.unwrap();
        // Complete characters are sent at once; at most an incomplete one is held back.
        let sayable = std::str::from_utf8(one).map_or_else(|error| error.valid_up_to(), str::len);
        let mut frames = Vec::new();
        let mut got = Vec::new();
        while got.len() < sayable {
            let frame = session.frames.data().await;
            got.extend_from_slice(&frame.payload);
            frames.push(frame);
        }
        served.write_all(two).await.unwrap();
        while got.len() < bytes.len() {
            let frame = session.frames.data().await;
            got.extend_from_slice(&frame.payload);
            frames.push(frame);
        }
        assert_text(&frames);
        assert_eq!(String::from_utf8_lossy(&got), WORDS, "cut at {cut}");
    }
    // Byte by byte, and then much at once.
    for byte in bytes {
        served.write_all(&[*byte]).await.unwrap();
        served.flush().await.unwrap();
    }
    assert_eq!(session.frames.payload(bytes.len()).await, bytes);
    let much = WORDS.repeat(20_000);
    let writing = async {
        served.write_all(much.as_bytes()).await.unwrap();
        served.shutdown().await.unwrap();
    };
    let reading = async {
        let (mut got, mut frames) = (Vec::new(), Vec::new());
        while got.len() < much.len() {
            let frame = session.frames.data().await;
            got.extend_from_slice(&frame.payload);
            frames.push(frame);
        }
        assert_text(&frames);
        assert!(got == much.as_bytes(), "not the text that was sent");
    };
    within("much text", async { tokio::join!(writing, reading) }).await;
    let (data, code, _) = session.closed().await;
    assert_eq!((data, code), (Vec::new(), Some(1000)));
    gateway.ended(session.peer, "backend_closed", Some(1000)).await;
    drop((session, served));
    gateway.finish().await;
}

#[tokio::test]
async fn a_text_route_never_sends_invalid_utf8() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route_with("words", "/words", &backend, "send = \"text\"").start().await;
    for noise in [&b"\xff\xfe"[..], b"good \xc3\x28 bad", b"cut off \xf0\x9f"] {
        let mut session = gateway.session("/words").await;
        let mut served = backend.accept().await;
        served.write_all(noise).await.unwrap();
        served.shutdown().await.unwrap();
        let mut frames = Vec::new();
        let code = loop {
            match session.frames.next().await.expect("a Close before the end") {
                close if close.opcode == 8 => break close.close().0,
                frame => frames.push(frame),
            }
        };
        assert_text(&frames);
        assert_eq!(code, Some(1011), "{noise:02x?}: the backend is at fault");
        session.end().await;
        gateway.ended(session.peer, "backend_failed", Some(1011)).await;
    }
    gateway.finish().await;
}
