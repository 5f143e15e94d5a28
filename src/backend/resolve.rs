//! From names to addresses.
//!
//! Owns the system's view of names: `/etc/hosts` first, then the name servers and search list of `/etc/resolv.conf`, both
//! read again when they change. The crate `hickory-resolver` asks the servers, sends again what was lost, asks once for
//! what many want to know, and remembers answers for as long as they are good. Refuses to know what an address is for and
//! whether it may be dialled. Invariants: no thread waits for an answer; a lookup ends by the caller's deadline and may
//! be dropped at any time.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::select;
use hickory_resolver::{
    Hosts, TokioResolver,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{Name, RecordType},
    },
    system_conf::parse_resolv_conf,
};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::happy_eyeballs::is_exhaustion;
use crate::{config::Host, outcome::Reason};

/// How often the two files are looked at, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long IPv6 addresses are waited for once there are IPv4 addresses (RFC 8305 §3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// Why a name has no address. The texts continue "cannot reach tcp://…: ", which names the name.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// The name servers know that there is none.
    #[error("the name does not exist or has no address")]
    NoSuchName,
    /// The deadline came first.
    #[error("no name server answered in time")]
    NoAnswer,
    /// There is nobody to ask.
    #[error(
        "the name is not in {hosts}, and there is no name server to ask: {resolv_conf}: {problem}",
        hosts = .hosts.display(),
        resolv_conf = .resolv_conf.display()
    )]
    NoServers {
        /// `/etc/hosts`
        hosts: PathBuf,
        /// `/etc/resolv.conf`
        resolv_conf: PathBuf,
        /// What is wrong with the latter.
        problem: String,
    },
    /// This machine has no descriptor or memory left to ask with.
    #[error("no descriptor left to ask a name server: {0}")]
    Exhausted(Arc<io::Error>),
    /// Nobody is there to be asked.
    #[error("no name server can be reached")]
    Unreachable,
    /// The name servers fail.
    #[error("the name servers failed: {0}")]
    Failed(NetError),
}

impl ResolveError {
    /// The end this leads to.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Exhausted(_) => Reason::Overloaded,
            _ => Reason::BackendUnresolved,
        }
    }

    /// Of two failures, the one that says more than that there is nothing; it may well have hidden something.
    fn or(self, other: Self) -> Self {
        if matches!(self, Self::NoSuchName) { other } else { self }
    }
}

impl From<NetError> for ResolveError {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Dns(DnsError::NoRecordsFound(_)) => Self::NoSuchName,
            NetError::Timeout => Self::NoAnswer,
            // Whatever went wrong with sockets, this is all that is told; so try one.
            NetError::NoConnections | NetError::Io(_) => match UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) {
                Err(error) if is_exhaustion(&error) => Self::Exhausted(error.into()),
                _ => Self::Unreachable,
            },
            error => Self::Failed(error),
        }
    }
}

/// Addresses that are still on their way.
pub(super) type Late = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveError>> + Send>>;

/// Where a backend may be: addresses, at least one, and those that the name servers have yet to tell.
pub struct Addresses {
    pub(super) known: Vec<IpAddr>,
    pub(super) late: Option<Late>,
    pub(super) literal: bool,
}

impl Addresses {
    /// An address that stands in the configuration.
    pub fn literal(address: IpAddr) -> Self {
        Self { known: vec![address], late: None, literal: true }
    }

    fn of_a_name(known: Vec<IpAddr>) -> Self {
        Self { known, late: None, literal: false }
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses")
            .field("known", &self.known)
            .field("late", &self.late.is_some())
            .field("literal", &self.literal)
            .finish()
    }
}

/// Resolves names as the system does. Shared by all routes.
pub struct Resolver {
    hosts: PathBuf,
    resolv_conf: PathBuf,
    /// Where name servers listen.
    port: u16,
    view: Mutex<Option<(Instant, Arc<View>)>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("hosts", &self.hosts)
            .field("resolv_conf", &self.resolv_conf)
            .finish_non_exhaustive()
    }
}

impl Default for Resolver {
    /// As `/etc/hosts` and `/etc/resolv.conf` say. They are first read when the first name is to be resolved.
    fn default() -> Self {
        const DNS: u16 = 53;
        Self {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            port: DNS,
            view: Mutex::default(),
        }
    }
}

