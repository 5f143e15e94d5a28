//! Keys in a file, which is read again when it changes.
//!
//! Invariant: a file that cannot be used changes nothing; the previous keys stay valid, and that is logged once.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use jsonwebtoken::Algorithm;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::keys::{KeyError, KeySet};
use crate::watched_file::{self, ChangeTracker, FileEvent, LoadedFile, Stamp};

/// A larger file has no key.
const MAX_FILE: u64 = 256 << 10;

/// What a file has.
#[derive(Debug, Clone, Copy)]
pub(super) enum FileKind {
    Pem,
    Secret,
    Set,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyFileError {
    #[error("cannot read {}: {cause}; check the path and its permissions", .path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{} is larger than {MAX_FILE} bytes; name the file with the key", .path.display())]
    TooLarge { path: PathBuf },
    #[error("{} cannot be used: {cause}", .path.display())]
    Unusable { path: PathBuf, cause: KeyError },
}

#[derive(Debug)]
pub(super) struct KeyFile {
    kind: FileKind,
    path: PathBuf,
    algorithms: Vec<Algorithm>,
    keys: RwLock<Arc<KeySet>>,
    tracker: Mutex<ChangeTracker<Option<Stamp>>>,
}

impl KeyFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It has no key that can be used with all of the algorithms or, if it is a key set, with one of them.
    pub(super) fn open(kind: FileKind, path: &Path, algorithms: &[Algorithm]) -> Result<Self, KeyFileError> {
        let stamp = Stamp::read(path);
        let keys = read(kind, path, algorithms)?;
        Ok(Self {
            kind,
            path: path.to_owned(),
            algorithms: algorithms.to_vec(),
            keys: RwLock::new(Arc::new(keys)),
            tracker: Mutex::new(ChangeTracker::new(stamp, Instant::now())),
        })
    }

    pub(super) fn keys(&self) -> Arc<KeySet> {
        Arc::clone(&self.keys.read())
    }

    /// Reads the file again when it changes, until `stop` is cancelled.
    pub(super) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        watched_file::poll(move || self.check(), stop).await;
    }

    /// A reload of the configuration has rejected this file and reported that: it is not reported again.
    pub(super) fn mark_rejected(&self) {
        self.tracker.lock().mark_rejected(Stamp::read(&self.path));
    }

    fn check(&self) {
        let event = self.tracker.lock().check(Stamp::read(&self.path), Instant::now(), || {
            let keys = read(self.kind, &self.path, &self.algorithms)?;
            let is_current = keys.is_same(&self.keys());
            Ok(LoadedFile { value: keys, is_current, is_partial: false })
        });
        match event {
            FileEvent::None => {}
            FileEvent::Replaced(keys) | FileEvent::Recovered(keys) => {
                let count = keys.len();
                *self.keys.write() = Arc::new(keys);
                tracing::info!(path = %self.path.display(), keys = count, "keys reloaded");
            }
            FileEvent::Rejected(error) => {
                let error: KeyFileError = error;
                tracing::warn!(
                    path = %self.path.display(),
                    detail = %error,
                    "keys not reloaded: the previous ones stay valid"
                );
            }
        }
    }
}

fn read(kind: FileKind, path: &Path, algorithms: &[Algorithm]) -> Result<KeySet, KeyFileError> {
    let unreadable = |cause| KeyFileError::Unreadable { path: path.to_owned(), cause };
    let mut text = Vec::new();
    File::open(path).map_err(unreadable)?.take(MAX_FILE + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE {
        return Err(KeyFileError::TooLarge { path: path.to_owned() });
    }
    let keys = match kind {
        FileKind::Pem => KeySet::from_pem(&text, algorithms),
        FileKind::Secret => KeySet::from_secret(&text, algorithms),
        FileKind::Set => KeySet::from_jwks(&text, algorithms),
    };
    keys.map_err(|cause| KeyFileError::Unusable { path: path.to_owned(), cause })
}
