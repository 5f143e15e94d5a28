//! The installed service as it lives for years: started by its first client, reloaded, frozen, exchanged under load. A real
//! systemd looks after it.

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

/// Tells a process that it is the visitors' part of the test, and where their certificate is.
const VISITORS: &str = "PORTCULLIS_TEST_VISITORS";
/// How long something may take that happens at once on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a visitor may wait at the door. Far more than a connection takes.
const DOOR: Duration = Duration::from_secs(20);
/// Sessions that stay, and come back when they are sent away.
const REGULARS: usize = 50;
/// From one visitor to the next.
const PACE: Duration = Duration::from_millis(20);

/// What the service runs with. It has the machine's network to itself.
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
fn the_service_lives_through_reloads_freezes_and_upgrades() {
    if let Ok(certificate) = env::var(VISITORS) {
        return Runtime::new().expect("a runtime").block_on(visit(&certificate));
    }
    let Some(machine) = package().and_then(Scratch::with).and_then(Booted::new) else { return };
    machine.install();
    machine.write("/etc/portcullis/gateway.toml", CONFIG);
    machine.write("/etc/systemd/system/portcullis.service.d/watchdog.conf", "[Service]\nWatchdogSec=3s\n");
    // A release that has taken the place of the one that runs.
    machine.sh("systemctl daemon-reload && systemctl start portcullis.socket");
    assert_eq!(
        machine.sh("systemctl is-active portcullis.service || true"),
        "inactive\n",
        "nobody has come yet"
    );

    let mut visitors = Visitors::start(&machine);
    visitors.until("the first have come", |seen| seen("greeted") >= 10);
    let first = machine.running();
    lives_in_a_sandbox(&machine, &first);
    reloads(&machine, &mut visitors, &first);

    let told = visitors.seen("told");
    exchange(&machine, &mut visitors, &first);
    let exchanged = visitors.finish();
    let count = |what: &str| exchanged.get(what).copied().unwrap_or_default();
    assert_eq!(count("refused"), 0, "somebody was turned away: {exchanged:?}");
    assert!(count("told") >= told + 2 * REGULARS as u64, "not all sessions were told: {exchanged:?}");
    assert_eq!(count("lost"), 0, "sessions ended without a word: {exchanged:?}");

    wakes_up(&machine);
}

/// Nothing of what it does not need is there for it.
fn lives_in_a_sandbox(machine: &Booted, process: &str) {
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
    // Root's own eyes, through the service's mounts.
    let within =
        |line: &str| machine.sh(&format!("nsenter --target {process} --mount sh -c '{line}' 2>&1 || true"));
    assert!(
        within("echo x > /etc/portcullis/x").contains("Read-only file system"),
        "it can change its configuration"
    );
    assert_eq!(within("ls /home /root"), "/home:\n\n/root:\n", "it sees what people keep");
    assert!(within("ls /dev/mem /dev/kmsg").contains("No such file"), "it sees devices");
    let key = machine.sh("stat --dereference --format '%U %a' /etc/portcullis/tls.key");
    assert_eq!(key, "root 600\n", "the key is root's own, and was handed over");
    let shown = machine.sh("systemctl show --property StatusText --value portcullis.service");
    assert!(shown.contains("of at most 9000 sessions"), "{shown}");
}

/// A good configuration is in force, a bad one changes nothing and says so, and sessions notice neither.
fn reloads(machine: &Booted, visitors: &mut Visitors, process: &str) {
    let (told, lost) = (visitors.seen("told"), visitors.seen("lost"));
    let status = |path: &str| {
        let asked = format!(
            "curl --silent --insecure --output /dev/null --write-out '%{{http_code}}' https://127.0.0.1{path}"
        );
        machine.sh(&asked)
    };
    assert_eq!(status("/second"), "404");
    let second = CONFIG.replace("\"echo\"\npath = \"/echo\"", "\"second\"\npath = \"/second\"");
    let route = &second[second.find("[[route]]").expect("a route")..second.find("[limits").expect("limits")];
    machine.write("/etc/portcullis/gateway.toml", &format!("{CONFIG}\n{route}"));
    machine.sh("systemctl reload portcullis.service");
    machine.until("the new route answers", || status("/second") == "426");
    machine.write("/etc/portcullis/gateway.toml", &CONFIG.replace("path =", "pth ="));
    machine.sh("systemctl reload portcullis.service");
    machine.until("the journal says what is wrong", || {
        let said = machine.sh("journalctl --unit portcullis.service --output cat");
        said.contains("did you mean") && said.contains("pth")
    });
    assert_eq!(status("/second"), "426", "a bad configuration has changed something");
    let asked = machine.sh("portcullis reload --admin unix:/run/portcullis/admin.sock 2>&1 || echo refused");
    assert!(asked.contains("pth") && asked.ends_with("refused\n"), "{asked}");
    machine.write("/etc/portcullis/gateway.toml", CONFIG);
    machine.sh("portcullis reload --admin unix:/run/portcullis/admin.sock");
    assert_eq!(status("/second"), "404");
    assert_eq!(machine.running(), process);
    let greeted = visitors.seen("greeted");
    visitors.until("others come all the time", |seen| seen("greeted") > greeted + 10);
    assert_eq!((visitors.seen("told"), visitors.seen("lost")), (told, lost), "a reload has ended sessions");
}

