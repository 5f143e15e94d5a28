//! The lifecycle of the installed service under a real systemd: socket activation, reload, watchdog, and upgrades under
//! load.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, protocol::frame::coding::CloseCode},
};

use crate::{booted::Booted, deb::package, scratch::Scratch};

/// Marks a process as the clients of the test, and holds the certificate that they trust.
const CLIENTS: &str = "PORTCULLIS_TEST_VISITORS";
/// How long something may take that is immediate on an idle machine.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long opening a session or an echo may take. Far more than a connection needs.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Sessions that stay open, and reconnect when they are closed with 1001.
const STEADY: usize = 50;
/// The interval between two short sessions.
const INTERVAL: Duration = Duration::from_millis(20);

/// The configuration of the service. It has the machine's network to itself.
const CONFIG: &str = r#"
[[listener]]
address = "systemd:portcullis"
certificate = "credential:tls.crt"
private_key = "credential:tls.key"

[[route]]
name = "echo"
path = "/echo"
backend = "tcp://127.0.0.1:7007"
missing_origin = "allow"

[limits.per_ip]
exempt = ["127.0.0.0/8"]

[timeouts]
drain = "4s"

[admin]
address = "unix:/run/portcullis/admin.sock"
"#;

#[test]
#[ignore = "needs cargo-deb, systemd-nspawn and root: tests/run --only packaging"]
fn the_service_survives_reloads_hangs_and_upgrades() {
    if let Ok(certificate) = env::var(CLIENTS) {
        return Runtime::new().expect("a runtime").block_on(run_clients(&certificate));
    }
    let Some(machine) = package().and_then(Scratch::with).and_then(Booted::new) else { return };
    machine.install();
    machine.write("/etc/portcullis/gateway.toml", CONFIG);
    machine.write("/etc/systemd/system/portcullis.service.d/watchdog.conf", "[Service]\nWatchdogSec=3s\n");
    // The socket alone is started; the first connection starts the service.
    machine.sh("systemctl daemon-reload && systemctl start portcullis.socket");
    assert_eq!(
        machine.sh("systemctl is-active portcullis.service || true"),
        "inactive\n",
        "started before the first connection"
    );

    let mut clients = Clients::start(&machine);
    clients.until("the first sessions", |count| count("served") >= 10);
    let first = machine.running();
    assert_sandboxed(&machine, &first);
    reloads(&machine, &mut clients, &first);

    let closed = clients.count("closed");
    upgrade(&machine, &mut clients, &first);
    let counts = clients.finish();
    let count = |what: &str| counts.get(what).copied().unwrap_or_default();
    assert_eq!(count("refused"), 0, "connections were refused: {counts:?}");
    assert!(
        count("closed") >= closed + 2 * STEADY as u64,
        "not all sessions were closed with 1001: {counts:?}"
    );
    assert_eq!(count("lost"), 0, "sessions were lost: {counts:?}");

    assert_watchdog_restarts(&machine);
}

/// Asserts that the process has no more access than it needs.
fn assert_sandboxed(machine: &Booted, process: &str) {
    let status = machine.sh(&format!("cat /proc/{process}/status"));
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name}: {status}")).split_whitespace().next().unwrap_or_default()
    };
    // The range of DynamicUser= (systemd.exec(5)).
    let user: u32 = field("Uid").parse().expect("a number");
    assert!((61_184..=65_519).contains(&user), "user {user}");
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1", "2"), "{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(field(set), 16), Ok(0), "{set}: {status}");
    }
    // As root, through the mounts of the service.
    let within =
        |line: &str| machine.sh(&format!("nsenter --target {process} --mount sh -c '{line}' 2>&1 || true"));
    assert!(
        within("echo x > /etc/portcullis/x").contains("Read-only file system"),
        "it can change its configuration"
    );
    assert_eq!(within("ls /home /root"), "/home:\n\n/root:\n", "it can read home directories");
    assert!(within("ls /dev/mem /dev/kmsg").contains("No such file"), "it can access devices");
    let key = machine.sh("stat --dereference --format '%U %a' /etc/portcullis/tls.key");
    assert_eq!(key, "root 600\n", "the key is root's own, and was passed as a credential");
    let shown = machine.sh("systemctl show --property StatusText --value portcullis.service");
    assert!(shown.contains("of at most 9000 sessions"), "{shown}");
}

