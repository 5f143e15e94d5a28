//! TLS handshakes with backends, over in-memory pipes.

use std::{
    fs,
    path::PathBuf,
    pin::Pin,
    sync::OnceLock,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    HandshakeKind, ProtocolVersion, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server};

use super::*;
use crate::config::TlsVersion;

const NAME: &str = "db.example.com";
const DAY: Duration = Duration::from_secs(24 * 3600);
const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
const ONLY_1_2: &[&SupportedProtocolVersion] = &[&version::TLS12];

/// A certificate and its key, in PEM form.
#[derive(Clone)]
struct TestCertificate {
    certificate: String,
    key: String,
}

impl TestCertificate {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

/// A certificate for `names`, valid from one day to another, counted from now.
fn params(names: &[&str], from: i64, days: i64) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "a server");
    let at = |days: i64| match u32::try_from(days) {
        Ok(days) => SystemTime::now() + DAY * days,
        Err(_) => SystemTime::now() - DAY * days.unsigned_abs() as u32,
    };
    params.not_before = at(from).into();
    params.not_after = at(days).into();
    params
}

fn self_signed(params: &CertificateParams) -> TestCertificate {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    TestCertificate { certificate, key: key.serialize_pem() }
}

/// A certificate authority.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = params(&[], -1, 1);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, params: &CertificateParams) -> TestCertificate {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        TestCertificate { certificate, key: key.serialize_pem() }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()).unwrap();
        roots
    }
}

/// A backend's side of TLS.
fn server(pair: &TestCertificate, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(pair.chain(), pair.key())
        .unwrap()
}

/// The same for a backend that requires a client certificate.
fn server_with_client_auth(
    pair: &TestCertificate,
    authority: &Authority,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(authority.roots().into(), Arc::clone(&provider));
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(pair.chain(), pair.key())
        .unwrap()
}

/// The files of a route.
struct TestFiles(TempDir);

impl TestFiles {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Settings that trust this certificate only.
    fn trusting(&self, certificate: &str) -> BackendTls {
        BackendTls { ca: Some(self.write("ca.pem", certificate)), ..BackendTls::default() }
    }
}

fn connector(config: &BackendTls) -> TlsConnector {
    TlsConnector::load(config, &SystemRoots::default()).unwrap()
}

fn trusting(certificate: &str) -> TlsConnector {
    connector(&TestFiles::new().trusting(certificate))
}

type AcceptResult = io::Result<server::TlsStream<DuplexStream>>;

/// Does a handshake between the two.
async fn handshake(
    connector: &TlsConnector,
    name: &str,
    server: &Arc<ServerConfig>,
) -> (Result<TlsStream<DuplexStream>, TlsError>, JoinHandle<AcceptResult>) {
    let (ours, theirs) = duplex(16 * 1024);
    let acceptor = TlsAcceptor::from(Arc::clone(server));
    let accepted = tokio::spawn(async move { acceptor.accept(theirs).await });
    (connector.connect(name, ours, soon()).await, accepted)
}

async fn refused(connector: &TlsConnector, name: &str, server: ServerConfig) -> TlsError {
    let (connected, _) = handshake(connector, name, &Arc::new(server)).await;
    let error = connected.expect_err("this must be refused");
    assert_eq!(error.reason(), Reason::BackendTlsFailed);
    error
}

async fn accepted(connector: &TlsConnector, name: &str, server: ServerConfig) -> TlsStream<DuplexStream> {
    handshake(connector, name, &Arc::new(server)).await.0.unwrap_or_else(|error| panic!("refused: {error}"))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[tokio::test]
async fn either_side_may_send_first() {
    let authority = Authority::new("ours");
    let connector = trusting(&authority.certificate);
    for versions in [BOTH, ONLY_1_2] {
        let server = Arc::new(server(&authority.sign(&params(&[NAME], -1, 1)), versions));
        let (connected, accepted) = handshake(&connector, NAME, &server).await;
        let (mut ours, mut theirs) = (connected.unwrap(), accepted.await.unwrap().unwrap());
        theirs.write_all(b"RFB 003.008\n").await.unwrap();
        theirs.flush().await.unwrap();
        let mut banner = [0; 12];
        ours.read_exact(&mut banner).await.unwrap();
        assert_eq!(&banner, b"RFB 003.008\n");

        let (connected, accepted) = handshake(&connector, NAME, &server).await;
        let mut ours = connected.unwrap();
        ours.write_all(b"CONNECT\n\n\0").await.unwrap();
        ours.flush().await.unwrap();
        let mut theirs = accepted.await.unwrap().unwrap();
        let mut first = [0; 10];
        theirs.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"CONNECT\n\n\0");
    }
}

