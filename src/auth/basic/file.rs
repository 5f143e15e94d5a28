//! The users of a password file, which is read again when it changes.
//!
//! Owns the format, that of `htpasswd`. Invariants: a file that cannot be used changes nothing, the previous users stay, and that is
//! logged once; no line is part of an error, because it could be a password.

use std::{
    collections::hash_map::RandomState,
    fs::File,
    hash::BuildHasher,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use indexmap::IndexMap;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hash::{HashError, StoredHash};
use crate::{
    auth::Grant,
    watched_file::{self, ChangeTracker, FileEvent, LoadedFile, Stamp},
};

/// A larger file has no passwords.
const MAX_FILE: u64 = 4 << 20;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum PasswordFileError {
    #[error("cannot read {}: {cause}; check the path and its permissions", .path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{} is larger than {MAX_FILE} bytes; name the file with the passwords", .path.display())]
    TooLarge { path: PathBuf },
    #[error("{}:{line}: {cause}", .path.display())]
    Line { path: PathBuf, line: usize, cause: LineError },
}

/// Why a line cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineError {
    #[error("the line is not UTF-8; write it again")]
    NotUtf8,
    #[error("the line is not user:hash; write it with htpasswd -B")]
    NoColon,
    #[error("the user's name is empty, too long, or has control characters; write another")]
    User,
    #[error("this user has a line already, line {0}; remove one of them")]
    Duplicate(usize),
    #[error(transparent)]
    Hash(#[from] HashError),
}

/// The users and their hashes.
#[derive(Debug, Default)]
pub(super) struct Users {
    hashes: IndexMap<Box<str>, Arc<StoredHash>>,
    /// Chooses whose hash stands for that of an unknown user.
    random: RandomState,
}

/// What a password is compared with.
#[derive(Debug, Clone)]
pub(super) struct Comparison {
    pub(super) hash: Arc<StoredHash>,
    /// Whether the user is known. Otherwise the hash is another user's: the password is compared all the same, so that it takes
    /// as long, and is wrong whatever comes out.
    pub(super) is_known: bool,
}

impl Users {
    /// Reads the lines of a file. The error has the number of the line.
    pub(super) fn parse(text: &[u8]) -> Result<Self, (usize, LineError)> {
        let mut users = Self::default();
        let mut lines: IndexMap<Box<str>, usize> = IndexMap::new();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let number = index + 1;
            let line = std::str::from_utf8(line).map_err(|_| (number, LineError::NotUtf8))?;
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, hash) = line.split_once(':').ok_or((number, LineError::NoColon))?;
            if Grant::of_user(user).is_err() {
                return Err((number, LineError::User));
            }
            if let Some(first) = lines.insert(user.into(), number) {
                return Err((number, LineError::Duplicate(first)));
            }
            let hash = StoredHash::parse(hash).map_err(|cause| (number, cause.into()))?;
            users.hashes.insert(user.into(), Arc::new(hash));
        }
        Ok(users)
    }

    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// What the password of this user is compared with; `None` if there is no user at all. An unknown user gets the hash of
    /// another, always of the same: those that take longer than others are not a sign of a user who exists.
    pub(super) fn comparison(&self, user: &str) -> Option<Comparison> {
        if let Some(hash) = self.hashes.get(user) {
            return Some(Comparison { hash: Arc::clone(hash), is_known: true });
        }
        let count = self.hashes.len() as u64;
        let index = self.random.hash_one(user).checked_rem(count)?;
        let (_, hash) = self.hashes.get_index(usize::try_from(index).ok()?)?;
        Some(Comparison { hash: Arc::clone(hash), is_known: false })
    }
}

#[derive(Debug)]
pub(super) struct PasswordFile {
    path: PathBuf,
    users: RwLock<Arc<Users>>,
    tracker: Mutex<ChangeTracker<Option<Stamp>>>,
}

impl PasswordFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It cannot be read, or has a line that cannot be used.
    pub(super) fn open(path: &Path) -> Result<Self, PasswordFileError> {
        let stamp = Stamp::read(path);
        let (users, _) = read(path)?;
        Ok(Self {
            path: path.to_owned(),
            users: RwLock::new(Arc::new(users)),
            tracker: Mutex::new(ChangeTracker::new(stamp, Instant::now())),
        })
    }

    pub(super) fn users(&self) -> Arc<Users> {
        Arc::clone(&self.users.read())
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
            let (users, is_partial) = read(&self.path)?;
            let is_current = users.hashes == self.users().hashes;
            Ok(LoadedFile { value: users, is_current, is_partial })
        });
        match event {
            FileEvent::None => {}
            FileEvent::Replaced(users) | FileEvent::Recovered(users) => {
                let count = users.len();
                *self.users.write() = Arc::new(users);
                tracing::info!(path = %self.path.display(), users = count, "passwords reloaded");
            }
            FileEvent::Rejected(error) => {
                let error: PasswordFileError = error;
                tracing::warn!(
                    path = %self.path.display(),
                    detail = %error,
                    "passwords not reloaded: the previous ones stay valid"
                );
            }
        }
    }
}

/// The users, and whether the file looks as if it were still being written.
fn read(path: &Path) -> Result<(Users, bool), PasswordFileError> {
    let unreadable = |cause| PasswordFileError::Unreadable { path: path.to_owned(), cause };
    let mut text = Vec::new();
    File::open(path).map_err(unreadable)?.take(MAX_FILE + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE {
        return Err(PasswordFileError::TooLarge { path: path.to_owned() });
    }
    let users = Users::parse(&text).map_err(|(line, cause)| PasswordFileError::Line {
        path: path.to_owned(),
        line,
        cause,
    })?;
    let is_partial = !text.ends_with(b"\n");
    Ok((users, is_partial))
}
