//! The verification of client certificates (mTLS): which authorities sign them, and which are revoked.
//!
//! Owns what `client_ca` and `crl` of a listener hold. Knows nothing of routes and users: it says only that a certificate is
//! genuine. Invariants: revocation lists that cannot be used never replace good ones; a certificate whose authority has no
//! list, or only an outdated one, is refused if there are lists at all.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use parking_lot::{Mutex, RwLock};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime},
    server::{
        VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::time::Instant;

use crate::{
    client_certificate::{CertificateId, RevocationList},
    config::ClientCa,
    pem::{PemError, PemSource, certificates, read_pem, revocation_lists},
    watched_file::{ChangeTracker, FileEvent, LoadedFile, Stamp},
};

const CLIENT_CA: &str = "client_ca";
const CRL: &str = "crl";

/// Why the files of a listener for client certificates cannot be used. Each message names the key and the file.
#[derive(Debug, thiserror::Error)]
pub enum ClientCaError {
    /// A file is missing, unreadable or not PEM.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A certificate in `client_ca` is invalid.
    #[error("client_ca {path} holds a certificate that cannot be used: {cause}; export it again", path = .path.display())]
    BadAuthority {
        path: PathBuf,
        /// The TLS library's error.
        cause: Error,
    },
    /// A revocation list is invalid, or of a kind that is not supported.
    #[error(
        "crl {path} cannot be used: {cause}; it must be a complete list of version 2, with the date of its next update",
        path = .path.display()
    )]
    BadList { path: PathBuf, cause: String },
    /// The TLS library does not accept its settings.
    #[error("client_ca {path} cannot be used: {cause}", path = .path.display())]
    Library { path: PathBuf, cause: VerifierBuilderError },
}

/// The files of the lists; `None` while one of them is missing.
type Stamps = Option<Vec<Stamp>>;

/// Verifies the certificates of the clients of one listener.
#[derive(Debug)]
pub(crate) struct ClientCaVerifier {
    config: ClientCa,
    roots: Arc<RootCertStore>,
    /// The authorities' names, which the handshake sends so that the client finds its certificate.
    hints: Vec<DistinguishedName>,
    lists: RwLock<Arc<Lists>>,
    tracker: Mutex<ChangeTracker<Stamps>>,
}

/// The verifier with the lists as they are now, and what they hold.
#[derive(Debug)]
struct Lists {
    verifier: Arc<dyn ClientCertVerifier>,
    der: Vec<CertificateRevocationListDer<'static>>,
    revoked: HashSet<CertificateId>,
    /// When the first of them is outdated.
    next_update: Option<SystemTime>,
    /// Whether it was reported that it is.
    reported: AtomicBool,
}

