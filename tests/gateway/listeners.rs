//! Listeners without a TCP address: Unix sockets, and sockets passed by socket activation.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;

use crate::support::{Backend, Request, Session, eventually, read_response, within};

const PROGRAM: &str = env!("CARGO_BIN_EXE_portcullis");

/// A gateway with one listener, and its log.
struct Running {
    child: Child,
    log: Option<BufReader<std::process::ChildStderr>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let log = child.stderr.take().map(BufReader::new);
        Self { child, log }
    }

    /// The next line of the log with this message. Lines of other programs are skipped.
    async fn line(&mut self, message: &'static str) -> Value {
        let mut log = self.log.take().expect("the log");
        let reading = spawn_blocking(move || {
            let mut seen = String::new();
            loop {
                let mut line = String::new();
                let read = log.read_line(&mut line).expect("the log can be read");
                assert!(read > 0, "the log ended without {message:?}: {seen}");
                let value = serde_json::from_str::<Value>(&line).unwrap_or(Value::Null);
                if value["message"] == message {
                    return (log, value);
                }
                seen += &line;
            }
        });
        let (log, value) = within(message, reading).await.expect("the log");
        self.log = Some(log);
        value
    }

    async fn stop(mut self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).expect("it runs");
        self.line("stopped").await;
        assert_eq!(self.child.wait().expect("it ends").code(), Some(0));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configure(directory: &Path, address: &str, backend: &Backend) -> std::path::PathBuf {
    let file = directory.join("gateway.toml");
    let text = format!(
        "[[listener]]\naddress = \"{address}\"\ntrusted_proxies = [\"127.0.0.1\"]\n\
         [[route]]\nname = \"echo\"\npath = \"/echo\"\nbackend = \"tcp://{}\"\n[log]\nformat = \"json\"\n",
        backend.address
    );
    std::fs::write(&file, text).expect("a file of the test");
    file
}

fn gateway(file: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["run", "--config"]).arg(file);
    command
}

/// A session over a Unix socket, of a client that a proxy names.
async fn session(path: &Path, client: &str) -> Session<UnixStream> {
    let mut stream = within("the socket", UnixStream::connect(path)).await.expect("it listens");
    let request = Request::upgrade("/echo", "http", "desk.test").add("X-Forwarded-For", client);
    stream.write_all(&request.bytes()).await.expect("a request");
    let response = within("an answer", read_response(&mut stream, false)).await;
    assert_eq!(response.status, 101, "{}", response.text());
    let peer = format!("{client}:0").parse().expect("an address");
    Session::new(stream, peer, &response.rest)
}

#[tokio::test]
async fn a_unix_listener_accepts_a_proxys_clients_and_is_removed_at_exit() {
    let backend = Backend::echo().await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("listener.sock");
    // The socket file that a killed process leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    let mut gateway = Running::start(gateway(&configure(directory.path(), "unix:listener.sock", &backend)));
    let listening = gateway.line("listening").await;
    assert_eq!(listening["address"], format!("unix:{}", path.display()));
    gateway.line("ready").await;
    let mode = std::fs::symlink_metadata(&path).expect("the socket").mode() & 0o777;
    assert_eq!(mode, 0o660, "{mode:o}: every user of the machine can connect");
    let mut session = session(&path, "192.0.2.7").await;
    session.echo(b"through the file system").await;
    session.close(1000).await;
    let ended = gateway.line("session ended").await;
    assert_eq!((&ended["peer"], &ended["reason"]), (&"192.0.2.7:0".into(), &"client_closed".into()));
    gateway.stop().await;
    assert!(!path.exists(), "the socket file remains");
}

#[tokio::test]
async fn a_unix_listener_has_the_mode_and_the_group_of_the_configuration() {
    let backend = Backend::echo().await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("listener.sock");
    let file = configure(directory.path(), "unix:listener.sock", &backend);
    let own = std::fs::metadata(directory.path()).expect("a directory").gid();
    // Root can give it to any group.
    let group = if nix::unistd::Uid::effective().is_root() { 4711 } else { own };
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let access = format!("unix:listener.sock\"\nmode = \"0620\"\ngroup = \"{group}\"");
    std::fs::write(&file, text.replacen("unix:listener.sock\"", &access, 1)).expect("written");
    let mut gateway = Running::start(gateway(&file));
    gateway.line("ready").await;
    let found = std::fs::symlink_metadata(&path).expect("the socket");
    assert_eq!((found.mode() & 0o777, found.gid()), (0o620, group));
    gateway.stop().await;
}

#[tokio::test]
async fn a_unix_socket_in_use_is_not_replaced() {
    let backend = Backend::echo().await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = configure(directory.path(), "unix:listener.sock", &backend);
    let mut first = Running::start(gateway(&file));
    first.line("ready").await;
    let second = spawn_blocking(move || gateway(&file).output());
    let second = within("the second to give up", second).await.expect("it ran").expect("its output");
    let stderr = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("listener.sock") && stderr.contains("stop the program that uses it"), "{stderr}");
    session(&directory.path().join("listener.sock"), "192.0.2.7").await.echo(b"still here").await;
    first.stop().await;
}

#[tokio::test]
async fn a_missing_systemd_socket_is_an_error_with_advice() {
    let backend = Backend::echo().await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = configure(directory.path(), "systemd:portcullis", &backend);
    let output = spawn_blocking(move || gateway(&file).output());
    let output = within("it to give up", output).await.expect("it ran").expect("its output");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("systemd:portcullis") && stderr.contains("FileDescriptorName="), "{stderr}");
}

#[tokio::test]
async fn socket_activation_keeps_the_socket_open_for_the_next_process() {
    let backend = Backend::echo().await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("listener.sock");
    let file = configure(directory.path(), "systemd:listener", &backend);
    let mut command = Command::new("systemd-socket-activate");
    // Starts the gateway at the first connection.
    command
        .arg("--listen")
        .arg(&path)
        .arg("--fdname=listener")
        .arg(PROGRAM)
        .args(["run", "--config"])
        .arg(&file);
    if Command::new("systemd-socket-activate").arg("--version").output().is_err() {
        let words = "skipped: there is no systemd-socket-activate; Debian has it in the package systemd";
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{words}");
        eprintln!("{words}");
        return;
    }
    let mut gateway = Running::start(command);
    eventually("the socket is there", Duration::from_secs(10), || match path.exists() {
        true => Ok(()),
        false => Err("it is not".to_owned()),
    })
    .await;
    let file = std::fs::metadata(&path).expect("a socket").ino();
    let mut session = session(&path, "192.0.2.7").await;
    gateway.line("ready").await;
    session.echo(b"activated").await;
    session.close(1000).await;
    assert_eq!(gateway.line("session ended").await["reason"], "client_closed");
    gateway.stop().await;
    assert_eq!(std::fs::metadata(&path).expect("the gateway must not remove it").ino(), file);
}