impl Resolver {
    /// The addresses of `host`: itself, if it is an address.
    ///
    /// # Errors
    /// Each way to fail is a [`ResolveError`] of its own.
    pub async fn resolve(&self, host: &Host, deadline: Instant) -> Result<Addresses, ResolveError> {
        let name = match host {
            Host::Address(address) => return Ok(Addresses::literal(*address)),
            Host::Name(name) => name,
        };
        let view = self.view()?;
        let written = Name::from_ascii(name).map_err(|error| ResolveError::Failed(error.into()))?;
        let local = view.without_asking(&written);
        if !local.is_empty() {
            return Ok(Addresses::of_a_name(local));
        }
        let dns = view.dns.as_ref().map_err(Clone::clone)?;
        match timeout_at(deadline, dns.ask(&written)).await {
            Ok(answer) => answer,
            Err(_) => Err(ResolveError::NoAnswer),
        }
    }

    /// What the files say now, or said a moment ago. Without a descriptor to read them with, what they said before.
    fn view(&self) -> Result<Arc<View>, ResolveError> {
        let now = Instant::now();
        let mut seen = self.view.lock();
        if let Some((looked, view)) = &mut *seen {
            if now.duration_since(*looked) < LOOK_AGAIN {
                return Ok(Arc::clone(view));
            }
            *looked = now;
            if view.stamps == self.stamps() {
                return Ok(Arc::clone(view));
            }
        }
        match (View::read(self), &*seen) {
            (Ok(view), _) => {
                let view = Arc::new(view);
                *seen = Some((now, Arc::clone(&view)));
                Ok(view)
            }
            (Err(_), Some((_, view))) => Ok(Arc::clone(view)),
            (Err(error), None) => Err(error),
        }
    }

    fn stamps(&self) -> [Stamp; 2] {
        [&self.hosts, &self.resolv_conf].map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}

/// Tells one state of a file from another; `None` when it is not there.
type Stamp = Option<(SystemTime, u64)>;

/// What the two files said when they were read.
struct View {
    stamps: [Stamp; 2],
    hosts: Hosts,
    dns: Result<Dns, ResolveError>,
}

impl View {
    /// Fails for want of a descriptor only: a file that is missing or broken has nothing to say.
    fn read(from: &Resolver) -> Result<Self, ResolveError> {
        let read = |path| match fs::read(path) {
            Err(error) if is_exhaustion(&error) => Err(ResolveError::Exhausted(error.into())),
            text => Ok(text),
        };
        // Stamps first: what changes while it is being read is read again.
        let stamps = from.stamps();
        let mut hosts = Hosts::default();
        let text = read(&from.hosts)?.unwrap_or_default();
        // One strange letter must not hide the lines behind it.
        let _ = hosts.read_hosts_conf(String::from_utf8_lossy(&text).as_bytes());
        let dns = match read(&from.resolv_conf)? {
            Ok(text) => Dns::new(&text, from.port).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let dns = dns.map_err(|problem| ResolveError::NoServers {
            hosts: from.hosts.clone(),
            resolv_conf: from.resolv_conf.clone(),
            problem,
        });
        Ok(Self { stamps, hosts, dns })
    }

    /// What needs no name server: the hosts file, and localhost even without one (RFC 6761 §6.3).
    fn without_asking(&self, name: &Name) -> Vec<IpAddr> {
        let listed = [RecordType::AAAA, RecordType::A].into_iter().flat_map(|kind| {
            let lookup = self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
            let records = lookup.map(|lookup| lookup.answers().to_vec()).unwrap_or_default();
            records.into_iter().filter_map(|record| record.data.ip_addr())
        });
        let listed: Vec<IpAddr> = listed.collect();
        if listed.is_empty() && name.is_localhost() {
            return vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
        }
        listed
    }
}

/// The name servers, and how to ask them.
struct Dns {
    servers: TokioResolver,
    search: Vec<Name>,
}

impl Dns {
    fn new(resolv_conf: &[u8], port: u16) -> Result<Self, NetError> {
        let (mut config, mut options) = parse_resolv_conf(resolv_conf)?;
        let servers = config.name_servers.iter_mut();
        servers.flat_map(|server| &mut server.connections).for_each(|connection| connection.port = port);
        let search = match config.search.as_slice() {
            [] => config.domain.iter().cloned().collect(),
            search => search.to_vec(),
        };
        // The file was read already, and by us.
        options.use_hosts_file = hickory_resolver::config::ResolveHosts::Never;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        Ok(Self { servers: builder.build()?, search })
    }