#[tokio::test]
async fn handshake_works_byte_by_byte() {
    let authority = Authority::new("ours");
    let config = Arc::new(server(&authority.sign(&params(&[NAME], -1, 1)), BOTH));
    let (ours, theirs) = duplex(64 * 1024);
    let accepted = tokio::spawn(async move { TlsAcceptor::from(config).accept(theirs).await });
    let mut ours = trusting(&authority.certificate).connect(NAME, ByteByByte(ours), soon()).await.unwrap();
    accepted.await.unwrap().unwrap().write_all(b"x").await.unwrap();
    assert_eq!(ours.read_u8().await.unwrap(), b'x');
}

/// A stream that reads and writes one byte at a time.
struct ByteByByte(DuplexStream);

impl AsyncRead for ByteByByte {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut byte = [0];
        let mut one = ReadBuf::new(&mut byte);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut one))?;
        buf.put_slice(one.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteByByte {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &buf[..buf.len().min(1)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn certificate_for_another_name_is_refused_and_both_are_named() {
    let authority = Authority::new("ours");
    let pair = authority.sign(&params(&["web.example.com", "127.0.0.1"], -1, 1));
    let error = refused(&trusting(&authority.certificate), NAME, server(&pair, BOTH)).await;
    assert_eq!(
        error.to_string(),
        "its certificate is not for db.example.com but for web.example.com, 127.0.0.1; \
         if that is right, set tls.server_name"
    );
    let many: Vec<String> = (1..=6).map(|number| format!("db{number}.example.com")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let pair = authority.sign(&params(&many, -1, 1));
    let error = refused(&trusting(&authority.certificate), NAME, server(&pair, BOTH)).await.to_string();
    assert!(
        error.contains("db1.example.com, db2.example.com, db3.example.com, db4.example.com and 2 more"),
        "{error}"
    );
    let nameless = server(&authority.sign(&params(&[], -1, 1)), BOTH);
    let error = refused(&trusting(&authority.certificate), NAME, nameless).await;
    assert!(error.to_string().contains("but for no name at all"));
}

#[tokio::test]
async fn certificate_outside_its_validity_is_refused_with_the_date() {
    let authority = Authority::new("ours");
    let connector = trusting(&authority.certificate);
    let error = refused(&connector, NAME, server(&authority.sign(&params(&[NAME], -3, -2)), BOTH)).await;
    let TlsError::Expired(Some(when)) = &error else { panic!("{error:?}") };
    let age = SystemTime::now().duration_since(*when).unwrap();
    assert!(age > DAY && age < 3 * DAY, "{age:?}");
    assert!(error.to_string().starts_with("its certificate expired on 20"), "{error}");
    let error = refused(&connector, NAME, server(&authority.sign(&params(&[NAME], 2, 3)), BOTH)).await;
    assert!(matches!(error, TlsError::NotYetValid(Some(_))), "{error:?}");
}

#[tokio::test]
async fn untrusted_authority_is_refused() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let pair = theirs.sign(&params(&[NAME], -1, 1));
    let error = refused(&trusting(&ours.certificate), NAME, server(&pair, BOTH)).await;
    assert!(matches!(error, TlsError::UnknownAuthority), "{error:?}");
    let itself =
        refused(&trusting(&ours.certificate), NAME, server(&self_signed(&params(&[NAME], -1, 1)), BOTH))
            .await;
    assert!(matches!(itself, TlsError::UnknownAuthority), "{itself:?}");
}

#[tokio::test]
async fn without_ca_the_system_roots_are_trusted() {
    let authority = Authority::new("the system's");
    let system = SystemRoots(OnceLock::from(Ok(Arc::new(authority.roots()))));
    let connector = TlsConnector::load(&BackendTls::default(), &system).unwrap();
    accepted(&connector, NAME, server(&authority.sign(&params(&[NAME], -1, 1)), BOTH)).await;
    let other = Authority::new("another").sign(&params(&[NAME], -1, 1));
    assert!(matches!(refused(&connector, NAME, server(&other, BOTH)).await, TlsError::UnknownAuthority));
    let error = refused(&trusting(&Authority::new("a third").certificate), NAME, server(&other, BOTH)).await;
    assert!(matches!(error, TlsError::UnknownAuthority), "tls.ca replaces the system roots");

    let no_roots = SystemRoots(OnceLock::from(Err("none were found".into())));
    let error = TlsConnector::load(&BackendTls::default(), &no_roots).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the system has no certificate authorities (none were found); install ca-certificates, or set tls.ca"
    );
    let files = TestFiles::new();
    assert!(
        TlsConnector::load(&files.trusting(&authority.certificate), &no_roots).is_ok(),
        "the system roots are not needed"
    );
}

/// Many self-signed certificates have the CA extension, and webpki rejects those as a server's.
#[tokio::test]
async fn pinned_certificate_is_accepted_for_its_own_names_and_validity_only() {
    for is_ca in [IsCa::NoCa, IsCa::ExplicitNoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
        let made = |names: &[&str], from, days| {
            let mut params = params(names, from, days);
            params.is_ca = is_ca;
            self_signed(&params)
        };
        let pair = made(&[NAME], -1, 1);
        accepted(&trusting(&pair.certificate), NAME, server(&pair, BOTH)).await;
        accepted(&trusting(&pair.certificate), NAME, server(&pair, ONLY_1_2)).await;
        let error = refused(&trusting(&pair.certificate), "web.example.com", server(&pair, BOTH)).await;
        assert!(matches!(error, TlsError::WrongName { .. }), "{is_ca:?}: {error:?}");
        let old = made(&[NAME], -3, -2);
        let error = refused(&trusting(&old.certificate), NAME, server(&old, BOTH)).await;
        assert!(matches!(error, TlsError::Expired(_)), "{is_ca:?}: {error:?}");
        let other = made(&[NAME], -1, 1);
        let error = refused(&trusting(&pair.certificate), NAME, server(&other, BOTH)).await;
        assert!(
            matches!(
                error,
                TlsError::UnknownAuthority | TlsError::AuthorityItself | TlsError::Certificate(_)
            ),
            "{is_ca:?}: {error:?}"
        );
    }
}

#[tokio::test]
async fn backend_must_prove_possession_of_the_key() {
    let pair = self_signed(&params(&[NAME], -1, 1));
    let other_key = KeyPair::generate().unwrap();
    let key = aws_lc_rs::default_provider()
        .key_provider
        .load_private_key(PrivateKeyDer::from_pem_slice(other_key.serialize_pem().as_bytes()).unwrap())
        .unwrap();
    let files = TestFiles::new();
    for config in
        [files.trusting(&pair.certificate), BackendTls { insecure_no_verify: true, ..BackendTls::default() }]
    {
        let mismatched = Arc::new(rustls::sign::CertifiedKey::new(pair.chain(), Arc::clone(&key)));
        let mut server = server(&pair, BOTH);
        server.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(mismatched));
        let error = refused(&connector(&config), NAME, server).await;
        assert!(matches!(error, TlsError::Certificate(CertificateError::BadSignature)), "{error:?}");
    }
}

#[tokio::test]
async fn server_name_overrides_the_name_of_the_backend() {
    let authority = Authority::new("ours");
    let files = TestFiles::new();
    for (server_name, name, certified) in [
        (None, "db.example.com.", NAME),
        (None, "my_db", "my_db"),
        (None, "192.0.2.1", "192.0.2.1"),
        (None, "[2001:db8::1]", "2001:db8::1"),
        (Some(NAME), "192.0.2.1", NAME),
        (Some("2001:db8::1"), NAME, "2001:db8::1"),
    ] {
        let config = BackendTls {
            server_name: server_name.map(str::to_owned),
            ..files.trusting(&authority.certificate)
        };
        let pair = authority.sign(&params(&[certified], -1, 1));
        accepted(&connector(&config), name, server(&pair, BOTH)).await;
    }
    let (ours, _theirs) = duplex(1024);
    let error = trusting(&authority.certificate).connect("no name", ours, soon()).await.unwrap_err();
    assert!(matches!(error, TlsError::Name(_)), "{error:?}");
}

#[tokio::test]
async fn other_protocols_are_reported() {
    let connector = trusting(&Authority::new("ours").certificate);
    for banner in [
        &b"RFB 003.008\n"[..],
        b"<?xml version='1.0'?><stream:stream>",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"-ERR unknown command\r\n",
    ] {
        let (ours, mut theirs) = duplex(16 * 1024);
        theirs.write_all(banner).await.unwrap();
        let error = connector.connect(NAME, ours, soon()).await.unwrap_err();
        assert!(matches!(error, TlsError::NotTls), "{error:?}");
    }
    let (ours, mut theirs) = duplex(16 * 1024);
    let closes = tokio::spawn(async move { theirs.read_u8().await });
    let error = connector.connect(NAME, ours, soon()).await.unwrap_err();
    assert!(matches!(error, TlsError::Closed), "{error:?}");
    assert_eq!(closes.await.unwrap().unwrap(), 22, "a handshake record was sent");
}

#[tokio::test(start_paused = true)]
async fn silent_backend_ends_with_the_deadline() {
    let (ours, _theirs) = duplex(16 * 1024);
    let began = Instant::now();
    let deadline = began + Duration::from_secs(5);
    let error =
        trusting(&Authority::new("ours").certificate).connect(NAME, ours, deadline).await.unwrap_err();
    assert!(matches!(error, TlsError::Silent), "{error:?}");
    assert_eq!(began.elapsed(), Duration::from_secs(5));
}

#[tokio::test]
async fn min_version_refuses_older_backends() {
    let authority = Authority::new("ours");
    let pair = authority.sign(&params(&[NAME], -1, 1));
    let files = TestFiles::new();
    let modern = BackendTls { min_version: TlsVersion::V1_3, ..files.trusting(&authority.certificate) };
    let error = refused(&connector(&modern), NAME, server(&pair, ONLY_1_2)).await;
    assert!(matches!(error, TlsError::Refused(AlertDescription::ProtocolVersion)), "{error:?}");
    let stream = accepted(&connector(&modern), NAME, server(&pair, BOTH)).await;
    assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
}

#[tokio::test]
async fn client_certificate_is_sent_on_request() {
    let (authority, clients) = (Authority::new("ours"), Authority::new("of clients"));
    let pair = authority.sign(&params(&[NAME], -1, 1));
    let client = clients.sign(&params(&["gateway.example.com"], -1, 1));
    let files = TestFiles::new();
    let no_client = files.trusting(&authority.certificate);
    let config = BackendTls {
        client: Some((
            files.write("client.pem", &client.certificate),
            files.write("client.key", &client.key),
        )),
        ..no_client.clone()
    };
    for versions in [BOTH, ONLY_1_2] {
        let server = Arc::new(server_with_client_auth(&pair, &clients, versions));
        let (connected, accepted) = handshake(&connector(&config), NAME, &server).await;
        let _connected = connected.unwrap();
        let accepted = accepted.await.unwrap().unwrap();
        assert_eq!(accepted.get_ref().1.peer_certificates(), Some(&client.chain()[..]));
    }
    let error =
        refused(&connector(&no_client), NAME, server_with_client_auth(&pair, &clients, ONLY_1_2)).await;
    assert!(matches!(error, TlsError::Refused(_)), "{error:?}");
    let mut stream =
        accepted(&connector(&no_client), NAME, server_with_client_auth(&pair, &clients, BOTH)).await;
    let error = stream.read_u8().await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
}

#[tokio::test]
async fn insecure_no_verify_accepts_anything_and_shows_in_debug() {
    let expired = self_signed(&params(&["web.example.com"], -3, -2));
    let no_roots = SystemRoots(OnceLock::from(Err("none were found".into())));
    let config = BackendTls { insecure_no_verify: true, ..BackendTls::default() };
    let connector = TlsConnector::load(&config, &no_roots).unwrap();
    assert!(format!("{connector:?}").contains("insecure: true"), "{connector:?}");
    for versions in [BOTH, ONLY_1_2] {
        accepted(&connector, NAME, server(&expired, versions)).await;
    }
    let verifying = trusting(&expired.certificate);
    assert!(format!("{verifying:?}").contains("insecure: false"), "{verifying:?}");
}

#[tokio::test]
async fn sessions_are_resumed() {
    let authority = Authority::new("ours");
    for versions in [BOTH, ONLY_1_2] {
        let connector = trusting(&authority.certificate);
        let server = Arc::new(server(&authority.sign(&params(&[NAME], -1, 1)), versions));
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let (connected, accepted) = handshake(&connector, NAME, &server).await;
            let (mut ours, mut theirs) = (connected.unwrap(), accepted.await.unwrap().unwrap());
            // In TLS 1.3, tickets arrive after the handshake.
            theirs.write_all(b"x").await.unwrap();
            theirs.flush().await.unwrap();
            ours.read_u8().await.unwrap();
            kinds.push(ours.get_ref().1.handshake_kind());
        }
        assert_eq!(kinds, [Some(HandshakeKind::Full), Some(HandshakeKind::Resumed)]);
    }
}