/// Another program in the place of the one that runs, while visitors come and stay.
fn exchange(machine: &Booted, visitors: &mut Visitors, first: &str) {
    machine.sh("systemctl start portcullis@spare.service");
    machine.sh("systemctl restart portcullis.service");
    let second = machine.running();
    assert_ne!(second, first);
    machine.sh("systemctl stop portcullis@spare.service");
    let greeted = visitors.seen("greeted");
    visitors.until("others come all the time", |seen| seen("greeted") > greeted + 10);
    // Alone, it is exchanged as well: who comes meanwhile waits at the door that systemd holds open.
    machine.sh("systemctl restart portcullis.service");
    assert_ne!(machine.running(), second);
    let greeted = visitors.seen("greeted");
    visitors.until("others come all the time", |seen| seen("greeted") > greeted + 10);
}

/// A process that does not move any more is killed and started again.
fn wakes_up(machine: &Booted) {
    let frozen = machine.running();
    let restarts = || -> u32 {
        let shown = machine.sh("systemctl show --property NRestarts --value portcullis.service");
        shown.trim().parse().expect("a number")
    };
    let before = restarts();
    machine.sh(&format!("kill -STOP {frozen}"));
    machine.until("the watchdog bites", || restarts() > before);
    machine.until("it runs again", || {
        machine.sh("systemctl is-active portcullis.service || true") == "active\n"
    });
    assert_ne!(machine.running(), frozen);
    let said = machine.sh("journalctl --unit portcullis.service --output cat");
    assert!(said.contains("Watchdog timeout"), "{said}");
}

/// Those who come and go meanwhile, in a process that shares the machine's network.
struct Visitors {
    process: Child,
    /// They come until it is closed.
    open: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    last: BTreeMap<String, u64>,
}

impl Visitors {
    fn start(machine: &Booted) -> Self {
        let certificate = machine.sh("cat /etc/portcullis/tls.crt");
        let this = env::current_exe().expect("the test binary");
        let mut command = Command::new("nsenter");
        command.args(["--target", machine.first(), "--net"]).arg(this);
        let name = "living::the_service_lives_through_reloads_freezes_and_upgrades";
        command.args(["--exact", name, "--ignored", "--nocapture"]).env(VISITORS, certificate);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("nsenter");
        let open = process.stdin.take();
        let lines = BufReader::new(process.stdout.take().expect("it is piped"));
        Self { process, open, lines, last: BTreeMap::new() }
    }

    /// The newest counts. They say so all the time.
    fn look(&mut self) {
        loop {
            let mut line = String::new();
            assert!(
                self.lines.read_line(&mut line).expect("text") > 0,
                "the visitors have gone: {:?}",
                self.last
            );
            if let Ok(counts) = serde_json::from_str::<BTreeMap<String, u64>>(&line) {
                self.last = counts;
                return;
            }
        }
    }

    fn seen(&mut self, what: &str) -> u64 {
        // What was on its way may be old.
        self.look();
        self.look();
        self.last.get(what).copied().unwrap_or_default()
    }

    #[track_caller]
    fn until(&mut self, what: &str, enough: impl Fn(&dyn Fn(&str) -> u64) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&|name| self.last.get(name).copied().unwrap_or_default()) {
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}: {:?}", self.last);
            self.look();
        }
    }

    /// Lets nobody else come, and waits for those who are there.
    fn finish(mut self) -> BTreeMap<String, u64> {
        drop(self.open.take());
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("text");
        let last = rest.lines().filter_map(|line| serde_json::from_str(line).ok()).next_back();
        let status = self.process.wait().expect("it ends");
        assert!(status.success(), "{status}: {rest}");
        last.unwrap_or_else(|| panic!("no counts: {rest}"))
    }
}

