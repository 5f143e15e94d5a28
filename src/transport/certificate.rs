//! Certificate and key of a listener: loaded as a pair, presented as a pair, reloaded as a pair (hot reload).
//!
//! Owns which pair a listener presents, and whether a renewed one may replace it. Knows nothing of handshakes; when
//! files are read again is decided by [`watched_file`](crate::watched_file). Invariants: both files are read and
//! validated before either is used; a pair that does not match, is incomplete or has expired never replaces a good
//! one; each handshake sees one consistent pair; a problem is logged once per change of the files.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, RwLock};
use rustls::{
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::time::Instant;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use crate::{
    config::Identity,
    pem::{PemError, PemSource, certificates, private_key, read_pem},
    watched_file::{ChangeTracker, FileEvent, LoadedFile, Stamp},
};

/// The permission bits of other users.
const OTHERS: u32 = 0o007;

/// Why a certificate cannot be used. Each message names the file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is missing, unreadable or not PEM, or the pair does not match.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// The TLS library does not accept its settings.
    #[error("certificate {certificate} cannot be used: {cause}")]
    Library {
        certificate: String,
        /// The TLS library's error.
        cause: rustls::Error,
    },
    /// A renewed certificate has expired already.
    #[error("certificate {certificate} expired on {}; renew it", at(*.expiry))]
    Expired {
        certificate: String,
        /// The end of its validity.
        expiry: SystemTime,
    },
    /// A renewed certificate is not valid yet.
    #[error("certificate {certificate} is not valid before {}; check the clock", at(*.begin))]
    NotYetValid {
        certificate: String,
        /// The begin of its validity.
        begin: SystemTime,
    },
}

fn at(time: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(time)
}

/// The files of a pair; `None` while one of them is missing.
type Stamps = Option<[Stamp; 2]>;

/// The pair that a listener presents, and where it comes from.
#[derive(Debug)]
pub(crate) struct CertificateResolver {
    identity: Identity,
    pair: RwLock<Arc<CertifiedPair>>,
    tracker: Mutex<ChangeTracker<Stamps>>,
}

impl CertificateResolver {
    /// Reads a pair for the first time. It may have expired: a user can still make a browser accept it.
    ///
    /// # Errors
    /// A file is missing, unreadable or not PEM, or the two do not belong together.
    pub(crate) fn load(identity: &Identity) -> Result<Self, IdentityError> {
        let tracker = ChangeTracker::new(stamps(identity), Instant::now());
        let pair = Arc::new(CertifiedPair::read(identity)?);
        Ok(Self { identity: identity.clone(), pair: RwLock::new(pair), tracker: Mutex::new(tracker) })
    }

    /// Reads a pair that replaces `before`, unless it is the same.
    ///
    /// # Errors
    /// As [`CertificateResolver::load`]; besides, a certificate that replaces another must be valid now.
    pub(crate) fn load_after(identity: &Identity, before: &Self) -> Result<Self, IdentityError> {
        let resolver = Self::load(identity)?;
        resolver.pair().check_replaces(&before.pair())?;
        Ok(resolver)
    }

    /// The path of the certificate, for messages.
    pub(crate) fn certificate(&self) -> String {
        self.pair().certificate.clone()
    }

    /// When the certificate, the first of the chain, expires; `None` if its dates cannot be read.
    pub(crate) fn expiry(&self) -> Option<SystemTime> {
        self.pair().validity.map(|validity| validity[1])
    }

    /// The DNS names of the certificate, in lower case; `*.` begins a wildcard.
    pub(crate) fn names(&self) -> Vec<String> {
        self.pair().certified.cert.first().map(|first| dns_names(first)).unwrap_or_default()
    }

    /// What is questionable about the pair now: its dates, and the permissions of its key.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let invalid = self.pair().check_validity(SystemTime::now()).err().map(|error| error.to_string());
        let readable = match &self.identity {
            Identity::Files { private_key, .. } => world_readable_key("private_key", private_key),
            Identity::Pem { .. } => None,
        };
        invalid.into_iter().chain(readable).collect()
    }

    /// Reads the files if they have changed, and presents what they hold if it is valid.
    pub(crate) fn check(&self) {
        let Identity::Files { certificate, private_key } = &self.identity else { return };
        // Held until the pair is installed, so that a rejection by a reload comes before or after, not between.
        let mut tracker = self.tracker.lock();
        let current = self.pair();
        let event = tracker.check(stamps(&self.identity), Instant::now(), || {
            let pair = CertifiedPair::read(&self.identity)?;
            pair.check_replaces(&current)?;
            Ok(LoadedFile { is_current: pair.is_same(&current), value: pair, is_partial: false })
        });
        let path = certificate.display();
        let expires = |pair: &CertifiedPair| pair.validity.map(|[_, end]| at(end).to_string());
        match event {
            FileEvent::None => {}
            FileEvent::Replaced(pair) => {
                tracing::info!(certificate = %path, expires = expires(&pair), "certificate reloaded");
                *self.pair.write() = Arc::new(pair);
            }
            FileEvent::Recovered(pair) => {
                tracing::info!(certificate = %path, expires = expires(&pair), "certificate is good again");
            }
            FileEvent::Rejected(error) => {
                let error: IdentityError = error;
                tracing::warn!(
                    certificate = %path,
                    private_key = %private_key.display(),
                    detail = %error,
                    "certificate not reloaded: the previous one stays in use"
                );
            }
        }
    }

    /// A reload of the configuration has rejected `identity` and reported that. If its files are those watched here,
    /// the rejection is not reported again.
    pub(crate) fn mark_rejected(&self, identity: &Identity) {
        if *identity == self.identity {
            self.tracker.lock().mark_rejected(stamps(&self.identity));
        }
    }

    fn pair(&self) -> Arc<CertifiedPair> {
        Arc::clone(&self.pair.read())
    }
}

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.pair().certified))
    }
}

