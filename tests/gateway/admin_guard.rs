//! Access to the admin address, and how much of it one client may use.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Backend, Gateway, Response, Setup, TLS, eventually, read_to_end, within};

const READ: [&str; 8] =
    ["/", "/style.css", "/script.js", "/healthz", "/readyz", "/metrics", "/api/status", "/api/sessions"];
const CHANGE: [(&str, &str, &str); 5] = [
    ("POST", "/api/reload", ""),
    ("POST", "/api/drain", ""),
    ("POST", "/api/log-level", "{\"level\":\"trace\"}"),
    ("POST", "/api/sessions/kill", "{\"route\":\"echo\"}"),
    ("DELETE", "/api/sessions/1", ""),
];

#[track_caller]
fn assert_refused(answer: &Response, status: u16, what: &str) {
    assert_eq!(answer.status, status, "{what}: {}", answer.text());
    assert_eq!(answer.header("Access-Control-Allow-Origin"), None, "{what}");
}

/// Asserts that none of the requested changes was made.
async fn assert_unchanged(gateway: &Gateway) {
    let status = gateway.get_json("/api/status").await;
    assert_eq!((&status["ready"], &status["draining"]), (&true.into(), &false.into()), "{status:#}");
    assert_eq!(status["reloads"], serde_json::json!({ "ok": 0, "failed": 0 }));
    assert_eq!(gateway.wait_for_sessions("", 1).await[0]["id"], 1, "the session is still there");
    let traces = gateway.lines(|line| (line["level"] == "TRACE").then_some(()));
    assert!(traces.is_empty(), "the log level was changed");
}

#[tokio::test]
async fn a_foreign_host_is_refused() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).admin().start().await;
    let mut session = gateway.session("/echo").await;
    let port = gateway.admin().await.rsplit(':').next().unwrap().to_owned();
    for host in [
        "evil.example",
        &format!("evil.example:{port}"),
        &format!("localhost.evil.example:{port}"),
        &format!("127.0.0.1.evil.example:{port}"),
        &format!("0.0.0.0:{port}"),
        &format!("192.0.2.7:{port}"),
        "",
    ] {
        for target in READ {
            let answer = gateway.request_with("GET", target, &[("Host", host)], "").await;
            assert_refused(&answer, 403, &format!("{host} {target}"));
            assert!(!answer.text().contains("echo"), "{}", answer.text());
        }
        for (method, target, body) in CHANGE {
            let answer = gateway.request_with(method, target, &[("Host", host)], body).await;
            assert_refused(&answer, 403, &format!("{host} {target}"));
        }
    }
    assert_refused(&gateway.request_with("GET", "/healthz", &[], "").await, 400, "no Host");
    let two = [("Host", "localhost"), ("Host", "evil.example")];
    assert_refused(&gateway.request_with("GET", "/healthz", &two, "").await, 400, "two Hosts");
    for host in ["localhost", &format!("localhost:{port}"), &format!("127.0.0.1:{port}"), "[::1]:1"] {
        assert_eq!(
            gateway.request_with("GET", "/healthz", &[("Host", host)], "").await.status,
            200,
            "{host}"
        );
    }
    assert_unchanged(&gateway).await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_page_of_another_origin_is_always_refused() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).admin().start().await;
    let mut session = gateway.session("/echo").await;
    let port = gateway.admin().await.rsplit(':').next().unwrap().to_owned();
    let (host, own) = (format!("localhost:{port}"), format!("http://localhost:{port}"));
    let word = ("X-Portcullis", "status-page");
    for origin in
        ["https://evil.example", "http://localhost", "http://localhost:1", "null", &format!("https://{host}")]
    {
        let fields = [("Host", host.as_str()), ("Origin", origin), word];
        for target in READ {
            assert_refused(&gateway.request_with("GET", target, &fields, "").await, 403, origin);
        }
        for (method, target, body) in CHANGE {
            assert_refused(&gateway.request_with(method, target, &fields, body).await, 403, origin);
            // A browser sends a preflight before it sends a header such as ours, and is not given permission.
            assert_refused(&gateway.request_with("OPTIONS", target, &fields, "").await, 403, origin);
        }
    }
    // Our own Origin without the header, as a form of a page that another program serves on this port would send it.
    for (method, target, body) in CHANGE {
        let fields = [("Host", host.as_str()), ("Origin", own.as_str())];
        assert_refused(&gateway.request_with(method, target, &fields, body).await, 403, target);
        let crossing = [("Host", host.as_str()), ("Sec-Fetch-Site", "cross-site")];
        assert_refused(&gateway.request_with(method, target, &crossing, body).await, 403, target);
    }
    // Requests that change nothing carry no Origin.
    let ours = [("Host", host.as_str()), ("Origin", own.as_str()), word];
    assert_refused(&gateway.request_with("GET", "/api/sessions", &ours, "").await, 403, "our own");
    assert_unchanged(&gateway).await;
    // The status page itself sends this.
    let answer = gateway.request_with("DELETE", "/api/sessions/1", &ours, "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(session.closed().await.1, Some(1008));
    gateway.ended(session.peer, "killed", Some(1008)).await;
    gateway.finish().await;
}

