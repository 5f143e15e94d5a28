//! The gateway as a process: its configuration, its log, its descriptors and its exit.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{
    Backend, ClientStream, Identity, Request, Response, Session, TIMEOUT, client_config, eventually,
    read_response, within,
};

/// The position of a listener in the configuration.
pub(crate) type ListenerIndex = usize;
/// The listener with a certificate.
pub(crate) const TLS: ListenerIndex = 0;
/// The listener without.
pub(crate) const PLAIN: ListenerIndex = 1;

/// The source address of the session that proves at the end of each test that the gateway still works.
const CANARY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 250));

/// A configuration under construction.
pub(crate) struct Setup {
    listeners: [String; 2],
    rest: String,
    limits: String,
    per_ip: String,
    level: &'static str,
    log: String,
    deadline: Duration,
    prefix: Vec<String>,
    variables: Vec<(&'static str, String)>,
}

impl Setup {
    /// A TLS listener, a plain one, and no limits for the addresses of this machine.
    pub(crate) fn new() -> Self {
        let plain = "address = \"127.0.0.1:0\"\n";
        Self {
            listeners: [
                format!("{plain}certificate = \"localhost.crt\"\nprivate_key = \"localhost.key\"\n"),
                plain.to_owned(),
            ],
            rest: String::new(),
            limits: String::new(),
            per_ip: "exempt = [\"127.0.0.0/8\", \"::1/128\"]\n".to_owned(),
            level: "debug",
            log: String::new(),
            deadline: DEADLINE,
            prefix: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// One route `/echo` to `backend`.
    pub(crate) fn echo(backend: &Backend) -> Self {
        Self::new().route("echo", backend)
    }

    /// A route whose path is its name.
    pub(crate) fn route(self, name: &str, backend: &Backend) -> Self {
        self.route_with(name, &format!("/{name}"), backend, "")
    }

    /// A route with more lines.
    pub(crate) fn route_with(self, name: &str, path: &str, backend: &Backend, lines: &str) -> Self {
        self.route_to(name, path, &format!("tcp://{}", backend.address), lines)
    }

    /// A route to any backend URL.
    pub(crate) fn route_to(mut self, name: &str, path: &str, backend: &str, lines: &str) -> Self {
        self.rest +=
            &format!("[[route]]\nname = \"{name}\"\npath = \"{path}\"\nbackend = \"{backend}\"\n{lines}\n");
        self
    }

    /// Whole tables of the configuration, verbatim.
    pub(crate) fn tables(mut self, lines: &str) -> Self {
        self.rest += &format!("{lines}\n");
        self
    }

    /// More lines for one listener.
    pub(crate) fn listener(mut self, listener: ListenerIndex, lines: &str) -> Self {
        self.listeners[listener] += lines;
        self
    }

    /// Another address for one listener.
    pub(crate) fn address(mut self, listener: ListenerIndex, address: impl Display) -> Self {
        self.listeners[listener] = self.listeners[listener].replace("127.0.0.1:0", &address.to_string());
        self
    }

    /// The whole of `[timeouts]`.
    pub(crate) fn timeouts(mut self, lines: &str) -> Self {
        self.rest += &format!("[timeouts]\n{lines}\n");
        self
    }

    /// The whole of `[limits]`.
    pub(crate) fn limits(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.limits);
        self
    }

    /// The whole of `[limits.per_ip]`; without it no address of this machine is limited.
    pub(crate) fn per_ip(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.per_ip);
        self
    }

    /// Adds an admin address with a free port.
    pub(crate) fn admin(self) -> Self {
        self.tables("[admin]\naddress = \"127.0.0.1:0\"")
    }

    /// Serves the files of a directory.
    pub(crate) fn web(mut self, root: &Path) -> Self {
        self.rest += &format!("[web]\nroot = {:?}\n", root.to_str().expect("a path of text"));
        self
    }

    /// Another log level than debug.
    pub(crate) fn level(mut self, level: &'static str) -> Self {
        self.level = level;
        self
    }

    /// Another time than [`DEADLINE`].
    pub(crate) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// More lines for `[log]`.
    pub(crate) fn log(mut self, lines: &str) -> Self {
        self.log += lines;
        self
    }

