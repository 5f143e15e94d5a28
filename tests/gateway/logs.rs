//! Log targets and formats: text, JSON, the journal, the access log file.

mod formats;
mod journal;
mod sessions;
mod stuck;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{
    Backend, ClientStream, Request, Session, TIMEOUT, eventually, read_response, read_to_end, within,
};

/// A gateway with a plain listener and a route `/echo`, whose log goes to any target.
struct LoggingGateway {
    child: Child,
    directory: TempDir,
    address: SocketAddr,
    log: Arc<Lines>,
    _backend: Backend,
}

/// The lines of a log target.
#[derive(Default)]
struct Lines {
    lines: Mutex<Vec<String>>,
    /// Whether the reader pauses and leaves them unread.
    is_stopped: AtomicBool,
    has_ended: AtomicBool,
}

impl Lines {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().expect("no panic")
    }

    fn read(&self, from: impl Read) {
        let mut from = BufReader::with_capacity(256, from);
        loop {
            while self.is_stopped.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let mut line = Vec::new();
            match from.read_until(b'\n', &mut line) {
                Ok(1..) => {
                    self.lines().push(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned())
                }
                _ => break,
            }
        }
        self.has_ended.store(true, Ordering::Release);
    }

    /// Waits until `find` returns something.
    async fn until<T>(&self, what: &str, find: impl Fn(&[String]) -> Option<T>) -> T {
        let mut found = None;
        eventually(what, TIMEOUT, || {
            let lines = self.lines();
            found = find(&lines);
            let last = || lines[lines.len().saturating_sub(5)..].join("\n");
            found
                .is_some()
                .then_some(())
                .ok_or_else(|| format!("{} lines, the last are:\n{}", lines.len(), last()))
        })
        .await;
        found.expect("it was found")
    }

    /// Waits for `count` lines that contain `words`, and returns them.
    async fn with(&self, words: &str, count: usize) -> Vec<String> {
        self.until(&format!("{count} lines with {words:?}"), |lines| {
            let found: Vec<String> = lines.iter().filter(|line| line.contains(words)).cloned().collect();
            (found.len() >= count).then_some(found)
        })
        .await
    }
}

impl LoggingGateway {
    /// Starts it with these lines in `[log]`; its log is what it writes to standard error.
    async fn start(log: &str) -> Self {
        Self::start_in("", log, None).await
    }

    /// Starts it in a mount namespace of its own, after running `script` there. `DIRECTORY` in the script and in the lines
    /// stands for the test's directory. Its log is `lines`, or standard error.
    async fn start_in(script: &str, log: &str, lines: Option<(TempDir, Arc<Lines>)>) -> Self {
        let backend = Backend::echo().await;
        let (directory, elsewhere) = match lines {
            Some((directory, lines)) => (directory, Some(lines)),
            None => (TempDir::new().expect("a directory"), None),
        };
        let here = directory.path().to_str().expect("a path of text").to_owned();
        let config = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n\
             [[route]]\nname = \"echo\"\npath = \"/echo\"\nbackend = \"tcp://{}\"\n\
             [limits.per_ip]\nexempt = [\"127.0.0.0/8\"]\n[log]\n{}\n",
            backend.address,
            log.replace("DIRECTORY", &here)
        );
        let file = directory.path().join("gateway.toml");
        std::fs::write(&file, config).expect("a file of the test");
        let mut command = if script.is_empty() {
            Command::new(env!("CARGO_BIN_EXE_portcullis"))
        } else {
            let script = format!("set -e; {}; exec \"$@\"", script.replace("DIRECTORY", &here));
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
            command.arg(env!("CARGO_BIN_EXE_portcullis"));
            command
        };
        command.args(["run", "--config"]).arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the gateway's binary");
        let stderr = Arc::new(Lines::default());
        std::thread::spawn({
            let (stderr, pipe) = (Arc::clone(&stderr), child.stderr.take().expect("a pipe"));
            move || stderr.read(pipe)
        });
        let log = elsewhere.unwrap_or_else(|| Arc::clone(&stderr));
        let mut address = None;
        eventually("the gateway listens", TIMEOUT, || {
            address = log.lines().iter().find(|line| line.contains("listening")).map(|line| address_in(line));
            address.map(drop).ok_or_else(|| format!("it said {:?}", stderr.lines()))
        })
        .await;
        let address = address.expect("it listens");
        let bare = Self { child, directory, address, log, _backend: backend };
        bare.log.with("ready", 1).await;
        bare
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn request(&self) -> Request {
        Request::upgrade("/echo", "http", &self.address.to_string())
    }

    async fn socket(&self) -> TcpStream {
        within("a connection", TcpStream::connect(self.address)).await.expect("a connection")
    }

    async fn session(&self) -> Session {
        let mut connection = ClientStream::Plain(self.socket().await);
        connection.write_all(&self.request().bytes()).await.expect("the request is sent");
        let response = read_response(&mut connection, true).await;
        assert_eq!(response.status, 101, "{response:?}");
        let peer = connection.peer();
        Session::new(connection, peer, &response.rest)
    }

    /// Opens and closes a session.
    async fn whole_session(&self) -> SocketAddr {
        let mut session = self.session().await;
        session.echo(b"hello").await;
        session.close(1000).await;
        session.peer
    }

    /// A connection that is refused because of what it sends.
    async fn refused(&self, bytes: &[u8]) -> SocketAddr {
        let mut socket = self.socket().await;
        let peer = socket.local_addr().expect("a connected socket");
        socket.write_all(bytes).await.expect("the request is sent");
        // The response, or a reset if not everything was read.
        let _ = read_to_end(&mut socket).await;
        peer
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process");
        kill(Pid::from_raw(pid), signal).expect("the gateway runs");
    }

    /// Stops the gateway, and waits for its exit and for the end of its log.
    async fn finish(mut self) -> (ExitStatus, Vec<String>) {
        self.signal(Signal::SIGTERM);
        let mut status = None;
        eventually("the gateway ends", TIMEOUT, || {
            status = self.child.try_wait().expect("a child");
            status.map(drop).ok_or_else(|| "it still runs".to_owned())
        })
        .await;
        self.log.with("stopped", 1).await;
        let lines = self.log.lines().clone();
        (status.expect("it has ended"), lines)
    }
}

impl Drop for LoggingGateway {
    fn drop(&mut self) {
        // An error means that it has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the gateway's log ---\n{}", self.log.lines().join("\n"));
        }
    }
}

/// Whether the test can create a mount namespace, which some machines do not permit; prints why if not.
fn may_mount() -> bool {
    let tried = Command::new("unshare").args(["--map-root-user", "--mount", "true"]).output();
    let may = tried.as_ref().is_ok_and(|output| output.status.success());
    may || skipped(&format!("no mount namespace: {tried:?}"))
}

/// Prints why a test is skipped, which is a failure in CI. Returns false.
fn skipped(why: &str) -> bool {
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!ci, "{why}");
    eprintln!("skipped: {why}");
    false
}

/// The loopback address in a line of any format.
fn address_in(line: &str) -> SocketAddr {
    let start = line.find("127.0.0.1:").unwrap_or_else(|| panic!("no address in {line}"));
    let rest = &line[start..];
    let end = rest.find(|char: char| !char.is_ascii_digit() && !".:".contains(char)).unwrap_or(rest.len());
    rest[..end].parse().unwrap_or_else(|error| panic!("{error} in {line}"))
}

fn mode_of(path: &Path) -> u32 {
    std::fs::metadata(path).expect("the file is there").permissions().mode() & 0o7777
}

fn text_of(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