#[test]
fn error_names_the_file_and_the_problem() {
    let files = TestFiles::new();
    let (one, other) = (self_signed(&params(&[NAME], -1, 1)), self_signed(&params(&[NAME], -1, 1)));
    let (certificate, key) =
        (files.write("client.pem", &one.certificate), files.write("client.key", &one.key));
    let other_key = files.write("other.key", &other.key);
    let nothing = files.write("nothing.pem", "");
    let broken = files.write("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let missing = files.0.path().join("missing.pem");
    let ca = |path: &PathBuf| BackendTls { ca: Some(path.clone()), ..BackendTls::default() };
    let client = |certificate: &PathBuf, key: &PathBuf| BackendTls {
        client: Some((certificate.clone(), key.clone())),
        ..ca(&files.0.path().join("client.pem"))
    };
    for (config, message) in [
        (
            ca(&missing),
            "cannot read tls.ca DIR/missing.pem: No such file or directory (os error 2); check the path",
        ),
        (ca(&nothing), "tls.ca DIR/nothing.pem holds no certificate in PEM form"),
        (ca(&key), "it should contain \"-----BEGIN CERTIFICATE-----\""),
        (ca(&broken), "tls.ca DIR/broken.pem holds a certificate that cannot be used: "),
        (client(&missing, &key), "cannot read tls.client_certificate DIR/missing.pem"),
        (client(&certificate, &missing), "cannot read tls.client_key DIR/missing.pem"),
        (
            client(&certificate, &certificate),
            "tls.client_key DIR/client.pem holds no private key in PEM form",
        ),
        (
            client(&certificate, &other_key),
            "tls.client_certificate DIR/client.pem and tls.client_key DIR/other.key do not belong together; check",
        ),
        (client(&broken, &key), "tls.client_certificate DIR/broken.pem cannot be used: "),
        (
            BackendTls { server_name: Some("a b".into()), ..ca(&certificate) },
            "tls.server_name \"a b\" is neither a host name nor an IP address",
        ),
    ] {
        let error = TlsConnector::load(&config, &SystemRoots::default()).unwrap_err().to_string();
        let error = error.replace(&files.0.path().display().to_string(), "DIR");
        assert!(error.contains(message), "{error}\ndoes not contain\n{message}");
    }
    assert!(TlsConnector::load(&client(&certificate, &key), &SystemRoots::default()).is_ok());
}
