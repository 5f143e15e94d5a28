//! Rows 52 to 60: the process and its limits.

use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Backend, PLAIN, Session, Setup, eventually, send_request, within};

#[tokio::test]
async fn row_55_tokens_and_their_backends_add_no_series() {
    const TOKENS: usize = 12;
    let mut backends = Vec::new();
    let mut lines = String::new();
    for number in 0..TOKENS {
        let backend = Backend::echo().await;
        lines += &format!("secret-{number}: {}\n", backend.address);
        backends.push(backend);
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("tokens.cfg");
    std::fs::write(&path, lines).unwrap();
    let route = format!(
        "[[route]]\nname = \"desk\"\npath = \"/desk/*\"\ntargets = {{ from = \"file\", path = {:?} }}\n\
         allowed_networks = [\"127.0.0.0/8\"]",
        path.to_str().unwrap()
    );
    let gateway = Setup::new().tables(&route).admin().start().await;
    let open = async |token: String| {
        let mut connection = gateway.connect(PLAIN).await;
        let peer = connection.peer();
        let request = gateway.upgrade(PLAIN, &format!("/desk/{token}"));
        let response = send_request(&mut connection, &request).await;
        if response.status != 101 {
            assert_eq!(response.status, 404, "{response:?}");
            drop(connection);
            gateway.refused(peer, "unknown_route").await;
            return;
        }
        let mut session = Session::new(connection, peer, &response.rest);
        session.echo(b"hello").await;
        session.close(1000).await;
        drop(session);
        gateway.ended(peer, "client_closed", Some(1000)).await;
    };
    let series = async || {
        let metrics = gateway.request("GET", "/metrics", "").await.text().to_owned();
        for word in backends.iter().map(|backend| backend.address.to_string()).chain(["secret-".to_owned()]) {
            assert!(!metrics.contains(&word), "{word} is in the metrics:\n{metrics}");
        }
        metrics.lines().filter(|line| !line.starts_with('#')).count()
    };
    // One of each kind creates its series.
    open("secret-0".to_owned()).await;
    open("unknown".to_owned()).await;
    let before = series().await;
    for number in 1..TOKENS {
        open(format!("secret-{number}")).await;
    }
    for number in 0..300 {
        open(format!("guess-{number}")).await;
    }
    assert_eq!(series().await, before, "clients add series");
    gateway.finish().await;
}

#[tokio::test]
async fn row_59_a_panic_ends_only_its_own_session() {
    let backend = Backend::echo().await;
    let broken = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .route("broken", &broken)
        .variable("PORTCULLIS_TEST_PANIC_ROUTE", "broken")
        .limits("max_sessions = 8")
        .admin()
        .start()
        .await;
    let mut other = gateway.session("/echo").await;
    other.echo(b"hello").await;
    let before = gateway.open_descriptors();
    // More than the gateway has permits: each is released.
    const PANICS: usize = 20;
    for number in 0..PANICS {
        gateway.expect_panic();
        let mut session = gateway.session_by(number % 2, "/broken").await;
        assert_eq!(session.frames.next().await, None, "a session whose task is gone");
        let end = gateway.access_log_line(session.peer).await;
        assert_eq!((end.is_session(), end.reason(), end.text("level")), (true, "internal", Some("ERROR")));
        drop(session);
        other.echo(b"not disturbed").await;
    }
    eventually("every descriptor is released", Duration::from_secs(1), || {
        let open = gateway.open_descriptors();
        (open <= before).then_some(()).ok_or_else(|| format!("{open}, {before} before"))
    })
    .await;
    eventually("every backend is disconnected", Duration::from_secs(1), || {
        (broken.open() == 0).then_some(()).ok_or_else(|| format!("{} are open", broken.open()))
    })
    .await;
    gateway.wait_for_sessions("", 1).await;
    let counted = "portcullis_connections_ended_total{route=\"broken\",reason=\"internal\"}";
    assert_eq!(gateway.metric(counted).await, Some(PANICS as f64));
    within("the other session's close", other.close(1000)).await;
    gateway.ended(other.peer, "client_closed", Some(1000)).await;
    drop(other);
    gateway.finish().await;
}

#[tokio::test]
async fn row_56_silent_clients_of_the_admin_address_do_not_delay_others() {
    let gateway = Setup::new().admin().start().await;
    let address = gateway.admin().await;
    let mut silent = Vec::new();
    for number in 0..160 {
        let mut client = within("a connection", TcpStream::connect(&address)).await.unwrap();
        let half: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET /metrics HTTP/1.1\r\nHost: loc",
            _ => b"POST /api/log-level HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{",
        };
        let _ = client.write_all(half).await;
        silent.push(client);
    }
    let start = Instant::now();
    assert_eq!(gateway.request("GET", "/metrics", "").await.status, 200);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "/metrics took {took:?} behind 160 silent clients");
    assert!(gateway.open_descriptors() < 64 + 40, "{} descriptors", gateway.open_descriptors());
    drop(silent);
    gateway.finish().await;
}
