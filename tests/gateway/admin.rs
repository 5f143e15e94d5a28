//! The admin API of a running gateway: what it reports, and what its commands change.

use std::process::Output;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::SIGTERM;
use serde_json::Value;

use crate::support::{
    BINARY, Backend, Frame, Gateway, PING, PONG, Session, Setup, TLS, command, frame, within,
};

/// The exit code, stdout and stderr.
fn output_of(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

async fn closed(gateway: &Gateway, session: &mut Session, reason: &str, code: u16) -> String {
    let (_, seen, words) = session.closed().await;
    assert_eq!(seen, Some(code), "{words}");
    gateway.ended(session.peer, reason, Some(code)).await;
    words
}

#[tokio::test]
async fn a_session_is_listed_with_all_its_fields() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).timeouts("ping = \"300ms\"").admin().start().await;
    let mut session = gateway.session("/echo").await;
    session.echo(b"hello").await;
    // The client takes its time to answer the Ping.
    let ping: Frame = session.frames.next().await.expect("a Ping");
    assert_eq!(ping.opcode, PING);
    let late = Instant::now();
    while late.elapsed() < Duration::from_millis(60) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    session.send(&frame(true, PONG, b"")).await;
    let start = Instant::now();
    let seen = loop {
        let seen = gateway.wait_for_sessions("", 1).await.remove(0);
        if !seen["round_trip_ms"].is_null() {
            break seen;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "the answer to the Ping does not count: {seen:#}");
    };
    assert_eq!(seen["id"], 1);
    assert_eq!(seen["peer"], session.peer.to_string());
    assert_eq!(seen["route"], "echo");
    assert_eq!(seen["backend"], format!("tcp://{}", backend.address));
    assert_eq!((&seen["bytes_in"], &seen["bytes_out"]), (&5.into(), &5.into()));
    assert_eq!(seen["buffered"], 0);
    let trip = seen["round_trip_ms"].as_f64().unwrap();
    assert!((59.0..10_000.0).contains(&trip), "{trip} ms for an answer that was sent after 60");
    assert!(seen["age_seconds"].as_f64().is_some_and(|age| age > 0.0), "{seen:#}");
    assert!(seen["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{seen:#}");
    session.send(&frame(true, crate::support::CLOSE, &crate::support::close_body(1000, b""))).await;
    within("the answer to the Close", session.frames.until_close()).await;
    drop(session.into_stream());
    gateway.wait_for_sessions("", 0).await;
    gateway.finish().await;
}

