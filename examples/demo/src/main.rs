//! Portcullis with a backend behind it: `cargo run --release -p demo`.
//!
//! One process runs everything: a small RFB desktop on a loopback port (`server`, `desktop`, `scene`), Portcullis in
//! front of it through the library's own API, and a viewer page served by the same listener (`web/`). The certificate
//! is generated in memory. Owns the arguments, the wiring and what is printed.

mod desktop;
mod picture;
mod pixels;
mod rfb;
mod scene;
mod server;
mod tiles;

use anyhow::{Context, bail};
use clap::Parser;
use desktop::Desktop;
use portcullis::config::{Address, Config, Identity, Secret};
use portcullis::gateway::Gateway;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Used if it is free.
const PREFERRED_PORT: u16 = 8443;
/// The names a browser may use for this machine; the certificate is for all of them.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// A desktop behind Portcullis, in your browser.
///
/// Starts a small RFB (VNC) desktop, Portcullis in front of it with a certificate generated in memory, and a viewer page.
#[derive(Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Port of the page and the gateway on the loopback addresses [default: 8443 if free, else any]
    #[arg(long)]
    port: Option<u16>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::INFO)
        .with_target(false)
        .init();
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let demo = Demo::prepare(arguments.port, identity().context("cannot generate a certificate")?).await?;
    demo.announce();
    demo.run(interrupted()).await;
    println!("Stopped; all sessions were closed.");
    Ok(())
}

/// All sockets bound, nothing running yet.
struct Demo {
    gateway: Gateway,
    backend: TcpListener,
    backend_address: SocketAddr,
    /// The configuration as text.
    gateway_toml: String,
}

impl Demo {
    async fn prepare(port: Option<u16>, identity: Identity) -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
        if !root.join("index.html").is_file() {
            bail!("no index.html in {}; run the demo from the source tree it was built in", root.display());
        }
        let backend = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .context("cannot listen on a loopback port for the desktop")?;
        let backend_address =
            backend.local_addr().context("cannot listen on a loopback port for the desktop")?;
        let listeners = addresses(port).await?;

        let gateway_toml = gateway_toml(&listeners, backend_address, &root);
        let mut config = Config::parse(&gateway_toml, Path::new("gateway.toml"))
            .context("the demo's own configuration is invalid")?;
        for listener in &mut config.listeners {
            listener.identity = Some(identity.clone());
        }
        let gateway = Gateway::bind(config).await.context("Portcullis cannot start")?;
        Ok(Self { gateway, backend, backend_address, gateway_toml })
    }

    /// Runs until `stop` resolves and every session has ended.
    async fn run(self, stop: impl Future<Output = ()>) {
        let desktop = Desktop::new();
        tokio::select! {
            () = self.gateway.run(stop) => {}
            () = server::serve(self.backend, Arc::clone(&desktop)) => {}
            () = desktop.animate() => {}
        }
    }

    fn announce(&self) {
        let address = self.gateway.addresses().first().and_then(Address::ip);
        let port = address.map_or(PREFERRED_PORT, |address| address.port());
        println!(
            "
Portcullis runs in front of a small desktop. Open

    https://localhost:{port}

Your browser will warn about the certificate: the demo generated it a moment ago and signed it itself. It only protects
a connection within this machine and is gone when the demo ends, so continue (\"Advanced\", then \"Proceed\" or
\"Accept the risk\").

The same as a gateway.toml (`portcullis cert` writes the certificate files):

{}
Without the gateway, any VNC viewer can connect to the desktop at {}. Press Ctrl-C to stop.
",
            with_certificate(&self.gateway_toml),
            self.backend_address
        );
    }
}

/// Where to listen: one port on 127.0.0.1 and, where there is IPv6, on ::1 too, because a browser may try either for
/// `localhost`.
async fn addresses(requested: Option<u16>) -> anyhow::Result<Vec<SocketAddr>> {
    if let Some(port) = requested {
        return free(port).await.with_context(|| {
            format!("port {port} (from --port) cannot be used; choose another or leave --port out")
        });
    }
    if let Ok(addresses) = free(PREFERRED_PORT).await {
        return Ok(addresses);
    }
    // A port that is free on one address may be in use on the other.
    for _ in 0..16 {
        if let Ok(addresses) = free(0).await {
            return Ok(addresses);
        }
    }
    bail!("no free port found on 127.0.0.1 and ::1; choose one with --port")
}

/// The loopback addresses with `port` (0: any), if it is free on all of them. Another program may still bind it before
/// Portcullis does; `Gateway::bind` reports that.
async fn free(port: u16) -> std::io::Result<Vec<SocketAddr>> {
    let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let v4 = v4.local_addr()?;
    match TcpListener::bind((Ipv6Addr::LOCALHOST, v4.port())).await {
        Ok(v6) => Ok(vec![v4, v6.local_addr()?]),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(error),
        // The machine has no IPv6.
        Err(_) => Ok(vec![v4]),
    }
}

