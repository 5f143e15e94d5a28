//! What a route says about TLS, loaded and found good.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, RootCertStore,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

use super::verify::{InsecureNoVerify, PinnedRoots};
use crate::config::BackendTls;

/// How many tickets of earlier sessions a route keeps, at eight for each name.
const TICKETS: usize = 256;

/// Why a route's TLS cannot be used. Each says which key and file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    /// A file cannot be read.
    #[error("cannot read {key} {path}: {cause}; check the path and its permissions", path = .path.display())]
    Unreadable {
        /// `tls.ca`, `tls.client_certificate` or `tls.client_key`.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A file holds nothing of the kind.
    #[error(
        "{key} {path} holds no {wanted} in PEM form ({cause}); it should contain \"-----BEGIN {label}-----\"",
        path = .path.display()
    )]
    NoPem {
        /// As above.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What was looked for, in words.
        wanted: &'static str,
        /// What was looked for, as PEM labels it.
        label: &'static str,
        /// What the parser said.
        cause: pem::Error,
    },
    /// A certificate in `ca` is none.
    #[error("tls.ca {path} holds a certificate that cannot be used: {cause}; export it again", path = .path.display())]
    BadAuthority {
        /// The file.
        path: PathBuf,
        /// What the TLS library said.
        cause: rustls::Error,
    },
    /// The system trusts nobody.
    #[error("the system has no certificate authorities ({0}); install ca-certificates, or set tls.ca")]
    NoSystemRoots(Arc<str>),
    /// The client's certificate and key do not belong together.
    #[error(
        "tls.client_certificate {certificate} and tls.client_key {key} do not belong together; check that both are of the same renewal",
        certificate = .certificate.display(),
        key = .key.display()
    )]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The client's certificate is of a kind that cannot be used.
    #[error("tls.client_certificate {path} cannot be used: {cause}", path = .path.display())]
    UnusableClient {
        /// The certificate's file.
        path: PathBuf,
        /// What the TLS library said.
        cause: rustls::Error,
    },
    /// `server_name` is no name that a certificate could be for.
    #[error("tls.server_name {0:?} is neither a host name nor an IP address")]
    ServerName(String),
    /// The TLS library refuses its own settings.
    #[error("TLS cannot be set up: {0}")]
    Library(rustls::Error),
}

/// The authorities that the system trusts: read when the first route needs them, and once for all of them.
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
                let found_nothing = errors.is_empty();
                return Err(if found_nothing { "none were found".into() } else { errors.join("; ").into() });
            }
            Ok(Arc::new(roots))
        });
        read.clone().map_err(TlsConfigError::NoSystemRoots)
    }
}

/// The settings of a route, all files read.
pub(super) fn client_config(
    config: &BackendTls,
    system: &SystemRoots,
) -> Result<ClientConfig, TlsConfigError> {
    let BackendTls { ca, client, min_version, insecure_no_verify, server_name: _ } = config;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match ca {
        _ if *insecure_no_verify => Arc::new(InsecureNoVerify(Arc::clone(&provider))),
        Some(path) => listed(path, &provider)?,
        None => signed(system.get()?, &provider)?,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(min_version.or_newer())
        .map_err(TlsConfigError::Library)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("tls.client_certificate", certificate)?;
            let secret = PrivateKeyDer::from_pem_slice(&read("tls.client_key", key)?).map_err(|cause| {
                let (key, path) = ("tls.client_key", key.clone());
                TlsConfigError::NoPem { key, path, wanted: "private key", label: "PRIVATE KEY", cause }
            })?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    TlsConfigError::Mismatch { certificate: certificate.clone(), key: key.clone() }
                }
                cause => TlsConfigError::UnusableClient { path: certificate.clone(), cause },
            })?
        }
    };
    config.resumption = Resumption::in_memory_sessions(TICKETS);
    Ok(config)
}

fn signed(
    roots: Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsConfigError> {
    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
        .build()
        .map_err(|error| TlsConfigError::Library(rustls::Error::General(error.to_string())))
}

fn listed(path: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<PinnedRoots>, TlsConfigError> {
    let itself = certificates("tls.ca", path)?;
    let mut roots = RootCertStore::empty();
    for certificate in &itself {
        roots
            .add(certificate.clone())
            .map_err(|cause| TlsConfigError::BadAuthority { path: path.to_owned(), cause })?;
    }
    Ok(Arc::new(PinnedRoots { signed: signed(Arc::new(roots), provider)?, itself }))
}

/// All certificates of a PEM file, at least one.
fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let text = read(key, path)?;
    let all = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        none => {
            let cause = none.err().unwrap_or(pem::Error::NoItemsFound);
            let path = path.to_owned();
            Err(TlsConfigError::NoPem { key, path, wanted: "certificate", label: "CERTIFICATE", cause })
        }
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsConfigError> {
    fs::read(path).map_err(|cause| TlsConfigError::Unreadable { key, path: path.to_owned(), cause })
}
