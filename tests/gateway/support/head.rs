//! Request heads as a test needs them, valid or not, and the gateway's HTTP responses.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::within;

/// The key of RFC 6455 §1.3; the answer to it is `s3pPLMBiTxaQ9kYGzzhZRbK+xOo=`.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A request head. Header lines are sent in order, exactly as written.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    line: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Request {
    /// A valid upgrade, as a page of the gateway's own origin would send it.
    pub(crate) fn upgrade(target: &str, scheme: &str, host: &str) -> Self {
        Self::new(&format!("GET {target} HTTP/1.1"))
            .add("Host", host)
            .add("Upgrade", "websocket")
            .add("Connection", "Upgrade")
            .add("Sec-WebSocket-Key", KEY)
            .add("Sec-WebSocket-Version", "13")
            .add("Origin", &format!("{scheme}://{host}"))
    }

    /// A request without any header.
    pub(crate) fn new(line: &str) -> Self {
        Self { line: line.to_owned(), headers: Vec::new(), body: Vec::new() }
    }

    /// Another request line.
    pub(crate) fn line(mut self, line: &str) -> Self {
        line.clone_into(&mut self.line);
        self
    }

    /// One more header line.
    pub(crate) fn add(self, name: &str, value: &str) -> Self {
        self.add_bytes(name, value.as_bytes())
    }

    /// One more header line, whose value need not be text.
    pub(crate) fn add_bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.headers.push((name.to_owned(), value.to_vec()));
        self
    }

    /// Removes every line of that name.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self
    }

    /// One line of that name with this value, in place of any others.
    pub(crate) fn with(self, name: &str, value: &str) -> Self {
        self.without(name).add(name, value)
    }

    /// Bytes after the head.
    pub(crate) fn then(mut self, bytes: &[u8]) -> Self {
        self.body.extend_from_slice(bytes);
        self
    }

    /// How many header lines it has.
    pub(crate) fn fields(&self) -> usize {
        self.headers.len()
    }

    /// The bytes to send.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{}\r\n", self.line).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// An HTTP response.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The bytes after it.
    pub(crate) rest: Vec<u8>,
}

impl Response {
    /// The value of the only header line of that name.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let value = values.next();
        assert!(values.next().is_none(), "{name} twice in {self:?}");
        value.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body of text")
    }

    /// Takes one response from the front of `bytes`; `None` if its head or body is incomplete.
    pub(crate) fn parse(bytes: &[u8], has_body: bool) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).expect("a head of text");
        let mut lines = head.split("\r\n");
        let line = lines.next().expect("a status line");
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| line.strip_prefix("HTTP/1.0 "))
            .and_then(|rest| rest.get(..3))
            .and_then(|digits| digits.parse().ok())
            .unwrap_or_else(|| panic!("a status line, not {line:?}"));
        let headers: Vec<(String, String)> = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("a header, not {line:?}"));
                (name.to_owned(), value.trim().to_owned())
            })
            .collect();
        let mut response = Self { status, headers, body: Vec::new(), rest: bytes[end + 4..].to_vec() };
        let length: usize = match response.header("Content-Length") {
            Some(length) if has_body && status != 101 && status != 304 => length.parse().expect("a length"),
            _ => 0,
        };
        assert!(response.header("Transfer-Encoding").is_none(), "a chunked response: {response:?}");
        if response.rest.len() < length {
            return None;
        }
        response.body = response.rest.drain(..length).collect();
        Some(response)
    }
}

/// Reads one response; fails if the connection ends before it is complete.
pub(crate) async fn read_response<S: AsyncRead + Unpin>(stream: &mut S, has_body: bool) -> Response {
    let mut bytes = Vec::new();
    loop {
        if let Some(response) = Response::parse(&bytes, has_body) {
            return response;
        }
        let read = within("an HTTP answer", stream.read_buf(&mut bytes)).await;
        let seen = String::from_utf8_lossy(&bytes);
        assert!(matches!(read, Ok(1..)), "an incomplete HTTP response: {seen:?} and {read:?}");
    }
}

/// Reads until the gateway has closed the connection: what it sent, and how the connection ended.
pub(crate) async fn read_to_end<S: AsyncRead + Unpin>(stream: &mut S) -> (Vec<u8>, io::Result<()>) {
    let mut bytes = Vec::new();
    loop {
        match within("the gateway to end the connection", stream.read_buf(&mut bytes)).await {
            Ok(0) => return (bytes, Ok(())),
            Ok(_) => {}
            Err(error) => return (bytes, Err(error)),
        }
    }
}
