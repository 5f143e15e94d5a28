//! Connects to the first of several addresses that answers (Happy Eyeballs, RFC 8305 §5).
//!
//! Owns the order and the timing of the connection attempts. Knows nothing of where the addresses come from and of
//! what is sent afterwards. Invariants: an address is checked against the rules before an attempt to connect; the
//! result is there by the deadline; when one attempt succeeds, all others are dropped at once.

use std::{
    collections::VecDeque,
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep_until},
};

use super::{
    allowed::{Allowed, Rule},
    exhaustion::{has_local_address_for, is_exhaustion},
    resolve::Addresses,
};
use crate::{outcome::Reason, socket_buffer::SocketBuffer};

/// How long an attempt runs alone before the next one starts beside it (RFC 8305 §8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// How many failed addresses an error message lists.
const LISTED_FAILURES: usize = 4;

/// Why no address of a backend could be connected to. The texts continue "cannot reach tcp://…: ".
#[derive(Debug, thiserror::Error)]
pub enum TcpConnectError {
    #[error("{0}")]
    Refused(Failures),
    /// The deadline came first.
    #[error("no answer in time{}", .0.in_parentheses())]
    Timeout(Failures),
    /// The rules permit no address.
    #[error("{address} may not be dialled: {rule}")]
    Forbidden {
        /// The last address that was forbidden.
        address: IpAddr,
        /// The rule that forbids it.
        rule: Rule,
    },
    /// This machine has no descriptor, memory or local port left.
    #[error("no descriptor or local port left: {0}")]
    Exhausted(io::Error),
}

impl TcpConnectError {
    /// The reason that a session ends with.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused(_) | Self::Forbidden { .. } => Reason::BackendRefused,
            Self::Timeout(_) => Reason::BackendTimeout,
            Self::Exhausted(_) => Reason::Overloaded,
        }
    }
}

/// The addresses that failed, and why.
#[derive(Debug, Default)]
pub struct Failures(Vec<(SocketAddr, Failure)>);

#[derive(Debug)]
enum Failure {
    Forbidden(Rule),
    Io(io::Error),
}

impl Failures {
    fn in_parentheses(&self) -> String {
        if self.0.is_empty() { String::new() } else { format!(" ({self})") }
    }

    /// The error for all of these, when no address is left to try.
    fn into_error(mut self) -> TcpConnectError {
        let errors = || self.0.iter().filter_map(|(_, failure)| failure.io());
        if errors().next().is_none()
            && let Some((address, Failure::Forbidden(rule))) = self.0.last()
        {
            return TcpConnectError::Forbidden { address: address.ip(), rule: *rule };
        }
        if errors().any(|error| error.kind() == io::ErrorKind::TimedOut) {
            return TcpConnectError::Timeout(self);
        }
        // The kernel counts local ports per destination, so other addresses were tried; all of them have failed.
        let exhausted = self.0.iter().position(|(address, failure)| {
            failure.io().is_some_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
                && has_local_address_for(*address)
        });
        match exhausted.map(|index| self.0.swap_remove(index)) {
            Some((_, Failure::Io(error))) => TcpConnectError::Exhausted(error),
            _ => TcpConnectError::Refused(self),
        }
    }
}

impl Failure {
    fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Io(error) => Some(error),
            Self::Forbidden(_) => None,
        }
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (address, failure)) in self.0.iter().take(LISTED_FAILURES).enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            match failure {
                Failure::Forbidden(rule) => write!(f, "{separator}{address}: {rule}")?,
                Failure::Io(error) => write!(f, "{separator}{address}: {error}")?,
            }
        }
        match self.0.len().saturating_sub(LISTED_FAILURES) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// Connects to the first of `addresses` that answers, by TCP with Nagle's algorithm disabled.