/// A valid configuration takes effect, an invalid one changes nothing and is reported, and no session is affected.
fn reloads(machine: &Booted, clients: &mut Clients, process: &str) {
    let (closed, lost) = (clients.count("closed"), clients.count("lost"));
    let status = |path: &str| {
        let output = format!(
            "curl --silent --insecure --output /dev/null --write-out '%{{http_code}}' https://127.0.0.1{path}"
        );
        machine.sh(&output)
    };
    assert_eq!(status("/second"), "404");
    let second = CONFIG.replace("\"echo\"\npath = \"/echo\"", "\"second\"\npath = \"/second\"");
    let route = &second[second.find("[[route]]").expect("a route")..second.find("[limits").expect("limits")];
    machine.write("/etc/portcullis/gateway.toml", &format!("{CONFIG}\n{route}"));
    machine.sh("systemctl reload portcullis.service");
    machine.until("the new route answers", || status("/second") == "426");
    machine.write("/etc/portcullis/gateway.toml", &CONFIG.replace("path =", "pth ="));
    machine.sh("systemctl reload portcullis.service");
    machine.until("the journal names the error", || {
        let journal = machine.sh("journalctl --unit portcullis.service --output cat");
        journal.contains("did you mean") && journal.contains("pth")
    });
    assert_eq!(status("/second"), "426", "an invalid configuration has changed something");
    let output = machine.sh("portcullis reload --admin unix:/run/portcullis/admin.sock 2>&1 || echo refused");
    assert!(output.contains("pth") && output.ends_with("refused\n"), "{output}");
    machine.write("/etc/portcullis/gateway.toml", CONFIG);
    machine.sh("portcullis reload --admin unix:/run/portcullis/admin.sock");
    assert_eq!(status("/second"), "404");
    assert_eq!(machine.running(), process);
    let served = clients.count("served");
    clients.until("more sessions", |count| count("served") > served + 10);
    assert_eq!(
        (clients.count("closed"), clients.count("lost")),
        (closed, lost),
        "a reload has closed sessions"
    );
}

/// The program is replaced while sessions are opened and used.
fn upgrade(machine: &Booted, clients: &mut Clients, first: &str) {
    machine.sh("systemctl start portcullis@spare.service");
    machine.sh("systemctl restart portcullis.service");
    let second = machine.running();
    assert_ne!(second, first);
    machine.sh("systemctl stop portcullis@spare.service");
    let served = clients.count("served");
    clients.until("more sessions", |count| count("served") > served + 10);
    // Without a second instance: new connections wait in the queue of the socket that systemd holds open.
    machine.sh("systemctl restart portcullis.service");
    assert_ne!(machine.running(), second);
    let served = clients.count("served");
    clients.until("more sessions", |count| count("served") > served + 10);
}

/// A process that hangs is killed and restarted by the watchdog.
fn assert_watchdog_restarts(machine: &Booted) {
    let stopped = machine.running();
    let restarts = || -> u32 {
        let shown = machine.sh("systemctl show --property NRestarts --value portcullis.service");
        shown.trim().parse().expect("a number")
    };
    let before = restarts();
    machine.sh(&format!("kill -STOP {stopped}"));
    machine.until("the watchdog restarts it", || restarts() > before);
    machine.until("it runs again", || {
        machine.sh("systemctl is-active portcullis.service || true") == "active\n"
    });
    assert_ne!(machine.running(), stopped);
    let journal = machine.sh("journalctl --unit portcullis.service --output cat");
    assert!(journal.contains("Watchdog timeout"), "{journal}");
}

/// Clients that run during the test, in a process in the machine's network.
struct Clients {
    process: Child,
    /// They continue until it is closed.
    open: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    last: BTreeMap<String, u64>,
}

impl Clients {
    fn start(machine: &Booted) -> Self {
        let certificate = machine.sh("cat /etc/portcullis/tls.crt");
        let this = env::current_exe().expect("the test binary");
        let mut command = Command::new("nsenter");
        command.args(["--target", machine.first(), "--net"]).arg(this);
        let name = "service_lifecycle::the_service_survives_reloads_hangs_and_upgrades";
        command.args(["--exact", name, "--ignored", "--nocapture"]).env(CLIENTS, certificate);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("nsenter");
        let open = process.stdin.take();
        let lines = BufReader::new(process.stdout.take().expect("a pipe"));
        Self { process, open, lines, last: BTreeMap::new() }
    }

    /// Reads the next counts, which the clients print continuously.
    fn read_counts(&mut self) {
        loop {
            let mut line = String::new();
            assert!(
                self.lines.read_line(&mut line).expect("text") > 0,
                "the clients have exited: {:?}",
                self.last
            );
            if let Ok(counts) = serde_json::from_str::<BTreeMap<String, u64>>(&line) {
                self.last = counts;
                return;
            }
        }
    }

    fn count(&mut self, what: &str) -> u64 {
        // Counts that were already in the pipe may be old.
        self.read_counts();
        self.read_counts();
        self.last.get(what).copied().unwrap_or_default()
    }

    #[track_caller]
    fn until(&mut self, what: &str, enough: impl Fn(&dyn Fn(&str) -> u64) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !enough(&|name| self.last.get(name).copied().unwrap_or_default()) {
            assert!(Instant::now() < deadline, "{what}: not within {TIMEOUT:?}: {:?}", self.last);
            self.read_counts();
        }
    }