    /// The first name with an address, of those that `written` may stand for (resolv.conf(5), "search").
    async fn ask(&self, written: &Name) -> Result<Addresses, ResolveError> {
        let mut failure = ResolveError::NoSuchName;
        for name in self.candidates(written) {
            match self.ask_for(name).await {
                Ok(addresses) => return Ok(addresses),
                Err(error) => failure = failure.or(error),
            }
        }
        Err(failure)
    }

    fn candidates(&self, written: &Name) -> Vec<Name> {
        let mut whole = written.clone();
        whole.set_fqdn(true);
        if written.is_fqdn() {
            return vec![whole];
        }
        let searched = self.search.iter().filter_map(|domain| written.clone().append_domain(domain).ok());
        if usize::from(written.num_labels()) > self.servers.options().ndots {
            std::iter::once(whole).chain(searched).collect()
        } else {
            searched.chain(std::iter::once(whole)).collect()
        }
    }

    /// Asks for both families at once and does not let the slower one hold up the other (RFC 8305 §3).
    async fn ask_for(&self, name: Name) -> Result<Addresses, ResolveError> {
        let (v6, v4) = (self.lookup(name.clone(), RecordType::AAAA), self.lookup(name, RecordType::A));
        let (first, mut second) = select(v6, v4).await.into_inner();
        let mut known = match first {
            Ok(known) => known,
            Err(error) => {
                return second.await.map(Addresses::of_a_name).map_err(|other| error.or(other));
            }
        };
        let patience = if known.iter().all(IpAddr::is_ipv4) { RESOLUTION_DELAY } else { Duration::ZERO };
        match timeout(patience, &mut second).await {
            Ok(more) => {
                known.extend(more.into_iter().flatten());
                Ok(Addresses::of_a_name(known))
            }
            Err(_) => Ok(Addresses { late: Some(second), ..Addresses::of_a_name(known) }),
        }
    }

