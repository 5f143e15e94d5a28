//! The TLS settings of a route, with their files loaded and validated.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, RootCertStore,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
};

use super::verify::{InsecureNoVerify, PinnedRoots};
use crate::{
    config::BackendTls,
    pem::{PemError, PemSource, certificates, private_key, read_pem},
};

/// How many tickets for session resumption a route keeps; rustls keeps eight for each name.
const TICKETS: usize = 256;
const CA: &str = "tls.ca";
const CLIENT_CERTIFICATE: &str = "tls.client_certificate";
const CLIENT_KEY: &str = "tls.client_key";

/// Why a route's TLS settings cannot be used. Each message names the key and the file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    /// A file is missing, unreadable or not PEM, or the client certificate does not match its key.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A certificate in `ca` is invalid.
    #[error("tls.ca {path} holds a certificate that cannot be used: {cause}; export it again", path = .path.display())]
    BadAuthority {
        path: PathBuf,
        /// The TLS library's error.
        cause: rustls::Error,
    },
    /// The system trusts no authority.
    #[error("the system has no certificate authorities ({0}); install ca-certificates, or set tls.ca")]
    NoSystemRoots(Arc<str>),
    /// No certificate can be issued for `server_name`.
    #[error("tls.server_name {0:?} is neither a host name nor an IP address")]
    ServerName(String),
    /// The TLS library does not accept its settings.
    #[error("TLS cannot be set up: {0}")]
    Library(rustls::Error),
}

/// The authorities that the system trusts: read when the first route needs them, and once for all routes.
#[derive(Debug, Default)]
pub struct SystemRoots(pub(super) OnceLock<Result<Arc<RootCertStore>, Arc<str>>>);

impl SystemRoots {
    fn get(&self) -> Result<Arc<RootCertStore>, TlsConfigError> {
        let read = self.0.get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            // Some are always too old for the parser; the others still count.
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
                return Err(if errors.is_empty() {
                    "none were found".into()
                } else {
                    errors.join("; ").into()
                });
            }
            Ok(Arc::new(roots))
        });
        read.clone().map_err(TlsConfigError::NoSystemRoots)
    }
}

/// The TLS library's settings for a route. Reads all files that the route names.
pub(super) fn client_config(
    config: &BackendTls,
    system: &SystemRoots,
) -> Result<ClientConfig, TlsConfigError> {
    let BackendTls { ca, client, min_version, insecure_no_verify, server_name: _ } = config;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match ca {
        _ if *insecure_no_verify => Arc::new(InsecureNoVerify(Arc::clone(&provider))),
        Some(path) => pinned(path, &provider)?,
        None => webpki_verifier(system.get()?, &provider)?,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(min_version.or_newer())
        .map_err(TlsConfigError::Library)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificate_origin = PemSource::file(CLIENT_CERTIFICATE, certificate);
            let key_origin = PemSource::file(CLIENT_KEY, key);
            let chain = certificates(&certificate_origin, &read_pem(CLIENT_CERTIFICATE, certificate)?)?;
            let secret = private_key(&key_origin, &read_pem(CLIENT_KEY, key)?)?;
            builder
                .with_client_auth_cert(chain, secret)
                .map_err(|cause| PemError::of_pair(certificate_origin, key_origin, cause))?
        }
    };
    config.resumption = Resumption::in_memory_sessions(TICKETS);
    Ok(config)
}

fn webpki_verifier(
    roots: Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsConfigError> {
    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
        .build()
        .map_err(|error| TlsConfigError::Library(rustls::Error::General(error.to_string())))
}

fn pinned(path: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<PinnedRoots>, TlsConfigError> {
    let certificates = certificates(&PemSource::file(CA, path), &read_pem(CA, path)?)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots
            .add(certificate.clone())
            .map_err(|cause| TlsConfigError::BadAuthority { path: path.to_owned(), cause })?;
    }
    Ok(Arc::new(PinnedRoots { authorities: webpki_verifier(Arc::new(roots), provider)?, certificates }))
}