impl ClientCaVerifier {
    /// Reads the authorities, and the revocation lists if there are some.
    ///
    /// # Errors
    /// A file is missing, unreadable or not PEM, or holds what cannot be used.
    pub(crate) fn load(config: &ClientCa) -> Result<Self, ClientCaError> {
        let path = &config.path;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&PemSource::file(CLIENT_CA, path), &read_pem(CLIENT_CA, path)?)? {
            roots
                .add(certificate)
                .map_err(|cause| ClientCaError::BadAuthority { path: path.clone(), cause })?;
        }
        let roots = Arc::new(roots);
        // Before the files are read: a change meanwhile is found by the first check.
        let tracker = ChangeTracker::new(stamps(config), Instant::now());
        let lists = Lists::read(config, &roots)?;
        Ok(Self {
            config: config.clone(),
            hints: roots.subjects(),
            roots,
            lists: RwLock::new(Arc::new(lists)),
            tracker: Mutex::new(tracker),
        })
    }

    /// Tells which certificates the lists hold now; `None` if they hold none.
    pub(crate) fn revoked(&self) -> Option<impl Fn(&CertificateId) -> bool + use<>> {
        let lists = self.lists();
        (!lists.revoked.is_empty())
            .then_some(move |certificate: &CertificateId| lists.revoked.contains(certificate))
    }

    /// A warning if a list is outdated now. It is returned once for each version of the files.
    pub(crate) fn warning(&self, now: SystemTime) -> Option<String> {
        let lists = self.lists();
        let due = lists.next_update.filter(|due| *due <= now)?;
        if lists.reported.swap(true, Ordering::Relaxed) {
            return None;
        }
        Some(format!(
            "crl {}: a list was to be replaced by {}, so the certificates of its authority are refused; fetch the current one",
            names(&self.config.crls),
            humantime::format_rfc3339_seconds(due)
        ))
    }

    /// Reads the revocation lists if they have changed, and uses what they hold if it is valid.
    pub(crate) fn check(&self) {
        if self.config.crls.is_empty() {
            return;
        }
        // Held until the lists are installed, so that a rejection by a reload comes before or after, not between.
        let mut tracker = self.tracker.lock();
        let current = self.lists();
        let event = tracker.check(stamps(&self.config), Instant::now(), || {
            let lists = Lists::read(&self.config, &self.roots)?;
            Ok(LoadedFile { is_current: lists.der == current.der, value: lists, is_partial: false })
        });
        let crl = names(&self.config.crls);
        match event {
            FileEvent::None => {}
            FileEvent::Replaced(lists) => {
                tracing::info!(%crl, revoked = lists.revoked.len(), "revocation lists reloaded");
                *self.lists.write() = Arc::new(lists);
            }
            FileEvent::Recovered(_) => tracing::info!(%crl, "revocation lists are good again"),
            FileEvent::Rejected(error) => {
                let error: ClientCaError = error;
                tracing::warn!(
                    %crl,
                    detail = %error,
                    "revocation lists not reloaded: the previous ones stay in use"
                );
            }
        }
        if let Some(warning) = self.warning(SystemTime::now()) {
            tracing::warn!("{warning}");
        }
    }

    /// A reload of the configuration has rejected these files and reported that: the rejection is not reported again.
    pub(crate) fn mark_rejected(&self, config: &ClientCa) {
        if config.crls == self.config.crls {
            self.tracker.lock().mark_rejected(stamps(config));
        }
    }

    fn lists(&self) -> Arc<Lists> {
        Arc::clone(&self.lists.read())
    }
}

impl Lists {
    fn read(config: &ClientCa, roots: &Arc<RootCertStore>) -> Result<Self, ClientCaError> {
        let (mut der, mut revoked, mut next_update) = (Vec::new(), HashSet::new(), None::<SystemTime>);
        for path in &config.crls {
            let bad = |cause: String| ClientCaError::BadList { path: path.clone(), cause };
            for list in revocation_lists(&PemSource::file(CRL, path), &read_pem(CRL, path)?)? {
                // The TLS library's check comes first: its messages say what is not supported.
                webpki::OwnedCertRevocationList::from_der(&list).map_err(|cause| bad(cause.to_string()))?;
                let parsed = RevocationList::parse(&list).ok_or_else(|| bad("it is malformed".to_owned()))?;
                revoked.extend(parsed.revoked);
                next_update = next_update.into_iter().chain(parsed.next_update).min();
                der.push(list);
            }
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
            .with_crls(der.iter().cloned())
            .enforce_revocation_expiration();
        let builder = if config.required { builder } else { builder.allow_unauthenticated() };
        let verifier =
            builder.build().map_err(|cause| ClientCaError::Library { path: config.path.clone(), cause })?;
        Ok(Self { verifier, der, revoked, next_update, reported: AtomicBool::new(false) })
    }
}

impl ClientCertVerifier for ClientCaVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.config.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.lists().verifier.verify_client_cert(certificate, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.lists().verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.lists().verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.lists().verifier.supported_verify_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn stamps(config: &ClientCa) -> Stamps {
    config.crls.iter().map(|path| Stamp::read(path)).collect()
}

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| Path::display(path).to_string()).collect::<Vec<_>>().join(", ")
}
