//! Requests that a proxy and the gateway could read differently, hosts that nobody configured, and files that take long.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Backend, ClientStream, Gateway, ListenerIndex, PLAIN, Request, Response, Setup, TLS, read_response,
    send_request, within,
};

const PROXY: &str = "127.0.0.9";

/// Sends a request on a new connection, which ends with its response.
async fn refused(gateway: &Gateway, listener: ListenerIndex, request: &Request, status: u16, reason: &str) {
    let mut connection = gateway.connect(listener).await;
    let peer = connection.peer();
    let response = send_request(&mut connection, request).await;
    assert_eq!(response.status, status, "{request:?} got {response:?}");
    drop(connection);
    gateway.refused(peer, reason).await;
}

async fn accepted(gateway: &Gateway, listener: ListenerIndex, request: &Request) {
    let mut session = gateway.open(gateway.connect(listener).await, request).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
}

async fn get(gateway: &Gateway, connection: &mut ClientStream, target: &str) -> Response {
    let request = Request::new(&format!("GET {target} HTTP/1.1")).add("Host", &gateway.host(PLAIN));
    send_request(connection, &request).await
}

fn site() -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a directory");
    let root = directory.path().join("web");
    for sub in [".git", ".well-known", "chat"] {
        std::fs::create_dir_all(root.join(sub)).expect("a directory");
    }
    for file in
        ["index.html", ".git/config", ".env", ".htpasswd", ".well-known/security.txt", "a.html~", "a.bak"]
    {
        std::fs::write(root.join(file), "text").expect("a file");
    }
    (directory, root)
}