impl Drop for Visitors {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the visitors have seen.
#[derive(Default)]
struct Seen {
    /// Sessions that were opened and answered, or told to go at once.
    greeted: AtomicU64,
    /// Sessions that were sent away with 1001.
    told: AtomicU64,
    /// Sessions that ended otherwise than by their own will or 1001.
    lost: AtomicU64,
    /// Visitors who found no way in.
    refused: AtomicU64,
    words: Mutex<Vec<String>>,
}

impl Seen {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::SeqCst);
    }

    fn say(&self) {
        let counts: BTreeMap<&str, u64> = [
            ("greeted", &self.greeted),
            ("told", &self.told),
            ("lost", &self.lost),
            ("refused", &self.refused),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::SeqCst)))
        .into();
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{}", serde_json::to_string(&counts).expect("numbers"));
        let _ = out.flush();
        for words in self.words.lock().expect("no panic").drain(..) {
            eprintln!("{words}");
        }
    }

    fn complain(&self, counter: &AtomicU64, words: String) {
        Self::count(counter);
        self.words.lock().expect("no panic").push(words);
    }
}

/// The visitors' part: a server to talk to, sessions that stay, and one more visitor every moment.
async fn visit(certificate: &str) {
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
    let (tls, seen) = (TlsConnector::from(Arc::new(config)), Arc::new(Seen::default()));
    let closing = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let closing = Arc::clone(&closing);
        move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            closing.store(true, Ordering::SeqCst);
        }
    });
    let regulars =
        (0..REGULARS).map(|_| tokio::spawn(stay(tls.clone(), Arc::clone(&seen), Arc::clone(&closing))));
    let regulars: Vec<_> = regulars.collect();
    let mut ticker = interval(PACE);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut passing = tokio::task::JoinSet::new();
    while !closing.load(Ordering::SeqCst) {
        ticker.tick().await;
        seen.say();
        passing.spawn(pass_by(tls.clone(), Arc::clone(&seen)));
        while passing.try_join_next().is_some() {}
    }
    passing.join_all().await;
    for regular in regulars {
        regular.await.expect("no panic");
    }
    seen.say();
}

type Visit = WebSocketStream<TlsStream<TcpStream>>;

async fn enter(tls: &TlsConnector) -> Result<Visit, String> {
    let opening = async {
        let socket =
            TcpStream::connect("127.0.0.1:443").await.map_err(|error| format!("connect: {error}"))?;
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = tls.connect(name, socket).await.map_err(|error| format!("TLS: {error}"))?;
        let upgraded = client_async("wss://localhost/echo", stream).await;
        upgraded.map(|(visit, _)| visit).map_err(|error| format!("upgrade: {error}"))
    };
    timeout(DOOR, opening).await.map_err(|_| format!("no way in within {DOOR:?}"))?
}

/// How a visit goes on after one word and its answer.
enum Answer {
    Heard,
    Told,
    Lost(String),
}

async fn talk(visit: &mut Visit) -> Answer {
    if let Err(error) = visit.send(Message::binary(b"hello".as_slice())).await {
        return Answer::Lost(format!("send: {error}"));
    }
    match timeout(DOOR, visit.next()).await {
        Ok(Some(Ok(Message::Binary(heard)))) if heard == b"hello".as_slice() => Answer::Heard,
        Ok(Some(Ok(Message::Close(Some(close))))) if close.code == CloseCode::Away => Answer::Told,
        other => Answer::Lost(format!("{other:?} instead of an answer")),
    }
}

/// Comes, says one word, hears it and goes.
async fn pass_by(tls: TlsConnector, seen: Arc<Seen>) {
    match enter(&tls).await {
        Err(words) => seen.complain(&seen.refused, words),
        Ok(mut visit) => match talk(&mut visit).await {
            Answer::Heard => {
                Seen::count(&seen.greeted);
                let _ = visit.close(None).await;
                while let Ok(Some(Ok(_))) = timeout(DOOR, visit.next()).await {}
            }
            Answer::Told => {
                Seen::count(&seen.greeted);
                Seen::count(&seen.told);
            }
            Answer::Lost(words) => seen.complain(&seen.lost, words),
        },
    }
}

/// Stays until it is told to go, and comes back.
async fn stay(tls: TlsConnector, seen: Arc<Seen>, closing: Arc<AtomicBool>) {
    while !closing.load(Ordering::SeqCst) {
        let mut visit = match enter(&tls).await {
            Ok(visit) => visit,
            Err(words) => {
                seen.complain(&seen.refused, words);
                continue;
            }
        };
        let mut words = interval(Duration::from_millis(200));
        loop {
            words.tick().await;
            match talk(&mut visit).await {
                Answer::Heard if closing.load(Ordering::SeqCst) => {
                    let _ = visit.close(None).await;
                    return;
                }
                Answer::Heard => {}
                Answer::Told => {
                    Seen::count(&seen.told);
                    break;
                }
                Answer::Lost(words) => {
                    seen.complain(&seen.lost, words);
                    break;
                }
            }
        }
    }
}
