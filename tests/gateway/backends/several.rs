//! Load balancing: routes with more than one backend.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

use super::authority::echo;
use super::{list, unreached, use_and_close};
use crate::backend::{BlackHole, ClosedPort};
use crate::support::{
    BINARY, Backend, Gateway, PLAIN, Session, Setup, TIMEOUT, eventually, frame, rerun, role, within,
};

fn url(address: SocketAddr) -> String {
    format!("tcp://{address}")
}

/// A gateway whose route `/pool` has all of them as backends.
async fn pool(backends: &[SocketAddr], lines: &str) -> Gateway {
    let backends = list(backends.iter().copied().map(url));
    Setup::new()
        .tables(&format!("[[route]]\nname = \"pool\"\npath = \"/pool\"\nbackend = {backends}\n{lines}"))
        .timeouts("connect = \"2s\"\nclose = \"500ms\"")
        .start()
        .await
}

/// Opens a session, uses it and closes it: the URL of its backend.
async fn visit(gateway: &Gateway, source: IpAddr) -> String {
    let connection = gateway.connect_from(Some(source), PLAIN).await;
    use_and_close(gateway, gateway.open(connection, &gateway.upgrade(PLAIN, "/pool")).await).await
}

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[tokio::test]
async fn a_backend_that_refuses_is_skipped_for_the_next() {
    let closed_port = ClosedPort::new();
    let good = Backend::echo().await;
    let gateway = pool(&[closed_port.address, good.address], "balance = \"first\"").await;
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(visit(&gateway, HERE).await, url(good.address));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    let news = gateway.lines(|line| (line["backend"] == *url(closed_port.address)).then(|| line.clone()));
    assert!(!news.is_empty(), "the log does not report the failure");
    gateway.finish().await;
}

#[tokio::test]
async fn a_backend_that_does_not_answer_leaves_time_for_the_next() {
    let hole = BlackHole::new().await;
    let good = Backend::echo().await;
    let gateway = pool(&[hole.address, good.address], "balance = \"first\"").await;
    let start = Instant::now();
    assert_eq!(visit(&gateway, HERE).await, url(good.address));
    assert!(start.elapsed() < Duration::from_secs(2), "not within the deadline: {:?}", start.elapsed());
    // From now on the failure is known.
    let start = Instant::now();
    assert_eq!(visit(&gateway, HERE).await, url(good.address));
    assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
    gateway.finish().await;
}

