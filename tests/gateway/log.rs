//! What the log contains, and what it must never contain.

use tokio::io::AsyncWriteExt;

use crate::support::{BINARY, Backend, Setup, TEXT, TLS, frame, read_to_end, send_request};

#[tokio::test]
async fn nothing_secret_is_logged_at_any_level() {
    let backend = Backend::echo().await;
    let gateway = Setup::new()
        .route_with("echo", "/echo", &backend, "")
        .route_with("wide", "/wide/*", &backend, "")
        .route_with("foreign", "/foreign", &backend, "origins = [\"https://good.example\"]")
        .route_to("dead", "/dead", "tcp://nowhere.invalid:1", "")
        .level("trace")
        .start()
        .await;
    const SECRET: &str = "hunter2";
    for target in ["/echo", "/wide/path", "/foreign", "/dead", "/nothing", "/echo/", "/%zz"] {
        let target = format!("{target}?token=secret-{SECRET}&access_token={SECRET}");
        let request = gateway
            .upgrade(TLS, &target)
            .add("Authorization", &format!("Bearer {SECRET}"))
            .add("Cookie", &format!("session={SECRET}"))
            .add("Sec-WebSocket-Protocol", "binary")
            .add("Referer", &format!("https://good.example/?{SECRET}"));
        let mut connection = gateway.connect(TLS).await;
        let response = send_request(&mut connection, &request).await;
        assert!(!String::from_utf8_lossy(&response.body).contains(SECRET), "{response:?}");
        if response.status == 101 {
            let payload = format!("payload {SECRET}");
            let _ = connection.write_all(&frame(true, BINARY, payload.as_bytes())).await;
            let _ = connection.write_all(&frame(true, TEXT, payload.as_bytes())).await;
            let _ = connection.write_all(&frame(true, 9, payload.as_bytes())).await;
            let _ = connection.write_all(&frame(true, 8, &[&[3, 232], payload.as_bytes()].concat())).await;
            let _ = connection.flush().await;
        }
        read_to_end(&mut connection).await.1.ok();
        let peer = connection.peer();
        drop(connection);
        gateway.access_log_line(peer).await;
    }
    // Not even if the request is malformed.
    for head in [
        format!("GET /echo?token={SECRET} HTTP/1.1\r\nX Y: {SECRET}\r\n\r\n"),
        format!("GET {SECRET} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("{SECRET}\r\n\r\n"),
        format!("GET /echo?{} HTTP/1.1\r\nHost: a\r\n\r\n", SECRET.repeat(2000)),
        format!("GET /echo?token={SECRET}"),
    ] {
        let mut connection = gateway.connect(TLS).await;
        let peer = connection.peer();
        let _ = connection.write_all(head.as_bytes()).await;
        let _ = connection.shutdown().await;
        read_to_end(&mut connection).await.1.ok();
        drop(connection);
        gateway.access_log_line(peer).await;
    }
    let log = gateway.raw_log();
    for secret in [SECRET, "token", "Bearer", "payload", "PRIVATE KEY"] {
        if let Some(line) = log.lines().find(|line| line.contains(secret)) {
            panic!("{secret:?} is in the log: {line}");
        }
    }
    assert!(log.contains("\"TRACE\"") || log.contains("\"DEBUG\""), "the log level had no effect");
    gateway.finish().await;
}

#[tokio::test]
async fn client_input_can_neither_forge_nor_flood_a_line() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).level("trace").start().await;
    let evil: [&[u8]; 5] = [
        b"https://evil.example/\x1b[31mred",
        "https://evil.example/\u{202e}txt.exe".as_bytes(),
        "https://evil.example/\u{2066}\u{9b}31m\u{85}".as_bytes(),
        b"https://evil.example/\x80\xff\xfe",
        &[b'x'; 7000],
    ];
    for value in evil {
        for name in ["Origin", "User-Agent", "Host", "X-Forwarded-For", "Sec-WebSocket-Protocol"] {
            let request = gateway.upgrade(TLS, "/echo").without(name).add_bytes(name, value);
            let mut connection = gateway.connect(TLS).await;
            let peer = connection.peer();
            send_request(&mut connection, &request).await;
            drop(connection);
            gateway.access_log_line(peer).await;
        }
        let target = [b"GET /", value, b" HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat();
        let mut connection = gateway.connect(TLS).await;
        let peer = connection.peer();
        connection.write_all(&target).await.unwrap();
        connection.flush().await.unwrap();
        read_to_end(&mut connection).await.1.ok();
        drop(connection);
        gateway.access_log_line(peer).await;
    }
    for line in gateway.raw_log().lines() {
        let odd = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        assert!(!line.contains(odd), "a control character or a bidi mark in {line:?}");
        assert!(line.len() < 2_000, "a line of {} bytes: {}…", line.len(), &line[..200]);
    }
    gateway.finish().await;
}

#[tokio::test]
async fn refused_clients_leave_no_line_at_the_default_level() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).level("info").start().await;
    let before = gateway.raw_log().lines().count();
    for request in [
        gateway.upgrade(TLS, "/nothing"),
        gateway.upgrade(TLS, "/echo").with("Origin", "https://evil.example"),
        gateway.upgrade(TLS, "/echo").without("Host"),
    ] {
        // These connections have no access log line at this level.
        let socket = gateway.untracked_socket(None, TLS, |_| {}).await;
        let mut connection = gateway.secure(socket).await;
        send_request(&mut connection, &request).await;
        read_to_end(&mut connection).await.1.ok();
    }
    let mut silent = gateway.untracked_socket(None, TLS, |_| {}).await;
    silent.write_all(b"hello\r\n\r\n").await.unwrap();
    read_to_end(&mut silent).await.1.ok();
    drop(silent);
    let mut session = gateway.session("/echo").await;
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    let lines = gateway.raw_log();
    let lines: Vec<&str> = lines.lines().skip(before).collect();
    assert_eq!(lines.len(), 1, "one session, one line: {lines:#?}");
    drop(session);
    gateway.finish().await;
}
