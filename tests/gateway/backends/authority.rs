//! A certificate authority of the test's own, and TLS servers with its certificates.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    directory: TempDir,
}

/// A certificate and its key, as PEM.
pub(crate) struct Leaf {
    certificate: String,
    key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::new(Vec::new()).expect("parameters");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two authorities with the same name would be one authority with two keys.
        static COUNT: AtomicUsize = AtomicUsize::new(1);
        let name = format!("test authority {}", COUNT.fetch_add(1, Ordering::Relaxed));
        parameters.distinguished_name.push(DnType::CommonName, name);
        let certificate = parameters.self_signed(&key).expect("an authority");
        let directory = TempDir::new().expect("a directory");
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("a file");
        let der = certificate.der().clone();
        Self { issuer: Issuer::new(parameters, key), certificate: der, directory }
    }

    /// The file with its own certificate.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The configuration line of a route that trusts this authority.
    pub(crate) fn trusted(&self) -> String {
        self.trusted_with("")
    }

    /// The same with more keys of `tls`.
    pub(crate) fn trusted_with(&self, more: &str) -> String {
        format!("tls = {{ ca = \"{}\"{more} }}", self.path().display())
    }

    pub(crate) fn leaf(&self, name: &str) -> Leaf {
        self.sign(CertificateParams::new(vec![name.to_owned()]).expect("a name"))
    }

    /// A certificate that expired in 2020.
    pub(crate) fn expired(&self, name: &str) -> Leaf {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        parameters.not_before = rcgen::date_time_ymd(2019, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.sign(parameters)
    }

    fn sign(&self, parameters: CertificateParams) -> Leaf {
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        Leaf { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// Writes a certificate and its key where a route can read them.
    pub(crate) fn write(&self, name: &str, leaf: &Leaf) -> (PathBuf, PathBuf) {
        let file = |kind: &str, text: &str| {
            let path = self.directory.path().join(format!("{name}.{kind}"));
            std::fs::write(&path, text).expect("a file");
            path
        };
        (file("crt", &leaf.certificate), file("key", &leaf.key))
    }

    /// A server that demands a client certificate of this authority.
    pub(crate) fn demanding(&self, leaf: &Leaf) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier.expect("a verifier"));
        Arc::new(leaf.finish(config))
    }
}

impl Leaf {
    pub(crate) fn server(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_no_client_auth();
        Arc::new(self.finish(config))
    }

    fn finish(
        &self,
        config: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
    ) -> ServerConfig {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM");
        config.with_single_cert(vec![certificate], key).expect("a certificate and its key")
    }
}

/// A server that handles each connection as the test defines.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start<F>(session: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).expect("TCP_NODELAY");
                tokio::spawn(session(socket));
            }
        });
        Self { address, task }
    }

    /// The same over TLS. The gateway reports handshakes that fail.
    pub(crate) async fn over_tls<F>(
        config: Arc<ServerConfig>,
        session: impl Fn(TlsStream<TcpStream>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let acceptor = TlsAcceptor::from(config);
        let session = Arc::new(session);
        Self::start(move |socket| {
            let (acceptor, session) = (acceptor.clone(), session.clone());
            async move {
                if let Ok(stream) = acceptor.accept(socket).await {
                    session(stream).await;
                }
            }
        })
        .await
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends back everything it receives, and closes when the other side does.
pub(crate) async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let data = async {
            stream.write_all(&buffer[..length]).await?;
            stream.flush().await
        };
        if data.await.is_err() {
            return;
        }
    }
    // The other side may have closed already.
    let _ = stream.shutdown().await;
}

/// A path in the syntax of the configuration.
pub(crate) fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}
