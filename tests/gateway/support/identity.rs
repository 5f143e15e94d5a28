//! Certificates made for the tests, and a TLS client that trusts them.

use std::sync::{Arc, LazyLock};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

/// A certificate for `localhost` and `127.0.0.1`, and the authority that signed it.
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) private_key: String,
    authority: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

static IDENTITY: LazyLock<Identity> = LazyLock::new(Identity::make);

impl Identity {
    /// The identity that the gateways of this run share.
    pub(crate) fn shared() -> &'static Self {
        &IDENTITY
    }

    /// A new one.
    pub(crate) fn make() -> Self {
        let authority_key = KeyPair::generate().expect("a key");
        let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_certificate = authority.self_signed(&authority_key).expect("an authority");
        let issuer = Issuer::new(authority, authority_key);

        let (certificate, private_key) = issue(&issuer, |_| {});
        Self { certificate, private_key, authority: authority_certificate.der().clone(), issuer }
    }

    /// Another certificate of the same authority for a new key, changed by `change`; and its key.
    pub(crate) fn renewed(&self, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        issue(&self.issuer, change)
    }
}

fn issue(issuer: &Issuer<'_, KeyPair>, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let mut params = CertificateParams::new(names).expect("names");
    change(&mut params);
    (params.signed_by(&key, issuer).expect("a certificate").pem(), key.serialize_pem())
}

/// A client that trusts the shared authority and nothing else.
pub(crate) fn client_config(
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> Arc<ClientConfig> {
    Arc::new(client_config_with(versions, alpn, |_| {}))
}

/// The same, whose cryptography is changed by `change`.
pub(crate) fn client_config_with(
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
    change: impl FnOnce(&mut CryptoProvider),
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(IDENTITY.authority.clone()).expect("an authority");
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    change(&mut provider);
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}