#[tokio::test]
async fn only_post_and_delete_change_anything() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).admin().start().await;
    let mut session = gateway.session("/echo").await;
    for (method, target, _) in CHANGE {
        for other in ["GET", "HEAD", "PUT", "PATCH", "OPTIONS", "POST", "DELETE"] {
            if other != method {
                let answer = gateway.request(other, target, "").await;
                assert_eq!((answer.status, answer.header("Allow")), (405, Some(method)), "{other} {target}");
            }
        }
    }
    for target in READ {
        for method in ["POST", "DELETE", "PUT"] {
            let answer = gateway.request(method, target, "").await;
            assert_eq!(
                (answer.status, answer.header("Allow")),
                (405, Some("GET, HEAD")),
                "{method} {target}"
            );
        }
        let head = gateway.request("HEAD", target, "").await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{target}");
        let answer = gateway.request("GET", target, "").await;
        assert_eq!(answer.status, 200, "{target}");
        assert_eq!(answer.header("Cache-Control"), Some("no-store"), "{target}");
        assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"), "{target}");
        let policy = answer.header("Content-Security-Policy").unwrap();
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
    }
    for target in
        ["/nothing", "/api", "/api/", "/metrics/", "/index.html", "/api/sessions/", "/api/sessions/1/2"]
    {
        let status = gateway.request("GET", target, "").await.status;
        assert!([404, 405].contains(&status), "{target}: {status}");
    }
    assert_unchanged(&gateway).await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    gateway.finish().await;
}

