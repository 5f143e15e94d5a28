//! An echo server in a process of its own: it can be killed, and its sockets do not count as those of the test.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, stdin};
use tokio::net::{TcpListener, TcpSocket};

use crate::support::{TIMEOUT, rerun, role};

const ROLE: &str = "echo server";
const ADDRESS: &str = "PORTCULLIS_CHAOS_ADDRESS";

/// Serves if this process was started by [`EchoProcess::start`]. The test that started it begins with
/// `if echo_process::serves().await { return; }`.
pub(crate) async fn serves() -> bool {
    if role().as_deref() != Some(ROLE) {
        return false;
    }
    rlimit::increase_nofile_limit(u64::MAX).expect("descriptors");
    let address: SocketAddr = std::env::var(ADDRESS).expect("an address").parse().expect("an address");
    let listener = listen(address).await;
    println!("listening {}", listener.local_addr().expect("its address"));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                socket.set_nodelay(true).expect("TCP_NODELAY");
                loop {
                    // Idle connections hold no buffer.
                    if socket.readable().await.is_err() {
                        return;
                    }
                    let mut buffer = vec![0; 64 * 1024];
                    let Ok(length @ 1..) = socket.read(&mut buffer).await else { return };
                    if socket.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    // Ends with the test, however that ends.
    let _ = stdin().read_to_end(&mut Vec::new()).await;
    std::process::exit(0)
}

/// Listens on an address that a killed server has just used.
async fn listen(address: SocketAddr) -> TcpListener {
    let start = Instant::now();
    loop {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("SO_REUSEADDR");
        let error = match socket.bind(address).and_then(|()| socket.listen(4096)) {
            Ok(listener) => return listener,
            Err(error) => error,
        };
        assert!(start.elapsed() < TIMEOUT, "{address}: {error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) struct EchoProcess {
    test: &'static str,
    pub(crate) address: SocketAddr,
    child: Child,
}

impl EchoProcess {
    /// Starts a server on `address`; port 0 is any free one. `test` is the full name of the test.
    pub(crate) fn start(test: &'static str, address: SocketAddr) -> Self {
        let (child, address) = spawn(test, address);
        Self { test, address, child }
    }

    /// kill -9, and the same server again.
    pub(crate) fn restart(&mut self) {
        self.kill();
        (self.child, self.address) = spawn(self.test, self.address);
    }

    fn kill(&mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }
}

fn spawn(test: &str, address: SocketAddr) -> (Child, SocketAddr) {
    let mut command = rerun(test, ROLE);
    command.env(ADDRESS, address.to_string());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this executable starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    // The test harness prints lines of its own.
    let address = lines.find_map(|line| line.expect("text").split_once("listening ")?.1.parse().ok());
    // It prints more later, and ends if it cannot.
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    (child, address.expect("a line with the address"))
}

impl Drop for EchoProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
