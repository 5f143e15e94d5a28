//! Scenario: a proxy between clients and gateway that delays, drips, resets, and leaves connections half open.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::Target;
use crate::ledger::{Accepted, Ledger};
use crate::load::{Load, Steady};
use crate::random::Random;
use crate::scenario::{Scenario, setup, turn};
use crate::support::{Backend, PLAIN, TLS};

const CLIENTS: usize = 40;
const STEADY: usize = 10;
/// The most bytes that pass before a connection is cut.
const CUT_AFTER: u64 = 40_000;

#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    /// Every piece is late.
    Delay,
    /// A few bytes at a time.
    Drip,
    /// Both sides are reset after some bytes.
    Reset,
    /// After some bytes the client's side is closed, and the gateway hears nothing any more.
    HalfOpen,
}

const FAULTS: [Fault; 5] = [Fault::None, Fault::Delay, Fault::Drip, Fault::Reset, Fault::HalfOpen];

/// The proxy in front of one listener.
struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    gateway: SocketAddr,
    ledger: Arc<Ledger>,
    /// How many connections had each fault.
    counts: [AtomicUsize; FAULTS.len()],
    /// Cancelled when connections that are half open are no longer needed.
    forget: CancellationToken,
}

impl Proxy {
    async fn start(gateway: SocketAddr, ledger: &Arc<Ledger>, mut random: Random) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let state = Arc::new(State {
            gateway,
            ledger: Arc::clone(ledger),
            counts: Default::default(),
            forget: CancellationToken::new(),
        });
        let task = tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (state, random) = (Arc::clone(&state), random.fork());
                    tokio::spawn(async move { state.serve(client, random).await });
                }
            }
        });
        Self { address, state, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.forget.cancel();
        self.task.abort();
    }
}

impl State {
    async fn serve(&self, client: TcpStream, mut random: Random) {
        let kind = random.below(FAULTS.len() as u64) as usize;
        self.counts[kind].fetch_add(1, Ordering::Relaxed);
        let fault = FAULTS[kind];
        let gateway = TcpStream::connect(self.gateway).await.expect("the gateway accepts");
        let peer = gateway.local_addr().expect("its address");
        self.ledger.attempted(peer);
        self.ledger.connected(peer);
        for socket in [&client, &gateway] {
            socket.set_nodelay(true).expect("TCP_NODELAY");
        }
        // Half of the cuts are in the handshake.
        let most = if random.below(2) == 0 { 2_000 } else { CUT_AFTER };
        let budget = AtomicI64::new(match fault {
            Fault::Reset | Fault::HalfOpen => random.below(most) as i64,
            _ => i64::MAX,
        });
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_gateway, mut to_gateway) = gateway.into_split();
        let answered = || self.ledger.answered(peer);
        let up = pump(&mut from_client, &mut to_gateway, fault, &budget, random.fork(), || {});
        let down = pump(&mut from_gateway, &mut to_client, fault, &budget, random.fork(), answered);
        let cut = tokio::try_join!(up, down).is_err();
        let client = from_client.reunite(to_client).expect("two halves of one");
        let gateway = from_gateway.reunite(to_gateway).expect("two halves of one");
        match fault {
            Fault::Reset if cut => {
                for socket in [&client, &gateway] {
                    socket.set_zero_linger().expect("SO_LINGER");
                }
            }
            Fault::HalfOpen if cut => {
                drop(client);
                self.forget.cancelled().await;
            }
            _ => {}
        }
    }
}

/// The bytes that may pass are used up.
struct Cut;

/// Carries one direction to its end.
async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    fault: Fault,
    budget: &AtomicI64,
    mut random: Random,
    first: impl FnOnce(),
) -> Result<(), Cut> {
    let mut first = Some(first);
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if let Some(first) = first.take() {
            first();
        }
        if budget.fetch_sub(length as i64, Ordering::Relaxed) < length as i64 {
            return Err(Cut);
        }
        let piece = match fault {
            Fault::Drip => 1 + random.below(length.min(200) as u64) as usize,
            _ => length,
        };
        for piece in buffer[..length].chunks(piece) {
            match fault {
                Fault::Delay => tokio::time::sleep(random.millis(80)).await,
                Fault::Drip => tokio::time::sleep(Duration::from_millis(1)).await,
                _ => {}
            }
            if to.write_all(piece).await.is_err() {
                return Ok(());
            }
        }
    }
    let _ = to.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --only chaos"]
async fn a_proxy_delays_drips_resets_and_leaves_connections_half_open() {
    let _turn = turn().await;
    let backend = Backend::echo().await;
    let mut scenario = Scenario::start("proxy", 160, setup(&backend)).await;
    let direct = scenario.targets("/echo");
    while let Some(time) = scenario.next_round() {
        let mut targets: Vec<Target> = Vec::new();
        let mut proxies = Vec::new();
        for listener in [TLS, PLAIN] {
            let random = scenario.random.fork();
            let gateway = scenario.gateway.address(listener);
            let proxy = Proxy::start(gateway, &scenario.ledger, random).await;
            targets.push(Target {
                address: proxy.address,
                ledger: None,
                ..scenario.target(listener, "/echo")
            });
            proxies.push(proxy);
        }
        // Clients beside the proxy are not disturbed.
        let steady = Steady::open(STEADY, &direct, &mut scenario.random).await;
        let load = Load::start(CLIENTS, &targets, &mut scenario.random);
        tokio::time::sleep(time).await;
        let stats = load.stop().await;
        let echoed = steady.close().await;
        let counts = |fault: usize| -> usize {
            proxies.iter().map(|proxy| proxy.state.counts[fault].load(Ordering::Relaxed)).sum()
        };
        let counts: Vec<_> = FAULTS.iter().zip((0..).map(counts)).collect();
        assert!(counts.iter().all(|(_, count)| *count > 0), "{counts:?}");
        assert!(stats.completed() > 0 && stats.failed() > 0, "{stats}");
        // While the gateway's side of what is half open is still there.
        scenario.settle(Accepted::All, &format!("{stats}; {counts:?}; {echoed} bytes beside it")).await;
    }
    scenario.finish().await;
}