#[tokio::test]
async fn rates_and_pending_bytes_are_current() {
    let (echo, deaf) = (Backend::echo().await, Backend::scripted_with_small_buffers().await);
    let gateway = Setup::echo(&echo).route("deaf", &deaf).admin().start().await;
    let mut session = gateway.session("/echo").await;
    let mut stuck = gateway.session("/deaf").await;
    let held = deaf.accept().await;
    // Far more than the socket buffers on the path hold.
    let feeding = tokio::spawn(async move {
        stuck.try_send(&frame(true, BINARY, &vec![7; 32 << 20])).await;
        stuck
    });
    let start = Instant::now();
    loop {
        session.echo(&[1; 10_000]).await;
        let list = gateway.wait_for_sessions("", 2).await;
        let rate = |key: &str| list[0][key].as_u64().unwrap_or(0);
        let waits = list[1]["buffered"].as_u64().unwrap();
        assert!(waits <= 64 * 1024, "{waits} bytes are buffered for a backend that reads nothing");
        if rate("rate_in") > 1000 && rate("rate_out") > 1000 && waits > 0 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{list:#?}");
    }
    let killed = gateway.request("POST", "/api/sessions/kill", "{\"route\":\"deaf\"}").await;
    assert_eq!(killed.text(), "{\"killed\":[2]}");
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    drop(held);
    let mut stuck = within("the client to be disconnected", feeding).await.expect("no panic");
    let _ = stuck.frames.until_close().await;
    let peer = stuck.peer;
    drop(stuck);
    gateway.access_log_line(peer).await;
    gateway.finish().await;
}

#[tokio::test]
async fn sessions_are_filtered_by_their_fields() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).route("desk", &backend).admin().start().await;
    let mut near = gateway.session("/echo").await;
    let connection = gateway.connect_from(Some("127.0.0.9".parse().unwrap()), TLS).await;
    let mut far = gateway.open(connection, &gateway.upgrade(TLS, "/desk")).await;
    for (query, ids) in [
        ("", &[1, 2][..]),
        ("route=desk", &[2]),
        ("route=nothing", &[]),
        ("peer=127.0.0.9", &[2]),
        ("peer=127.0.0.0/8", &[1, 2]),
        ("peer=127.0.0.9&route=echo", &[]),
        ("find=DES", &[2]),
        ("find=127.0.0.9", &[2]),
        ("limit=1", &[1]),
    ] {
        let found = gateway.wait_for_sessions(query, ids.len()).await;
        let found: Vec<u64> = found.iter().map(|session| session["id"].as_u64().unwrap()).collect();
        assert_eq!(found, ids, "{query}");
    }
    let list = gateway.get_json("/api/sessions?route=desk&limit=0").await;
    assert_eq!((&list["live"], &list["matching"]), (&2.into(), &1.into()));
    for session in [&mut near, &mut far] {
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn commands_list_and_kill() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).route("desk", &backend).admin().start().await;
    let mut one = gateway.session("/echo").await;
    let mut two = gateway.session("/echo").await;
    let mut three = gateway.session("/desk").await;
    let mut four = gateway.session("/desk").await;

    let (code, listed, _) = output_of(&gateway.command(&["sessions", "--route", "echo"]).await);
    assert_eq!(code, Some(0));
    assert!(listed.starts_with("ID ") && listed.ends_with("2 of 4 session(s)\n"), "{listed}");
    assert!(listed.contains(&one.peer.to_string()) && !listed.contains(&three.peer.to_string()), "{listed}");
    let (_, json, _) = output_of(&gateway.command(&["sessions", "--json"]).await);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["matching"], 4);

    let (code, stdout, _) = output_of(&gateway.command(&["kill", "1", "--reason", "lunch is ready"]).await);
    assert_eq!((code, stdout.as_str()), (Some(0), "closing 1 session(s)\n"));
    assert_eq!(closed(&gateway, &mut one, "killed", 1008).await, "lunch is ready");
    gateway.wait_for_sessions("", 3).await;

    let (code, stdout, stderr) = output_of(&gateway.command(&["kill", "1", "2"]).await);
    assert_eq!((code, stdout.as_str()), (Some(1), "closing 1 session(s)\n"));
    assert_eq!(stderr, "portcullis: no such session: 1\n");
    assert_eq!(closed(&gateway, &mut two, "killed", 1008).await, "ended by the operator");

    let (code, _, stderr) = output_of(&gateway.command(&["kill", "--route", "nothing"]).await);
    assert_eq!((code, stderr.as_str()), (Some(1), "portcullis: no session matches\n"));
    let (code, _, stderr) = output_of(&gateway.command(&["kill", "--peer", "everybody"]).await);
    assert!(code == Some(1) && stderr.contains("192.0.2.7"), "{stderr}");
    let (code, _, _) = output_of(&gateway.command(&["kill", "--reason", "none is named"]).await);
    assert_eq!(code, Some(64));

    let (code, stdout, _) =
        output_of(&gateway.command(&["kill", "--route", "desk", "--peer", "127.0.0.1"]).await);
    assert_eq!((code, stdout.as_str()), (Some(0), "closing 2 session(s)\n"));
    closed(&gateway, &mut three, "killed", 1008).await;
    closed(&gateway, &mut four, "killed", 1008).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_reload_reports_its_result() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).admin().start().await;
    let mut session = gateway.session("/echo").await;
    let file = gateway.path("gateway.toml");
    let good = std::fs::read_to_string(&file).unwrap();

    std::fs::write(&file, good.replace("path = \"/echo\"", "path = \"/other\"")).unwrap();
    let (code, stdout, _) = output_of(&gateway.command(&["reload"]).await);
    assert!(code == Some(0) && stdout.starts_with("reloaded: "), "{stdout}");
    let mut other = gateway.session("/other").await;

    std::fs::write(&file, good.replace("[limits]", "[limits]\nmax_session = 1")).unwrap();
    let (code, stdout, stderr) = output_of(&gateway.command(&["reload"]).await);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("did you mean \"max_sessions\"?") && stderr.lines().count() == 1, "{stderr}");
    // What a reload cannot change is reported, and the rest takes effect.
    std::fs::write(&file, good.replace("[admin]\naddress = \"127.0.0.1:0\"", "")).unwrap();
    let (code, stdout, _) = output_of(&gateway.command(&["reload"]).await);
    assert!(code == Some(0) && stdout.contains("1 warning(s)"), "{stdout}");
    gateway
        .until("a line about [admin]", |lines| {
            let word =
                |line: &Value| line["message"].as_str().is_some_and(|m| m.starts_with("[admin] has changed"));
            lines.iter().any(word).then_some(())
        })
        .await;
    for (result, times) in [("ok", 2.0), ("failed", 1.0)] {
        let series = format!("portcullis_reloads_total{{result=\"{result}\"}}");
        assert_eq!(gateway.metric(&series).await, Some(times), "{result}");
    }
    for session in [&mut session, &mut other] {
        session.echo(b"goes on").await;
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_drain_fails_readiness_closes_every_session_and_keeps_the_process() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).timeouts("drain = \"2s\"").admin().start().await;
    let mut session = gateway.session("/echo").await;
    for (arguments, words) in [(&["health"][..], "ready\n"), (&["health", "--live"], "alive\n")] {
        assert_eq!(output_of(&gateway.command(arguments).await), (Some(0), words.to_owned(), String::new()));
    }
    let (code, stdout, _) = output_of(&gateway.command(&["drain"]).await);
    assert!(code == Some(0) && stdout.starts_with("draining"), "{stdout}");
    let (code, words, _) = output_of(&gateway.command(&["health"]).await);
    assert_eq!((code, words.as_str()), (Some(1), "draining\n"));
    closed(&gateway, &mut session, "draining", 1001).await;
    gateway.wait_for_sessions("", 0).await;
    let (code, words, _) = output_of(&gateway.command(&["health", "--live"]).await);
    assert_eq!((code, words.as_str()), (Some(0), "alive\n"), "the process stays");
    for (series, value) in [("portcullis_ready", 0.0), ("portcullis_draining", 1.0)] {
        assert_eq!(gateway.metric(series).await, Some(value));
    }
    gateway.signal(SIGTERM);
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn the_log_level_changes_while_it_runs() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).level("info").admin().start().await;
    let probe = async || {
        // At levels above debug the log has no lines about unauthenticated clients.
        let socket = gateway.untracked_socket(None, TLS, |_| {}).await;
        let peer = socket.local_addr().unwrap();
        drop(socket);
        let mut session = gateway.session("/echo").await;
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
        peer.to_string()
    };
    let unseen = probe().await;
    let answer = gateway.request("POST", "/api/log-level", "{\"level\":\"debug\"}").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = probe().await;
    gateway
        .until("a line at debug", |lines| lines.iter().any(|line| line["peer"] == *seen).then_some(()))
        .await;
    assert!(gateway.lines(|line| (line["peer"] == *unseen).then_some(())).is_empty(), "{unseen}");
    gateway.expect_log_line(seen.parse().unwrap());
    gateway.finish().await;
}

