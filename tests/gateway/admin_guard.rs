//! Who may ask on the admin address, and how much of it one may take.

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

/// Nothing that was asked for has happened.
async fn assert_unmoved(gateway: &Gateway) {
    let status = gateway.told("/api/status").await;
    assert_eq!((&status["ready"], &status["draining"]), (&true.into(), &false.into()), "{status:#}");
    assert_eq!(status["reloads"], serde_json::json!({ "ok": 0, "failed": 0 }));
    assert_eq!(gateway.listed("", 1).await[0]["id"], 1, "the session is still there");
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
            let answer = gateway.asked_with("GET", target, &[("Host", host)], "").await;
            assert_refused(&answer, 403, &format!("{host} {target}"));
            assert!(!answer.text().contains("echo"), "{}", answer.text());
        }
        for (method, target, body) in CHANGE {
            let answer = gateway.asked_with(method, target, &[("Host", host)], body).await;
            assert_refused(&answer, 403, &format!("{host} {target}"));
        }
    }
    assert_refused(&gateway.asked_with("GET", "/healthz", &[], "").await, 400, "no Host");
    let two = [("Host", "localhost"), ("Host", "evil.example")];
    assert_refused(&gateway.asked_with("GET", "/healthz", &two, "").await, 400, "two Hosts");
    for host in ["localhost", &format!("localhost:{port}"), &format!("127.0.0.1:{port}"), "[::1]:1"] {
        assert_eq!(gateway.asked_with("GET", "/healthz", &[("Host", host)], "").await.status, 200, "{host}");
    }
    assert_unmoved(&gateway).await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_whatever_it_sends() {
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
            assert_refused(&gateway.asked_with("GET", target, &fields, "").await, 403, origin);
        }
        for (method, target, body) in CHANGE {
            assert_refused(&gateway.asked_with(method, target, &fields, body).await, 403, origin);
            // A browser asks before it sends a field such as ours, and is not told yes.
            assert_refused(&gateway.asked_with("OPTIONS", target, &fields, "").await, 403, origin);
        }
    }
    // Our own Origin without the word, as a form of a page that somebody else put on this port would send it.
    for (method, target, body) in CHANGE {
        let fields = [("Host", host.as_str()), ("Origin", own.as_str())];
        assert_refused(&gateway.asked_with(method, target, &fields, body).await, 403, target);
        let crossing = [("Host", host.as_str()), ("Sec-Fetch-Site", "cross-site")];
        assert_refused(&gateway.asked_with(method, target, &crossing, body).await, 403, target);
    }
    // An Origin has no place where nothing is changed.
    let ours = [("Host", host.as_str()), ("Origin", own.as_str()), word];
    assert_refused(&gateway.asked_with("GET", "/api/sessions", &ours, "").await, 403, "our own");
    assert_unmoved(&gateway).await;
    // And so the status page itself does it.
    let answer = gateway.asked_with("DELETE", "/api/sessions/1", &ours, "").await;
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
                let answer = gateway.asked(other, target, "").await;
                assert_eq!((answer.status, answer.header("Allow")), (405, Some(method)), "{other} {target}");
            }
        }
    }
    for target in READ {
        for method in ["POST", "DELETE", "PUT"] {
            let answer = gateway.asked(method, target, "").await;
            assert_eq!(
                (answer.status, answer.header("Allow")),
                (405, Some("GET, HEAD")),
                "{method} {target}"
            );
        }
        let head = gateway.asked("HEAD", target, "").await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{target}");
        let answer = gateway.asked("GET", target, "").await;
        assert_eq!(answer.status, 200, "{target}");
        assert_eq!(answer.header("Cache-Control"), Some("no-store"), "{target}");
        assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"), "{target}");
        let policy = answer.header("Content-Security-Policy").unwrap();
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
    }
    for target in
        ["/nothing", "/api", "/api/", "/metrics/", "/index.html", "/api/sessions/", "/api/sessions/1/2"]
    {
        let status = gateway.asked("GET", target, "").await.status;
        assert!([404, 405].contains(&status), "{target}: {status}");
    }
    assert_unmoved(&gateway).await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    gateway.finish().await;
}

