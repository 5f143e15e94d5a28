//! Name resolution: from a backend's host name to its addresses.
//!
//! Owns the system's configuration of names, read again when it changes: `/etc/hosts` first, then the name servers
//! and the search list of `/etc/resolv.conf`. [`dns`] queries the servers. Knows nothing of what an address is used
//! for and whether it may be dialled. Invariants: no thread blocks on a name server; a lookup ends by the caller's
//! deadline, and may be dropped at any time.

mod dns;

use std::{
    fmt, fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use hickory_resolver::{
    Hosts,
    net::{DnsError, NetError},
    proto::{
        op::Query,
        rr::{Name, RecordType},
    },
};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use self::dns::Dns;
use super::{allowed::AddressSource, exhaustion::is_exhaustion};
use crate::{
    config::Host,
    outcome::Reason,
    watched_file::{ChangeTracker, FileEvent, LoadedFile, Stamp},
};

/// Why a name has no address. The messages continue "cannot reach tcp://…: ", which contains the name.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// The name servers answered that there is none (NXDOMAIN, or no record).
    #[error("the name does not exist or has no address")]
    NoSuchName,
    /// The deadline came first.
    #[error("no name server answered in time")]
    NoAnswer,
    /// No name server is configured.
    #[error(
        "the name is not in {hosts}, and no name server is configured: {resolv_conf}: {problem}",
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
    /// This machine has no descriptor or memory left for a query.
    #[error("no descriptor left to query a name server: {0}")]
    Exhausted(Arc<io::Error>),
    /// No name server can be connected to.
    #[error("no name server can be reached")]
    Unreachable,
    /// The name servers answered with an error.
    #[error("the name servers failed: {0}")]
    Failed(NetError),
}

impl ResolveError {
    /// The reason that a session ends with.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Exhausted(_) => Reason::Overloaded,
            _ => Reason::BackendUnresolved,
        }
    }

    /// Prefers any error over NXDOMAIN: the failed query could have found the name.
    fn or(self, other: Self) -> Self {
        if matches!(self, Self::NoSuchName) { other } else { self }
    }
}

impl From<NetError> for ResolveError {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Dns(DnsError::NoRecordsFound(_)) => Self::NoSuchName,
            NetError::Timeout => Self::NoAnswer,
            // hickory does not report why a socket failed; opening one shows whether descriptors are lacking.
            NetError::NoConnections | NetError::Io(_) => match UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) {
                Err(error) if is_exhaustion(&error) => Self::Exhausted(error.into()),
                _ => Self::Unreachable,
            },
            error => Self::Failed(error),
        }
    }
}

/// A query whose answer has not arrived yet.
pub(super) type PendingLookup = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveError>> + Send>>;

/// The addresses of a backend: at least one, and those of a query that is still running.
pub struct Addresses {
    pub(super) known: Vec<IpAddr>,
    pub(super) pending: Option<PendingLookup>,
    /// Where they come from.
    pub(super) source: AddressSource,
}

impl Addresses {
    /// An address that is written in the configuration.
    pub fn literal(address: IpAddr) -> Self {
        Self { known: vec![address], pending: None, source: AddressSource::Literal }
    }

    fn of_name(known: Vec<IpAddr>) -> Self {
        Self { known, pending: None, source: AddressSource::Dns }
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses")
            .field("known", &self.known)
            .field("pending", &self.pending.is_some())
            .field("source", &self.source)
            .finish()
    }
}

/// Resolves names as the system does. Shared by all routes.
pub struct Resolver {
    hosts: PathBuf,
    resolv_conf: PathBuf,
    /// The port of name servers.
    port: u16,
    cached: Mutex<Option<Cached>>,
}

/// The configuration that was read last.
struct Cached {
    tracker: ChangeTracker<[Option<Stamp>; 2]>,
    config: Arc<SystemConfig>,
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
    /// Uses `/etc/hosts` and `/etc/resolv.conf`, which are first read for the first lookup.
    fn default() -> Self {
        const DNS: u16 = 53;
        Self {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            port: DNS,
            cached: Mutex::default(),
        }
    }
}