#[tokio::test]
async fn commands_report_why_the_admin_address_cannot_be_used() {
    let directory = tempfile::tempdir().unwrap();
    let run_command = async |arguments: &[&str]| {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        output_of(&command(directory.path().to_owned(), arguments).await)
    };
    let route = "[[route]]\nname = \"a\"\npath = \"/a\"\nbackend = \"tcp://127.0.0.1:1\"\n";
    let file = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{route}");
    let write = |text: &str| std::fs::write(directory.path().join("gateway.toml"), text).unwrap();
    for order in ["reload", "drain", "sessions", "health"] {
        let (code, _, stderr) = run_command(&[order, "--config", "nowhere.toml"]).await;
        assert!(code == Some(78) && stderr.contains("nowhere.toml: no such file"), "{stderr}");
        write(&file);
        let (code, _, stderr) = run_command(&[order]).await;
        assert!(code == Some(1) && stderr.contains("gateway.toml: there is no [admin]"), "{stderr}");
        write(&format!("{file}[admin]\naddress = \"unix:admin.sock\"\n"));
        let (code, _, stderr) = run_command(&[order]).await;
        assert!(
            code == Some(1) && stderr.contains("no gateway listens on unix:") && stderr.lines().count() == 1
        );
        let (code, _, stderr) = run_command(&[order, "--admin", "192.0.2.7:9101"]).await;
        assert!(code == Some(64) && stderr.contains("not a loopback address"), "{stderr}");
    }
    // Another program listens there.
    let other = Backend::echo().await;
    let (code, _, stderr) = run_command(&["reload", "--admin", &other.address.to_string()]).await;
    assert!(code == Some(1) && stderr.contains("unexpected answer from"), "{stderr}");
}