    /// Starts the gateway with this limit of descriptors, which it cannot raise. Inherited ones above it do not count.
    pub(crate) fn descriptors(self, limit: usize) -> Self {
        self.through(&["sh", "-c", "ulimit -n $0 && exec \"$@\"", &limit.to_string()])
    }

    /// Starts the gateway through another command, which must become the gateway (`exec`).
    pub(crate) fn through(mut self, command: &[&str]) -> Self {
        self.prefix.extend(command.iter().map(|&word| word.to_owned()));
        self
    }

    /// Sets an environment variable of the gateway.
    pub(crate) fn variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// Sets an environment variable, unless [`Setup::variable`] does.
    pub(crate) fn default_variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.insert(0, (name, value.to_owned()));
        self
    }

    /// Writes the configuration, starts the binary and waits until it is ready.
    pub(crate) async fn start(self) -> Gateway {
        let canary = Backend::echo().await;
        let directory = TempDir::new().expect("a directory");
        let identity = Identity::shared();
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).expect("a file of the test");
        };
        write("localhost.crt", &identity.certificate);
        write("localhost.key", &identity.private_key);
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(directory.path().join("localhost.key"), private).expect("a key of the test");
        let Self { listeners: [tls, plain], rest, limits, per_ip, level, log, deadline, prefix, variables } =
            self;
        let rest = format!(
            "[[listener]]\n{tls}\n[[listener]]\n{plain}\n\
             [[route]]\nname = \"canary\"\npath = \"/canary\"\nbackend = \"tcp://{}\"\n\n{rest}\n\
             [limits]\n{limits}\n[limits.per_ip]\n{per_ip}\n[log]\nformat = \"json\"\nlevel = \"{level}\"\nrefused_per_second = 1000000\n{log}\n",
            canary.address
        );
        write("gateway.toml", &rest);

        let binary = env!("CARGO_BIN_EXE_portcullis");
        let mut words = prefix.iter().map(String::as_str).chain([binary]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words);
        command.args(["run", "--config"]).arg(directory.path().join("gateway.toml"));
        command.envs(variables).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the gateway's binary");

        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().expect("a pipe");
        std::thread::spawn({
            let log = log.clone();
            move || log.read(stderr)
        });
        let child = Arc::new(Mutex::new(child));
        let mut gateway = Gateway {
            _deadline: kill_after(deadline, Arc::clone(&child)),
            child,
            addresses: Vec::new(),
            log,
            directory,
            _canary: canary,
            descriptors: 0,
            peers: Mutex::default(),
            panics: Mutex::new(0),
            finished: Mutex::new(false),
        };
        gateway
            .until("the gateway to be ready", |lines| lines.iter().any(|l| is(l, "ready")).then_some(()))
            .await;
        gateway.addresses = gateway
            .lines(|line| is(line, "listening").then(|| text(line, "address").parse()))
            .into_iter()
            .map(|address: Result<SocketAddr, _>| address.expect("the address of a listener"))
            .collect();
        assert_eq!(gateway.addresses.len(), 2, "one line for each listener");
        gateway.descriptors = gateway.open_descriptors();
        gateway
    }
}

#[derive(Default)]
struct Log {
    state: Mutex<Lines>,
    changed: Notify,
}

#[derive(Default)]
struct Lines {
    lines: Vec<Value>,
    raw: Vec<String>,
    ended: bool,
    /// The indexes of lines that a test has already asserted.
    claimed: Vec<usize>,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, Lines> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, stderr: impl Read) {
        for line in BufReader::new(stderr).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut state = self.state();
            state.lines.push(serde_json::from_str(&line).unwrap_or(Value::Null));
            state.raw.push(line);
            drop(state);
            self.changed.notify_waiters();
        }
        self.state().ended = true;
        self.changed.notify_waiters();
    }
}

fn is(line: &Value, message: &str) -> bool {
    line.get("message").and_then(Value::as_str) == Some(message)
}

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The access log line of a connection.
#[derive(Debug, Clone)]
pub(crate) struct AccessLogLine {
    line: Value,
}

impl AccessLogLine {
    fn of(line: &Value) -> Option<Self> {
        let ends = ["session ended", "refused", "served"];
        ends.iter().any(|end| is(line, end)).then(|| Self { line: line.clone() })
    }

