//! Server processes that a test starts.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::TIMEOUT;

/// The path of a program; `None`, with a message, if it is not installed.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places =
        std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    let found = places.map(|place| place.join(program)).find(|path| path.is_file());
    if found.is_none() {
        missing(program);
    }
    found
}

/// Prints that something is not installed, which is a failure with `CI=true`.
pub(crate) fn missing(what: &str) {
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!ci, "{what} is not installed: tests/install servers");
    eprintln!("skipped: {what} is not installed; tests/install servers");
}

/// A port without a listener.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Whether a port has a listener. Reads the kernel's table, because a connection would be visible to the server.
fn is_listened_on(port: u16) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("the sockets of this machine");
    let local = format!("0100007F:{port:04X}");
    sockets.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        // 0A is LISTEN.
        fields.next() == Some(&local) && fields.nth(1) == Some("0A")
    })
}

/// A running server; dropping it stops it.
pub(crate) struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts a program and waits until it listens on all of these ports.
    pub(crate) fn start(program: &Path, arguments: &[&str], directory: &TempDir, ports: &[u16]) -> Self {
        let name = program.display().to_string();
        let log = directory.path().join("output.log");
        let output = File::create(&log).expect("a file");
        let child = Command::new(program)
            .args(arguments)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let mut server = Self { name, child, log };
        let start = Instant::now();
        for &port in ports {
            while !is_listened_on(port) {
                let ended = server.child.try_wait().expect("a child");
                assert!(ended.is_none(), "{} ended with {ended:?}: {}", server.name, server.log_text());
                assert!(start.elapsed() < TIMEOUT, "no port {port}: {}", server.log_text());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        server
    }

    fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the output of {} ---\n{}", self.name, self.log_text());
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > Duration::from_secs(5) {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