    /// The addresses of one family, at least one.
    fn lookup(&self, name: Name, kind: RecordType) -> Late {
        let servers = self.servers.clone();
        Box::pin(async move {
            let answer = servers.lookup(name, kind).await?;
            let addresses: Vec<IpAddr> =
                answer.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
            if addresses.is_empty() { Err(ResolveError::NoSuchName) } else { Ok(addresses) }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hickory_resolver::proto::{
        op::{Message, ResponseCode},
        rr::{RData, Record},
    };
    use tempfile::TempDir;
    use tokio::task::JoinHandle;

    use super::*;

    /// What a name server makes of a question.
    enum Answer {
        Addresses(Vec<IpAddr>),
        NoSuchName,
        Code(ResponseCode),
        Silence,
    }
    use Answer::{Code, NoSuchName, Silence};

    fn addresses(addresses: &[&str]) -> Answer {
        Answer::Addresses(ips(addresses))
    }

    fn ips(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    /// A name server of the test's own, and a system that asks it.
    struct System {
        files: TempDir,
        resolver: Arc<Resolver>,
        questions: Arc<AtomicUsize>,
        server: JoinHandle<()>,
    }

    impl Drop for System {
        fn drop(&mut self) {
            self.server.abort();
        }
    }

    impl System {
        /// `answer` is asked with the name, the kind, and how many questions came before.
        async fn new(answer: impl Fn(&str, RecordType, usize) -> Answer + Send + 'static) -> Self {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let port = socket.local_addr().unwrap().port();
            let questions = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&questions);
            let server = tokio::spawn(async move {
                let mut buffer = [0; 2048];
                while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                    let question = Message::from_vec(&buffer[..length]).unwrap();
                    let before = counter.fetch_add(1, Ordering::Relaxed);
                    let query = question.queries[0].clone();
                    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
                    match answer(&query.name().to_string(), query.query_type(), before) {
                        Silence => continue,
                        NoSuchName => message.metadata.response_code = ResponseCode::NXDomain,
                        Code(code) => message.metadata.response_code = code,
                        Answer::Addresses(addresses) => {
                            message.add_answers(addresses.into_iter().map(|address| {
                                Record::from_rdata(query.name().clone(), 60, RData::from(address))
                            }));
                        }
                    }
                    message.add_query(query);
                    socket.send_to(&message.to_vec().unwrap(), peer).await.unwrap();
                }
            });
            Self::with("nameserver 127.0.0.1\n", "", port, questions, server)
        }

        /// A system that has nobody to ask.
        fn alone(resolv_conf: &str, hosts: &str) -> Self {
            Self::with(resolv_conf, hosts, 1, Arc::default(), tokio::spawn(async {}))
        }

        fn with(
            resolv_conf: &str,
            hosts: &str,
            port: u16,
            questions: Arc<AtomicUsize>,
            server: JoinHandle<()>,
        ) -> Self {
            let files = TempDir::new().unwrap();
            let resolver = Arc::new(Resolver {
                hosts: files.path().join("hosts"),
                resolv_conf: files.path().join("resolv.conf"),
                port,
                view: Mutex::default(),
            });
            let system = Self { files, resolver, questions, server };
            system.write("resolv.conf", resolv_conf);
            system.write("hosts", hosts);
            system
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.files.path().join(file), text).unwrap();
        }

        fn remove(&self, file: &str) {
            fs::remove_file(self.files.path().join(file)).unwrap();
        }

        async fn resolve(&self, host: &str) -> Result<Addresses, ResolveError> {
            self.resolver.resolve(&host.parse().unwrap(), Instant::now() + Duration::from_secs(20)).await
        }

        async fn known(&self, host: &str) -> Vec<IpAddr> {
            let mut known = self.resolve(host).await.unwrap().known;
            known.sort();
            known
        }

        fn questions(&self) -> usize {
            self.questions.load(Ordering::Relaxed)
        }
    }

    fn by_kind(kind: RecordType, v4: &[&str], v6: &[&str]) -> Answer {
        match kind {
            RecordType::A => addresses(v4),
            RecordType::AAAA => addresses(v6),
            kind => panic!("nobody should ask for {kind}"),
        }
    }

    #[tokio::test]
    async fn both_families_are_asked_for_and_remembered() {
        let system =
            System::new(|_, kind, _| by_kind(kind, &["192.0.2.1", "192.0.2.2"], &["2001:db8::1"])).await;
        for _ in 0..3 {
            let mut found = system.resolve("my_db.example.com").await.unwrap();
            if let Some(late) = found.late.take() {
                found.known.extend(late.await.unwrap());
            }
            found.known.sort();
            assert_eq!(found.known, ips(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]));
            assert!(!found.literal);
        }
        assert_eq!(system.questions(), 2, "answers are kept for their time to live");
    }

    #[tokio::test]
    async fn an_address_is_nobody_s_question() {
        let system = System::new(|name, _, _| panic!("asked for {name}")).await;
        for literal in ["192.0.2.1", "[2001:db8::1]"] {
            let found = system.resolve(literal).await.unwrap();
            assert!(found.literal);
            assert_eq!(found.known, ips(&[literal.trim_matches(['[', ']'])]));
        }
        assert_eq!(system.questions(), 0);
    }

    #[tokio::test]
    async fn the_hosts_file_is_not_second_guessed() {
        let system = System::new(|name, _, _| panic!("asked for {name}")).await;
        system.write("hosts", "# comment\nnonsense\n192.0.2.7 db.example.com DB\n2001:db8::7 db\n");
        assert_eq!(system.known("db.example.com").await, ips(&["192.0.2.7"]), "no AAAA is asked for");
        assert_eq!(system.known("db").await, ips(&["192.0.2.7", "2001:db8::7"]));
        assert_eq!(system.known("db.example.com.").await, ips(&["192.0.2.7"]));
        assert_eq!(system.questions(), 0);
    }

