//! The admin API of a gateway, and the commands that use it.

use std::net::SocketAddr;
use std::process::Output;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Gateway, Response, read_to_end, run, within};

impl Gateway {
    /// The admin address, taken from the log.
    pub(crate) async fn admin(&self) -> String {
        self.until("the admin address", |lines| {
            let line = lines.iter().rfind(|line| line["message"] == "listening on the admin address")?;
            Some(line["address"].as_str()?.to_owned())
        })
        .await
    }

    /// Sends a request as a local program would.
    pub(crate) async fn request(&self, method: &str, target: &str, body: &str) -> Response {
        self.request_with(method, target, &[("Host", "localhost")], body).await
    }

    /// Sends a request with exactly these header fields.
    pub(crate) async fn request_with(
        &self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &str,
    ) -> Response {
        let address: SocketAddr = self.admin().await.parse().expect("a loopback address");
        let stream = within("the admin address", TcpStream::connect(address)).await.expect("it accepts");
        request_on(stream, method, target, fields, body).await
    }

    /// The JSON of the response to a GET.
    pub(crate) async fn get_json(&self, target: &str) -> Value {
        let answer = self.request("GET", target, "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        serde_json::from_slice(&answer.body).expect("JSON")
    }

    /// The sessions that match a query, once there are `count`.
    pub(crate) async fn wait_for_sessions(&self, query: &str, count: usize) -> Vec<Value> {
        let start = std::time::Instant::now();
        loop {
            let list = self.get_json(&format!("/api/sessions?{query}")).await;
            let sessions = list["sessions"].as_array().expect("a list");
            if sessions.len() == count {
                return sessions.clone();
            }
            assert!(
                start.elapsed() < super::TIMEOUT,
                "{count} sessions were expected for {query:?}: {list:#}"
            );
        }
    }

    /// How many handshake permits are in use.
    pub(crate) async fn handshakes(&self) -> u64 {
        self.get_json("/api/status").await["handshakes"]["in_use"].as_u64().expect("a number")
    }

    /// Waits until at least this many handshake permits are in use.
    pub(crate) async fn wait_for_handshakes(&self, count: u64) {
        let start = std::time::Instant::now();
        loop {
            let in_use = self.handshakes().await;
            if in_use >= count {
                return;
            }
            assert!(start.elapsed() < super::TIMEOUT, "only {in_use} of {count} handshakes");
        }
    }

    /// The value of one series, if it exists.
    pub(crate) async fn metric(&self, series: &str) -> Option<f64> {
        let metrics = self.request("GET", "/metrics", "").await;
        let line = metrics.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().expect("a number"))
    }

    /// Runs a command against it, off the test's thread.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Output {
        let mut arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        arguments.extend(["--admin".to_owned(), self.admin().await]);
        command(std::env::temp_dir(), arguments).await
    }
}

/// Runs the binary in a directory, off the test's thread.
pub(crate) async fn command(directory: std::path::PathBuf, arguments: Vec<String>) -> Output {
    let ran = tokio::task::spawn_blocking(move || {
        run(&directory, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    });
    ran.await.expect("no panic")
}

/// Sends a request on a connection, and reads its response.
pub(crate) async fn request_on<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
    body: &str,
) -> Response {
    let mut request = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
    for (name, value) in fields {
        request += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    request += &format!("\r\n{body}");
    within("the request to be sent", stream.write_all(request.as_bytes()))
        .await
        .expect("the request is sent");
    let (bytes, ended) = read_to_end(&mut stream).await;
    ended.expect("a clean end");
    let has_body = method != "HEAD";
    Response::parse(&bytes, has_body)
        .unwrap_or_else(|| panic!("not a complete response: {:?}", String::from_utf8_lossy(&bytes)))
}
