//! Certificates, keys and revocation lists in PEM form, for TLS with clients and with backends.
//!
//! Owns reading PEM and the wording of its errors. Knows nothing of handshakes and of whose certificates they are: a file is
//! named by its configuration key and its path.

use std::{fmt, fs, io, path::Path};

use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
    pem::{self, PemObject},
};

/// Why a certificate or a key cannot be used. Each message names the configuration key and the file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// A file cannot be read.
    #[error("cannot read {origin}: {cause}; {}", hint(.origin, .cause))]
    Unreadable { origin: PemSource, cause: io::Error },
    /// There is no certificate or no key in it.
    #[error(
        "{origin} holds no {wanted} in PEM form ({cause}); it should contain \"-----BEGIN {label}-----\"",
        wanted = .kind.name(), label = .kind.label()
    )]
    NotPem {
        origin: PemSource,
        /// What was looked for.
        kind: PemKind,
        cause: pem::Error,
    },
    /// The certificate is for another key.
    #[error(
        "{certificate} and {private_key} do not belong together; check that both are of the same renewal"
    )]
    Mismatch { certificate: PemSource, private_key: PemSource },
    /// The certificate or key is of a kind that is not supported.
    #[error("{origin} cannot be used: {cause}")]
    Unusable {
        origin: PemSource,
        /// The TLS library's error.
        cause: rustls::Error,
    },
}

impl PemError {
    /// The error of a pair that the TLS library does not accept.
    pub(crate) fn of_pair(certificate: PemSource, private_key: PemSource, cause: rustls::Error) -> Self {
        match cause {
            rustls::Error::InconsistentKeys(_) => Self::Mismatch { certificate, private_key },
            cause => Self::Unusable { origin: certificate, cause },
        }
    }
}

/// Where PEM comes from, as messages name it: a configuration key, and a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PemSource {
    key: &'static str,
    location: String,
}

impl PemSource {
    pub(crate) fn file(key: &'static str, path: &Path) -> Self {
        Self { key, location: path.display().to_string() }
    }

    /// Text that came from no file.
    pub(crate) fn text(key: &'static str) -> Self {
        Self { key, location: "given as text".to_owned() }
    }

    /// The path, without the configuration key.
    pub(crate) fn location(&self) -> &str {
        &self.location
    }
}

impl fmt::Display for PemSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, self.location)
    }
}

/// What is looked for in PEM text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PemKind {
    /// At least one certificate.
    Certificate,
    PrivateKey,
    /// At least one revocation list.
    RevocationList,
}

impl PemKind {
    fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::PrivateKey => "private key",
            Self::RevocationList => "revocation list",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Certificate => "CERTIFICATE",
            Self::PrivateKey => "PRIVATE KEY",
            Self::RevocationList => "X509 CRL",
        }
    }
}

/// What to do about a file that cannot be read. The shipped configuration names a pair that does not exist yet.
fn hint(source: &PemSource, cause: &io::Error) -> String {
    let path = Path::new(&source.location);
    let is_shipped = ["certificate", "private_key"].contains(&source.key)
        && path.file_stem().is_some_and(|stem| stem == "localhost");
    match path.parent() {
        Some(directory) if is_shipped && cause.kind() == io::ErrorKind::NotFound => {
            format!("\"portcullis cert --out {}\" makes a pair to try things out", directory.display())
        }
        _ => "check the path and its permissions".to_owned(),
    }
}

/// Reads a PEM file whose path is the value of `key`.
pub(crate) fn read_pem(key: &'static str, path: &Path) -> Result<Vec<u8>, PemError> {
    fs::read(path).map_err(|cause| PemError::Unreadable { origin: PemSource::file(key, path), cause })
}

/// All certificates of a PEM text, at least one.
pub(crate) fn certificates(
    source: &PemSource,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let all = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let cause = match all {
        Ok(all) if !all.is_empty() => return Ok(all),
        Ok(_) => pem::Error::NoItemsFound,
        Err(cause) => cause,
    };
    Err(PemError::NotPem { origin: source.clone(), kind: PemKind::Certificate, cause })
}

/// All certificate revocation lists of a PEM text, at least one.
pub(crate) fn revocation_lists(
    source: &PemSource,
    text: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, PemError> {
    let all = CertificateRevocationListDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let cause = match all {
        Ok(all) if !all.is_empty() => return Ok(all),
        Ok(_) => pem::Error::NoItemsFound,
        Err(cause) => cause,
    };
    Err(PemError::NotPem { origin: source.clone(), kind: PemKind::RevocationList, cause })
}

/// The first private key of a PEM text.
pub(crate) fn private_key(source: &PemSource, text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|cause| PemError::NotPem {
        origin: source.clone(),
        kind: PemKind::PrivateKey,
        cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_pair_of_the_shipped_configuration_names_the_command_that_makes_one() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (key, name, is_shipped) in [
            ("certificate", "localhost.crt", true),
            ("certificate", "a.crt", false),
            ("tls.ca", "localhost.crt", false),
        ] {
            let error = read_pem(key, &at(name)).unwrap_err().to_string();
            let hint = format!("\"portcullis cert --out {}\"", directory.path().display());
            assert_eq!(error.contains(&hint), is_shipped, "{error}");
            assert_eq!(error.ends_with("check the path and its permissions"), !is_shipped, "{error}");
        }
    }
}