    /// Opens no more sessions, and waits for the open ones.
    fn finish(mut self) -> BTreeMap<String, u64> {
        drop(self.open.take());
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("text");
        let last = rest.lines().filter_map(|line| serde_json::from_str(line).ok()).next_back();
        let status = self.process.wait().expect("it exits");
        assert!(status.success(), "{status}: {rest}");
        last.unwrap_or_else(|| panic!("no counts: {rest}"))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The outcomes of the sessions.
#[derive(Default)]
struct Counts {
    /// Sessions that were opened and echoed, or closed with 1001.
    served: AtomicU64,
    /// Sessions that were closed with 1001.
    closed: AtomicU64,
    /// Sessions that ended neither by the client nor with 1001.
    lost: AtomicU64,
    /// Sessions that could not be opened.
    refused: AtomicU64,
    errors: Mutex<Vec<String>>,
}

impl Counts {
    fn increment(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::SeqCst);
    }

    fn print(&self) {
        let counts: BTreeMap<&str, u64> = [
            ("served", &self.served),
            ("closed", &self.closed),
            ("lost", &self.lost),
            ("refused", &self.refused),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::SeqCst)))
        .into();
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{}", serde_json::to_string(&counts).expect("numbers"));
        let _ = out.flush();
        for errors in self.errors.lock().expect("no panic").drain(..) {
            eprintln!("{errors}");
        }
    }

    fn record_error(&self, counter: &AtomicU64, errors: String) {
        Self::increment(counter);
        self.errors.lock().expect("no panic").push(errors);
    }
}

/// The process of the clients: a backend, sessions that stay open, and short sessions continuously.
async fn run_clients(certificate: &str) {
    let server = TcpListener::bind("127.0.0.1:7007").await.expect("a port of this network");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = server.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = socket.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let (tls, counts) = (TlsConnector::from(Arc::new(config)), Arc::new(Counts::default()));
    let closing = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let closing = Arc::clone(&closing);
        move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            closing.store(true, Ordering::SeqCst);
        }
    });
    let steady = (0..STEADY)
        .map(|_| tokio::spawn(steady_session(tls.clone(), Arc::clone(&counts), Arc::clone(&closing))));
    let steady: Vec<_> = steady.collect();
    let mut ticker = interval(INTERVAL);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut short = tokio::task::JoinSet::new();
    while !closing.load(Ordering::SeqCst) {
        ticker.tick().await;
        counts.print();
        short.spawn(short_session(tls.clone(), Arc::clone(&counts)));
        while short.try_join_next().is_some() {}
    }
    short.join_all().await;
    for session in steady {
        session.await.expect("no panic");
    }
    counts.print();
}

type ClientSession = WebSocketStream<TlsStream<TcpStream>>;

async fn open_session(tls: &TlsConnector) -> Result<ClientSession, String> {
    let opening = async {
        let socket =
            TcpStream::connect("127.0.0.1:443").await.map_err(|error| format!("connect: {error}"))?;
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = tls.connect(name, socket).await.map_err(|error| format!("TLS: {error}"))?;
        let upgraded = client_async("wss://localhost/echo", stream).await;
        upgraded.map(|(session, _)| session).map_err(|error| format!("upgrade: {error}"))
    };
    timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| format!("no session within {CONNECT_TIMEOUT:?}"))?
}

/// The outcome of one echo.
enum Outcome {
    Echoed,
    GoingAway,
    Lost(String),
}

async fn echo(session: &mut ClientSession) -> Outcome {
    if let Err(error) = session.send(Message::binary(b"hello".as_slice())).await {
        return Outcome::Lost(format!("send: {error}"));
    }
    match timeout(CONNECT_TIMEOUT, session.next()).await {
        Ok(Some(Ok(Message::Binary(echoed)))) if echoed == b"hello".as_slice() => Outcome::Echoed,
        Ok(Some(Ok(Message::Close(Some(close))))) if close.code == CloseCode::Away => Outcome::GoingAway,
        other => Outcome::Lost(format!("{other:?} instead of the echo")),
    }
}

/// Opens a session, sends one message, reads the echo and closes.
async fn short_session(tls: TlsConnector, counts: Arc<Counts>) {
    match open_session(&tls).await {
        Err(errors) => counts.record_error(&counts.refused, errors),
        Ok(mut session) => match echo(&mut session).await {
            Outcome::Echoed => {
                Counts::increment(&counts.served);
                let _ = session.close(None).await;
                while let Ok(Some(Ok(_))) = timeout(CONNECT_TIMEOUT, session.next()).await {}
            }
            Outcome::GoingAway => {
                Counts::increment(&counts.served);
                Counts::increment(&counts.closed);
            }
            Outcome::Lost(errors) => counts.record_error(&counts.lost, errors),
        },
    }
}

/// Keeps a session open until it is closed with 1001, and reconnects.
async fn steady_session(tls: TlsConnector, counts: Arc<Counts>, closing: Arc<AtomicBool>) {
    while !closing.load(Ordering::SeqCst) {
        let mut session = match open_session(&tls).await {
            Ok(session) => session,
            Err(errors) => {
                counts.record_error(&counts.refused, errors);
                continue;
            }
        };
        let mut errors = interval(Duration::from_millis(200));
        loop {
            errors.tick().await;
            match echo(&mut session).await {
                Outcome::Echoed if closing.load(Ordering::SeqCst) => {
                    let _ = session.close(None).await;
                    return;
                }
                Outcome::Echoed => {}
                Outcome::GoingAway => {
                    Counts::increment(&counts.closed);
                    break;
                }
                Outcome::Lost(errors) => {
                    counts.record_error(&counts.lost, errors);
                    break;
                }
            }
        }
    }
}
