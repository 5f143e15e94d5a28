//! The requests that open sessions: their targets, and fields with credentials.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::Context as _;

/// A request, without what is the same in all of them.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    target: String,
    /// A whole line of the head, or nothing.
    field: String,
}

impl Default for Request {
    /// The route without authentication.
    fn default() -> Self {
        Self::new("/bench")
    }
}

impl Request {
    /// Without a credential, except for one in the target.
    pub(crate) fn new(target: &str) -> Self {
        Self { target: target.to_owned(), field: String::new() }
    }

    pub(super) fn with_authorization(self, value: &str) -> Self {
        Self { field: format!("Authorization: {value}\r\n"), ..self }
    }

    /// The same without a credential.
    pub(crate) fn anonymous(&self) -> Self {
        let path = self.target.split_once('?').map_or(self.target.as_str(), |(path, _)| path);
        Self::new(path)
    }

    pub(super) fn head(&self) -> String {
        format!(
            "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: binary\r\n{}\r\n",
            self.target, self.field
        )
    }
}

/// One line.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\t{}", self.target, self.field.trim_end())
    }
}

impl FromStr for Request {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let (target, field) = line.split_once('\t').with_context(|| format!("not a request: {line}"))?;
        let field = if field.is_empty() { String::new() } else { format!("{field}\r\n") };
        Ok(Self { target: target.to_owned(), field })
    }
}

/// Requests to send in turn.
#[derive(Default)]
pub(super) struct Requests {
    all: Vec<Request>,
    next: AtomicUsize,
}

impl Requests {
    pub(super) fn new(all: Vec<Request>) -> Self {
        Self { all, next: AtomicUsize::new(0) }
    }

    /// The next one, each once before any is repeated; the default if there are none.
    pub(super) fn next(&self) -> Request {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.all.len().max(1);
        self.all.get(index).cloned().unwrap_or_default()
    }
}