#[tokio::test]
async fn when_all_refuse_the_last_error_is_reported() {
    let (one, other) = (ClosedPort::new(), ClosedPort::new());
    let gateway = pool(&[one.address, other.address], "").await;
    for _ in 0..4 {
        unreached(&gateway, "/pool", "backend_refused").await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn round_robin() {
    let backends =
        [Backend::echo().await, Backend::echo().await, Backend::echo().await, Backend::echo().await];
    let gateway = pool(&backends.each_ref().map(|backend| backend.address), "").await;
    for _ in 0..40 {
        visit(&gateway, HERE).await;
    }
    for backend in &backends {
        assert_eq!(backend.connections().await, 10);
    }
    gateway.finish().await;
}

#[tokio::test]
async fn least_sessions() {
    let (one, other) = (Backend::echo().await, Backend::echo().await);
    let gateway = pool(&[one.address, other.address], "balance = \"least-sessions\"").await;
    let mut held = Vec::new();
    for _ in 0..6 {
        let mut session = gateway.session_by(PLAIN, "/pool").await;
        session.echo(b"hello").await;
        held.push(session);
    }
    assert_eq!((one.open(), other.open()), (3, 3));
    // Two sessions of the first server end; in round-robin order, they are the first and the third.
    for index in [2, 0] {
        let mut leaves = held.remove(index);
        leaves.close(1000).await;
        let end = gateway.ended(leaves.peer, "client_closed", Some(1000)).await;
        assert_eq!(end.text("backend"), Some(url(one.address).as_str()));
    }
    // The next two even this out.
    for _ in 0..2 {
        let mut session = gateway.session_by(PLAIN, "/pool").await;
        session.echo(b"hello").await;
        held.push(session);
    }
    assert_eq!((one.connections().await, other.connections().await), (5, 3));
    for mut session in held {
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_client_stays_with_its_server() {
    let backends = [Backend::echo().await, Backend::echo().await, Backend::echo().await];
    let gateway = pool(&backends.each_ref().map(|b| b.address), "balance = \"source-ip\"").await;
    let mut used = HashSet::new();
    for last in 1..=24 {
        let source = IpAddr::from([127, 0, 7, last]);
        let first = visit(&gateway, source).await;
        for _ in 0..2 {
            assert_eq!(visit(&gateway, source).await, first, "{source}");
        }
        used.insert(first);
    }
    assert_eq!(used.len(), 3, "24 clients on {used:?}");
    gateway.finish().await;
}

#[tokio::test]
async fn no_backend_exceeds_its_max_sessions() {
    let (one, other) = (Backend::echo().await, Backend::echo().await);
    let gateway = pool(&[one.address, other.address], "max_sessions = 2").await;
    let mut held: Vec<Session> = Vec::new();
    for _ in 0..4 {
        let mut session = gateway.session_by(PLAIN, "/pool").await;
        session.echo(b"hello").await;
        held.push(session);
    }
    assert_eq!((one.open(), other.open()), (2, 2));
    unreached(&gateway, "/pool", "no_healthy_backend").await;
    unreached(&gateway, "/pool", "no_healthy_backend").await;
    assert_eq!(
        (one.connections().await, other.connections().await),
        (2, 2),
        "a backend was dialled for these"
    );
    // A session that ends releases its permit.
    for _ in 0..3 {
        let mut leaves = held.remove(0);
        leaves.close(1000).await;
        gateway.ended(leaves.peer, "client_closed", Some(1000)).await;
        let mut comes = gateway.session_by(PLAIN, "/pool").await;
        comes.echo(b"hello").await;
        held.push(comes);
        unreached(&gateway, "/pool", "no_healthy_backend").await;
    }
    for mut session in held {
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_full_pool_is_a_503_if_the_route_answers_with_a_status() {
    let backend = Backend::echo().await;
    let gateway = pool(&[backend.address], "max_sessions = 1\nbackend_failure = \"status\"").await;
    let mut session = gateway.session_by(PLAIN, "/pool").await;
    session.echo(b"hello").await;
    let mut connection = gateway.connect(PLAIN).await;
    let response = crate::support::send_request(&mut connection, &gateway.upgrade(PLAIN, "/pool")).await;
    assert_eq!(response.status, 503, "{response:?}");
    let peer = connection.peer();
    drop(connection);
    assert_eq!(gateway.access_log_line(peer).await.reason(), "no_healthy_backend");
    session.close(1000).await;
    gateway.ended(session.peer, "client_closed", Some(1000)).await;
    drop(session);
    gateway.finish().await;
}

/// An echo server in its own process, which can be killed and started again on its port.
struct KillableServer {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    /// Bound to the same port, so that no other program takes it meanwhile.
    _spare: TcpSocket,
    process: Option<Child>,
}

impl KillableServer {
    /// The test that is run again in that process.
    const TEST: &str = "backends::several::one_of_two_backends_is_killed_under_200_sessions_and_restarted";
    /// What the process prints when it listens, and for each connection.
    const LISTENS: &str = "killable server: listens";
    const ACCEPTED: &str = "killable server: accepted";

    async fn new() -> Self {
        let spare = Self::socket((Ipv4Addr::LOCALHOST, 0).into());
        let address = spare.local_addr().expect("its address");
        let mut killable = Self { address, accepted: Arc::default(), _spare: spare, process: None };
        killable.start_process().await;
        killable
    }

    fn socket(address: SocketAddr) -> TcpSocket {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("SO_REUSEADDR");
        socket.bind(address).expect("the port");
        socket
    }

    /// Starts the process, and waits until it listens.
    async fn start_process(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let mut process = rerun(Self::TEST, &self.address.to_string());
        let mut process = process.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        let output = process.stdout.take().expect("a pipe");
        self.process = Some(process);
        let (listens, listening) = oneshot::channel();
        let (mut listens, accepted) = (Some(listens), self.accepted.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // The test harness prints something first, maybe on the same line.
                if line.ends_with(Self::LISTENS) {
                    listens.take().map(|listens| listens.send(()));
                } else if line == Self::ACCEPTED {
                    accepted.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        within("the process to listen", listening).await.expect("it listens");
    }

    /// Runs the server in that process, until the test that started it ends. Returns at once in any other process.
    async fn run_if_started_for_it() -> bool {
        let Some(address) = role() else { return false };
        let socket = Self::socket(address.parse().expect("an address"));
        let listener = socket.listen(1024).expect("a listener");
        println!("{}", Self::LISTENS);
        let serve = async {
            while let Ok((socket, _)) = listener.accept().await {
                println!("{}", Self::ACCEPTED);
                tokio::spawn(echo(socket));
            }
        };
        let orphaned = async { tokio::io::stdin().read_to_end(&mut Vec::new()).await };
        tokio::select! {
            () = serve => panic!("it cannot accept"),
            _ = orphaned => true,
        }
    }

    fn pid(&self) -> Pid {
        let id = self.process.as_ref().expect("it runs").id();
        Pid::from_raw(i32::try_from(id).expect("a process"))
    }

    /// Stops the process, while its kernel still accepts what is sent to it.
    async fn freeze(&self) {
        signal::kill(self.pid(), Signal::SIGSTOP).expect("it runs");
        // Until each of its threads has stopped, the others continue.
        eventually("it is stopped", TIMEOUT, || {
            match waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG)).expect("a child") {
                WaitStatus::Stopped(..) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// How many of its connections have unread data.
    fn unread(&self) -> usize {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("the connections of this machine");
        let port = format!(":{:04X}", self.address.port());
        let holds_something = |line: &&str| {
            let [_, local, _, state, queues, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                return false;
            };
            local.ends_with(&port) && state == "01" && !queues.ends_with(":00000000")
        };
        table.lines().filter(holds_something).count()
    }

    /// `kill -9`.
    fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("it runs");
        let status = process.wait().expect("a child");
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}");
    }

    /// How many connections it has accepted, as far as it has reported them.
    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Waits until it has accepted `count` connections.
    async fn has_accepted(&self, count: usize) {
        eventually("its connections", TIMEOUT, || {
            let accepted = self.accepted();
            (accepted >= count).then_some(()).ok_or_else(|| format!("{accepted} of {count}"))
        })
        .await;
        assert_eq!(self.accepted(), count);
    }
}

impl Drop for KillableServer {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

#[tokio::test]
async fn one_of_two_backends_is_killed_under_200_sessions_and_restarted() {
    if KillableServer::run_if_started_for_it().await {
        return;
    }
    let (mut killable, other) = (KillableServer::new().await, Backend::echo().await);
    let gateway = pool(&[killable.address, other.address], "").await;
    let mut sessions = Vec::new();
    for _ in 0..200 {
        let mut session = gateway.session_by(PLAIN, "/pool").await;
        session.echo(b"hello").await;
        sessions.push(session);
    }
    killable.has_accepted(100).await;
    assert_eq!(other.open(), 100);

    // It owes all of its clients an answer when it is killed.
    killable.freeze().await;
    for session in &mut sessions {
        session.send(&frame(true, BINARY, b"are you there?")).await;
    }
    eventually("a hundred requests to reach it", TIMEOUT, || {
        let unread = killable.unread();
        (unread == 100).then_some(()).ok_or_else(|| format!("{unread} have"))
    })
    .await;
    killable.kill();
    let killed_at = Instant::now();

    // New clients are served, by the other server.
    for _ in 0..30 {
        assert_eq!(visit(&gateway, HERE).await, url(other.address));
    }
    let mut survivors = Vec::new();
    for (index, mut session) in sessions.into_iter().enumerate() {
        // Round robin, from the first.
        if index % 2 == 1 {
            assert_eq!(session.frames.payload(14).await, b"are you there?");
            session.echo(b"still here").await;
            survivors.push(session);
            continue;
        }
        let (data, code, close_reason) = session.closed().await;
        assert_eq!((data.as_slice(), code), (&b""[..], Some(1011)), "{close_reason}");
        let end = gateway.ended(session.peer, "backend_failed", Some(1011)).await;
        assert_eq!(end.text("backend"), Some(url(killable.address).as_str()));
    }
    assert!(killed_at.elapsed() < Duration::from_secs(10), "{:?}", killed_at.elapsed());
    assert_eq!(survivors.len(), 100);

    killable.start_process().await;
    let restarted = Instant::now();
    while visit(&gateway, HERE).await != url(killable.address) {
        assert!(restarted.elapsed() < Duration::from_secs(5), "not used again within five seconds");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // From now on it takes its share.
    let mut served = 0;
    for _ in 0..10 {
        served += usize::from(visit(&gateway, HERE).await == url(killable.address));
    }
    assert_eq!(served, 5);
    killable.has_accepted(100 + 1 + 5).await;

    for mut session in survivors {
        session.echo(b"all the time").await;
        session.close(1000).await;
        gateway.ended(session.peer, "client_closed", Some(1000)).await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_killed_backend_without_unread_data_counts_as_closed() {
    let mut killable = KillableServer::new().await;
    let gateway = pool(&[killable.address], "").await;
    let mut session = gateway.session_by(PLAIN, "/pool").await;
    session.echo(b"hello").await;
    killable.kill();
    // Its kernel closes the connection normally, so the gateway cannot detect the kill.
    let (data, code, close_reason) = session.closed().await;
    assert_eq!((data.as_slice(), code), (&b""[..], Some(1000)), "{close_reason}");
    gateway.ended(session.peer, "backend_closed", Some(1000)).await;
    drop(session);
    unreached(&gateway, "/pool", "backend_refused").await;
    gateway.finish().await;
}

#[tokio::test]
async fn health_checks_eject_a_backend_before_a_client_notices() {
    let (mut killable, other) = (KillableServer::new().await, Backend::echo().await);
    let health = "health = { interval = \"100ms\", timeout = \"500ms\", rise = 2, fall = 2 }";
    let gateway = pool(&[killable.address, other.address], health).await;
    within("a check", async {
        while killable.accepted() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    killable.kill();
    wait_for(&gateway, "backend is down", &url(killable.address)).await;
    for _ in 0..6 {
        assert_eq!(visit(&gateway, HERE).await, url(other.address));
    }
    killable.start_process().await;
    wait_for(&gateway, "backend is up again", &url(killable.address)).await;
    let mut used = HashSet::new();
    for _ in 0..2 {
        used.insert(visit(&gateway, HERE).await);
    }
    assert_eq!(used.len(), 2, "only {used:?}");
    gateway.finish().await;
}

async fn wait_for(gateway: &Gateway, message: &str, backend: &str) {
    gateway
        .until(message, |lines| {
            let is = |line: &serde_json::Value| {
                line["message"].as_str().unwrap_or_default().starts_with(message)
                    && line["backend"] == *backend
            };
            lines.iter().any(is).then_some(())
        })
        .await;
}