impl Resolver {
    /// The addresses of `host`: itself, if it is an address.
    ///
    /// # Errors
    /// [`ResolveError`] has a variant for each cause.
    pub async fn resolve(&self, host: &Host, deadline: Instant) -> Result<Addresses, ResolveError> {
        let name = match host {
            Host::Address(address) => return Ok(Addresses::literal(*address)),
            Host::Name(name) => name,
        };
        let config = self.config()?;
        let name = Name::from_ascii(name).map_err(|error| ResolveError::Failed(error.into()))?;
        let local = config.local(&name);
        if !local.is_empty() {
            return Ok(Addresses { source: AddressSource::Local, ..Addresses::of_name(local) });
        }
        let dns = config.dns.as_ref().map_err(Clone::clone)?;
        match timeout_at(deadline, dns.resolve(&name)).await {
            Ok(answer) => answer,
            Err(_) => Err(ResolveError::NoAnswer),
        }
    }

    /// The configuration in the two files, which are checked for changes by lookups. If they cannot be read for a
    /// lack of descriptors, the previous configuration stays in use.
    fn config(&self) -> Result<Arc<SystemConfig>, ResolveError> {
        let now = Instant::now();
        let mut cached = self.cached.lock();
        let Some(Cached { tracker, config }) = &mut *cached else {
            let tracker = ChangeTracker::new(self.stamps(), now);
            let config = Arc::new(SystemConfig::new(self, &SystemFiles::read(self)?));
            *cached = Some(Cached { tracker, config: Arc::clone(&config) });
            return Ok(config);
        };
        if tracker.is_due(now) {
            let event = tracker.check(self.stamps(), now, || {
                let files = SystemFiles::read(self)?;
                let is_current = files.digest() == config.digest;
                Ok::<_, ResolveError>(LoadedFile { value: files, is_current, is_partial: false })
            });
            // A new configuration also discards the cached answers, so it is not replaced by an equal one.
            if let FileEvent::Replaced(files) = event {
                *config = Arc::new(SystemConfig::new(self, &files));
            }
        }
        Ok(Arc::clone(config))
    }

    fn stamps(&self) -> [Option<Stamp>; 2] {
        [Stamp::read(&self.hosts), Stamp::read(&self.resolv_conf)]
    }
}

/// The text of the two files. A missing or unreadable file is no error: it has no entries.
#[derive(Hash)]
struct SystemFiles {
    hosts: Vec<u8>,
    resolv_conf: Result<Vec<u8>, String>,
}

impl SystemFiles {
    /// Fails only for a lack of descriptors or memory.
    fn read(paths: &Resolver) -> Result<Self, ResolveError> {
        let read = |path: &Path| match fs::read(path) {
            Err(error) if is_exhaustion(&error) => Err(ResolveError::Exhausted(error.into())),
            text => Ok(text),
        };
        let hosts = read(&paths.hosts)?.unwrap_or_default();
        let resolv_conf = read(&paths.resolv_conf)?.map_err(|error| error.to_string());
        Ok(Self { hosts, resolv_conf })
    }

    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// The parsed contents of the two files.
struct SystemConfig {
    digest: u64,
    hosts: Hosts,
    dns: Result<Dns, ResolveError>,
}

impl SystemConfig {
    fn new(resolver: &Resolver, files: &SystemFiles) -> Self {
        let mut hosts = Hosts::default();
        // An invalid byte must not hide the lines behind it.
        let _ = hosts.read_hosts_conf(String::from_utf8_lossy(&files.hosts).as_bytes());
        let dns = match &files.resolv_conf {
            Ok(text) => Dns::new(text, resolver.port).map_err(|error| error.to_string()),
            Err(error) => Err(error.clone()),
        };
        let dns = dns.map_err(|problem| ResolveError::NoServers {
            hosts: resolver.hosts.clone(),
            resolv_conf: resolver.resolv_conf.clone(),
            problem,
        });
        Self { digest: files.digest(), hosts, dns }
    }

