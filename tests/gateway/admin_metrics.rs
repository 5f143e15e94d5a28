//! The metrics: they match docs/metrics.md, and clients cannot add series.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use crate::support::{Backend, Gateway, PLAIN, Setup, eventually, read_to_end, send_request};

/// A metric family: its type and the labels of its series.
type Families = BTreeMap<String, (String, BTreeSet<String>)>;

/// Parses OpenMetrics text, and checks the rules that matter here.
fn families(text: &str) -> Families {
    assert!(text.ends_with("# EOF\n"), "no \"# EOF\": {text}");
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut families = Families::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert!(types.insert(name, kind).is_none(), "{name} has two types");
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        value.parse::<f64>().unwrap_or_else(|_| panic!("not a number: {line}"));
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let suffixes = ["_total", "_info", "_bucket", "_sum", "_count", ""];
        let family =
            suffixes.iter().find_map(|end| name.strip_suffix(end).filter(|name| types.contains_key(name)));
        let family = family.unwrap_or_else(|| panic!("a series without a type: {line}"));
        let kind = types[family];
        // The name as written in a query.
        let served_certificate = match kind {
            "counter" => format!("{family}_total"),
            "info" => format!("{family}_info"),
            _ => family.to_owned(),
        };
        let names = labels.trim_end_matches('}').split("\",").filter_map(|label| label.split_once("=\""));
        let names = names.map(|(name, _)| name.to_owned()).filter(|name| name != "le");
        families.entry(served_certificate).or_insert((kind.to_owned(), BTreeSet::new())).1.extend(names);
    }
    families
}

/// The rows of the table in docs/metrics.md: name, type, labels.
fn documented() -> Families {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).expect("the page");
    let mut families = Families::new();
    for row in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
        let [name, kind, labels, meaning] = cells[..] else { panic!("not four cells: {row}") };
        assert!(meaning.len() > 10, "no meaning: {row}");
        let labels = labels.split(", ").filter(|label| *label != "–");
        let labels = labels.map(|label| label.trim_matches('`').to_owned()).collect();
        let twice = families.insert(name.trim_end_matches('`').to_owned(), (kind.to_owned(), labels));
        assert_eq!(twice, None, "{name} is documented twice");
    }
    families
}

async fn metrics(gateway: &Gateway) -> String {
    let answer = gateway.request("GET", "/metrics", "").await;
    assert_eq!(answer.status, 200);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.header("Content-Type"), Some(kind));
    answer.text().to_owned()
}