/// A warning about a key that every user of the machine may read or change, with what to do.
pub(crate) fn world_readable_key(key: &str, path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.mode();
    let path = path.display();
    (mode & OTHERS != 0)
        .then(|| format!("{key} {path} is open to every user of this machine; run: chmod o-rwx {path}"))
}

/// A chain and the key that belongs to it.
#[derive(Debug)]
struct CertifiedPair {
    certified: Arc<CertifiedKey>,
    /// When the certificate becomes valid and when it expires, if its dates can be read.
    validity: Option<[SystemTime; 2]>,
    /// Its path, for messages.
    certificate: String,
}

impl CertifiedPair {
    fn read(identity: &Identity) -> Result<Self, IdentityError> {
        const CERTIFICATE: &str = "certificate";
        const PRIVATE_KEY: &str = "private_key";
        let (chain_text, key_text, certificate, private) = match identity {
            Identity::Files { certificate, private_key } => (
                read_pem(CERTIFICATE, certificate)?,
                read_pem(PRIVATE_KEY, private_key)?,
                PemSource::file(CERTIFICATE, certificate),
                PemSource::file(PRIVATE_KEY, private_key),
            ),
            Identity::Pem { certificate, private_key } => (
                certificate.clone().into_bytes(),
                private_key.expose().as_bytes().to_vec(),
                PemSource::text(CERTIFICATE),
                PemSource::text(PRIVATE_KEY),
            ),
        };
        let chain = certificates(&certificate, &chain_text)?;
        let validity = chain.first().and_then(|first| validity(first));
        let key = private_key(&private, &key_text)?;
        let location = certificate.location().to_owned();
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .map_err(|cause| PemError::of_pair(certificate, private, cause))?;
        Ok(Self { certified: Arc::new(certified), validity, certificate: location })
    }

    /// Whether the certificates are the same. So are the keys then: each was found to belong to its certificate.
    fn is_same(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }

    /// A certificate in use stays in use, whatever its dates are; one that replaces it must be valid now.
    fn check_replaces(&self, current: &Self) -> Result<(), IdentityError> {
        if self.is_same(current) { Ok(()) } else { self.check_validity(SystemTime::now()) }
    }

    fn check_validity(&self, now: SystemTime) -> Result<(), IdentityError> {
        let certificate = || self.certificate.clone();
        match self.validity {
            Some([_, expiry]) if now > expiry => {
                Err(IdentityError::Expired { certificate: certificate(), expiry })
            }
            Some([begin, _]) if now < begin => {
                Err(IdentityError::NotYetValid { certificate: certificate(), begin })
            }
            _ => Ok(()),
        }
    }
}

/// When a certificate becomes valid and when it expires.
fn validity(certificate: &[u8]) -> Option<[SystemTime; 2]> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let time = |seconds| {
        let since = Duration::from_secs(u64::try_from(seconds).ok()?);
        SystemTime::UNIX_EPOCH.checked_add(since)
    };
    let validity = certificate.validity();
    Some([time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?])
}

fn dns_names(certificate: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let dns_name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(dns_name).collect()
}

fn stamps(identity: &Identity) -> Stamps {
    let Identity::Files { certificate, private_key } = identity else { return None };
    Some([Stamp::read(certificate)?, Stamp::read(private_key)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Secret, transport::self_signed::self_signed};

    #[test]
    fn the_names_are_those_of_the_certificate_in_lower_case() {
        let names = ["Desk.Example".to_owned(), "*.desk.example".to_owned(), "192.0.2.1".to_owned()];
        let pair = self_signed(&names).unwrap();
        let identity =
            Identity::Pem { certificate: pair.certificate, private_key: Secret::new(pair.private_key) };
        let resolver = CertificateResolver::load(&identity).unwrap();
        assert_eq!(resolver.names(), ["desk.example", "*.desk.example"]);
    }
}