#[tokio::test]
async fn row_61_a_crooked_target_reaches_neither_a_route_nor_a_file() {
    let backend = Backend::echo().await;
    let (_directory, root) = site();
    let gateway = Setup::new()
        .route_with("chat", "/chat", &backend, "")
        .route_with("desk", "/desk/*", &backend, "")
        .web(&root)
        .start()
        .await;
    for target in [
        "/desk/../chat",
        "/chat/../desk/one",
        "/desk/%2e%2e/chat",
        "/desk/.%2E/chat",
        "/desk/./one",
        "/./chat",
        "//chat",
        "/desk//one",
        "/desk/one/..",
        "/desk/one/.",
        "/desk/..%2fchat",
        "/desk/one%2Ftwo",
        "/desk\\one",
        "/desk/..\\chat",
        "/desk/one%5ctwo",
        "/desk/one%00",
        "/../index.html",
        "/chat/../index.html",
        "//index.html",
        "/index.html%00",
    ] {
        for listener in [TLS, PLAIN] {
            refused(&gateway, listener, &gateway.upgrade(listener, target), 400, "bad_request").await;
        }
        let file = Request::new(&format!("GET {target} HTTP/1.1")).add("Host", "localhost");
        refused(&gateway, PLAIN, &file, 400, "bad_request").await;
    }
    assert_eq!(backend.connections().await, 0);
    for target in ["/chat", "/desk/", "/desk/a..b", "/desk/one?a=/../b//c%2e"] {
        accepted(&gateway, PLAIN, &gateway.upgrade(PLAIN, target)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn row_62_an_absolute_target_must_name_the_host_of_the_host_field() {
    let [one, two] = [Backend::echo().await, Backend::echo().await];
    let gateway = Setup::new()
        .route_with("one", "/echo", &one, "")
        .route_with("two", "/echo", &two, "host = \"two.example\"")
        .start()
        .await;
    let own = gateway.host(PLAIN);
    let to = |authority: &str| {
        gateway.upgrade(PLAIN, "/echo").line(&format!("GET http://{authority}/echo HTTP/1.1"))
    };
    accepted(&gateway, PLAIN, &to(&own)).await;
    accepted(&gateway, PLAIN, &to(&own.to_uppercase())).await;
    for (authority, host) in [
        ("two.example", own.as_str()),
        (&own, "two.example"),
        ("localhost", &own),
        ("localhost:1", &own),
        (&format!("two.example@{own}"), &own),
    ] {
        refused(&gateway, PLAIN, &to(authority).with("Host", host), 400, "bad_request").await;
    }
    assert_eq!(two.connections().await, 0);
    // From a client, no forwarding field chooses the route.
    for (name, value) in [("X-Forwarded-Host", "two.example"), ("Forwarded", "host=two.example")] {
        accepted(&gateway, PLAIN, &gateway.upgrade(PLAIN, "/echo").add(name, value)).await;
    }
    assert_eq!(two.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn row_71_a_plain_loopback_listener_refuses_hosts_that_it_does_not_know() {
    let backend = Backend::echo().await;
    let (_directory, root) = site();
    let gateway = Setup::echo(&backend)
        .route_with("known", "/known", &backend, "host = \"desk.example\"")
        .listener(PLAIN, "trusted_proxies = [\"127.0.0.9/32\"]\n")
        .web(&root)
        .start()
        .await;
    let of = |listener: ListenerIndex, host: &str, origin: Option<&str>| {
        let request = gateway.upgrade(listener, "/echo").with("Host", host).without("Origin");
        origin.map_or(request.clone(), |origin| request.add("Origin", origin))
    };
    for host in
        ["attacker.example", "attacker.example:8080", "localhost.attacker.example", "192.0.2.1", "[::2]", "a"]
    {
        let own = format!("http://{host}");
        for origin in [Some(own.as_str()), Some("http://localhost"), None] {
            refused(&gateway, PLAIN, &of(PLAIN, host, origin), 421, "misdirected").await;
        }
        let file = Request::new("GET /index.html HTTP/1.1").add("Host", host);
        refused(&gateway, PLAIN, &file, 421, "misdirected").await;
    }
    assert_eq!(backend.connections().await, 0);
    for host in ["localhost", "app.localhost:80", "127.0.0.1", "127.0.0.7:1234", "desk.example"] {
        accepted(&gateway, PLAIN, &of(PLAIN, host, Some(&format!("http://{host}")))).await;
    }
    // With TLS an attacker has no certificate for the name. A proxy is asked for the public name.
    accepted(&gateway, TLS, &of(TLS, "public.example", Some("https://public.example"))).await;
    let client = "203.0.113.7:0";
    let connection = gateway.connect_by_proxy(PROXY.parse().unwrap(), client, PLAIN).await;
    let request =
        of(PLAIN, "public.example", Some("http://public.example")).add("X-Forwarded-For", "203.0.113.7");
    let mut session = gateway.open(connection, &request).await;
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended(client.parse().unwrap(), "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

#[tokio::test]
async fn row_71_a_list_of_hosts_holds_for_tls_and_for_proxies_too() {
    let backend = Backend::echo().await;
    let hosts = "hosts = [\"desk.example\", \"*.lab.example\", \"localhost\"]\n";
    let gateway = Setup::echo(&backend)
        .listener(TLS, hosts)
        .listener(PLAIN, &format!("{hosts}trusted_proxies = [\"127.0.0.9/32\"]\n"))
        .start()
        .await;
    let of = |listener: ListenerIndex, scheme: &str, host: &str| {
        gateway.upgrade(listener, "/echo").with("Host", host).with("Origin", &format!("{scheme}://{host}"))
    };
    for (listener, scheme) in [(TLS, "https"), (PLAIN, "http")] {
        for host in ["desk.example", "DESK.example:1", "one.lab.example"] {
            accepted(&gateway, listener, &of(listener, scheme, host)).await;
        }
        for host in ["127.0.0.1", "lab.example", "a.b.lab.example", "attacker.example"] {
            refused(&gateway, listener, &of(listener, scheme, host), 421, "misdirected").await;
        }
    }
    let client = "203.0.113.7:0";
    let mut connection = gateway.connect_by_proxy(PROXY.parse().unwrap(), client, PLAIN).await;
    let request = of(PLAIN, "http", "desk.example")
        .add("X-Forwarded-For", "203.0.113.7")
        .add("X-Forwarded-Host", "attacker.example");
    assert_eq!(send_request(&mut connection, &request).await.status, 421);
    drop(connection);
    gateway.refused(client.parse().unwrap(), "misdirected").await;
    gateway.finish().await;
}

#[tokio::test]
async fn row_68_a_file_takes_longer_than_a_request_head_may() {
    const LENGTH: usize = 24 * 1024 * 1024;
    const PER_SECOND: usize = 6 * 1024 * 1024;
    let (_directory, root) = site();
    std::fs::write(root.join("large"), vec![b'a'; LENGTH]).unwrap();
    let gateway = Setup::new().web(&root).timeouts("request = \"1s\"").start().await;
    let mut connection = gateway.connect(PLAIN).await;
    let peer = connection.peer();
    let head = format!("GET /large HTTP/1.1\r\nHost: {}\r\n\r\n", gateway.host(PLAIN));
    connection.write_all(head.as_bytes()).await.unwrap();
    let (start, mut received, mut buffer) = (Instant::now(), Vec::new(), vec![0; 64 * 1024]);
    while received.len() < LENGTH {
        let read = within("the file", connection.read(&mut buffer)).await;
        let seen = received.len();
        assert!(matches!(read, Ok(1..)), "{read:?} after {seen} of {LENGTH} bytes, {:?}", start.elapsed());
        received.extend_from_slice(&buffer[..read.unwrap()]);
        let due = Duration::from_secs_f64(received.len() as f64 / PER_SECOND as f64);
        tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
    }
    assert!(start.elapsed() > Duration::from_secs(3), "{:?}", start.elapsed());
    let response = loop {
        if let Some(response) = Response::parse(&received, true) {
            break response;
        }
        let read = within("the rest of the file", connection.read(&mut buffer)).await.unwrap();
        assert!(read > 0, "{} bytes", received.len());
        received.extend_from_slice(&buffer[..read]);
    };
    assert_eq!((response.status, response.body.len()), (200, LENGTH));
    // The same connection is still good for another request.
    assert_eq!(get(&gateway, &mut connection, "/index.html").await.status, 200);
    drop(connection);
    gateway.refused(peer, "served").await;
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

#[tokio::test]
async fn files_cannot_be_framed_by_other_sites() {
    let (_directory, root) = site();
    let gateway = Setup::new().web(&root).start().await;
    let mut connection = gateway.connect(PLAIN).await;
    let response = get(&gateway, &mut connection, "/").await;
    for (name, value) in [
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "strict-origin-when-cross-origin"),
        ("Content-Security-Policy", "frame-ancestors 'self'"),
    ] {
        assert_eq!(response.header(name), Some(value), "{response:?}");
    }
    drop(connection);
    gateway.finish().await;
}
