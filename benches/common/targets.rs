//! The programs under test: Portcullis, the raw pipe, and the other programs that are installed.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use super::{
    process::Process,
    protocol::{ClientProtocol, Transport},
};

/// How long a program may take to start listening.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// The nginx module that terminates TLS without HTTP, at Debian's path.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// The directory of websockify's virtual environment under target/tools; tests/install makes it.
const WEBSOCKIFY: &str = "websockify-0.13.0";
/// HAProxy with buffers as large as the gateway's. It rewrites nothing here, so no part of a buffer need be reserved.
/// TLS records have no limit by default (tune.ssl.maxrecord).
const HAPROXY_TUNING: &str = " tune.bufsize 65536\n tune.maxrewrite 0\n";
/// How many connections each program must accept.
const CONNECTIONS: u64 = 9000;

/// A free port.
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// No limits for clients of this machine.
const NO_LIMITS: &str = "[limits.per_ip]\nexempt = [\"127.0.0.0/8\"]\n";

/// The name of the raw pipe in the tables.
pub(crate) const BASELINE: &str = "raw rustls pipe";

/// A program under test.
pub(crate) struct Target {
    /// The name in the tables; of other programs with their version.
    pub(crate) name: String,
    pub(super) protocol: ClientProtocol,
    pub(super) address: SocketAddr,
    pub(crate) process: Process,
}

/// How to start Portcullis.
struct Settings<'a> {
    program: &'a Path,
    /// The name in the tables.
    name: &'a str,
    tls: bool,
    /// How it reaches the backend.
    transport: Transport,
    address: SocketAddr,
    /// Further keys of the listener.
    listener: &'a str,
    /// The tables after the route.
    tables: &'a str,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Self {
            program: Path::new(env!("CARGO_BIN_EXE_portcullis")),
            name: "Portcullis",
            tls: true,
            transport: Transport::Tcp,
            address: ANY,
            listener: "",
            tables: NO_LIMITS,
        }
    }
}

/// What all programs under test share: a certificate, a backend, and a temporary directory.
pub(crate) struct Bench {
    directory: TempDir,
    /// The certificate of every listener, in PEM.
    pub(crate) certificate: PathBuf,
    key: PathBuf,
    /// The backend's addresses: TCP, TLS, Unix socket.
    backend: SocketAddr,
    tls_backend: SocketAddr,
    unix_backend: PathBuf,
    _backend: Process,
}