    pub(crate) fn reason(&self) -> &str {
        text(&self.line, "reason")
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.line.get(key).and_then(Value::as_str)
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.line.get(key).and_then(Value::as_u64)
    }

    /// Whether it was a session, not a refusal before the dial.
    pub(crate) fn is_session(&self) -> bool {
        is(&self.line, "session ended")
    }
}

/// A running gateway. Each test that started one ends with [`Gateway::finish`], or [`Gateway::exit`].
pub(crate) struct Gateway {
    child: Arc<Mutex<Child>>,
    /// Dropped with the gateway, which ends the thread that watches the deadline.
    _deadline: Sender<()>,
    addresses: Vec<SocketAddr>,
    log: Arc<Log>,
    directory: TempDir,
    _canary: Backend,
    descriptors: usize,
    /// How many access log lines are expected of each peer, by its name in the log.
    peers: Mutex<HashMap<String, usize>>,
    /// How many sessions the test lets panic. Each logs two errors: the panic, and the session's end.
    panics: Mutex<usize>,
    finished: Mutex<bool>,
}

/// How long a test may use one gateway: far more than any needs, on a slow and busy machine too.
const DEADLINE: Duration = Duration::from_secs(300);

/// Kills the gateway of a test that does not end, so that everything the test waits for fails. Stops with the sender.
fn kill_after(deadline: Duration, child: Arc<Mutex<Child>>) -> Sender<()> {
    let (sender, ended) = mpsc::channel();
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    std::thread::spawn(move || {
        if ended.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{test}: not ended after {deadline:?}, its gateway is killed");
            // An error means that it has exited already.
            let _ = child.lock().unwrap_or_else(PoisonError::into_inner).kill();
        }
    });
    sender
}

// Clients.
impl Gateway {
    pub(crate) fn address(&self, listener: ListenerIndex) -> SocketAddr {
        self.addresses[listener]
    }

    /// Its `Host`, as a browser would send it.
    pub(crate) fn host(&self, listener: ListenerIndex) -> String {
        format!("localhost:{}", self.addresses[listener].port())
    }

    /// A valid upgrade from a page of the gateway's own origin.
    pub(crate) fn upgrade(&self, listener: ListenerIndex, target: &str) -> Request {
        let scheme = if listener == TLS { "https" } else { "http" };
        Request::upgrade(target, scheme, &self.host(listener))
    }

    /// A socket to a listener.
    pub(crate) async fn tcp(&self, listener: ListenerIndex) -> TcpStream {
        self.tcp_from(None, listener).await
    }

    /// A socket to a listener, from one of the addresses of this machine.
    pub(crate) async fn tcp_from(&self, source: Option<IpAddr>, listener: ListenerIndex) -> TcpStream {
        let socket = self.untracked_socket(source, listener, |_| {}).await;
        self.expect_log_line(socket.local_addr().expect("a connected socket"));
        socket
    }