///
/// # Errors
/// [`TcpConnectError`] has a variant for each cause.
pub(crate) async fn tcp(
    addresses: Addresses,
    port: u16,
    allowed: &Allowed,
    buffer: &SocketBuffer,
    deadline: Instant,
) -> Result<TcpStream, TcpConnectError> {
    let connect = |address: SocketAddr| async move {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Before connecting, because the window scale is negotiated then. If it fails, the connection works with the
        // system's defaults.
        let _ = buffer.apply(&socket);
        socket.connect(address).await
    };
    let stream = happy_eyeballs(addresses, port, allowed, deadline, connect).await?;
    // Frames are small and interactive; with Nagle's algorithm they would wait for delayed ACKs.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// The algorithm itself, for any `connect`. Cancel-safe: dropping it drops all attempts.
///
/// # Errors
/// [`TcpConnectError`] has a variant for each cause.
pub(crate) async fn happy_eyeballs<T, F>(
    addresses: Addresses,
    port: u16,
    allowed: &Allowed,
    deadline: Instant,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<T, TcpConnectError>
where
    F: Future<Output = io::Result<T>>,
{
    let Addresses { known, mut pending, source } = addresses;
    let mut waiting = Waiting::default();
    waiting.extend(known);
    let mut attempts = FuturesUnordered::new();
    let mut failures = Failures::default();
    let mut next_attempt = Instant::now();
    loop {
        tokio::select! {
            biased;
            Some((address, result)) = attempts.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) if is_exhaustion(&error) => return Err(TcpConnectError::Exhausted(error)),
                Err(error) => {
                    failures.0.push((address, Failure::Io(error)));
                    next_attempt = Instant::now();
                }
            },
            () = sleep_until(deadline) => return Err(TcpConnectError::Timeout(failures)),
            more = async { pending.as_mut()?.await.ok() }, if pending.is_some() => {
                pending = None;
                waiting.extend(more.into_iter().flatten());
            }
            () = sleep_until(next_attempt), if !waiting.is_empty() => {
                let Some(address) = waiting.next() else { continue };
                let address = SocketAddr::new(address, port);
                match allowed.check(address, source) {
                    Err(rule) => failures.0.push((address, Failure::Forbidden(rule))),
                    Ok(()) => {
                        let attempt = connect(address);
                        attempts.push(async move { (address, attempt.await) });
                        next_attempt = Instant::now() + ATTEMPT_DELAY;
                    }
                }
            }
        }
        if waiting.is_empty() && attempts.is_empty() && pending.is_none() {
            return Err(failures.into_error());
        }
    }
}

/// Addresses not tried yet, each family in the resolver's order; the families alternate, IPv6 first (RFC 8305 §4).
#[derive(Default)]
struct Waiting {
    v6: VecDeque<IpAddr>,
    v4: VecDeque<IpAddr>,
    v4_is_next: bool,
}

impl Waiting {
    fn extend(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            match address {
                IpAddr::V6(_) => self.v6.push_back(address),
                IpAddr::V4(_) => self.v4.push_back(address),
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.v6.is_empty() && self.v4.is_empty()
    }

    fn next(&mut self) -> Option<IpAddr> {
        let (first, second) =
            if self.v4_is_next { (&mut self.v4, &mut self.v6) } else { (&mut self.v6, &mut self.v4) };
        let next = first.pop_front().or_else(|| second.pop_front())?;
        self.v4_is_next = next.is_ipv6();
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::{Arc, Mutex},
    };

    use tokio::net::TcpListener;

    use super::*;
    use crate::backend::{
        allowed::AddressSource,
        resolve::{PendingLookup, ResolveError},
    };

    const V6: [&str; 3] = ["2001:db8::1", "2001:db8::2", "2001:db8::3"];
    const V4: [&str; 3] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];

    /// How an address reacts to a connection attempt, after some milliseconds.
    #[derive(Clone, Copy)]
    enum Peer {
        Accepts(u64),
        Refuses(u64),
        Silent,
        Fails(i32),
    }
    use Peer::{Accepts, Fails, Refuses, Silent};

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn named(addresses: &[&str], pending: Option<PendingLookup>) -> Addresses {
        let known = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Addresses { known, pending, source: AddressSource::Local }
    }

