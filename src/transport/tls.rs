//! Certificates, and the TLS handshake.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    version,
};
use tokio_rustls::TlsAcceptor;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{socket::Socket, stream::ClientStream};
use crate::{
    config::{Identity, TlsVersion},
    metered::Metered,
};

/// The first byte of every TLS connection: a record that holds handshake messages (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// Why a certificate cannot be used. Each says which file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("cannot read {what} {path}: {cause}; {}", advice(.path, .cause), path = .path.display())]
    Unreadable {
        /// "certificate" or "private_key".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A file holds nothing of the kind.
    #[error(
        "{what} {origin} holds no {wanted} in PEM form ({cause}); it should contain \"-----BEGIN {label}-----\""
    )]
    NoPem {
        /// "certificate" or "private_key".
        what: &'static str,
        /// The file, or where else the text came from.
        origin: String,
        /// What was looked for, in words.
        wanted: &'static str,
        /// What was looked for, as PEM labels it.
        label: &'static str,
        /// What the parser said.
        cause: pem::Error,
    },
    /// The two do not belong together.
    #[error(
        "certificate {certificate} and private_key {private_key} do not belong together; check that both are of the same renewal"
    )]
    Mismatch {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        private_key: String,
    },
    /// The pair is of a kind that cannot be used.
    #[error("certificate {certificate} cannot be used: {cause}")]
    Unusable {
        /// The certificate's file.
        certificate: String,
        /// What the TLS library said.
        cause: rustls::Error,
    },
}

/// What to do about a file that cannot be read. The shipped configuration names a pair that nobody has made yet.
fn advice(path: &Path, cause: &io::Error) -> String {
    let is_the_shipped_one = path.file_stem().is_some_and(|stem| stem == "localhost");
    match path.parent() {
        Some(directory) if is_the_shipped_one && cause.kind() == io::ErrorKind::NotFound => {
            format!("\"portcullis cert --out {}\" makes a pair to try things out", directory.display())
        }
        _ => "check the path and its permissions".to_owned(),
    }
}

/// What came of a connection on a TLS listener.
#[derive(Debug)]
pub enum Accepted {
    /// TLS.
    Stream(ClientStream),
    /// Something else was spoken; nothing of it has been read.
    NotTls(Socket),
}

/// A listener's TLS side.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    expiry: Option<SystemTime>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Loads a certificate chain and its key and checks that they belong together.
    ///
    /// # Errors
    /// A file is missing, unreadable or not PEM, or the pair does not match.
    pub fn load(identity: &Identity, min_tls: TlsVersion) -> Result<Self, IdentityError> {
        let pair = Pair::read(identity)?;
        let versions: &[&SupportedProtocolVersion] = match min_tls {
            TlsVersion::V1_2 => &[&version::TLS13, &version::TLS12],
            TlsVersion::V1_3 => &[&version::TLS13],
        };
        let unusable =
            |cause, certificate: &str| IdentityError::Unusable { certificate: certificate.to_owned(), cause };
        let expiry = pair.chain.first().and_then(|certificate| expiry(certificate));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .map_err(|error| unusable(error, &pair.certificate_origin))?
            .with_no_client_auth()
            .with_single_cert(pair.chain, pair.key)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => IdentityError::Mismatch {
                    certificate: pair.certificate_origin.clone(),
                    private_key: pair.key_origin.clone(),
                },
                error => unusable(error, &pair.certificate_origin),
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Tickets instead of a session cache: resumption without memory or a lock. One is enough for a client that keeps
        // its connection for hours.
        config.send_tls13_tickets = 1;
        config.ticketer =
            aws_lc_rs::Ticketer::new().map_err(|error| unusable(error, &pair.certificate_origin))?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), expiry })
    }

    /// When the certificate, the first of the chain, ends; `None` if it does not tell.
    pub fn expiry(&self) -> Option<SystemTime> {
        self.expiry
    }

    /// Shakes hands. Takes as long as the client does: put a deadline around it.
    ///
    /// # Errors
    /// The connection broke, or the handshake failed and the client has been sent the alert that says why.
    pub async fn accept(&self, socket: Socket) -> io::Result<Accepted> {
        let mut first = [0];
        if socket.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[0] != HANDSHAKE_RECORD {
            return Ok(Accepted::NotTls(socket));
        }
        let stream = self.acceptor.accept(Metered::new(socket)).await?;
        Ok(Accepted::Stream(ClientStream::Tls(Box::new(stream))))
    }
}

fn expiry(certificate: &[u8]) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// A chain, its key, and where each came from.
struct Pair {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    certificate_origin: String,
    key_origin: String,
}

impl Pair {
    fn read(identity: &Identity) -> Result<Self, IdentityError> {
        let (certificate, key, certificate_origin, key_origin) = match identity {
            Identity::Files { certificate, private_key } => (
                read("certificate", certificate)?,
                read("private_key", private_key)?,
                certificate.display().to_string(),
                private_key.display().to_string(),
            ),
            Identity::Pem { certificate, private_key } => {
                let here = "given as text".to_owned();
                (
                    certificate.clone().into_bytes(),
                    private_key.expose().as_bytes().to_vec(),
                    here.clone(),
                    here,
                )
            }
        };
        let no_certificate = |cause| IdentityError::NoPem {
            what: "certificate",
            origin: certificate_origin.clone(),
            wanted: "certificate",
            label: "CERTIFICATE",
            cause,
        };
        let chain = CertificateDer::pem_slice_iter(&certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(no_certificate)?;
        if chain.is_empty() {
            return Err(no_certificate(pem::Error::NoItemsFound));
        }
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|cause| IdentityError::NoPem {
            what: "private_key",
            origin: key_origin.clone(),
            wanted: "private key",
            label: "PRIVATE KEY",
            cause,
        })?;
        Ok(Self { chain, key, certificate_origin, key_origin })
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|cause| IdentityError::Unreadable { what, path: path.to_owned(), cause })
}