#[tokio::test]
async fn invalid_requests_are_answered_with_the_error() {
    let gateway = Setup::new().admin().start().await;
    let long = format!("{{\"level\":\"{}\"}}", "x".repeat(20_000));
    for (method, target, body, status, words) in [
        ("POST", "/api/log-level", "", 400, "invalid JSON"),
        ("POST", "/api/log-level", "{\"level\":\"loud\"}", 400, "error, warn, info, debug, trace"),
        ("POST", "/api/log-level", "{\"level\":\"info\",\"more\":1}", 400, "unknown field"),
        ("POST", "/api/log-level", &long, 413, "16384 bytes"),
        ("POST", "/api/sessions/kill", "{}", 400, "ids, route, peer or user"),
        ("POST", "/api/sessions/kill", "{\"reason\":\"bye\"}", 400, "ids, route, peer or user"),
        ("POST", "/api/sessions/kill", "{\"peer\":\"here\"}", 400, "192.0.2.7"),
        ("POST", "/api/sessions/kill", "{\"ids\":[1],\"reason\":\"a\\nb\"}", 400, "one line"),
        ("DELETE", "/api/sessions/one", "", 400, "not a session number"),
        ("DELETE", "/api/sessions/7", "", 404, "no session 7"),
        ("DELETE", "/api/sessions/7?why=so", "", 400, "unknown parameter"),
        ("GET", "/api/sessions?peer=here", "", 400, "192.0.2.7"),
        ("GET", "/api/sessions?limit=few", "", 400, "whole number"),
        ("GET", "/api/sessions?color=red", "", 400, "unknown parameter"),
    ] {
        let answer = gateway.request(method, target, body).await;
        assert_eq!(answer.status, status, "{method} {target} {}", answer.text());
        let reply: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(reply["error"].as_str().unwrap().contains(words), "{method} {target}: {reply}");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn idle_connections_do_not_block_the_admin_address() {
    let gateway = Setup::new().admin().start().await;
    let address = gateway.admin().await;
    // Twice as many as may be open at once. None of them sends a request; one sends its head slowly.
    let start = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..128 {
        silent.push(within("a connection", TcpStream::connect(&address)).await.unwrap());
    }
    let mut dripping = silent.pop().unwrap();
    dripping.write_all(b"GET /healthz HTTP/1.1\r\nHost: loc").await.unwrap();
    let held = gateway.open_descriptors();
    assert!(held < 64 + 40, "{held} descriptors are open");
    // A new client waits until the connections before it time out, and is answered.
    let answer = gateway.request("GET", "/healthz", "").await;
    assert_eq!(answer.status, 200);
    assert!(start.elapsed() < Duration::from_secs(40), "answered after {:?}", start.elapsed());
    for stream in &mut silent {
        let (reply, _) = read_to_end(stream).await;
        assert!(reply.len() < 200, "{}", String::from_utf8_lossy(&reply));
    }
    read_to_end(&mut dripping).await.1.ok();
    gateway.finish().await;
}

#[tokio::test]
async fn the_admin_address_answers_when_the_gateway_is_full() {
    let backend = Backend::echo().await;
    let limits = "max_sessions = 2\nmax_handshakes = 2";
    let gateway = Setup::echo(&backend).limits(limits).admin().start().await;
    let mut sessions = [gateway.session("/echo").await, gateway.session("/echo").await];
    let mut refused = gateway.tcp(TLS).await;
    assert!(refused.read(&mut [0]).await.is_ok_and(|read| read == 0), "a third session fits");
    gateway.refused(refused.local_addr().unwrap(), "overloaded").await;
    for target in READ {
        assert_eq!(gateway.request("GET", target, "").await.status, 200, "{target}");
    }
    let status = gateway.get_json("/api/status").await;
    assert_eq!(status["sessions"], serde_json::json!({ "in_use": 2, "limit": 2 }));
    assert_eq!(gateway.metric("portcullis_sessions_limit").await, Some(2.0));
    let overloaded = "portcullis_connections_ended_total{route=\"\",reason=\"overloaded\"}";
    assert_eq!(gateway.metric(overloaded).await, Some(1.0));
    // Connections to the admin address use no permit of a session.
    let killed = gateway.request("DELETE", "/api/sessions/1", "").await;
    assert_eq!(killed.status, 200);
    assert_eq!(sessions[0].closed().await.1, Some(1008));
    gateway.ended(sessions[0].peer, "killed", Some(1008)).await;
    let mut free = None;
    for _ in 0..100 {
        let status = gateway.get_json("/api/status").await;
        if status["sessions"]["in_use"] == 1 {
            free = Some(());
            break;
        }
    }
    assert_eq!(free, Some(()), "the permit of the killed session is not released");
    let mut third = gateway.session("/echo").await;
    third.echo(b"in its place").await;
    for session in [&mut sessions[1], &mut third] {
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    eventually("the backend's session ends", Duration::from_secs(1), || match backend.open() {
        0 => Ok(()),
        open => Err(format!("{open} sessions are open")),
    })
    .await;
    gateway.finish().await;
}