#[tokio::test]
async fn what_is_asked_wrongly_is_told_so() {
    let gateway = Setup::new().admin().start().await;
    let long = format!("{{\"level\":\"{}\"}}", "x".repeat(20_000));
    for (method, target, body, status, words) in [
        ("POST", "/api/log-level", "", 400, "invalid JSON"),
        ("POST", "/api/log-level", "{\"level\":\"loud\"}", 400, "error, warn, info, debug, trace"),
        ("POST", "/api/log-level", "{\"level\":\"info\",\"more\":1}", 400, "unknown field"),
        ("POST", "/api/log-level", &long, 413, "16384 bytes"),
        ("POST", "/api/sessions/kill", "{}", 400, "ids, route or peer"),
        ("POST", "/api/sessions/kill", "{\"reason\":\"bye\"}", 400, "ids, route or peer"),
        ("POST", "/api/sessions/kill", "{\"peer\":\"here\"}", 400, "192.0.2.7"),
        ("POST", "/api/sessions/kill", "{\"ids\":[1],\"reason\":\"a\\nb\"}", 400, "one line"),
        ("DELETE", "/api/sessions/one", "", 400, "not a session number"),
        ("DELETE", "/api/sessions/7", "", 404, "no session 7"),
        ("DELETE", "/api/sessions/7?why=so", "", 400, "unknown parameter"),
        ("GET", "/api/sessions?peer=here", "", 400, "192.0.2.7"),
        ("GET", "/api/sessions?limit=few", "", 400, "whole number"),
        ("GET", "/api/sessions?color=red", "", 400, "unknown parameter"),
    ] {
        let answer = gateway.asked(method, target, body).await;
        assert_eq!(answer.status, status, "{method} {target} {}", answer.text());
        let said: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(said["error"].as_str().unwrap().contains(words), "{method} {target}: {said}");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn nobody_holds_the_address_for_ever() {
    let gateway = Setup::new().admin().start().await;
    let address = gateway.admin().await;
    // Twice as many as are held at once, and none of them asks; one drips.
    let start = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..128 {
        silent.push(within("a connection", TcpStream::connect(&address)).await.unwrap());
    }
    let mut dripping = silent.pop().unwrap();
    dripping.write_all(b"GET /healthz HTTP/1.1\r\nHost: loc").await.unwrap();
    let held = gateway.open_descriptors();
    assert!(held < 64 + 40, "{held} descriptors are open");
    // Whoever asks waits until those before have had their time, and is answered.
    let answer = gateway.asked("GET", "/healthz", "").await;
    assert_eq!(answer.status, 200);
    assert!(start.elapsed() < Duration::from_secs(40), "answered after {:?}", start.elapsed());
    for stream in &mut silent {
        let (said, _) = read_to_end(stream).await;
        assert!(said.len() < 200, "{}", String::from_utf8_lossy(&said));
    }
    read_to_end(&mut dripping).await.1.ok();
    gateway.finish().await;
}

#[tokio::test]
async fn it_answers_when_the_gateway_is_full() {
    let backend = Backend::echo().await;
    let limits = "max_sessions = 2\nmax_handshakes = 2";
    let gateway = Setup::echo(&backend).limits(limits).admin().start().await;
    let mut sessions = [gateway.session("/echo").await, gateway.session("/echo").await];
    let mut refused = gateway.tcp(TLS).await;
    assert!(refused.read(&mut [0]).await.is_ok_and(|read| read == 0), "no room for a third");
    gateway.refused(refused.local_addr().unwrap(), "overloaded").await;
    for target in READ {
        assert_eq!(gateway.asked("GET", target, "").await.status, 200, "{target}");
    }
    let status = gateway.told("/api/status").await;
    assert_eq!(status["sessions"], serde_json::json!({ "in_use": 2, "limit": 2 }));
    assert_eq!(gateway.metric("portcullis_sessions_limit").await, Some(2.0));
    let overloaded = "portcullis_connections_ended_total{route=\"\",reason=\"overloaded\"}";
    assert_eq!(gateway.metric(overloaded).await, Some(1.0));
    // Its own connections take nobody's place.
    let killed = gateway.asked("DELETE", "/api/sessions/1", "").await;
    assert_eq!(killed.status, 200);
    assert_eq!(sessions[0].closed().await.1, Some(1008));
    gateway.ended(sessions[0].peer, "killed", Some(1008)).await;
    let mut free = None;
    for _ in 0..100 {
        let status = gateway.told("/api/status").await;
        if status["sessions"]["in_use"] == 1 {
            free = Some(());
            break;
        }
    }
    assert_eq!(free, Some(()), "the place of the killed session is not given back");
    let mut third = gateway.session("/echo").await;
    third.echo(b"in its place").await;
    for session in [&mut sessions[1], &mut third] {
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    eventually("the backend is left", Duration::from_secs(1), || match backend.open() {
        0 => Ok(()),
        open => Err(format!("{open} sessions are open")),
    })
    .await;
    gateway.finish().await;
}
