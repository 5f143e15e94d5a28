//! Rows 68 and 69: files that take long, and what is under the web root but not served.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use super::site;
use crate::support::{
    ClientStream, Gateway, PLAIN, Request, Response, Setup, TLS, assert_took, read_response, read_to_end,
    send_request, within,
};

async fn get(gateway: &Gateway, connection: &mut ClientStream, target: &str) -> Response {
    let request = Request::new(&format!("GET {target} HTTP/1.1")).add("Host", &gateway.host(PLAIN));
    send_request(connection, &request).await
}

#[tokio::test]
async fn row_68_a_file_takes_longer_than_a_request_head_may() {
    const LENGTH: usize = 24 * 1024 * 1024;
    const PER_SECOND: usize = 6 * 1024 * 1024;
    let (_directory, root) = site();
    std::fs::write(root.join("large"), vec![b'a'; LENGTH]).unwrap();
    let gateway = Setup::new().web(&root).timeouts("request = \"1s\"").start().await;
    // What its buffer holds when the gateway has sent everything is read within much less than a second.
    let small = |socket: &TcpSocket| socket.set_recv_buffer_size(256 * 1024).expect("a receive buffer");
    let mut connection = ClientStream::Plain(gateway.untracked_socket(None, PLAIN, small).await);
    let peer = connection.peer();
    gateway.expect_log_line(peer);
    let head = format!("GET /large HTTP/1.1\r\nHost: {}\r\n\r\n", gateway.host(PLAIN));
    connection.write_all(head.as_bytes()).await.unwrap();
    let (start, mut received, mut total, mut head) = (Instant::now(), 0, usize::MAX, Vec::new());
    let mut buffer = vec![0; 64 * 1024];
    // Counted and not kept: the next request has to follow within a second.
    while received < total {
        let read = within("the file", connection.read(&mut buffer)).await;
        assert!(
            matches!(read, Ok(1..)),
            "{read:?} after {received} of {LENGTH} bytes, {:?}",
            start.elapsed()
        );
        let read = read.unwrap();
        received += read;
        if total == usize::MAX {
            head.extend_from_slice(&buffer[..read]);
            let end = head.windows(4).position(|window| window == b"\r\n\r\n");
            total = end.map_or(total, |end| end + 4 + LENGTH);
        }
        // The end is read as fast as it comes, so that little is left when the gateway has sent everything.
        if received < LENGTH - LENGTH / 6 {
            let due = Duration::from_secs_f64(received as f64 / PER_SECOND as f64);
            tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
        }
    }
    assert!(start.elapsed() > Duration::from_secs(3), "{:?}", start.elapsed());
    let head = String::from_utf8_lossy(&head).to_lowercase();
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    assert!(head.contains(&format!("content-length: {LENGTH}\r\n")), "{head}");
    // The same connection is still good for another request.
    assert_eq!(get(&gateway, &mut connection, "/index.html").await.status, 200);
    drop(connection);
    gateway.refused(peer, "served").await;
    gateway.finish().await;
}

#[tokio::test]
async fn row_68_a_connection_has_the_time_of_one_head_after_each_file() {
    const REQUEST: Duration = Duration::from_millis(800);
    let (_directory, root) = site();
    let gateway = Setup::new().web(&root).timeouts("request = \"800ms\"").start().await;
    for (half, status) in [(&b""[..], None), (b"GET /index.html HTTP/1.1\r\nHo", Some(408))] {
        let mut connection = gateway.connect(PLAIN).await;
        let peer = connection.peer();
        for _ in 0..3 {
            assert_eq!(get(&gateway, &mut connection, "/index.html").await.status, 200);
            tokio::time::sleep(REQUEST / 2).await;
        }
        // Before the last file: the time begins when the gateway has sent it, not when the client has read it.
        let start = Instant::now();
        assert_eq!(get(&gateway, &mut connection, "/index.html").await.status, 200);
        connection.write_all(half).await.unwrap();
        let (reply, ended) = read_to_end(&mut connection).await;
        assert_took(start, REQUEST);
        assert_eq!(
            Response::parse(&reply, true).map(|response| response.status),
            status,
            "{:?}",
            reply.escape_ascii()
        );
        ended.expect("a FIN");
        drop(connection);
        gateway.refused(peer, "served").await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn row_68_a_client_that_does_not_read_a_file_is_stalled() {
    let (_directory, root) = site();
    std::fs::write(root.join("large"), vec![b'a'; 24 * 1024 * 1024]).unwrap();
    let gateway = Setup::new().web(&root).timeouts("stall = \"1s\"\nrequest = \"60s\"").start().await;
    for listener in [PLAIN, TLS] {
        let mut connection = gateway.connect(listener).await;
        let peer = connection.peer();
        let head = b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n";
        connection.write_all(head).await.unwrap();
        connection.flush().await.unwrap();
        let reader = tokio::spawn(async move {
            while connection.read_u8().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        gateway.refused(peer, "client_stalled").await;
        reader.abort();
    }
    gateway.finish().await;
}

#[tokio::test]
async fn row_68_requests_for_files_count_against_the_rate_of_their_address() {
    let (_directory, root) = site();
    let gateway = Setup::new().web(&root).per_ip("rate = 1\nburst = 10").start().await;
    let mut connection = gateway.connect(PLAIN).await;
    let peer = connection.peer();
    let mut served = 0;
    let refused = loop {
        let response = get(&gateway, &mut connection, "/index.html").await;
        if response.status != 200 {
            break response;
        }
        served += 1;
        assert!(served < 2000, "no limit");
    };
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.header("Retry-After").is_some(), "{refused:?}");
    // The connection itself is the first of the burst.
    assert!(served >= 160, "{served} files");
    drop(connection);
    gateway.refused(peer, "rate_limited").await;
    gateway.finish().await;
}

#[tokio::test]
async fn row_69_hidden_files_backups_and_what_is_no_file_are_not_served() {
    let (_directory, root) = site();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/dev/zero", root.join("device")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let gateway = Setup::new().web(&root).limits("max_handshakes = 4").start().await;
    let start = Instant::now();
    // More than there are permits: none may be lost.
    for _ in 0..3 {
        for target in
            ["/.git/config", "/.env", "/.htpasswd", "/a.html~", "/a.bak", "/fifo", "/device", "/socket"]
        {
            for method in ["GET", "HEAD"] {
                let mut connection = gateway.connect(PLAIN).await;
                let peer = connection.peer();
                let request = Request::new(&format!("{method} {target} HTTP/1.1")).add("Host", "localhost");
                connection.write_all(&request.bytes()).await.unwrap();
                let response = read_response(&mut connection, method != "HEAD").await;
                assert_eq!(response.status, 404, "{method} {target}: {response:?}");
                drop(connection);
                gateway.refused(peer, "unknown_route").await;
            }
        }
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let mut connection = gateway.connect(PLAIN).await;
    assert_eq!(get(&gateway, &mut connection, "/.well-known/security.txt").await.text(), "text");
    drop(connection);
    gateway.finish().await;
}