/// The configuration as a user would write it, without the certificate.
fn gateway_toml(listeners: &[SocketAddr], desktop: SocketAddr, root: &Path) -> String {
    let mut text = String::new();
    for listener in listeners {
        text += &format!("[[listener]]\naddress = \"{listener}\"\n\n");
    }
    text += &format!("[[route]]\nname = \"desktop\"\npath = \"/desktop\"\nbackend = \"tcp://{desktop}\"\n\n");
    text + &format!("[web]\nroot = {}\n", quoted(&root.display().to_string()))
}

/// A TOML basic string; a path may contain quotes and backslashes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A self-signed certificate that exists only in this process.
fn identity() -> anyhow::Result<Identity> {
    let pair = portcullis::self_signed(&NAMES.map(str::to_owned))?;
    Ok(Identity::Pem { certificate: pair.certificate, private_key: Secret::new(pair.private_key) })
}

/// The configuration as printed: indented, and with certificate files in place of the certificate in memory.
fn with_certificate(text: &str) -> String {
    let mut shown = String::new();
    for line in text.lines() {
        let indent = if line.is_empty() { "" } else { "    " };
        shown += &format!("{indent}{line}\n");
        if line.starts_with("address") {
            shown += "    certificate = \"certs/localhost.crt\"\n    private_key = \"certs/localhost.key\"\n";
        }
    }
    shown
}

/// Resolves on SIGINT or SIGTERM; a second one exits at once.
async fn interrupted() {
    signalled().await;
    println!("\nClosing all sessions; press Ctrl-C again to exit at once.");
    tokio::spawn(async {
        signalled().await;
        std::process::exit(130);
    });
}

async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        },
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    /// A TLS connection that trusts only the demo's certificate.
    async fn connected(address: SocketAddr, certificate: &str, name: &'static str) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(name).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    #[tokio::test]
    async fn one_listener_serves_page_and_desktop_and_closes_sessions_with_1001() {
        let identity = identity().unwrap();
        let Identity::Pem { certificate, .. } = identity.clone() else {
            panic!("not a certificate in memory: {identity:?}")
        };
        let demo = Demo::prepare(Some(0), identity).await.unwrap();
        let address = demo.gateway.addresses()[0].ip().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(demo.run(async { drop(stopped.await) }));
        let exchange = async {
            let mut page = connected(address, &certificate, "localhost").await;
            page.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            let mut received = Vec::new();
            while !received.ends_with(b"</html>\n") {
                assert!(
                    page.read_buf(&mut received).await.unwrap() > 0,
                    "{}",
                    String::from_utf8_lossy(&received)
                );
            }
            assert!(received.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&received));

            let mut socket = connected(address, &certificate, "127.0.0.1").await;
            let request = format!(
                "GET /desktop HTTP/1.1\r\nHost: {address}\r\nOrigin: https://{address}\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                 Sec-WebSocket-Protocol: binary\r\n\r\n"
            );
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut received = Vec::new();
            while !received.ends_with(b"\x82\x0cRFB 003.008\n") {
                assert!(
                    socket.read_buf(&mut received).await.unwrap() > 0,
                    "{}",
                    String::from_utf8_lossy(&received)
                );
            }
            assert!(received.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&received));

            stop.send(()).unwrap();
            let head = [socket.read_u8().await.unwrap(), socket.read_u8().await.unwrap()];
            assert_eq!(head[0], 0x88, "a Close frame");
            assert_eq!(socket.read_u16().await.unwrap(), 1001, "going away");
            drop(socket);
            running.await.unwrap();
        };
        tokio::time::timeout(Duration::from_secs(30), exchange).await.expect("the session took too long");
    }

    #[tokio::test]
    async fn the_error_names_a_port_that_is_in_use() {
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = other.local_addr().unwrap().port();
        let error = addresses(Some(port)).await.unwrap_err();
        assert!(
            format!("{error:#}").starts_with(&format!(
                "port {port} (from --port) cannot be used; choose another or leave --port out: "
            )),
            "{error:#}"
        );
    }

    #[test]
    fn the_printed_configuration_is_the_one_that_runs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
        let listeners = ["127.0.0.1:8443".parse().unwrap(), "[::1]:8443".parse().unwrap()];
        let text = gateway_toml(&listeners, "127.0.0.1:5900".parse().unwrap(), &root);
        let config = Config::parse(&text, Path::new("gateway.toml")).unwrap();
        assert_eq!(
            config.listeners.iter().filter_map(|listener| listener.address.ip()).collect::<Vec<_>>(),
            listeners
        );
        let backend = portcullis::config::UpstreamConfig::single("tcp://127.0.0.1:5900".parse().unwrap());
        assert_eq!(config.routes[0].upstream, backend);
        assert_eq!(config.web.unwrap().root, root);
        assert_eq!(quoted(r#"a\b"c"#), r#""a\\b\"c""#);
        let shown = Config::parse(&with_certificate(&text), Path::new("gateway.toml")).unwrap();
        assert!(
            shown.listeners.iter().all(|listener| matches!(listener.identity, Some(Identity::Files { .. })))
        );
        assert_eq!(shown.routes, config.routes);
    }
}
