//! The TLS configurations of the client, the backend and the raw pipe, with the libraries that Portcullis uses.

use std::{fmt, path::Path, str::FromStr, sync::Arc};

use anyhow::Context as _;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The client's certificate and its key are in these files, in the directory of the server's certificate.
pub(super) const CLIENT_CERTIFICATE: &str = "client.crt";
pub(super) const CLIENT_KEY: &str = "client.key";

/// The TLS handshake that a client makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// X25519 only, so that every server does the same arithmetic; no resumption.
    Full,
    /// X25519MLKEM768, as browsers do; no resumption.
    Hybrid,
    /// X25519MLKEM768, resumed from a session ticket whenever there is one.
    Resumed,
    /// As [`Self::Full`], with the client's certificate, from [`CLIENT_CERTIFICATE`] and [`CLIENT_KEY`].
    Certificate,
}

impl fmt::Display for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Hybrid => "hybrid",
            Self::Resumed => "resumed",
            Self::Certificate => "certificate",
        })
    }
}

impl FromStr for Handshake {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        [Self::Full, Self::Hybrid, Self::Resumed, Self::Certificate]
            .into_iter()
            .find(|handshake| handshake.to_string() == name)
            .with_context(|| format!("unknown kind of TLS handshake {name}"))
    }
}

/// A TLS 1.3 client that trusts `certificate`.
pub(super) fn connector(certificate: &Path, handshake: Handshake) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let group = match handshake {
        Handshake::Full | Handshake::Certificate => aws_lc_rs::kx_group::X25519,
        Handshake::Hybrid | Handshake::Resumed => aws_lc_rs::kx_group::X25519MLKEM768,
    };
    let provider = CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() };
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut config = if handshake == Handshake::Certificate {
        let file = |name| certificate.with_file_name(name);
        let own = CertificateDer::from_pem_file(file(CLIENT_CERTIFICATE))?;
        config.with_client_auth_cert(vec![own], PrivateKeyDer::from_pem_file(file(CLIENT_KEY))?)?
    } else {
        config.with_no_client_auth()
    };
    config.resumption = match handshake {
        Handshake::Full | Handshake::Hybrid | Handshake::Certificate => Resumption::disabled(),
        // Enough for all connections that the driver keeps open at a time.
        Handshake::Resumed => Resumption::in_memory_sessions(256),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A TLS server with the defaults of rustls, plus session tickets.
pub(super) fn acceptor(certificate: &Path, key: &Path) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