    #[tokio::test]
    async fn without_name_servers_there_is_still_the_hosts_file_and_localhost() {
        let system = System::alone("# nothing here\n", "192.0.2.7 db\n");
        for missing in [false, true] {
            if missing {
                system.remove("resolv.conf");
            }
            assert_eq!(system.known("db").await, ips(&["192.0.2.7"]));
            assert_eq!(system.known("localhost").await, ips(&["127.0.0.1", "::1"]));
            assert_eq!(system.known("app.localhost").await, ips(&["127.0.0.1", "::1"]));
            let error = system.resolve("db.example.com").await.unwrap_err();
            assert_eq!(error.reason(), Reason::BackendUnresolved);
            let file = system.files.path().join("resolv.conf");
            assert!(error.to_string().contains(&file.display().to_string()), "{error}");
        }
        system.remove("hosts");
        let fresh = Resolver { view: Mutex::default(), ..system_files(&system) };
        let deadline = Instant::now() + Duration::from_secs(20);
        let found = fresh.resolve(&"localhost".parse().unwrap(), deadline).await.unwrap();
        assert_eq!(found.known, ips(&["::1", "127.0.0.1"]));
    }

    fn system_files(system: &System) -> Resolver {
        let Resolver { hosts, resolv_conf, port, .. } = &*system.resolver;
        Resolver {
            hosts: hosts.clone(),
            resolv_conf: resolv_conf.clone(),
            port: *port,
            view: Mutex::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changed_files_are_read_again_after_a_moment() {
        let system = System::alone("", "192.0.2.7 db\n");
        assert_eq!(system.known("db").await, ips(&["192.0.2.7"]));
        system.write("hosts", "192.0.2.80 db\n");
        assert_eq!(system.known("db").await, ips(&["192.0.2.7"]), "not looked at again so soon");
        tokio::time::advance(LOOK_AGAIN).await;
        assert_eq!(system.known("db").await, ips(&["192.0.2.80"]));
        system.remove("hosts");
        tokio::time::advance(LOOK_AGAIN).await;
        assert!(matches!(system.resolve("db").await, Err(ResolveError::NoServers { .. })));
    }

    #[tokio::test]
    async fn an_unknown_name_and_one_without_addresses_are_told() {
        let system = System::new(|name, _, _| match name {
            "nobody.example.com." => NoSuchName,
            _ => addresses(&[]),
        })
        .await;
        for name in ["nobody.example.com", "mail-only.example.com"] {
            let error = system.resolve(name).await.unwrap_err();
            assert!(matches!(error, ResolveError::NoSuchName), "{error:?}");
            assert_eq!(error.reason(), Reason::BackendUnresolved);
        }
    }

    #[tokio::test]
    async fn one_family_is_enough() {
        let system = System::new(|name, kind, _| match (name, kind) {
            ("v4.example.com.", RecordType::A) => addresses(&["192.0.2.1"]),
            ("v6.example.com.", RecordType::AAAA) => addresses(&["2001:db8::1"]),
            ("half-broken.example.com.", RecordType::A) => addresses(&["192.0.2.2"]),
            ("half-broken.example.com.", _) => Code(ResponseCode::ServFail),
            _ => addresses(&[]),
        })
        .await;
        assert_eq!(system.known("v4.example.com").await, ips(&["192.0.2.1"]));
        assert_eq!(system.known("v6.example.com").await, ips(&["2001:db8::1"]));
        assert_eq!(system.known("half-broken.example.com").await, ips(&["192.0.2.2"]));
    }

    #[tokio::test]
    async fn a_server_that_fails_is_not_taken_for_a_name_that_does_not_exist() {
        let system = System::new(|_, kind, _| match kind {
            RecordType::AAAA => NoSuchName,
            _ => Code(ResponseCode::ServFail),
        })
        .await;
        let error = system.resolve("db.example.com").await.unwrap_err();
        assert!(matches!(error, ResolveError::Failed(_)), "{error:?}");
        assert!(error.to_string().to_lowercase().contains("server failure"), "{error}");
    }

    #[tokio::test]
    async fn silence_ends_with_the_deadline() {
        let system = System::new(|_, _, _| Silence).await;
        let host = "db.example.com".parse().unwrap();
        let began = Instant::now();
        let error = system.resolver.resolve(&host, began + Duration::from_millis(300)).await.unwrap_err();
        assert!(matches!(error, ResolveError::NoAnswer), "{error:?}");
        assert_eq!(error.reason(), Reason::BackendUnresolved);
        assert!(began.elapsed() < Duration::from_secs(3), "it took {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_lost_datagram_is_sent_again() {
        let system = System::new(|_, kind, before| match before {
            0 | 1 => Silence,
            _ => by_kind(kind, &["192.0.2.1"], &[]),
        })
        .await;
        let began = Instant::now();
        assert_eq!(system.known("db.example.com").await, ips(&["192.0.2.1"]));
        assert!(began.elapsed() < Duration::from_secs(4), "it took {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_family_that_is_never_answered_holds_nobody_up() {
        let system = System::new(|_, kind, _| match kind {
            RecordType::A => addresses(&["192.0.2.1"]),
            _ => Silence,
        })
        .await;
        let began = Instant::now();
        let found = system.resolve("db.example.com").await.unwrap();
        assert_eq!(found.known, ips(&["192.0.2.1"]));
        assert!(found.late.is_some(), "the other family may still come");
        assert!(began.elapsed() < Duration::from_secs(2), "it took {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_late_family_arrives_when_it_arrives() {
        let asked = AtomicUsize::new(0);
        let system = System::new(move |_, kind, _| match kind {
            RecordType::AAAA => addresses(&["2001:db8::1"]),
            _ if asked.fetch_add(1, Ordering::Relaxed) == 0 => Silence,
            _ => addresses(&["192.0.2.1"]),
        })
        .await;
        let found = system.resolve("db.example.com").await.unwrap();
        assert_eq!(found.known, ips(&["2001:db8::1"]), "IPv6 need not wait for IPv4");
        assert_eq!(found.late.expect("IPv4 is on its way").await.unwrap(), ips(&["192.0.2.1"]));
    }

    #[tokio::test]
    async fn short_names_go_through_the_search_list() {
        let system = System::new(|name, kind, _| match name {
            "db.corp.example.com." => by_kind(kind, &["192.0.2.1"], &[]),
            "web.example.com." => by_kind(kind, &["192.0.2.2"], &[]),
            "a.b.example.com." => by_kind(kind, &["192.0.2.3"], &[]),
            _ => NoSuchName,
        })
        .await;
        system.write("resolv.conf", "nameserver 127.0.0.1\nsearch corp.example.com example.com\n");
        assert_eq!(system.known("db").await, ips(&["192.0.2.1"]));
        assert_eq!(system.known("web").await, ips(&["192.0.2.2"]), "the next domain of the list is tried");
        assert_eq!(system.known("a.b").await, ips(&["192.0.2.3"]), "a name with a dot, too, but last");
        assert!(matches!(system.resolve("db.").await, Err(ResolveError::NoSuchName)), "it ends in a dot");
    }

    #[tokio::test]
    async fn many_that_ask_for_one_name_are_one_question() {
        let system = System::new(|_, kind, _| by_kind(kind, &["192.0.2.1"], &["2001:db8::1"])).await;
        let tasks: Vec<_> = (0..500)
            .map(|_| {
                let resolver = Arc::clone(&system.resolver);
                tokio::spawn(async move {
                    let deadline = Instant::now() + Duration::from_secs(20);
                    resolver.resolve(&"db.example.com".parse().unwrap(), deadline).await.map(|_| ())
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert!(system.questions() <= 4, "{} questions were asked", system.questions());
    }

    #[tokio::test]
    async fn a_lookup_may_be_dropped_at_any_time() {
        let system = System::new(|_, kind, before| match before {
            0 | 1 => Silence,
            _ => by_kind(kind, &["192.0.2.1"], &[]),
        })
        .await;
        let soon = Instant::now() + Duration::from_millis(50);
        let host = "db.example.com".parse().unwrap();
        assert!(matches!(system.resolver.resolve(&host, soon).await, Err(ResolveError::NoAnswer)));
        assert_eq!(system.known("db.example.com").await, ips(&["192.0.2.1"]));
    }
}