    /// A socket whose access log line has another peer or is missing, configured by `prepare`.
    pub(crate) async fn untracked_socket(
        &self,
        source: Option<IpAddr>,
        listener: ListenerIndex,
        prepare: impl FnOnce(&TcpSocket),
    ) -> TcpStream {
        let to = self.addresses[listener];
        let socket = if to.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }.expect("a socket");
        prepare(&socket);
        if let Some(source) = source {
            socket.bind((source, 0).into()).expect("a source address");
        }
        let socket = within("a connection", socket.connect(to)).await.expect("the gateway accepts");
        socket.set_nodelay(true).expect("TCP_NODELAY");
        socket
    }

    /// Expects one more access log line of this peer.
    pub(crate) fn expect_log_line(&self, peer: SocketAddr) {
        *self.peers.lock().expect("no panic").entry(peer.to_string()).or_default() += 1;
    }

    /// TLS over a socket, as a client of TLS 1.3 that speaks HTTP/1.1.
    pub(crate) async fn secure(&self, socket: TcpStream) -> ClientStream {
        let config = client_config(rustls::ALL_VERSIONS, &["http/1.1"]);
        let stream = self.try_secure(socket, config).await.expect("a TLS handshake");
        ClientStream::Tls(Box::new(stream))
    }

    /// TLS with this configuration of the client.
    pub(crate) async fn try_secure<S>(
        &self,
        stream: S,
        config: Arc<ClientConfig>,
    ) -> std::io::Result<TlsStream<S>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let name = ServerName::try_from("localhost").expect("a name");
        within("TLS", TlsConnector::from(config).connect(name, stream)).await
    }

    /// A connection ready for a request.
    pub(crate) async fn connect(&self, listener: ListenerIndex) -> ClientStream {
        self.connect_from(None, listener).await
    }

    pub(crate) async fn connect_from(&self, source: Option<IpAddr>, listener: ListenerIndex) -> ClientStream {
        let socket = self.tcp_from(source, listener).await;
        if listener == TLS { self.secure(socket).await } else { ClientStream::Plain(socket) }
    }

    /// A connection from `source`, a proxy, whose access log line names `client`.
    pub(crate) async fn connect_by_proxy(
        &self,
        source: IpAddr,
        client: &str,
        listener: ListenerIndex,
    ) -> ClientStream {
        let socket = self.untracked_socket(Some(source), listener, |_| {}).await;
        self.expect_log_line(client.parse().expect("the address of a client"));
        if listener == TLS { self.secure(socket).await } else { ClientStream::Plain(socket) }
    }

    /// A connection whose client buffers only a few KiB that the test has not read.
    pub(crate) async fn connect_with_small_buffers(&self, listener: ListenerIndex) -> ClientStream {
        let socket = self
            .untracked_socket(None, listener, |socket| {
                socket.set_recv_buffer_size(8 * 1024).expect("a small receive buffer");
                socket.set_send_buffer_size(8 * 1024).expect("a small send buffer");
            })
            .await;
        self.expect_log_line(socket.local_addr().expect("a connected socket"));
        if listener == TLS { self.secure(socket).await } else { ClientStream::Plain(socket) }
    }

    /// An open session over TLS.
    pub(crate) async fn session(&self, target: &str) -> Session {
        self.session_by(TLS, target).await
    }

    pub(crate) async fn session_by(&self, listener: ListenerIndex, target: &str) -> Session {
        self.open(self.connect(listener).await, &self.upgrade(listener, target)).await
    }

    /// Upgrades an existing connection.
    pub(crate) async fn open(&self, mut connection: ClientStream, request: &Request) -> Session {
        let response = send_request(&mut connection, request).await;
        assert_eq!(response.status, 101, "{response:?}");
        let peer = connection.peer();
        Session::new(connection, peer, &response.rest)
    }
}

/// Sends a request and reads one response.
pub(crate) async fn send_request(connection: &mut ClientStream, request: &Request) -> Response {
    use tokio::io::AsyncWriteExt;
    connection.write_all(&request.bytes()).await.expect("the request is sent");
    connection.flush().await.expect("the request is sent");
    read_response(connection, true).await
}

