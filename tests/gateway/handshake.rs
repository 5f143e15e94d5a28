//! The request head: what is upgraded, what is refused, and with which response.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    AccessLogLine, BINARY, Backend, CONTINUATION, Frames, Gateway, ListenerIndex, PLAIN, Request, Response,
    Session, Setup, TLS, assert_took, eventually, frame, pattern, read_to_end, send_request, within,
};

/// Sends bytes on a new connection and reads until the gateway closes it; there is exactly one response.
async fn only_response(
    gateway: &Gateway,
    listener: ListenerIndex,
    bytes: &[u8],
) -> (Response, AccessLogLine) {
    let mut connection = gateway.connect(listener).await;
    let peer = connection.peer();
    // The gateway may close the connection before it has read all of it.
    let _ = within("the gateway to take the head", connection.write_all(bytes)).await;
    let _ = connection.flush().await;
    let (reply, ended) = read_to_end(&mut connection).await;
    let request = String::from_utf8_lossy(bytes).chars().take(200).collect::<String>();
    let response = Response::parse(&reply, true)
        .unwrap_or_else(|| panic!("{request:?} got {:?}", String::from_utf8_lossy(&reply)));
    let rest = String::from_utf8_lossy(&response.rest).into_owned();
    assert_eq!(rest, "", "{request:?} got more than one answer");
    ended.unwrap_or_else(|error| panic!("{request:?}: no close_notify or no FIN: {error}"));
    drop(connection);
    (response, gateway.access_log_line(peer).await)
}

/// Expects a refusal: the status, one line of plain text, and the same reason in the log.
async fn refusal(gateway: &Gateway, request: &Request, status: u16, reason: &str) -> Response {
    let (response, end) = only_response(gateway, TLS, &request.bytes()).await;
    assert_eq!((response.status, end.reason()), (status, reason), "{request:?} got {response:?}");
    assert!(!end.is_session(), "{end:?}");
    let kind = response.header("Content-Type").unwrap_or_default();
    assert!(kind.starts_with("text/plain"), "{request:?} got {kind:?}");
    let line = response.text().strip_suffix('\n').unwrap_or(response.text());
    assert!(!line.is_empty() && !line.contains('\n'), "not one line: {:?}", response.text());
    response
}

