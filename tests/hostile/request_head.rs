//! Rows 12 to 23: request heads, and where a request ends.

use std::path::PathBuf;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::support::{
    AccessLogLine, Backend, Gateway, ListenerIndex, PLAIN, Request, Response, Setup, TLS, read_to_end, within,
};

/// A directory with one file to serve, `/a`.
fn site() -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a directory");
    let root = directory.path().join("web");
    std::fs::create_dir(&root).expect("a directory");
    std::fs::write(root.join("a"), "text").expect("a file");
    (directory, root)
}

/// Sends bytes on one connection, which the gateway ends in good order: its responses.
async fn responses(
    gateway: &Gateway,
    listener: ListenerIndex,
    bytes: &[u8],
) -> (Vec<Response>, AccessLogLine) {
    let mut connection = gateway.connect(listener).await;
    let peer = connection.peer();
    // The gateway may close the connection before it has read all of it.
    let _ = within("the gateway to take the request", connection.write_all(bytes)).await;
    let _ = connection.flush().await;
    let (mut rest, ended) = read_to_end(&mut connection).await;
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    ended.unwrap_or_else(|error| panic!("{shown:?}: {error} after {:?}", rest.escape_ascii().to_string()));
    let mut responses = Vec::new();
    while !rest.is_empty() {
        let response = Response::parse(&rest, true);
        let response =
            response.unwrap_or_else(|| panic!("{shown:?} got {:?}", rest.escape_ascii().to_string()));
        rest.clone_from(&response.rest);
        responses.push(response);
    }
    drop(connection);
    (responses, gateway.access_log_line(peer).await)
}

/// The statuses of responses.
fn statuses(responses: &[Response]) -> Vec<u16> {
    responses.iter().map(|response| response.status).collect()
}

/// A request for a file.
fn get(target: &str) -> Request {
    Request::new(&format!("GET {target} HTTP/1.1")).add("Host", "localhost")
}

