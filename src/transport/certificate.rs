//! A certificate and its key: read as a pair, shown as a pair, renewed as a pair.
//!
//! Owns which pair a listener shows, and when its files are read again. Refuses to know handshakes. Invariants: both files
//! are read before either is believed, and what does not belong together, is not whole or has expired is never shown in
//! place of what was good; each handshake sees one pair; what is wrong is said once for each change of the files.
//!
//! Files are looked at once a second, by their metadata, rather than watched through the kernel. A look follows every link,
//! so that it sees one that was swapped anywhere on the way (`/etc/letsencrypt/live`, the `..data` of Kubernetes), and works
//! for files that were mounted from elsewhere, of which the kernel here would tell nothing.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, RwLock};
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::config::Identity;

/// What nobody but the owner and the group may do with a key.
const OTHERS: u32 = 0o007;

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
    /// A renewed certificate is older than what it is for.
    #[error("certificate {certificate} expired on {}; renew it", at(*.expiry))]
    Expired {
        /// The certificate's file.
        certificate: String,
        /// When it ended.
        expiry: SystemTime,
    },
    /// A renewed certificate is for another time.
    #[error("certificate {certificate} is not valid before {}; check the clock", at(*.begin))]
    NotYetValid {
        /// The certificate's file.
        certificate: String,
        /// When it begins.
        begin: SystemTime,
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

fn at(time: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(time)
}

/// The pair that a listener shows, and where it comes from.
#[derive(Debug)]
pub(crate) struct CertificateResolver {
    identity: Identity,
    pair: RwLock<Arc<CertifiedPair>>,
    watch_state: Mutex<WatchState>,
}

/// What was seen of the files at the last look.
#[derive(Debug)]
struct WatchState {
    /// `None` when one of them was not there.
    stamps: Option<[Stamp; 2]>,
    /// Whether they were read twice since they changed.
    is_confirmed: bool,
    /// Whether what they hold is not shown because something is wrong with it.
    is_bad: bool,
    /// Whether that was said of these very files.
    is_told: bool,
    /// Whether somebody who was told of something bad waits to hear that all is well.
    is_awaited: bool,
}

impl CertificateResolver {
    /// Reads a pair for the first time. It may have expired: a browser can still be told to take it.
    ///
    /// # Errors
    /// A file is missing, unreadable or not PEM, or the two do not belong together.
    pub(crate) fn load(identity: &Identity) -> Result<Self, IdentityError> {
        // Stamps first: what changes while it is read is read again.
        let stamps = stamps(identity);
        let pair = RwLock::new(Arc::new(CertifiedPair::read(identity)?));
        let watch_state =
            WatchState { stamps, is_confirmed: false, is_bad: false, is_told: false, is_awaited: false };
        Ok(Self { identity: identity.clone(), pair, watch_state: Mutex::new(watch_state) })
    }

    /// Reads a pair that is to replace `before`, unless it is the same.
    ///
    /// # Errors
    /// As [`CertificateResolver::load`]; and a certificate that replaces another must be valid now.
    pub(crate) fn load_after(identity: &Identity, before: &Self) -> Result<Self, IdentityError> {
        let resolver = Self::load(identity)?;
        let pair = resolver.pair();
        if !pair.is(&before.pair()) {
            pair.check_validity(SystemTime::now())?;
        }
        Ok(resolver)
    }

    /// Where the certificate comes from, as messages call it.
    pub(crate) fn certificate(&self) -> String {
        self.pair().certificate.clone()
    }

    /// When the certificate, the first of the chain, ends; `None` if it does not tell.
    pub(crate) fn expiry(&self) -> Option<SystemTime> {
        self.pair().validity.map(|validity| validity[1])
    }

    /// What an operator should know of the pair as it stands now.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let unfit = self.pair().check_validity(SystemTime::now()).err().map(|error| error.to_string());
        let open = match &self.identity {
            Identity::Files { private_key, .. } => world_readable_key("private_key", private_key),
            Identity::Pem { .. } => None,
        };
        unfit.into_iter().chain(open).collect()
    }

    /// Looks whether the files have changed, and shows what they hold if so. Each change is read when it is seen, and once
    /// more at the next look: timestamps are too coarse to tell two changes in quick succession, and what is wrong at
    /// first may only be half of what somebody is still writing.
    pub(crate) fn check(&self) {
        let Identity::Files { certificate, private_key } = &self.identity else { return };
        let mut watch_state = self.watch_state.lock();
        let stamps = stamps(&self.identity);
        let is_new = stamps != watch_state.stamps;
        if !is_new && watch_state.is_confirmed && !watch_state.is_bad {
            return;
        }
        let (is_told, is_awaited) = (watch_state.is_told && !is_new, watch_state.is_awaited);
        *watch_state = WatchState { stamps, is_confirmed: !is_new, is_bad: false, is_told, is_awaited };
        let (path, key) = (certificate.display(), private_key.display());
        let current = self.pair();
        let read = CertifiedPair::read(&self.identity).and_then(|pair| {
            // What is shown already stays, whatever time it is.
            if !pair.is(&current) {
                pair.check_validity(SystemTime::now())?;
            }
            Ok(pair)
        });
        match read {
            Ok(pair) => {
                let is_news = !pair.is(&current);
                let expiry = pair.validity.map(|[_, end]| at(end).to_string());
                if is_news {
                    *self.pair.write() = Arc::new(pair);
                }
                if is_news {
                    tracing::info!(certificate = %path, expires = expiry, "certificate reloaded");
                } else if is_awaited {
                    tracing::info!(certificate = %path, expires = expiry, "certificate is good again");
                }
                watch_state.is_awaited = false;
            }
            Err(error) => {
                watch_state.is_bad = true;
                if !is_new && !is_told {
                    (watch_state.is_told, watch_state.is_awaited) = (true, true);
                    tracing::warn!(
                        certificate = %path,
                        private_key = %key,
                        detail = %error,
                        "certificate not reloaded: the one before stays until this is mended"
                    );
                }
            }
        }
    }

    /// What `identity` leads to was refused elsewhere, and somebody was told. If that is what is looked at here, it need not
    /// be said once more.
    pub(crate) fn refused(&self, identity: &Identity) {
        if *identity != self.identity {
            return;
        }
        let mut watch_state = self.watch_state.lock();
        let stamps = stamps(&self.identity);
        *watch_state =
            WatchState { stamps, is_confirmed: true, is_bad: true, is_told: true, is_awaited: true };
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

/// A warning about a key that everybody on the machine may read or change, with what to do.
pub(crate) fn world_readable_key(what: &str, path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.mode();
    let path = path.display();
    (mode & OTHERS != 0)
        .then(|| format!("{what} {path} is open to every user of this machine; run: chmod o-rwx {path}"))
}

/// A chain and its key, found to belong together.
#[derive(Debug)]
struct CertifiedPair {
    certified: Arc<CertifiedKey>,
    /// When the certificate begins and when it ends, if it tells.
    validity: Option<[SystemTime; 2]>,
    /// Where it came from.
    certificate: String,
}

impl CertifiedPair {
    fn read(identity: &Identity) -> Result<Self, IdentityError> {
        let (certificate_pem, key_pem, certificate, private_key) = match identity {
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
            origin: certificate.clone(),
            wanted: "certificate",
            label: "CERTIFICATE",
            cause,
        };
        let chain = CertificateDer::pem_slice_iter(&certificate_pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(no_certificate)?;
        let validity = validity(chain.first().ok_or_else(|| no_certificate(pem::Error::NoItemsFound))?);
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|cause| IdentityError::NoPem {
            what: "private_key",
            origin: private_key.clone(),
            wanted: "private key",
            label: "PRIVATE KEY",
            cause,
        })?;
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
        let certified = certified.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                IdentityError::Mismatch { certificate: certificate.clone(), private_key }
            }
            cause => IdentityError::Unusable { certificate: certificate.clone(), cause },
        })?;
        Ok(Self { certified: Arc::new(certified), validity, certificate })
    }

    /// Whether both are the same. The key follows from the certificate, which it was found to belong to.
    fn is(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
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

/// When a certificate begins and ends.
fn validity(certificate: &[u8]) -> Option<[SystemTime; 2]> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let time = |seconds| {
        let since = Duration::from_secs(u64::try_from(seconds).ok()?);
        SystemTime::UNIX_EPOCH.checked_add(since)
    };
    let validity = certificate.validity();
    Some([time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?])
}

/// By what a change of a file is noticed: device, inode and size; when its contents and when anything about it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    identity: (u64, u64, u64),
    changed: [(i64, i64); 2],
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            identity: (found.dev(), found.ino(), found.len()),
            changed: [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())],
        }
    }
}

fn stamps(identity: &Identity) -> Option<[Stamp; 2]> {
    let Identity::Files { certificate, private_key } = identity else { return None };
    let stamp = |path: &Path| fs::metadata(path).ok().map(|found| Stamp::of(&found));
    Some([stamp(certificate)?, stamp(private_key)?])
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|cause| IdentityError::Unreadable { what, path: path.to_owned(), cause })
}
