//! The programs that are measured: Portcullis, the raw pipe, and what else is installed.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use super::{Process, backend::Way, client::Speech};

/// How long a program may take until it listens.
const START: Duration = Duration::from_secs(10);
/// What nginx needs for TLS without HTTP, where Debian puts it.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// Connections a peer must be able to hold.
const CONNECTIONS: u64 = 9000;

/// A program under test.
pub(crate) struct Target {
    /// What tables call it.
    pub(crate) name: &'static str,
    pub(super) speech: Speech,
    pub(super) address: SocketAddr,
    /// The program itself.
    pub(crate) process: Process,
}

/// What all programs under test share: a certificate, a backend, a directory that goes away with it.
pub(crate) struct Bench {
    directory: TempDir,
    /// The certificate of every listener, in PEM.
    pub(crate) certificate: PathBuf,
    key: PathBuf,
    /// The backend by TCP, by TLS, and by its Unix socket.
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
            backend: backend.line()?.parse()?,
            tls_backend: backend.line()?.parse()?,
            unix_backend,
            _backend: backend,
        })
    }

    /// Portcullis with its defaults; only the limits of an address do not hold, as all clients have the same.
    pub(crate) fn portcullis(&self, tls: bool, way: Way) -> anyhow::Result<Target> {
        let more = match way {
            Way::Tls => format!("tls = {{ ca = {:?}, server_name = \"localhost\" }}\n", self.certificate),
            Way::Tcp | Way::Unix => String::new(),
        };
        let backend = match way {
            Way::Unix => format!("unix:{}", self.place(way)?),
            Way::Tcp | Way::Tls => format!("{way}://{}", self.place(way)?),
        };
        let identity = if tls {
            format!("certificate = {:?}\nprivate_key = {:?}\n", self.certificate, self.key)
        } else {
            String::new()
        };
        let config = self.write(
            &format!("gateway-{way}.toml"),
            &format!(
                "[[listener]]\naddress = \"127.0.0.1:0\"\n{identity}\
                 [[route]]\nname = \"bench\"\npath = \"/bench\"\nbackend = {backend:?}\nmissing_origin = \"allow\"\n{more}\
                 [limits.per_ip]\nexempt = [\"127.0.0.0/8\"]\n[log]\nformat = \"json\"\n",
            ),
        )?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        let process = Process::start("portcullis", command.arg("--config").arg(config), true)?;
        let mut address = None;
        loop {
            let text = process.line()?;
            let line: serde_json::Value = serde_json::from_str(&text).with_context(|| text.clone())?;
            match line["message"].as_str() {
                Some("listening") => address = line["address"].as_str().map(str::parse).transpose()?,
                Some("ready") => break,
                _ => {}
            }
        }
        let address = address.context("portcullis is ready and has not said where it listens")?;
        let (name, speech) =
            if tls { ("Portcullis", Speech::Wss) } else { ("Portcullis, ws://", Speech::Ws) };
        Ok(Target { name, speech, address, process })
    }

    /// The yardstick: a TLS terminator of a hundred lines.
    pub(crate) fn raw_pipe(&self, way: Way) -> anyhow::Result<Target> {
        let (certificate, key) = (text(&self.certificate)?, text(&self.key)?);
        let process = Process::role(&["pipe", certificate, key, &way.to_string(), &self.place(way)?])?;
        let address = process.line()?.parse()?;
        Ok(Target { name: "raw rustls pipe", speech: Speech::Tls, address, process })
    }

    /// Where the backend is, by one of the ways to it.
    fn place(&self, way: Way) -> anyhow::Result<String> {
        Ok(match way {
            Way::Tcp => self.backend.to_string(),
            Way::Tls => self.tls_backend.to_string(),
            Way::Unix => text(&self.unix_backend)?.to_owned(),
        })
    }

    /// HAProxy, terminating TLS.
    pub(crate) fn haproxy(&self) -> anyhow::Result<Target> {
        let address = free_address()?;
        let (certificate, key) = (fs::read_to_string(&self.certificate)?, fs::read_to_string(&self.key)?);
        let pair = self.write("haproxy.pem", &(certificate + &key))?;
        let config = self.write(
            "haproxy.cfg",
            &format!(
                "global\n nbthread 2\n maxconn {CONNECTIONS}\ndefaults\n mode tcp\n timeout connect 5s\n \
                 timeout client 1h\n timeout server 1h\nlisten bench\n bind {address} ssl crt {}\n server backend {}\n",
                text(&pair)?,
                self.backend
            ),
        )?;
        let process =
            Process::start("haproxy", Command::new(find("haproxy")?).arg("-db").arg("-f").arg(config), true)?;
        listening("HAProxy, TLS pipe", Speech::Tls, address, process)
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
        let process = Process::start("nginx", Command::new(find("nginx")?).arg("-c").arg(config), true)?;
        listening("nginx, stream TLS", Speech::Tls, address, process)
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
        let process = Process::start(
            "lighttpd",
            Command::new(find("lighttpd")?).arg("-D").arg("-f").arg(config),
            true,
        )?;
        listening("lighttpd, mod_wstunnel", Speech::Wss, address, process)
    }

    /// websockify, the classic.
    pub(crate) fn websockify(&self) -> anyhow::Result<Target> {
        let address = free_address()?;
        let mut command = Command::new(find("websockify")?);
        command.arg("--cert").arg(&self.certificate).arg("--key").arg(&self.key).arg("--ssl-only");
        let process = Process::start(
            "websockify",
            command.args([address.to_string(), self.backend.to_string()]),
            true,
        )?;
        listening("websockify", Speech::Wss, address, process)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.path().join(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// Waits until the program listens.
fn listening(
    name: &'static str,
    speech: Speech,
    address: SocketAddr,
    process: Process,
) -> anyhow::Result<Target> {
    let end = Instant::now() + START;
    while let Err(error) = TcpStream::connect(address) {
        if Instant::now() >= end {
            let said: Vec<String> = std::iter::from_fn(|| process.line_if_any()).collect();
            bail!("{name} does not listen on {address} after {START:?}: {error}; it said {said:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(Target { name, speech, address, process })
}

/// An address that was free a moment ago, for programs that cannot choose one and say which.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is not installed"))
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("the temporary directory's name is not UTF-8")
}