#[tokio::test]
async fn row_13_a_target_that_is_longer_than_a_head_may_be_is_414() {
    let gateway = Setup::new().timeouts("request = \"1s\"").start().await;
    for length in [9_000, 16_500, 20_000, 70_000, 200_000] {
        let request = gateway.upgrade(TLS, &format!("/{}", "t".repeat(length)));
        let (responses, end) = responses(&gateway, TLS, &request.bytes()).await;
        assert_eq!((statuses(&responses), end.reason()), (vec![414], "uri_too_long"), "{length} bytes");
        // And with only the beginning of it.
        let (responses, end) = self::responses(&gateway, TLS, &request.bytes()[..length.min(17_000)]).await;
        let status =
            if length < 16_000 { (vec![408], "request_timeout") } else { (vec![414], "uri_too_long") };
        assert_eq!((statuses(&responses), end.reason()), status, "a part of {length} bytes");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn row_14_whitespace_before_the_first_field_is_400() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let text = String::from_utf8(gateway.upgrade(TLS, "/echo").bytes()).unwrap();
    for whitespace in [" ", "\t", " X-Field: a\r\n", "\tX-Field: a\r\n", " \r\n"] {
        let crooked = text.replacen("\r\n", &format!("\r\n{whitespace}"), 1);
        let (responses, end) = responses(&gateway, TLS, crooked.as_bytes()).await;
        assert_eq!((statuses(&responses), end.reason()), (vec![400], "bad_request"), "{whitespace:?}");
    }
    assert_eq!(backend.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn row_16_a_request_whose_length_is_not_certain_is_refused() {
    let (_directory, root) = site();
    let gateway = Setup::new().web(&root).start().await;
    for fields in [
        &[("Content-Length", "5, 6")][..],
        &[("Content-Length", "5"), ("Content-Length", "6")],
        &[("Content-Length", "-1")],
        &[("Content-Length", "+5")],
        &[("Content-Length", "0x5")],
        &[("Content-Length", "")],
        &[("Content-Length", "99999999999999999999")],
        &[("Transfer-Encoding", "gzip")],
        &[("Transfer-Encoding", "chunked, gzip")],
        &[("Transfer-Encoding", "identity")],
        &[("Transfer-Encoding", "xchunked")],
    ] {
        let request = fields.iter().fold(get("/a"), |request, (name, value)| request.add(name, value));
        let both = request.then(b"0\r\n\r\n").then(&get("/a").bytes());
        let (responses, end) = responses(&gateway, PLAIN, &both.bytes()).await;
        assert_eq!((statuses(&responses), end.reason()), (vec![400], "bad_request"), "{fields:?}");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn row_16_nothing_follows_a_request_with_a_transfer_coding() {
    let (_directory, root) = site();
    let gateway = Setup::new().web(&root).start().await;
    let chunked = |request: Request| request.add("Transfer-Encoding", "chunked");
    for request in [
        chunked(get("/a")),
        chunked(get("/a").add("Content-Length", "5")),
        chunked(get("/a")).add("Content-Length", "5"),
    ] {
        let both = request.then(b"0\r\n\r\n").then(&get("/a").bytes());
        let (responses, end) = responses(&gateway, PLAIN, &both.bytes()).await;
        assert_eq!((statuses(&responses), end.reason()), (vec![200], "served"), "{both:?}");
        assert_eq!(responses[0].header("Connection"), Some("close"));
    }
    gateway.finish().await;
}

#[tokio::test]
async fn row_20_a_body_is_never_taken_for_a_request() {
    let (_directory, root) = site();
    let gateway = Setup::new().web(&root).start().await;
    let hidden = get("/hidden").bytes();
    let with_body = get("/a").add("Content-Length", &hidden.len().to_string()).then(&hidden);
    let last = get("/a").add("Connection", "close").bytes();
    let (responses, end) = responses(&gateway, PLAIN, &with_body.then(&last).bytes()).await;
    assert_eq!((statuses(&responses), end.reason()), (vec![200, 200], "served"));
    // A body that has not arrived: the connection ends behind the response.
    let unsent = get("/a").add("Content-Length", "300000").then(&hidden).then(&hidden);
    let (responses, end) = self::responses(&gateway, PLAIN, &unsent.bytes()).await;
    assert_eq!((statuses(&responses), end.reason()), (vec![200], "served"));
    gateway.finish().await;
}

#[tokio::test]
async fn row_20_nothing_behind_the_last_request_of_a_connection_is_processed() {
    let backend = Backend::echo().await;
    let (_directory, root) = site();
    let gateway = Setup::echo(&backend).web(&root).start().await;
    for option in ["close", "keep-alive, Close", "x, close"] {
        for listener in [TLS, PLAIN] {
            let last = get("/a").with("Host", &gateway.host(listener)).add("Connection", option);
            let both = last.then(&gateway.upgrade(listener, "/echo").bytes());
            let (responses, end) = responses(&gateway, listener, &both.bytes()).await;
            assert_eq!((statuses(&responses), end.reason()), (vec![200], "served"), "{option:?}");
            assert_eq!(responses[0].header("Connection"), Some("close"));
        }
    }
    assert_eq!(backend.connections().await, 0);
    gateway.finish().await;
}

#[tokio::test]
async fn row_22_a_malformed_list_of_extensions_is_400() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    for list in [";", "permessage-deflate;", "per message", "a; b=\"c d\"", "a; b=\"c", "caf\u{e9}"] {
        let request = gateway.upgrade(TLS, "/echo").add("Sec-WebSocket-Extensions", list);
        let (responses, end) = responses(&gateway, TLS, &request.bytes()).await;
        assert_eq!((statuses(&responses), end.reason()), (vec![400], "bad_request"), "{list:?}");
    }
    assert_eq!(backend.connections().await, 0);
    gateway.finish().await;
}