    fn later(after: u64, addresses: &'static [&'static str]) -> PendingLookup {
        Box::pin(async move {
            tokio::time::sleep(millis(after)).await;
            if addresses.is_empty() {
                return Err(ResolveError::NoSuchName);
            }
            Ok(addresses.iter().map(|address| address.parse().unwrap()).collect())
        })
    }

    type Attempt = Pin<Box<dyn Future<Output = io::Result<SocketAddr>> + Send>>;

    /// A simulated network: how each address reacts, and when it was connected to.
    struct Network {
        peers: Vec<(IpAddr, Peer)>,
        calls: Arc<Mutex<Vec<(String, u64)>>>,
        alive: Arc<()>,
        began: Instant,
    }

    impl Network {
        fn new(peers: &[(&str, Peer)]) -> Self {
            Self {
                peers: peers.iter().map(|(address, peer)| (address.parse().unwrap(), *peer)).collect(),
                calls: Arc::default(),
                alive: Arc::default(),
                began: Instant::now(),
            }
        }

        fn connect(&self, address: SocketAddr) -> Attempt {
            let call = (address.ip().to_string(), self.elapsed());
            self.calls.lock().unwrap().push(call);
            let peer = self.peers.iter().find(|(known, _)| *known == address.ip()).map(|(_, peer)| *peer);
            let alive = Arc::clone(&self.alive);
            Box::pin(async move {
                let _alive = alive;
                match peer.expect("an address of the test") {
                    Accepts(after) => {
                        tokio::time::sleep(millis(after)).await;
                        Ok(address)
                    }
                    Refuses(after) => {
                        tokio::time::sleep(millis(after)).await;
                        Err(io::ErrorKind::ConnectionRefused.into())
                    }
                    Silent => std::future::pending().await,
                    Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
                }
            })
        }

        async fn happy_eyeballs(&self, addresses: Addresses, limit: u64) -> Result<String, TcpConnectError> {
            let deadline = self.began + millis(limit);
            let connect = |address| self.connect(address);
            let winner = happy_eyeballs(addresses, 5900, &Allowed::default(), deadline, connect).await;
            assert_eq!(Arc::strong_count(&self.alive), 1, "an attempt is still running");
            winner.map(|address| address.ip().to_string())
        }

        fn elapsed(&self) -> u64 {
            self.began.elapsed().as_millis() as u64
        }

        fn calls(&self) -> Vec<(String, u64)> {
            self.calls.lock().unwrap().clone()
        }
    }

    fn calls(calls: &[(&str, u64)]) -> Vec<(String, u64)> {
        calls.iter().map(|(address, at)| ((*address).to_owned(), *at)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn families_alternate_every_250_ms_starting_with_ipv6() {
        let network =
            Network::new(&[(V6[0], Silent), (V6[1], Silent), (V4[0], Silent), (V4[1], Accepts(10))]);
        let winner = network.happy_eyeballs(named(&[V4[0], V4[1], V6[0], V6[1]], None), 5000).await.unwrap();
        assert_eq!(winner, V4[1]);
        assert_eq!(network.calls(), calls(&[(V6[0], 0), (V4[0], 250), (V6[1], 500), (V4[1], 750)]));
        assert_eq!(network.elapsed(), 760);
    }

    #[tokio::test(start_paused = true)]
    async fn one_family_keeps_the_order_of_the_resolver() {
        let network = Network::new(&[(V4[0], Silent), (V4[1], Silent), (V4[2], Accepts(0))]);
        assert_eq!(network.happy_eyeballs(named(&V4, None), 5000).await.unwrap(), V4[2]);
        assert_eq!(network.calls(), calls(&[(V4[0], 0), (V4[1], 250), (V4[2], 500)]));
    }

    #[tokio::test(start_paused = true)]
    async fn failure_starts_the_next_attempt_at_once() {
        let network = Network::new(&[(V6[0], Refuses(20)), (V4[0], Refuses(0)), (V6[1], Accepts(5))]);
        assert_eq!(network.happy_eyeballs(named(&[V6[0], V6[1], V4[0]], None), 5000).await.unwrap(), V6[1]);
        assert_eq!(network.calls(), calls(&[(V6[0], 0), (V4[0], 20), (V6[1], 20)]));
    }

    #[tokio::test(start_paused = true)]
    async fn earlier_attempt_wins_if_it_answers_first() {
        let network = Network::new(&[(V6[0], Accepts(300)), (V4[0], Accepts(100))]);
        assert_eq!(network.happy_eyeballs(named(&[V6[0], V4[0]], None), 5000).await.unwrap(), V6[0]);
        assert_eq!(network.elapsed(), 300);
    }

    #[tokio::test(start_paused = true)]
    async fn late_addresses_are_tried_too() {
        let network = Network::new(&[(V6[0], Silent), (V6[1], Silent), (V4[0], Accepts(0))]);
        let addresses = named(&[V6[0], V6[1]], Some(later(100, &[V4[0]])));
        assert_eq!(network.happy_eyeballs(addresses, 5000).await.unwrap(), V4[0]);
        assert_eq!(network.calls(), calls(&[(V6[0], 0), (V4[0], 250)]), "the other family is next");
    }

    #[tokio::test(start_paused = true)]
    async fn pending_lookup_is_awaited_when_all_others_have_failed() {
        let network = Network::new(&[(V6[0], Refuses(0)), (V4[0], Accepts(0))]);
        let addresses = named(&[V6[0]], Some(later(1000, &[V4[0]])));
        assert_eq!(network.happy_eyeballs(addresses, 5000).await.unwrap(), V4[0]);
        assert_eq!(network.elapsed(), 1000);
        let none = named(&[V6[0]], Some(later(1000, &[])));
        let error = network.happy_eyeballs(none, 5000).await.unwrap_err();
        assert!(matches!(error, TcpConnectError::Refused(_)), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_error_lists_what_failed_before() {
        let network = Network::new(&[(V6[0], Refuses(0)), (V4[0], Silent), (V4[1], Silent)]);
        let error = network.happy_eyeballs(named(&[V6[0], V4[0], V4[1]], None), 1000).await.unwrap_err();
        assert_eq!(network.elapsed(), 1000);
        assert_eq!(error.reason(), Reason::BackendTimeout);
        assert_eq!(
            error.to_string(),
            "no answer in time ([2001:db8::1]:5900: connection refused)",
            "only what has failed is listed"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_refuse_the_first_four_are_listed() {
        let five = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"];
        let network = Network::new(&five.map(|address| (address, Refuses(1))));
        let error = network.happy_eyeballs(named(&five[..1], None), 5000).await.unwrap_err();
        assert_eq!(error.reason(), Reason::BackendRefused);
        assert_eq!(error.to_string(), "192.0.2.1:5900: connection refused");
        let error = network.happy_eyeballs(named(&five, None), 5000).await.unwrap_err().to_string();
        assert!(error.ends_with("192.0.2.4:5900: connection refused; and 1 more"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn lack_of_descriptors_stops_at_once() {
        let network = Network::new(&[(V4[0], Fails(24)), (V4[1], Accepts(0))]);
        let error = network.happy_eyeballs(named(&V4[..2], None), 5000).await.unwrap_err();
        assert_eq!(error.reason(), Reason::Overloaded);
        assert_eq!(network.calls().len(), 1);
    }

    /// EADDRNOTAVAIL: for loopback it can only mean that no local port is left; for an address that this machine has no
    /// route to, that it has no local address.
    #[tokio::test(start_paused = true)]
    async fn lack_of_ports_is_distinguished_from_lack_of_a_local_address() {
        const NO_ADDRESS: i32 = 99;
        let network = Network::new(&[("127.0.0.1", Fails(NO_ADDRESS)), ("127.0.0.2", Accepts(0))]);
        let error = network.happy_eyeballs(named(&["127.0.0.1"], None), 5000).await.unwrap_err();
        assert_eq!(error.reason(), Reason::Overloaded, "{error}");
        let winner = network.happy_eyeballs(named(&["127.0.0.1", "127.0.0.2"], None), 5000).await.unwrap();
        assert_eq!(winner, "127.0.0.2", "ports are counted per destination");
        // Broadcast needs a socket option, so connecting to it fails.
        let literal = Addresses::literal([255; 4].into());
        let connect = |_| async { Err::<(), _>(io::Error::from_raw_os_error(NO_ADDRESS)) };
        let deadline = Instant::now() + millis(5000);
        let error = happy_eyeballs(literal, 1, &Allowed::default(), deadline, connect).await.unwrap_err();
        assert_eq!(error.reason(), Reason::BackendRefused, "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn forbidden_address_is_never_connected_to_and_costs_no_time() {
        let network = Network::new(&[(V4[0], Accepts(0))]);
        let winner =
            network.happy_eyeballs(named(&["169.254.169.254", "fe80::1", V4[0]], None), 5000).await.unwrap();
        assert_eq!(winner, V4[0]);
        assert_eq!(network.calls(), calls(&[(V4[0], 0)]));
        let error = network.happy_eyeballs(named(&["169.254.169.254"], None), 5000).await.unwrap_err();
        assert_eq!(error.reason(), Reason::BackendRefused);
        assert_eq!(
            error.to_string(),
            "169.254.169.254 may not be dialled: a name may not resolve to a cloud's metadata service, unless \
             allowed_networks permits it"
        );
        let late = named(&["169.254.0.1"], Some(later(10, &["fd00:ec2::254"])));
        let error = network.happy_eyeballs(late, 5000).await.unwrap_err();
        assert!(
            matches!(error, TcpConnectError::Forbidden { rule: Rule::CloudMetadata, .. }),
            "late addresses are checked too: {error:?}"
        );
        assert_eq!(network.calls().len(), 1);
    }

    #[tokio::test]
    async fn socket_is_connected_with_nodelay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let deadline = Instant::now() + millis(5000);
        let literal = || Addresses::literal([127, 0, 0, 1].into());
        let stream =
            tcp(literal(), port, &Allowed::default(), &SocketBuffer::default(), deadline).await.unwrap();
        assert!(stream.nodelay().unwrap());
        drop(listener);
        let error =
            tcp(literal(), port, &Allowed::default(), &SocketBuffer::default(), deadline).await.unwrap_err();
        assert_eq!(error.reason(), Reason::BackendRefused, "{error}");
        assert!(error.to_string().starts_with(&format!("127.0.0.1:{port}: Connection refused")), "{error}");
    }
}
