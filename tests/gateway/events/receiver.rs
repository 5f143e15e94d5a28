//! A receiver of events, whose answers a test chooses.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use aws_lc_rs::hmac;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::TIMEOUT;

pub(super) const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A request that the receiver has read.
#[derive(Debug, Clone)]
pub(super) struct Post {
    pub(super) head: String,
    pub(super) body: Vec<u8>,
    /// How it was answered; `None` if it was not.
    pub(super) status: Option<u16>,
}

impl Post {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub(super) fn events(&self) -> Vec<Value> {
        self.json()["events"].as_array().expect("a list of events").clone()
    }

    pub(super) fn signature(&self) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix("portcullis-signature: "));
        line.unwrap_or_else(|| panic!("no signature: {}", self.head))
    }

    /// Whether it is signed with this secret.
    pub(super) fn is_signed_with(&self, secret: &str) -> bool {
        let (time, signature) = self.signature().split_once(",v1=").expect("two fields");
        let mut signed = format!("{}.", time.strip_prefix("t=").expect("a time")).into_bytes();
        signed.extend(&self.body);
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let bytes: Vec<u8> = (0..signature.len() / 2)
            .map(|index| u8::from_str_radix(&signature[2 * index..2 * index + 2], 16).expect("hexadecimal"))
            .collect();
        hmac::verify(&key, &signed, &bytes).is_ok()
    }
}

#[derive(Default)]
struct State {
    /// The status of the next answers; `None` for no answer.
    answer: Mutex<Option<u16>>,
    posts: Mutex<Vec<Post>>,
    changed: Notify,
}

/// An HTTP server on a port of its own.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    directory: TempDir,
    socket: Option<TcpSocket>,
    task: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Accepts every event.
    pub(super) fn new() -> Self {
        let mut receiver = Self::down();
        receiver.answer(Some(200));
        receiver.listen();
        receiver
    }

    /// Has a port, and refuses connections until [`Receiver::listen`].
    pub(super) fn down() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        let address = socket.local_addr().expect("an address");
        let directory = TempDir::new().expect("a directory");
        let receiver = Self { address, state: Arc::default(), directory, socket: Some(socket), task: None };
        receiver.write_secret(SECRET);
        receiver
    }

    pub(super) fn write_secret(&self, secret: &str) {
        std::fs::write(self.secret_file(), format!("{secret}\n")).expect("a file of the test");
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(self.secret_file(), private).expect("a file of the test");
    }

    pub(super) fn secret_file(&self) -> PathBuf {
        self.directory.path().join("events.secret")
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The table of the configuration, with more lines.
    pub(super) fn table(&self, lines: &str) -> String {
        format!(
            "[events]\nurl = \"http://{}/events?key=hidden\"\nsecret_file = {:?}\n{lines}",
            self.address,
            self.secret_file().to_str().expect("a path of text")
        )
    }

    /// Answers with this status from now on, or not at all.
    pub(super) fn answer(&self, status: Option<u16>) {
        *self.state.answer.lock().expect("no panic") = status;
    }

    pub(super) fn listen(&mut self) {
        let listener = self.socket.take().expect("not listening yet").listen(64).expect("a listener");
        let state = Arc::clone(&self.state);
        self.task = Some(tokio::spawn(async move {
            // Closes the connections when the receiver is dropped.
            let mut connections = JoinSet::new();
            loop {
                let Ok((socket, _)) = listener.accept().await else { continue };
                let state = Arc::clone(&state);
                // An error is the end of the connection.
                connections.spawn(async move { serve(socket, &state).await.is_ok() });
            }
        }));
    }

    pub(super) fn posts(&self) -> Vec<Post> {
        self.state.posts.lock().expect("no panic").clone()
    }

    /// The events of all requests that were accepted.
    pub(super) fn accepted(&self) -> Vec<Value> {
        let posts = self.posts();
        posts.iter().filter(|post| post.status == Some(200)).flat_map(Post::events).collect()
    }

    /// Waits until `check` holds for the requests so far.
    pub(super) async fn until<T>(&self, what: &str, check: impl Fn(&Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            let changed = self.state.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = check(self) {
                return found;
            }
            let left = TIMEOUT.saturating_sub(start.elapsed());
            if tokio::time::timeout(left, changed).await.is_err() {
                panic!("waited {TIMEOUT:?} for {what}; {:#?}", self.accepted());
            }
        }
    }

    /// Waits for this many accepted events.
    pub(super) async fn until_accepted(&self, count: usize) -> Vec<Value> {
        self.until(&format!("{count} events"), |receiver| {
            let events = receiver.accepted();
            (events.len() >= count).then_some(events)
        })
        .await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn serve(socket: TcpStream, state: &State) -> io::Result<()> {
    let mut socket = BufReader::new(socket);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if socket.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.and_then(|length| length.parse().ok()).expect("a length");
        let mut body = vec![0; length];
        socket.read_exact(&mut body).await?;
        let status = *state.answer.lock().expect("no panic");
        state.posts.lock().expect("no panic").push(Post { head, body, status });
        state.changed.notify_waiters();
        let Some(status) = status else {
            // The client gives up.
            drop(socket.read_u8().await);
            return Ok(());
        };
        let answer = format!("HTTP/1.1 {status} \r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n");
        socket.write_all(answer.as_bytes()).await?;
    }
}
