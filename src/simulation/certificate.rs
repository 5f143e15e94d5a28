//! The TLS certificate of simulated gateways.
//!
//! Owns its files, which all simulations of a process share, and the clients' trust in it. Knows nothing of connections.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

use super::scenario::GATEWAY;
use crate::{SelfSigned, self_signed};

/// The certificate of all simulations.
pub(super) struct Certificate {
    /// The lines of the configuration that name its files.
    pub(super) lines: String,
    pub(super) connector: TlsConnector,
    _directory: TempDir,
}

pub(super) fn certificate() -> &'static Certificate {
    static CERTIFICATE: OnceLock<Certificate> = OnceLock::new();
    CERTIFICATE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let SelfSigned { certificate, private_key } = self_signed(&[GATEWAY.ip().to_string()]).unwrap();
        let write = |name: &str, text: &str| -> PathBuf {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (crt, key) = (write("gateway.crt", &certificate), write("gateway.key", &private_key));
        let lines = format!("certificate = \"{}\"\nprivate_key = \"{}\"\n", crt.display(), key.display());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Certificate { lines, connector: TlsConnector::from(Arc::new(config)), _directory: directory }
    })
}