impl Bench {
    pub(crate) fn set_up() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let made = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["cert", "--out"])
            .arg(directory.path())
            .output()
            .context("cannot run portcullis cert")?;
        ensure!(made.status.success(), "portcullis cert: {}", String::from_utf8_lossy(&made.stderr));
        let path = |name: &str| directory.path().join(name);
        let (certificate, key, unix_backend) =
            (path("localhost.crt"), path("localhost.key"), path("backend.sock"));
        let backend = Process::role(&["backend", text(&unix_backend)?, text(&certificate)?, text(&key)?])?;
        Ok(Self {
            certificate,
            key,
            directory,
            backend: backend.read_line()?.parse()?,
            tls_backend: backend.read_line()?.parse()?,
            unix_backend,
            _backend: backend,
        })
    }

    /// Portcullis with its defaults, but without limits per client address: all clients have the same one.
    pub(crate) fn portcullis(&self, tls: bool, transport: Transport) -> anyhow::Result<Target> {
        self.start_portcullis(&Settings { tls, transport, ..Settings::default() })
    }

    /// The same with further keys of its listener, and further tables.
    pub(super) fn portcullis_with(
        &self,
        name: &str,
        tls: bool,
        listener: &str,
        tables: &str,
    ) -> anyhow::Result<Target> {
        let tables = format!("{NO_LIMITS}{tables}");
        self.start_portcullis(&Settings { name, tls, listener, tables: &tables, ..Settings::default() })
    }

    /// Portcullis, this build or another one, with TLS and all its defaults, on any address or on that of `previous`, which was killed.
    pub(crate) fn portcullis_with_limits(
        &self,
        program: Option<&Path>,
        previous: Option<&Target>,
    ) -> anyhow::Result<Target> {
        let address = previous.map_or(ANY, |previous| previous.address);
        let program = program.unwrap_or(Path::new(env!("CARGO_BIN_EXE_portcullis")));
        self.start_portcullis(&Settings { program, address, tables: "", ..Settings::default() })
    }

    /// Another build of Portcullis, configured in the same way.
    pub(crate) fn portcullis_build(
        &self,
        program: &Path,
        tls: bool,
        transport: Transport,
    ) -> anyhow::Result<Target> {
        let name = "Portcullis, other build";
        self.start_portcullis(&Settings { program, name, tls, transport, ..Settings::default() })
    }

    fn start_portcullis(&self, settings: &Settings) -> anyhow::Result<Target> {
        let &Settings { program, name, tls, transport, address, listener, tables } = settings;
        let backend_tls = match transport {
            Transport::Tls => {
                format!("tls = {{ ca = {:?}, server_name = \"localhost\" }}\n", self.certificate)
            }
            Transport::Tcp | Transport::Unix => String::new(),
        };
        let backend = match transport {
            Transport::Unix => format!("unix:{}", self.backend_address(transport)?),
            Transport::Tcp | Transport::Tls => format!("{transport}://{}", self.backend_address(transport)?),
        };
        let identity = if tls {
            format!("certificate = {:?}\nprivate_key = {:?}\n", self.certificate, self.key)
        } else {
            String::new()
        };
        let config = self.write(
            &format!("gateway-{}-{transport}.toml", name.replace(|c: char| !c.is_ascii_alphanumeric(), "")),
            &format!(
                "[[listener]]\naddress = \"{address}\"\n{identity}{listener}\
                 [[route]]\nname = \"bench\"\npath = \"/bench\"\nbackend = {backend:?}\nmissing_origin = \"allow\"\n{backend_tls}\
                 {tables}[log]\nformat = \"json\"\n",
            ),
        )?;
        let mut command = Command::new(program);
        let process = Process::start("portcullis", command.arg("--config").arg(config), true)?;
        let mut address = None;
        loop {
            let text = process.read_line()?;
            let line: serde_json::Value = serde_json::from_str(&text).with_context(|| text.clone())?;
            match line["message"].as_str() {
                Some("listening") => address = line["address"].as_str().map(str::parse).transpose()?,
                Some("ready") => break,
                _ => {}
            }
        }
        let address = address.context("portcullis is ready but has not logged its address")?;
        let (name, protocol) = if tls {
            (name.to_owned(), ClientProtocol::Wss)
        } else {
            (format!("{name}, ws://"), ClientProtocol::Ws)
        };
        Ok(Target { name, protocol, address, process })
    }

    /// The baseline: a TLS terminator of a hundred lines.
    pub(crate) fn raw_pipe(&self, transport: Transport) -> anyhow::Result<Target> {
        let (certificate, key) = (text(&self.certificate)?, text(&self.key)?);
        let process = Process::role(&[
            "pipe",
            certificate,
            key,
            &transport.to_string(),
            &self.backend_address(transport)?,
        ])?;
        let address = process.read_line()?.parse()?;
        Ok(Target { name: BASELINE.to_owned(), protocol: ClientProtocol::Tls, address, process })
    }

    pub(super) fn backend_address(&self, transport: Transport) -> anyhow::Result<String> {
        Ok(match transport {
            Transport::Tcp => self.backend.to_string(),
            Transport::Tls => self.tls_backend.to_string(),
            Transport::Unix => text(&self.unix_backend)?.to_owned(),
        })
    }

    /// HAProxy with its default buffers, terminating TLS.
    pub(crate) fn haproxy(&self) -> anyhow::Result<Target> {
        self.haproxy_with("TLS pipe", "", free_address()?)
    }

    /// The same on the address of `previous`, which was killed, if there is one.
    pub(crate) fn haproxy_at(&self, previous: Option<&Target>) -> anyhow::Result<Target> {
        let address = previous.map_or_else(free_address, |previous| Ok(previous.address))?;
        self.haproxy_with("TLS pipe", "", address)
    }

    /// HAProxy with buffers as large as the gateway's, terminating TLS.
    pub(crate) fn haproxy_tuned(&self) -> anyhow::Result<Target> {
        self.haproxy_with("TLS pipe, tuned", HAPROXY_TUNING, free_address()?)
    }

    fn haproxy_with(&self, kind: &str, tuning: &str, address: SocketAddr) -> anyhow::Result<Target> {
        let program = find_program("haproxy")?;
        let name = format!("HAProxy {}, {kind}", version(Command::new(&program).arg("-v"))?);
        let (certificate, key) = (fs::read_to_string(&self.certificate)?, fs::read_to_string(&self.key)?);
        let pair = self.write("haproxy.pem", &(certificate + &key))?;
        let config = self.write(
            &format!("haproxy{}.cfg", if tuning.is_empty() { "" } else { "-tuned" }),
            &format!(
                "global\n nbthread 2\n maxconn {CONNECTIONS}\n{tuning}defaults\n mode tcp\n timeout connect 5s\n \
                 timeout client 1h\n timeout server 1h\nlisten bench\n bind {address} ssl crt {}\n server backend {}\n",
                text(&pair)?,
                self.backend
            ),
        )?;
        let process =
            Process::start("haproxy", Command::new(program).arg("-db").arg("-f").arg(config), true)?;
        listening(name, ClientProtocol::Tls, address, process)
    }

    /// nginx, terminating TLS in its stream module.
    pub(crate) fn nginx(&self) -> anyhow::Result<Target> {
        let address = free_address()?;
        ensure!(Path::new(NGINX_STREAM).exists(), "{NGINX_STREAM} is missing: install libnginx-mod-stream");
        let home = self.directory.path().join("nginx");
        fs::create_dir_all(&home)?;
        let config = self.write(
            "nginx.conf",
            &format!(
                "load_module {NGINX_STREAM};\nuser root;\ndaemon off;\nworker_processes 2;\n\
                 worker_rlimit_nofile 20000;\npid {home}/pid;\nerror_log {home}/error.log;\n\
                 events {{ worker_connections 20000; }}\n\
                 stream {{ server {{ listen {address} ssl; ssl_protocols TLSv1.3; ssl_certificate {certificate};\n\
                 ssl_certificate_key {key}; proxy_pass {backend}; proxy_timeout 1h; }} }}\n",
                home = text(&home)?,
                certificate = text(&self.certificate)?,
                key = text(&self.key)?,
                backend = self.backend
            ),
        )?;
        let program = find_program("nginx")?;
        let name = format!("nginx {}, stream TLS", version(Command::new(&program).arg("-v"))?);
        let process = Process::start("nginx", Command::new(program).arg("-c").arg(config), true)?;
        listening(name, ClientProtocol::Tls, address, process)
    }

    /// lighttpd, whose mod_wstunnel is a WebSocket gateway, too.
    pub(crate) fn lighttpd(&self) -> anyhow::Result<Target> {
        let address = free_address()?;
        let config = self.write(
            "lighttpd.conf",
            &format!(
                "server.modules = (\"mod_openssl\", \"mod_wstunnel\")\nserver.document-root = \"{home}\"\n\
                 server.bind = \"{ip}\"\nserver.port = {port}\nserver.max-fds = 20000\n\
                 server.max-connections = {CONNECTIONS}\nssl.engine = \"enable\"\nssl.pemfile = \"{certificate}\"\n\
                 ssl.privkey = \"{key}\"\nwstunnel.frame-type = \"binary\"\n\
                 wstunnel.server = (\"/bench\" => ((\"host\" => \"{host}\", \"port\" => {backend})))\n",
                home = text(self.directory.path())?,
                ip = address.ip(),
                port = address.port(),
                certificate = text(&self.certificate)?,
                key = text(&self.key)?,
                host = self.backend.ip(),
                backend = self.backend.port()
            ),
        )?;
        let program = find_program("lighttpd")?;
        let name = format!("lighttpd {}, mod_wstunnel", version(Command::new(&program).arg("-v"))?);
        let process =
            Process::start("lighttpd", Command::new(program).arg("-D").arg("-f").arg(config), true)?;
        listening(name, ClientProtocol::Wss, address, process)
    }

    /// websockify from PyPI, with numpy, which it uses for masking.
    pub(crate) fn websockify(&self) -> anyhow::Result<Target> {
        let address = free_address()?;
        // CARGO_TARGET_TMPDIR is the directory `tmp` of the target directory.
        let bin = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools").join(WEBSOCKIFY).join("bin");
        let program = bin.join("websockify");
        ensure!(program.exists(), "{} is missing: run tests/install bench", program.display());
        // It has no option that prints its version.
        let print_version = "import importlib.metadata; print(importlib.metadata.version('websockify'))";
        let name =
            format!("websockify {}", version(Command::new(bin.join("python3")).args(["-c", print_version]))?);
        let mut command = Command::new(program);
        command.arg("--cert").arg(&self.certificate).arg("--key").arg(&self.key).arg("--ssl-only");
        let process = Process::start(
            "websockify",
            command.args([address.to_string(), self.backend.to_string()]),
            true,
        )?;
        listening(name, ClientProtocol::Wss, address, process)
    }

    /// Writes a file to the temporary directory.
    pub(super) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.path().join(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// Waits until the program listens.
fn listening(
    name: String,
    protocol: ClientProtocol,
    address: SocketAddr,
    process: Process,
) -> anyhow::Result<Target> {
    let end = Instant::now() + START_TIMEOUT;
    while let Err(error) = TcpStream::connect(address) {
        if Instant::now() >= end {
            let output: Vec<String> = std::iter::from_fn(|| process.try_read_line()).collect();
            bail!(
                "{name} does not listen on {address} after {START_TIMEOUT:?}: {error}; its output: {output:?}"
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(Target { name, protocol, address, process })
}

/// An address that was free a moment ago, for programs that cannot bind port 0 and report their port.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn find_program(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is not installed"))
}

/// The version that a program prints: the first run of digits and dots in its output.
fn version(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    // nginx prints it on standard error.
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    printed
        .split(|character: char| !(character.is_ascii_digit() || character == '.'))
        .find(|word| word.starts_with(|first: char| first.is_ascii_digit()) && word.contains('.'))
        .map(str::to_owned)
        .with_context(|| format!("{command:?} prints no version: {printed}"))
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("the temporary directory's name is not UTF-8")
}