// The log.
impl Gateway {
    /// Waits until `find` returns something from the log.
    pub(crate) async fn until<T>(&self, what: &str, find: impl Fn(&[Value]) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            let changed = self.log.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let ended = {
                let state = self.log.state();
                if let Some(found) = find(&state.lines) {
                    return found;
                }
                state.ended
            };
            assert!(!ended, "the gateway ended before {what}");
            let left = TIMEOUT.saturating_sub(start.elapsed());
            assert!(tokio::time::timeout(left, changed).await.is_ok(), "waited {TIMEOUT:?} for {what}");
        }
    }

    /// What `find` returns for the log's present lines.
    pub(crate) fn lines<T>(&self, find: impl Fn(&Value) -> Option<T>) -> Vec<T> {
        self.log.state().lines.iter().filter_map(find).collect()
    }

    /// Everything the gateway logged, verbatim.
    pub(crate) fn raw_log(&self) -> String {
        self.log.state().raw.join("\n")
    }

    /// Waits for the access log line of a connection of this peer, the next one that no test has asserted yet.
    pub(crate) async fn access_log_line(&self, peer: SocketAddr) -> AccessLogLine {
        let name = peer.to_string();
        let claimed = self.log.state().claimed.clone();
        let (index, end) = self
            .until(&format!("the line about {name}"), |lines| {
                lines.iter().enumerate().find_map(|(index, line)| {
                    let end = AccessLogLine::of(line).filter(|_| text(line, "peer") == name)?;
                    (!claimed.contains(&index)).then_some((index, end))
                })
            })
            .await;
        self.log.state().claimed.push(index);
        end
    }

    /// Waits for the access log line of a session, and checks its reason and its close code.
    #[track_caller]
    pub(crate) fn ended(
        &self,
        peer: SocketAddr,
        reason: &str,
        code: Option<u16>,
    ) -> impl Future<Output = AccessLogLine> + use<'_> {
        let caller = std::panic::Location::caller();
        let reason = reason.to_owned();
        async move {
            let end = self.access_log_line(peer).await;
            assert_eq!(text(&end.line, "level"), "INFO", "{caller}: {end:?}");
            let seen = (end.is_session(), end.reason(), end.number("close_code"));
            assert_eq!(seen, (true, reason.as_str(), code.map(u64::from)), "{caller}: {end:?}");
            end
        }
    }

    /// Waits for the access log line of a connection that never became a session, and checks its reason.
    #[track_caller]
    pub(crate) fn refused(
        &self,
        peer: SocketAddr,
        reason: &str,
    ) -> impl Future<Output = AccessLogLine> + use<'_> {
        let caller = std::panic::Location::caller();
        let reason = reason.to_owned();
        async move {
            let end = self.access_log_line(peer).await;
            assert_eq!((end.is_session(), end.reason()), (false, reason.as_str()), "{caller}: {end:?}");
            assert_eq!(
                text(&end.line, "level"),
                "DEBUG",
                "{caller}: an unauthenticated client can cause {end:?}"
            );
            end
        }
    }
}

// The process.
impl Gateway {
    pub(crate) fn pid(&self) -> u32 {
        self.child.lock().expect("no panic").id()
    }