#[tokio::test]
async fn a_valid_head_is_answered_as_in_the_rfc() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let mut connection = gateway.connect(TLS).await;
    let peer = connection.peer();
    let response = send_request(&mut connection, &gateway.upgrade(TLS, "/echo")).await;
    assert_eq!(response.status, 101);
    assert_eq!(response.header("Sec-WebSocket-Accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert!(response.header("Upgrade").unwrap_or_default().eq_ignore_ascii_case("websocket"), "{response:?}");
    assert!(
        response.header("Connection").unwrap_or_default().eq_ignore_ascii_case("upgrade"),
        "{response:?}"
    );
    assert_eq!(response.header("Sec-WebSocket-Protocol"), None);
    assert_eq!(response.header("Sec-WebSocket-Extensions"), None);
    // RFC 9110 §8.6, RFC 9112 §6.1.
    assert_eq!((response.header("Content-Length"), response.header("Transfer-Encoding")), (None, None));
    let mut session = Session::new(connection, peer, &response.rest);
    session.echo(b"hello").await;
    session.close(1000).await;
    let end = gateway.ended(peer, "client_closed", Some(1000)).await;
    assert_eq!(
        (end.text("route"), end.number("bytes_in"), end.number("bytes_out")),
        (Some("echo"), Some(5), Some(5))
    );
    assert_eq!(end.text("backend"), Some(format!("tcp://{}", backend.address).as_str()));
    assert!(end.number("session").is_some() && end.number("duration_ms").is_some(), "{end:?}");
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn unusual_spellings_of_a_valid_head_are_accepted() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let good = || gateway.upgrade(TLS, "/echo");
    let requests = [
        good().without("Connection").add("Connection", "keep-alive").add("Connection", "Upgrade"),
        good().with("Connection", "keep-alive, Upgrade"),
        good().with("Connection", "keep-alive,\tUPGRADE ,"),
        good().with("Upgrade", "WebSocket"),
        good().without("Connection").add("cOnNeCtIoN", "uPgRaDe"),
        good().without("Upgrade").add("UPGRADE", "h2c, websocket"),
        good().with("Content-Length", "0"),
        good().line("GET /echo?anything=at%20all HTTP/1.1"),
        good().add("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
        good().with("User-Agent", "caf\u{e9}"),
    ];
    for request in requests {
        let mut session = gateway.open(gateway.connect(TLS).await, &request).await;
        session.echo(b"hello").await;
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn an_incomplete_head_is_closed_at_the_request_deadline() {
    let gateway = Setup::new().timeouts("request = \"600ms\"").start().await;
    let whole = gateway.upgrade(TLS, "/echo").bytes();
    for listener in [TLS, PLAIN] {
        for half in [&b""[..], b"G", &whole[..40], &whole[..whole.len() - 2]] {
            let start = Instant::now();
            let mut connection = gateway.connect(listener).await;
            connection.write_all(half).await.unwrap();
            connection.flush().await.unwrap();
            let (reply, _) = read_to_end(&mut connection).await;
            assert_took(start, Duration::from_millis(600));
            // A browser opens connections before it needs them: without a request there is nothing to answer.
            let status = Response::parse(&reply, true).map(|response| response.status);
            let expected = if half.is_empty() { None } else { Some(408) };
            assert_eq!(status, expected, "{:?} got {:?}", half.escape_ascii(), reply.escape_ascii());
            let peer = connection.peer();
            drop(connection);
            gateway.refused(peer, "request_timeout").await;
        }
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_head_byte_by_byte_does_not_move_the_deadline() {
    let gateway = Setup::new().timeouts("request = \"600ms\"").start().await;
    let start = Instant::now();
    let connection = gateway.connect(TLS).await;
    let peer = connection.peer();
    let head = gateway.upgrade(TLS, "/echo").bytes();
    let (mut reader, mut writer) = tokio::io::split(connection);
    let drip = async {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        for byte in head {
            tick.tick().await;
            if writer.write_all(&[byte]).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = read_to_end(&mut reader) => {}
        () = drip => {}
    }
    assert_took(start, Duration::from_millis(600));
    drop((reader, writer));
    gateway.refused(peer, "request_timeout").await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_head_may_be_large_but_not_too_large() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let good = || gateway.upgrade(TLS, "/echo");
    let many = |count: usize| {
        let mut request = good();
        for number in request.fields()..count {
            request = request.add(&format!("X-Number-{number}"), "1");
        }
        request
    };
    let target = |length: usize| {
        let target = format!("/echo?{}", "q".repeat(length - 6));
        gateway.upgrade(TLS, &target)
    };
    for request in [many(100), good().add("X-Long", &"x".repeat(15 * 1024)), target(8 * 1024)] {
        let mut session = gateway.open(gateway.connect(TLS).await, &request).await;
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    for request in [
        many(101),
        many(500),
        good().add("X-Long", &"x".repeat(17 * 1024)),
        good().add("X-Long", &"x".repeat(200 * 1024)),
    ] {
        let (response, end) = only_response(&gateway, TLS, &request.bytes()).await;
        assert_eq!((response.status, end.reason()), (431, "head_too_large"), "{response:?}");
    }
    refusal(&gateway, &target(8 * 1024 + 1), 414, "uri_too_long").await;
    refusal(&gateway, &target(12 * 1024), 414, "uri_too_long").await;

    // A head that never ends is refused when it is too large, not when its deadline passes.
    let start = Instant::now();
    let endless = [&b"GET /echo HTTP/1.1\r\nX-Long: "[..], &[b'x'; 64 * 1024]].concat();
    let (response, end) = only_response(&gateway, TLS, &endless).await;
    assert_eq!((response.status, end.reason()), (431, "head_too_large"));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    gateway.finish().await;
}

#[tokio::test]
async fn a_malformed_head_is_a_bad_request() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let good = || gateway.upgrade(TLS, "/echo");
    let raw = |line: &str| {
        let text = String::from_utf8(good().bytes()).unwrap();
        let (first, rest) = text.split_once("\r\n").unwrap();
        format!("{first}\r\n{line}\r\n{rest}").into_bytes()
    };
    let garbage: Vec<u8> = [&pattern(0, 300)[..], b"\r\n\r\n"].concat();
    let heads: Vec<(&str, Vec<u8>)> = vec![
        ("NUL in a value", raw("X-Nul: a\0b")),
        ("NUL in a name", raw("X-N\0l: a")),
        ("space before the colon", raw("X-Space : a")),
        ("a folded line", raw("X-Folded: a\r\n b")),
        ("a bare CR", raw("X-Bare: a\rb")),
        ("a name that is no token", raw("X(1): a")),
        ("no name", raw(": a")),
        ("no colon", raw("just words")),
        ("garbage", garbage),
        ("garbage on a line", b"\x01\x02\x03 /echo HTTP/1.1\r\n\r\n".to_vec()),
        ("no target", good().line("GET HTTP/1.1").bytes()),
        ("a space in the target", good().line("GET /ec ho HTTP/1.1").bytes()),
        ("NUL in the target", good().line("GET /ec\0ho HTTP/1.1").bytes()),
        ("a version that is none", good().line("GET /echo HTTP/1.x").bytes()),
        ("another protocol", good().line("GET /echo ICY/1.1").bytes()),
        ("HTTP/2 in the clear", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
    ];
    for (name, head) in heads {
        let (response, end) = only_response(&gateway, TLS, &head).await;
        assert_eq!((response.status, end.reason()), (400, "bad_request"), "{name}: {response:?}");
    }
    let ancient = [good().line("GET /echo HTTP/1.0").bytes(), b"GET /echo\r\n\r\n".to_vec()];
    for head in ancient {
        let (response, end) = only_response(&gateway, TLS, &head).await;
        assert!([400, 505].contains(&response.status), "{response:?}");
        assert_eq!(end.reason(), "bad_request");
    }
    assert_eq!(backend.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn a_route_accepts_only_get() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "BREW"] {
        let request = gateway.upgrade(TLS, "/echo").line(&format!("{method} /echo HTTP/1.1"));
        let response = refusal(&gateway, &request, 405, "method_not_allowed").await;
        assert!(response.header("Allow").unwrap_or_default().contains("GET"), "{method}: {response:?}");
    }
    // A response to HEAD has no body (RFC 9110 §9.3.2).
    let mut connection = gateway.connect(TLS).await;
    let head = gateway.upgrade(TLS, "/echo").line("HEAD /echo HTTP/1.1");
    connection.write_all(&head.bytes()).await.unwrap();
    connection.flush().await.unwrap();
    let (reply, _) = read_to_end(&mut connection).await;
    let response = Response::parse(&reply, false).expect("an answer");
    assert_eq!((response.status, response.rest.as_slice()), (405, &b""[..]));
    let peer = connection.peer();
    drop(connection);
    gateway.refused(peer, "method_not_allowed").await;

    // A proxy request (CONNECT or an absolute target) opens no tunnel.
    let tunnel = format!("CONNECT {} HTTP/1.1", backend.address);
    let (response, _) =
        only_response(&gateway, TLS, &gateway.upgrade(TLS, "/echo").line(&tunnel).bytes()).await;
    assert!((400..500).contains(&response.status), "{response:?}");
    assert_eq!(backend.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn an_upgrade_has_no_body() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let good = || gateway.upgrade(TLS, "/echo");
    let requests = [
        good().add("Content-Length", "5").then(b"hello"),
        good().add("Content-Length", "1"),
        good().add("Content-Length", "18446744073709551616"),
        good().add("Content-Length", "-1"),
        good().add("Content-Length", "five"),
        good().add("Content-Length", "0").add("Content-Length", "5").then(b"hello"),
        good().add("Transfer-Encoding", "chunked").then(b"0\r\n\r\n"),
        good().add("Transfer-Encoding", "chunked").add("Content-Length", "0").then(b"0\r\n\r\n"),
        good().add("Transfer-Encoding", "identity"),
        good().add("Transfer-Encoding", "gzip, chunked"),
    ];
    for request in requests {
        let (response, end) = only_response(&gateway, TLS, &request.bytes()).await;
        assert_eq!((response.status, end.reason()), (400, "bad_request"), "{request:?} got {response:?}");
    }
    assert_eq!(backend.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn a_request_without_an_upgrade_is_answered_with_the_requirements() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let good = || gateway.upgrade(TLS, "/echo");
    let plain = Request::new("GET /echo HTTP/1.1").add("Host", "localhost");
    for request in [
        plain.clone(),
        good().without("Upgrade"),
        good().without("Connection"),
        good().with("Connection", "keep-alive"),
        good().with("Connection", "Upgraded"),
        good().with("Upgrade", "h2c"),
    ] {
        let response = refusal(&gateway, &request, 426, "upgrade_required").await;
        assert_eq!(response.header("Upgrade").map(str::to_ascii_lowercase).as_deref(), Some("websocket"));
    }
    for version in ["8", "0", "12", "14", "113", "13.0", "", "thirteen"] {
        let request = good().with("Sec-WebSocket-Version", version);
        let response = refusal(&gateway, &request, 426, "upgrade_required").await;
        assert_eq!(response.header("Sec-WebSocket-Version"), Some("13"), "version {version:?}");
    }
    refusal(&gateway, &good().without("Sec-WebSocket-Version"), 426, "upgrade_required").await;

    // A browser that opens the address as a page.
    let browser = plain.add("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");
    let (response, end) = only_response(&gateway, TLS, &browser.bytes()).await;
    assert_eq!((response.status, end.reason()), (426, "upgrade_required"));
    assert!(response.header("Content-Type").unwrap_or_default().starts_with("text/html"), "{response:?}");
    let page = response.text().to_lowercase();
    assert!(page.contains("websocket") && page.contains("<html"), "{page}");
    assert_eq!(backend.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn a_key_and_a_host_are_needed_once_each() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let good = || gateway.upgrade(TLS, "/echo");
    let key = |key: &str| good().with("Sec-WebSocket-Key", key);
    for request in [
        good().without("Sec-WebSocket-Key"),
        good().add("Sec-WebSocket-Key", crate::support::KEY),
        key(""),
        key("AAAAAAAAAAAAAAAAAAAA"),
        key("AAAAAAAAAAAAAAAAAAAAAAA="),
        key("AAAAAAAAAAAAAAAAAAAAAAAA"),
        key("dGhlIHNhbXBsZSBub25jZQ"),
        key("dGhlIHNhbXBsZSBub25jZQ== "[..23].trim()),
        key("!!!!!!!!!!!!!!!!!!!!!!=="),
        key("dGhlIHNhbXBsZSBub25j ZQ=="),
        good().without("Host"),
        good().add("Host", "localhost"),
        good().add("Host", &gateway.host(TLS)),
        good().with("Host", "local host"),
        good().with("Host", "user@localhost"),
        good().with("Host", "localhost/path"),
    ] {
        refusal(&gateway, &request, 400, "bad_request").await;
    }
    assert_eq!(backend.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn nothing_after_a_refusal_is_processed() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let good = gateway.upgrade(TLS, "/echo").bytes();
    let refused = [
        gateway.upgrade(TLS, "/nothing"),
        gateway.upgrade(TLS, "/echo").with("Origin", "https://evil.example"),
        gateway.upgrade(TLS, "/echo").line("POST /echo HTTP/1.1"),
        gateway.upgrade(TLS, "/echo").without("Upgrade"),
        gateway.upgrade(TLS, "/echo").without("Sec-WebSocket-Key"),
        gateway.upgrade(TLS, "/echo").add("Content-Length", "0").add("Transfer-Encoding", "chunked"),
        gateway.upgrade(TLS, "/echo").add("X Y", "malformed"),
        gateway.upgrade(TLS, "/echo").with("Sec-WebSocket-Version", "8"),
    ];
    for request in refused {
        // One response, then the end, and no effect of the second request.
        let both = request.clone().then(&good).then(&frame(true, BINARY, b"hello")).bytes();
        let (response, _) = only_response(&gateway, TLS, &both).await;
        assert!((400..500).contains(&response.status), "{request:?} got {response:?}");
    }
    assert_eq!(backend.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn frames_after_a_valid_head_are_delivered_first_and_in_order() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    for listener in [TLS, PLAIN] {
        let payload = pattern(0, 30_000);
        let mut frames = frame(false, BINARY, &payload[..10]);
        frames.extend(frame(false, CONTINUATION, &payload[10..7_000]));
        frames.extend(frame(true, CONTINUATION, &payload[7_000..20_000]));
        frames.extend(frame(true, BINARY, &payload[20_000..]));
        // The last frame is cut at its end, inside its payload, inside its header, and before its first byte.
        for cut in [0, 1, 5_000, 10_003, 10_007, frames.len() - 1, frames.len()] {
            let cut = frames.len() - cut;
            let mut connection = gateway.connect(listener).await;
            let peer = connection.peer();
            connection
                .write_all(&gateway.upgrade(listener, "/echo").then(&frames[..cut]).bytes())
                .await
                .unwrap();
            connection.flush().await.unwrap();
            let response = crate::support::read_response(&mut connection, true).await;
            assert_eq!(response.status, 101);
            let mut session = Session::new(connection, peer, &response.rest);
            session.send(&frames[cut..]).await;
            assert!(
                session.frames.payload(payload.len()).await == payload,
                "not what was sent, cut at {cut}"
            );
            session.close(1000).await;
            gateway.ended(peer, "client_closed", Some(1000)).await;
        }
    }
    gateway.finish().await;
}

#[tokio::test]
async fn much_data_after_a_valid_head_is_delivered() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    for listener in [TLS, PLAIN] {
        let payload = pattern(0, 700_000);
        let frames: Vec<u8> = payload.chunks(999).flat_map(|part| frame(true, BINARY, part)).collect();
        let connection = gateway.connect(listener).await;
        let peer = connection.peer();
        let (mut reader, mut writer) = tokio::io::split(connection);
        let bytes = gateway.upgrade(listener, "/echo").then(&frames).bytes();
        let writing = async {
            writer.write_all(&bytes).await.unwrap();
            writer.flush().await.unwrap();
            writer
        };
        let reading = async {
            let response = crate::support::read_response(&mut reader, true).await;
            assert_eq!(response.status, 101);
            let mut frames = Frames::new(reader, &response.rest);
            assert!(frames.payload(payload.len()).await == payload, "not what was sent");
            frames
        };
        drop(within("the echo", async { tokio::join!(writing, reading) }).await);
        gateway.ended(peer, "client_gone", None).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn frames_after_a_refused_head_reach_no_backend() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let request = gateway.upgrade(TLS, "/echo").with("Origin", "https://evil.example");
    let request = request.then(&frame(true, BINARY, b"let me in"));
    refusal(&gateway, &request, 403, "origin_refused").await;
    assert_eq!(backend.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn a_disconnect_inside_the_head_is_handled_at_once() {
    let gateway = Setup::new().timeouts("request = \"30s\"").start().await;
    let whole = gateway.upgrade(TLS, "/echo").bytes();
    let mut peers = Vec::new();
    for part in [&b""[..], b"GET /e", &whole[..whole.len() - 1]] {
        for listener in [TLS, PLAIN] {
            let mut connection = gateway.connect(listener).await;
            connection.write_all(part).await.unwrap();
            connection.flush().await.unwrap();
            peers.push(connection.peer());
        }
    }
    let start = Instant::now();
    for peer in peers {
        let end = gateway.access_log_line(peer).await;
        assert!(!end.is_session(), "{end:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    gateway.finish().await;
}

#[tokio::test]
async fn only_the_path_selects_the_route_and_its_backend() {
    let [one, two, three] = [Backend::echo().await, Backend::echo().await, Backend::echo().await];
    let gateway = Setup::new()
        .route_with("one", "/one", &one, "missing_origin = \"allow\"")
        .route_with("two", "/two/*", &two, "missing_origin = \"allow\"")
        .route_with("three", "/one", &three, "host = \"three.example\"\nmissing_origin = \"allow\"")
        .start()
        .await;
    let good = |target: &str| gateway.upgrade(TLS, target).without("Origin");
    let other_backend = Backend::echo().await;
    for (request, route) in [
        (good("/one"), "one"),
        (
            good(&format!("/one?host={}&port=1&url=tcp://{}", other_backend.address, other_backend.address)),
            "one",
        ),
        (good("/one").add("X-Forwarded-Host", "three.example"), "one"),
        (good("/one").with("Host", &other_backend.address.to_string()), "one"),
        (good(&format!("/two/{}", other_backend.address)), "two"),
        (good("/two/a/b"), "two"),
        (good("/two/"), "two"),
        (good("/one").with("Host", "three.example"), "three"),
        (good("/one").with("Host", "THREE.example:8443"), "three"),
    ] {
        let mut session = gateway.open(gateway.connect(TLS).await, &request).await;
        session.echo(b"hello").await;
        session.close(1000).await;
        let end = gateway.ended(session.peer, "client_closed", Some(1000)).await;
        assert_eq!(end.text("route"), Some(route), "{request:?}");
    }
    for target in ["/", "/on", "/one/", "/one/two", "/ONE", "/two", "/twofold", "/twO/a", "/one%20", "/three"]
    {
        refusal(&gateway, &good(target), 404, "unknown_route").await;
    }
    for target in ["/one%00", "//one", "/two/../one"] {
        refusal(&gateway, &good(target), 400, "bad_request").await;
    }
    assert_eq!(other_backend.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn a_subprotocol_is_chosen_as_the_table_says() {
    let backend = Backend::echo().await;
    let gateway = Setup::new()
        .route_with("free", "/free", &backend, "")
        .route_with("list", "/list", &backend, "subprotocols = [\"v12.stomp\", \"binary\", \"mqtt\"]")
        .start()
        .await;
    // A route without a list answers each header line as follows.
    let free: &[(&[&str], Option<&str>)] = &[
        (&[], None),
        (&["binary"], Some("binary")),
        (&["base64, binary"], Some("binary")),
        (&["chat", "superchat, binary"], Some("binary")),
        (&["chat, superchat"], Some("chat")),
        (&["chat", "superchat"], Some("chat")),
        (&["xmpp"], None),
        (&["xmpp, binary"], Some("binary")),
    ];
    // A route with a list chooses the first offered one that it lists, and refuses a client that offers only others.
    type Offer<'a> = (&'a [&'a str], Result<Option<&'a str>, ()>);
    let list: &[Offer] = &[
        (&[], Ok(None)),
        (&["mqtt"], Ok(Some("mqtt"))),
        (&["mqtt, v12.stomp"], Ok(Some("mqtt"))),
        (&["chat, binary ,mqtt"], Ok(Some("binary"))),
        (&["chat", "superchat,v12.stomp"], Ok(Some("v12.stomp"))),
        (&["chat"], Err(())),
        (&["chat", "superchat"], Err(())),
        (&["MQTT"], Err(())),
    ];
    let offer = |target: &str, lines: &[&str]| {
        lines
            .iter()
            .fold(gateway.upgrade(TLS, target), |request, line| request.add("Sec-WebSocket-Protocol", line))
    };
    let cases = free.iter().map(|&(lines, chosen)| ("/free", lines, Ok(chosen)));
    for (target, lines, expected) in
        cases.chain(list.iter().map(|&(lines, expected)| ("/list", lines, expected)))
    {
        let request = offer(target, lines);
        let Ok(chosen) = expected else {
            refusal(&gateway, &request, 400, "subprotocol_refused").await;
            continue;
        };
        let mut connection = gateway.connect(TLS).await;
        let peer = connection.peer();
        let response = send_request(&mut connection, &request).await;
        assert_eq!((response.status, response.header("Sec-WebSocket-Protocol")), (101, chosen), "{lines:?}");
        let mut session = Session::new(connection, peer, &response.rest);
        session.echo(b"hello").await;
        session.close(1000).await;
        gateway.ended(peer, "client_closed", Some(1000)).await;
    }
    for lines in [&["cha t"][..], &["a,,(b)"][..], &["\u{fc}"][..]] {
        refusal(&gateway, &offer("/free", lines), 400, "bad_request").await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn the_backend_is_dialled_before_the_answer() {
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let mut connection = gateway.connect(TLS).await;
    let request = gateway.upgrade(TLS, "/echo").then(&frame(true, BINARY, b"early"));
    connection.write_all(&request.bytes()).await.unwrap();
    connection.flush().await.unwrap();
    let mut served = backend.accept().await;
    let mut received = [0; 5];
    within("the early frame", served.read_exact(&mut received)).await.unwrap();
    assert_eq!(&received, b"early");
    let response = crate::support::read_response(&mut connection, true).await;
    assert_eq!(response.status, 101);
    let peer = connection.peer();
    drop((connection, served));
    gateway.ended(peer, "client_gone", None).await;
    gateway.finish().await;
}

#[tokio::test]
async fn two_hundred_clients_connect_at_once() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let clients = (0..200).map(|number: u32| {
        let gateway = &gateway;
        async move {
            let mut session = gateway.session("/echo").await;
            session.echo(&number.to_be_bytes()).await;
            session.close(1000).await;
            session.peer
        }
    });
    for peer in futures_util::future::join_all(clients).await {
        gateway.ended(peer, "client_closed", Some(1000)).await;
    }
    eventually("the backend's session ends", Duration::from_secs(1), || match backend.open() {
        0 => Ok(()),
        open => Err(format!("{open} sessions are open")),
    })
    .await;
    gateway.finish().await;
}