#[tokio::test]
async fn the_documented_metrics_are_those_of_the_gateway() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .route_with("desk", "/desk", &backend, "auth = \"links\"")
        .tables("[auth.links]\nkind = \"ticket\"")
        .admin()
        .start()
        .await;
    let mut session = gateway.session("/echo").await;
    session.echo(b"hello").await;
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    let mut refused = gateway.connect(PLAIN).await;
    assert_eq!(send_request(&mut refused, &gateway.upgrade(PLAIN, "/desk")).await.status, 401);
    drop(refused);
    let (metrics, documented) = (families(&metrics(&gateway).await), documented());
    assert_eq!(metrics, documented, "left is /metrics, right is docs/metrics.md");
    gateway.finish().await;
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .route_to("dead", "/dead", "tcp://127.0.0.1:1", "")
        .limits("max_sessions = 5\nmax_handshakes = 7")
        .admin()
        .start()
        .await;
    let url = format!("tcp://{}", backend.address);
    let line = format!("{{route=\"echo\",backend=\"{url}\"}}");
    let payload = |way: &str| format!("portcullis_payload_bytes_total{{route=\"echo\",direction=\"{way}\"}}");
    let mut session = gateway.session("/echo").await;
    session.echo(&[7; 1234]).await;
    // An open session's payload is counted while it runs: once the gateway has finished its turn, which may be
    // after the client received its echo.
    for way in ["in", "out"] {
        let start = Instant::now();
        while gateway.metric(&payload(way)).await != Some(1234.0) {
            let seen = gateway.metric(&payload(way)).await;
            assert!(start.elapsed() < Duration::from_secs(10), "{way}: {seen:?} bytes of 1234");
        }
    }
    for (series, value) in [
        (format!("portcullis_sessions{line}"), 1.0),
        (format!("portcullis_sessions_opened_total{line}"), 1.0),
        (format!("portcullis_backend_up{line}"), 1.0),
        ("portcullis_sessions_limit".to_owned(), 5.0),
        ("portcullis_handshakes_limit".to_owned(), 7.0),
        ("portcullis_handshakes".to_owned(), 0.0),
        ("portcullis_ready".to_owned(), 1.0),
        ("portcullis_draining".to_owned(), 0.0),
        ("portcullis_tls_handshake_seconds_count".to_owned(), 1.0),
        ("portcullis_backend_dial_seconds_count{route=\"echo\"}".to_owned(), 1.0),
        (format!("portcullis_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0),
    ] {
        assert_eq!(gateway.metric(&series).await, Some(value), "{series}");
    }
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    // And stays counted when the session is over.
    gateway.wait_for_sessions("", 0).await;
    assert_eq!(gateway.metric(&payload("in")).await, Some(1234.0));
    assert_eq!(gateway.metric(&format!("portcullis_sessions{line}")).await, Some(0.0));

    let mut dead = gateway.session("/dead").await;
    assert_eq!(dead.closed().await.1, Some(1011));
    gateway.ended(dead.peer, "backend_refused", Some(1011)).await;
    let mut nowhere = gateway.connect(PLAIN).await;
    assert_eq!(send_request(&mut nowhere, &gateway.upgrade(PLAIN, "/nowhere")).await.status, 404);
    gateway.refused(nowhere.peer(), "unknown_route").await;
    let dead_url = "route=\"dead\",backend=\"tcp://127.0.0.1:1\"";
    for (series, value) in [
        (format!("portcullis_backend_dials_total{{route=\"echo\",backend=\"{url}\",result=\"ok\"}}"), 1.0),
        (format!("portcullis_backend_dials_total{{{dead_url},result=\"backend_refused\"}}"), 1.0),
        ("portcullis_connections_ended_total{route=\"echo\",reason=\"client_closed\"}".to_owned(), 1.0),
        ("portcullis_connections_ended_total{route=\"dead\",reason=\"backend_refused\"}".to_owned(), 1.0),
        ("portcullis_connections_ended_total{route=\"\",reason=\"unknown_route\"}".to_owned(), 1.0),
    ] {
        assert_eq!(gateway.metric(&series).await, Some(value), "{series}");
    }
    let open = gateway.metric("process_open_fds").await.unwrap();
    // One of them is the connection of this request.
    eventually("the descriptors are counted", Duration::from_secs(5), || {
        let now = gateway.open_descriptors() as f64;
        if (now - open).abs() <= 3.0 { Ok(()) } else { Err(format!("{open} are reported, {now} are open")) }
    })
    .await;
    drop(nowhere);
    let expiry = "portcullis_certificate_expiry_timestamp_seconds{listener=\"127.0.0.1:0\"}";
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(gateway.metric(expiry).await.is_some_and(|end| end > now));
    gateway.finish().await;
}

#[tokio::test]
async fn clients_cannot_add_series() {
    let backend = Backend::echo().await;
    let gateway = Setup::new().route_with("wide", "/wide/*", &backend, "").admin().start().await;
    let send_refused = async |number: u64| {
        // Odd numbers reach a route, and are refused there.
        let path =
            if number.is_multiple_of(2) { format!("/path-{number}") } else { format!("/wide/path-{number}") };
        let origin = format!("https://origin-{number}.example");
        let request = gateway
            .upgrade(PLAIN, &path)
            .with("Origin", &origin)
            .with("User-Agent", &format!("agent-{number}"))
            .add("Sec-WebSocket-Protocol", &format!("protocol-{number}"));
        let mut connection = gateway.connect(PLAIN).await;
        let _ = connection.write_all(&request.bytes()).await;
        read_to_end(&mut connection).await.1.ok();
    };
    for number in 0..8 {
        send_refused(number).await;
    }
    let count = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    gateway
        .until("eight lines", |lines| {
            (lines.iter().filter(|l| l["message"] == "refused").count() >= 8).then_some(())
        })
        .await;
    let before = metrics(&gateway).await;
    let more = 1_000;
    for number in 8..8 + more {
        send_refused(number).await;
    }
    let all = 8 + more as usize;
    gateway
        .until("a line for each", |lines| {
            (lines.iter().filter(|line| line["message"] == "refused").count() >= all).then_some(())
        })
        .await;
    let after = metrics(&gateway).await;
    assert_eq!(count(&after), count(&before), "{before}\n{after}");
    for word in ["path-", "origin-", "agent-", "protocol-"] {
        assert!(!after.contains(word), "{word} is in the metrics");
    }
    let refused = "portcullis_connections_ended_total{route=\"wide\",reason=\"origin_refused\"}";
    assert_eq!(gateway.metric(refused).await, Some((all / 2) as f64), "the refused clients were counted");
    gateway.finish().await;
}