    /// The addresses that need no query: those in the hosts file, and localhost even without one (RFC 6761 §6.3).
    fn local(&self, name: &Name) -> Vec<IpAddr> {
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

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use hickory_resolver::proto::{
        op::{Message, ResponseCode},
        rr::{RData, Record},
    };
    use tempfile::TempDir;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::watched_file::CHECK_INTERVAL;

    /// How the name server answers a query.
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

    /// A name server of the test's own, and a resolver configured to query it.
    struct System {
        files: TempDir,
        resolver: Arc<Resolver>,
        queries: Arc<AtomicUsize>,
        server: JoinHandle<()>,
    }

    impl Drop for System {
        fn drop(&mut self) {
            self.server.abort();
        }
    }

    impl System {
        /// `answer` is called with the name, the record type, and the number of queries before.
        async fn new(answer: impl Fn(&str, RecordType, usize) -> Answer + Send + 'static) -> Self {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let port = socket.local_addr().unwrap().port();
            let queries = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&queries);
            let server = tokio::spawn(async move {
                let mut buffer = [0; 2048];
                while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                    let query_message = Message::from_vec(&buffer[..length]).unwrap();
                    let before = counter.fetch_add(1, Ordering::Relaxed);
                    let query = query_message.queries[0].clone();
                    let mut message =
                        Message::response(query_message.metadata.id, query_message.metadata.op_code);
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
            Self::with("nameserver 127.0.0.1\n", "", port, queries, server)
        }

        /// A system without a name server.
        fn without_server(resolv_conf: &str, hosts: &str) -> Self {
            Self::with(resolv_conf, hosts, 1, Arc::default(), tokio::spawn(async {}))
        }

        fn with(
            resolv_conf: &str,
            hosts: &str,
            port: u16,
            queries: Arc<AtomicUsize>,
            server: JoinHandle<()>,
        ) -> Self {
            let files = TempDir::new().unwrap();
            let resolver = Arc::new(Resolver {
                hosts: files.path().join("hosts"),
                resolv_conf: files.path().join("resolv.conf"),
                port,
                cached: Mutex::default(),
            });
            let system = Self { files, resolver, queries, server };
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

        fn queries(&self) -> usize {
            self.queries.load(Ordering::Relaxed)
        }
    }

    fn by_kind(kind: RecordType, v4: &[&str], v6: &[&str]) -> Answer {
        match kind {
            RecordType::A => addresses(v4),
            RecordType::AAAA => addresses(v6),
            kind => panic!("unexpected query for {kind}"),
        }
    }

    #[tokio::test]
    async fn both_families_are_queried_and_cached() {
        let system =
            System::new(|_, kind, _| by_kind(kind, &["192.0.2.1", "192.0.2.2"], &["2001:db8::1"])).await;
        for _ in 0..3 {
            let mut found = system.resolve("my_db.example.com").await.unwrap();
            if let Some(pending) = found.pending.take() {
                found.known.extend(pending.await.unwrap());
            }
            found.known.sort();
            assert_eq!(found.known, ips(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]));
            assert_eq!(found.source, AddressSource::Dns);
        }
        assert_eq!(system.queries(), 2, "answers are cached for their time to live");
    }

    #[tokio::test]
    async fn literal_address_needs_no_query() {
        let system = System::new(|name, _, _| panic!("unexpected query for {name}")).await;
        for literal in ["192.0.2.1", "[2001:db8::1]"] {
            let found = system.resolve(literal).await.unwrap();
            assert_eq!(found.source, AddressSource::Literal);
            assert_eq!(found.known, ips(&[literal.trim_matches(['[', ']'])]));
        }
        assert_eq!(system.queries(), 0);
    }

    #[tokio::test]
    async fn hosts_file_takes_precedence_over_dns() {
        let system = System::new(|name, _, _| panic!("unexpected query for {name}")).await;
        system.write("hosts", "# comment\nnonsense\n192.0.2.7 db.example.com DB\n2001:db8::7 db\n");
        assert_eq!(system.known("db.example.com").await, ips(&["192.0.2.7"]), "no query for AAAA");
        assert_eq!(system.known("db").await, ips(&["192.0.2.7", "2001:db8::7"]));
        assert_eq!(system.known("db.example.com.").await, ips(&["192.0.2.7"]));
        assert_eq!(system.queries(), 0);
    }

    #[tokio::test]
    async fn hosts_file_and_localhost_work_without_name_servers() {
        let system = System::without_server("# nothing here\n", "192.0.2.7 db\n");
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
        let fresh = Resolver { cached: Mutex::default(), ..system_files(&system) };
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
            cached: Mutex::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changed_files_are_read_again_after_the_check_interval() {
        let system = System::without_server("", "192.0.2.7 db\n");
        assert_eq!(system.known("db").await, ips(&["192.0.2.7"]));
        system.write("hosts", "192.0.2.80 db\n");
        assert_eq!(system.known("db").await, ips(&["192.0.2.7"]), "not checked again so soon");
        tokio::time::advance(CHECK_INTERVAL).await;
        assert_eq!(system.known("db").await, ips(&["192.0.2.80"]));
        system.remove("hosts");
        tokio::time::advance(CHECK_INTERVAL).await;
        assert!(matches!(system.resolve("db").await, Err(ResolveError::NoServers { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn second_change_within_one_timestamp_is_seen_by_the_second_read() {
        let system = System::without_server("", "192.0.2.7 db\n");
        assert_eq!(system.known("db").await, ips(&["192.0.2.7"]));
        system.write("hosts", "192.0.2.8 db\n");
        let stamps = system.resolver.stamps();
        system.resolver.cached.lock().as_mut().unwrap().tracker.set_stamps(stamps);
        tokio::time::advance(CHECK_INTERVAL).await;
        assert_eq!(system.known("db").await, ips(&["192.0.2.8"]));
    }

    #[tokio::test(start_paused = true)]
    async fn files_with_the_same_contents_keep_the_cached_answers() {
        let system = System::without_server("", "192.0.2.7 db\n");
        system.known("db").await;
        let before = system.resolver.config().unwrap();
        system.write("hosts", "192.0.2.7 db\n");
        for _ in 0..3 {
            tokio::time::advance(CHECK_INTERVAL).await;
            assert!(Arc::ptr_eq(&before, &system.resolver.config().unwrap()));
        }
    }

    #[tokio::test]
    async fn unknown_name_and_name_without_addresses_have_the_same_error() {
        let system = System::new(|name, _, _| match name {
            "unknown.example.com." => NoSuchName,
            _ => addresses(&[]),
        })
        .await;
        for name in ["unknown.example.com", "mail-only.example.com"] {
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
    async fn server_failure_is_preferred_over_nxdomain() {
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
    async fn lost_query_is_repeated() {
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
    async fn unanswered_family_does_not_delay_the_other() {
        let system = System::new(|_, kind, _| match kind {
            RecordType::A => addresses(&["192.0.2.1"]),
            _ => Silence,
        })
        .await;
        let began = Instant::now();
        let found = system.resolve("db.example.com").await.unwrap();
        assert_eq!(found.known, ips(&["192.0.2.1"]));
        assert!(found.pending.is_some(), "the other query is still running");
        assert!(began.elapsed() < Duration::from_secs(2), "it took {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn pending_family_arrives_later() {
        let queried = AtomicUsize::new(0);
        let system = System::new(move |_, kind, _| match kind {
            RecordType::AAAA => addresses(&["2001:db8::1"]),
            _ if queried.fetch_add(1, Ordering::Relaxed) == 0 => Silence,
            _ => addresses(&["192.0.2.1"]),
        })
        .await;
        let found = system.resolve("db.example.com").await.unwrap();
        assert_eq!(found.known, ips(&["2001:db8::1"]), "IPv6 does not wait for IPv4");
        assert_eq!(found.pending.expect("the query for IPv4 is running").await.unwrap(), ips(&["192.0.2.1"]));
    }

    #[tokio::test]
    async fn short_names_use_the_search_list() {
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
    async fn concurrent_lookups_of_one_name_share_a_query() {
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
        assert!(system.queries() <= 4, "{} queries", system.queries());
    }

    #[tokio::test]
    async fn dropped_lookup_does_not_affect_the_next() {
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
