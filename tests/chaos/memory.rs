//! Scenario: thousands of sessions whose peers read nothing on either side, within a memory limit that the kernel enforces.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

use crate::client::Target;
use crate::ledger::Accepted;
use crate::load::{Load, Steady};
use crate::scenario::{Scenario, TIMEOUTS, turn};
use crate::support::{BINARY, Backend, Setup, frame};

const STUCK: usize = 2_000;
/// What docs/capacity.md allows for each session that is stuck in both directions.
const EACH: u64 = 2 * 128 * 1024;
/// What the gateway may use beside them.
const REST: u64 = 64 << 20;
const CLIENTS: usize = 10;
const STEADY: usize = 10;
/// What a stuck client sends at a time, and what its backend does.
static PIECE: [u8; 16 * 1024] = [0x5a; 16 * 1024];

/// A memory limit that the kernel enforces, as a control group of either version.
struct Fence {
    group: Option<PathBuf>,
}

impl Fence {
    /// Puts a process into a group with this limit. Without the permission for it only the measurement remains.
    fn around(pid: u32, limit: u64) -> Self {
        let name = format!("portcullis-chaos-{pid}");
        for (root, file) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let _ = fs::write(Path::new(root).join("cgroup.subtree_control"), "+memory");
            let group = Path::new(root).join(&name);
            if fs::create_dir(&group).is_err() {
                continue;
            }
            let limited = fs::write(group.join(file), limit.to_string())
                .and_then(|()| fs::write(group.join("cgroup.procs"), pid.to_string()));
            if limited.is_ok() {
                return Self { group: Some(group) };
            }
            let _ = fs::remove_dir(&group);
        }
        eprintln!("chaos: memory: no control group can be made here: the limit is measured, not enforced");
        Self { group: None }
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        let Some(group) = &self.group else { return };
        // A group that has a process cannot be removed: the process is moved to where it came from.
        let parent = group.parent().unwrap_or(Path::new("/"));
        for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(parent.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(group);
    }
}

/// A backend that reads nothing and sends as much as it can.
async fn stuck_backend() -> std::net::SocketAddr {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small receive buffer");
    socket.set_send_buffer_size(4096).expect("a small send buffer");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let listener: TcpListener = socket.listen(4096).expect("a listener");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move { while socket.write_all(&PIECE).await.is_ok() {} });
        }
    });
    address
}

/// A client that reads nothing and sends as much as it can, until the gateway ends its session or `hold` is over.
async fn stuck_client(target: Target, hold: Duration, stuck: Arc<AtomicUsize>) -> Result<(), String> {
    let small = |socket: &TcpSocket| {
        socket.set_recv_buffer_size(4096).expect("a small receive buffer");
        socket.set_send_buffer_size(4096).expect("a small send buffer");
    };
    let mut client = target.open_with(0, small).await?;
    stuck.fetch_add(1, Ordering::Relaxed);
    let bytes = frame(true, BINARY, &PIECE);
    let flood = async {
        while client.session.writer.write_all(&bytes).await.is_ok() {
            if client.session.writer.flush().await.is_err() {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(hold, flood).await;
    stuck.fetch_sub(1, Ordering::Relaxed);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --only chaos"]
async fn thousands_of_stuck_sessions_stay_within_the_memory_limit() {
    let _turn = turn().await;
    let backend = Backend::echo().await;
    // What is slow in a handshake here are the clients, which share two threads.
    let timeouts = TIMEOUTS.replace("stall = \"5s\"", "stall = \"15s\"").replace("\"3s\"", "\"60s\"");
    let timeouts =
        timeouts.replace("connect = \"2s\"", "connect = \"30s\"").replace("pong = \"5s\"", "pong = \"30s\"");
    let setup = Setup::echo(&backend)
        .timeouts(&timeouts)
        .route_to("stuck", "/stuck", &format!("tcp://{}", stuck_backend().await), "")
        .limits("socket_buffer = 16384");
    let mut scenario = Scenario::start("memory", 100, setup).await;
    let limit = scenario.gateway.memory() + STUCK as u64 * EACH + REST;
    let fence = Fence::around(scenario.gateway.pid(), limit);
    let targets = scenario.targets("/echo");
    let stuck_targets = scenario.targets("/stuck");
    let mut gives_up = false;
    while let Some(time) = scenario.next_round() {
        let steady = Steady::open(STEADY, &targets, &mut scenario.random).await;
        let load = Load::start(CLIENTS, &targets, &mut scenario.random);
        let stuck = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        let (mut peak, mut most) = (0, 0);
        let mut sample = || {
            peak = peak.max(scenario.gateway.memory());
            most = most.max(stuck.load(Ordering::Relaxed));
        };
        // In every other round they give up by themselves; in the others the gateway ends them: `timeouts.stall`.
        gives_up = !gives_up;
        let hold = Duration::from_secs(if gives_up { 8 } else { 60 });
        for number in 0..STUCK {
            let target = stuck_targets[number % 2].with_limit(Duration::from_secs(60));
            clients.spawn(stuck_client(target, hold, Arc::clone(&stuck)));
            if number % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                sample();
            }
        }
        let start = Instant::now();
        while start.elapsed() < time || !clients.is_empty() {
            tokio::time::sleep(Duration::from_millis(200)).await;
            sample();
            while let Some(client) = clients.try_join_next() {
                client.expect("no panic").expect("a stuck session opens");
            }
        }
        let stats = load.stop().await;
        let echoed = steady.close().await;
        assert!(most > STUCK / 4, "only {most} sessions were stuck at a time");
        let mib = |bytes: u64| bytes >> 20;
        assert!(peak <= limit, "{} MiB, the limit is {}", mib(peak), mib(limit));
        let what = format!(
            "{most} stuck at a time, {} MiB of {}{}; {stats}; {echoed} bytes steady",
            mib(peak),
            mib(limit),
            if fence.group.is_some() { ", enforced" } else { "" }
        );
        scenario.settle(Accepted::All, &what).await;
    }
    drop(fence);
    scenario.finish().await;
}