    pub(crate) fn open_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the gateway runs").count()
    }

    /// Its anonymous memory, in bytes. Without the pages of the binary: how many of them are counted, and
    /// for which process, depends on what else runs it.
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let rollup = std::fs::read_to_string(path).expect("the gateway runs");
        let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("a line of it");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
    }

    /// How much processor time it has used.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the gateway runs");
        let after_name = stat.rsplit(')').next().expect("a line");
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks: u64 =
            fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
        // A tick is a hundredth of a second on every Linux.
        Duration::from_millis(ticks * 10)
    }

    /// A file beside its configuration.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// The text of its configuration.
    pub(crate) fn configuration(&self) -> String {
        std::fs::read_to_string(self.path("gateway.toml")).expect("the configuration")
    }

    /// Replaces its configuration, reloads it and waits for the result in the log.
    pub(crate) async fn reload(&self, configuration: &str) -> Result<String, String> {
        std::fs::write(self.path("gateway.toml"), configuration).expect("the configuration");
        self.reload_again().await
    }

    /// Reloads the configuration and waits for the result in the log.
    pub(crate) async fn reload_again(&self) -> Result<String, String> {
        let answer = |line: &Value| match text(line, "message") {
            done if done.starts_with("reloaded: ") => Some(Ok(done.to_owned())),
            failed if failed.starts_with("not reloaded: ") => {
                assert_eq!(text(line, "level"), "WARN");
                Some(Err(text(line, "detail").to_owned()))
            }
            _ => None,
        };
        let before = self.lines(answer).len();
        self.signal(Signal::SIGHUP);
        self.until("the answer to SIGHUP", |lines| lines.iter().filter_map(answer).nth(before)).await
    }

    /// Waits for a listener besides the known ones, which becomes the next [`ListenerIndex`].
    pub(crate) async fn another_listener(&mut self) -> ListenerIndex {
        let address =
            |line: &Value| is(line, "listening").then(|| text(line, "address").parse().ok()).flatten();
        let known = self.addresses.len();
        let new = self.until("another listener", |lines| lines.iter().filter_map(address).nth(known)).await;
        self.addresses.push(new);
        known
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a process");
        kill(Pid::from_raw(pid), signal).expect("the gateway runs");
    }

    /// Waits for the process to exit; then the log must be complete.
    pub(crate) async fn exit(&self) -> ExitStatus {
        let status = self.exit_at_once().await;
        self.check_log();
        status
    }

    /// Waits for the exit of a process that stopped at once, and therefore may have connections without a log line.
    pub(crate) async fn exit_at_once(&self) -> ExitStatus {
        let mut status = None;
        eventually("the gateway ends", TIMEOUT, || {
            status = self.child.lock().expect("no panic").try_wait().expect("a child");
            status.map(|_| ()).ok_or_else(|| "it still runs".to_owned())
        })
        .await;
        eventually("the log ends", TIMEOUT, || {
            self.log.state().ended.then_some(()).ok_or_else(|| "it is still open".to_owned())
        })
        .await;
        *self.finished.lock().expect("no panic") = true;
        status.expect("it has ended")
    }

    /// Every test ends here: each connection has exactly one line, every descriptor is released within a second,
    /// nothing panicked, and another session still works.
    pub(crate) async fn finish(self) {
        let peers = self.peers.lock().expect("no panic").clone();
        let total: usize = peers.values().sum();
        self.until("a line for every connection", |lines| {
            (lines.iter().filter_map(AccessLogLine::of).count() >= total).then_some(())
        })
        .await;
        let limit = self.descriptors;
        eventually("every descriptor is released", Duration::from_secs(1), || {
            let open = self.open_descriptors();
            (open <= limit).then_some(()).ok_or_else(|| format!("{open} are open, {limit} were at the start"))
        })
        .await;

        let address = self.addresses[TLS].ip();
        let source = if address.is_ipv6() { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { CANARY };
        let connection = self.connect_from(Some(source), TLS).await;
        let mut session = self.open(connection, &self.upgrade(TLS, "/canary")).await;
        session.echo(b"still alive").await;
        session.close(1000).await;
        let peer = session.peer;
        drop(session);
        self.ended(peer, "client_closed", Some(1000)).await;
        self.check_log();
        *self.finished.lock().expect("no panic") = true;
    }

    /// Expects one more session to panic.
    pub(crate) fn expect_panic(&self) {
        *self.panics.lock().expect("no panic") += 1;
    }

    /// Checks for exactly one line for each connection, and for nothing but JSON.
    fn check_log(&self) {
        let state = self.log.state();
        let errors = state.lines.iter().filter(|line| text(line, "level") == "ERROR");
        let errors: Vec<String> = errors.map(Value::to_string).collect();
        let expected = 2 * *self.panics.lock().expect("no panic");
        assert_eq!(errors.len(), expected, "errors were logged: {errors:#?}");
        for (line, raw) in state.lines.iter().zip(&state.raw) {
            assert!(line.is_object(), "not JSON: {raw}");
        }
        let mut seen: HashMap<String, usize> = HashMap::new();
        for line in state.lines.iter().filter(|line| AccessLogLine::of(line).is_some()) {
            *seen.entry(text(line, "peer").to_owned()).or_default() += 1;
        }
        let peers = self.peers.lock().expect("no panic");
        for (peer, count) in peers.iter() {
            let lines = seen.remove(peer).unwrap_or(0);
            assert_eq!(lines, *count, "lines about the {count} connections of {peer}");
        }
        assert!(seen.is_empty(), "lines about connections that no test made: {seen:?}");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // An error means that it has exited already.
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            let state = self.log.state();
            let skipped = state.raw.len().saturating_sub(200);
            eprintln!("--- the gateway's log, without its first {skipped} lines ---");
            for line in &state.raw[skipped..] {
                eprintln!("{line}");
            }
        } else {
            let finished = self.finished.get_mut().is_ok_and(|finished| *finished);
            assert!(finished, "a test has to end with finish() or exit()");
        }
    }
}

/// Runs the binary in a directory until it exits.
pub(crate) fn run(directory: &Path, arguments: &[&str]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the gateway's binary");
    let start = Instant::now();
    let mut late = false;
    while child.try_wait().expect("a child").is_none() {
        if start.elapsed() > TIMEOUT {
            late = true;
            child.kill().expect("a child");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("its output");
    assert!(!late, "portcullis {arguments:?} did not end; its output: {output:?}");
    output
}
