//! An authority that signs the certificates of clients, and its revocation list.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, date_time_ymd,
};
use rustls::SupportedProtocolVersion;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tempfile::TempDir;

use crate::support::{ClientStream, Gateway, ListenerIndex, client_config_with};

/// An authority with a directory for its files.
pub(crate) struct Machines {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as a client presents them.
#[derive(Clone)]
pub(crate) struct Machine(Arc<CertifiedKey>);

impl Machines {
    /// A new authority, whose certificate is in `ca.pem`.
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "machines");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("an authority");
        let machines = Self { directory, issuer: Issuer::new(params, key) };
        machines.write("ca.pem", &certificate.pem());
        machines
    }

    /// Writes a file in one step, as a careful program does.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let next = self.directory.path().join("next");
        std::fs::write(&next, text).expect("a file of the test");
        std::fs::rename(&next, self.directory.path().join(name)).expect("a file of the test");
    }

    /// The path of a file.
    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// The lines of a listener whose clients may present these certificates.
    pub(crate) fn lines(&self, mode: &str) -> String {
        format!("client_ca = {:?}\nclient_certificate = \"{mode}\"\n", self.path("ca.pem"))
    }

    /// A certificate with these names. A common name begins with `CN=`.
    pub(crate) fn machine(&self, names: &[&str]) -> Machine {
        self.machine_with(names, |_| {})
    }

    pub(crate) fn machine_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Machine {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for name in names {
            let text = || (*name).try_into().expect("ASCII");
            match *name {
                common if common.starts_with("CN=") => {
                    params.distinguished_name.push(DnType::CommonName, &common[3..]);
                }
                uri if uri.contains("://") => params.subject_alt_names.push(SanType::URI(text())),
                email if email.contains('@') => params.subject_alt_names.push(SanType::Rfc822Name(text())),
                _ => params.subject_alt_names.push(SanType::DnsName(text())),
            }
        }
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Machine::new(&certificate.pem(), &key.serialize_pem())
    }

    /// The list that revokes the certificates with these serial numbers, in PEM, for the next hour.
    pub(crate) fn list(&self, revoked: &[u64]) -> String {
        self.list_until(SystemTime::now() + Duration::from_secs(3600), revoked)
    }

    pub(crate) fn list_until(&self, next_update: SystemTime, revoked: &[u64]) -> String {
        let revoked = revoked.iter().map(|&serial| RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: next_update.into(),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("a list").pem().expect("PEM")
    }
}

impl Machine {
    pub(crate) fn new(certificate: &str, key: &str) -> Self {
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let pair = CertifiedKey::from_der(chain.expect("a certificate"), key, &provider);
        Self(Arc::new(pair.expect("a pair")))
    }

    /// As `openssl x509 -fingerprint -sha256` prints it.
    pub(crate) fn fingerprint(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.0.cert[0]);
        let pairs: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        pairs.join(":")
    }

    /// TLS to a listener, with this certificate. In TLS 1.3, the client learns later whether it was accepted.
    pub(crate) async fn try_connect(
        &self,
        gateway: &Gateway,
        listener: ListenerIndex,
        version: &'static SupportedProtocolVersion,
    ) -> (std::net::SocketAddr, std::io::Result<ClientStream>) {
        let mut config = client_config_with(&[version], &["http/1.1"], |_| {});
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(Arc::clone(&self.0)));
        let socket = gateway.tcp(listener).await;
        let peer = socket.local_addr().expect("a connected socket");
        let stream = gateway.try_secure(socket, Arc::new(config)).await;
        (peer, stream.map(|stream| ClientStream::Tls(Box::new(stream))))
    }

    pub(crate) async fn connect(&self, gateway: &Gateway, listener: ListenerIndex) -> ClientStream {
        self.try_connect(gateway, listener, &rustls::version::TLS13).await.1.expect("a TLS handshake")
    }
}
