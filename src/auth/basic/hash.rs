//! Hashes of passwords, as files have them.
//!
//! Pure. Owns which kinds are accepted, and how much a verification may cost. Invariant: no hash is part of an error or of what
//! Debug prints.

use std::fmt;

use argon2::{
    Algorithm, Argon2, MIN_SALT_LEN, Params, Version,
    password_hash::{PasswordVerifier, phc::PasswordHash},
};

/// What bcrypt looks at of a password, in bytes; it ignores the rest.
const BCRYPT_PASSWORD: usize = 72;
/// The length of a bcrypt hash: version, cost, salt and digest.
const BCRYPT_HASH: usize = 60;
/// The highest cost of bcrypt, which takes seconds.
const MAX_COST: u32 = 15;
/// The most memory of argon2, in KiB. It is used once for each computation that runs.
const MAX_MEMORY: u32 = 128 << 10;
/// The most passes of argon2.
const MAX_PASSES: u32 = 32;

/// A hash of a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct StoredHash {
    kind: Kind,
    text: Box<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bcrypt,
    Argon2,
}

impl fmt::Debug for StoredHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredHash").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Why a hash is not accepted. The messages have nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HashError {
    #[error("this is {0}, which is fast to guess; set the password again with htpasswd -B")]
    Weak(&'static str),
    #[error("this is no hash that can be verified here; set the password again with htpasswd -B")]
    Unknown,
    #[error("the bcrypt hash is cut off or not valid; set the password again with htpasswd -B")]
    Bcrypt,
    #[error(
        "bcrypt with a cost above {MAX_COST} would take seconds for each login; set the password again with htpasswd -B -C 12"
    )]
    Cost,
    #[error("the argon2 hash is cut off or not valid; set the password again")]
    Argon2,
    #[error("argon2 with more than {} MiB or {MAX_PASSES} passes could be used to overload this machine; set the password again with less", MAX_MEMORY >> 10)]
    Parameters,
}

impl StoredHash {
    /// A hash as it is in a file.
    ///
    /// # Errors
    /// It is of another kind, not valid, or too expensive.
    pub(super) fn parse(text: &str) -> Result<Self, HashError> {
        let kind = match text {
            _ if ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| text.starts_with(prefix)) => {
                check_bcrypt(text)?;
                Kind::Bcrypt
            }
            _ if text.starts_with("$argon2") => {
                check_argon2(text)?;
                Kind::Argon2
            }
            _ => return Err(unknown(text)),
        };
        Ok(Self { kind, text: text.into() })
    }

    /// The hash as it is in the file.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether this is the hash of a password. Slow on purpose, and for every password: also for one that is too long for
    /// bcrypt, which never is the right one, because bcrypt ignores how it goes on.
    pub(super) fn verify(&self, password: &str) -> bool {
        match self.kind {
            Kind::Bcrypt => {
                let is_equal = bcrypt::verify(password, &self.text).unwrap_or(false);
                is_equal && password.len() <= BCRYPT_PASSWORD
            }
            Kind::Argon2 => PasswordHash::new(&self.text)
                .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok()),
        }
    }
}

fn check_bcrypt(text: &str) -> Result<(), HashError> {
    let parts: bcrypt::HashParts = text.parse().map_err(|_| HashError::Bcrypt)?;
    let is_alphabet = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/' | b'$');
    if text.len() != BCRYPT_HASH || !text.bytes().all(is_alphabet) {
        return Err(HashError::Bcrypt);
    }
    match parts.get_cost() {
        4..=MAX_COST => Ok(()),
        cost if cost > MAX_COST => Err(HashError::Cost),
        _ => Err(HashError::Bcrypt),
    }
}

fn check_argon2(text: &str) -> Result<(), HashError> {
    let hash = PasswordHash::new(text).map_err(|_| HashError::Argon2)?;
    let parameters = Params::try_from(&hash).map_err(|_| HashError::Argon2)?;
    if parameters.m_cost() > MAX_MEMORY || parameters.t_cost() > MAX_PASSES {
        return Err(HashError::Parameters);
    }
    let is_known = Algorithm::try_from(hash.algorithm.as_str()).is_ok()
        && hash.version.is_none_or(|version| Version::try_from(version).is_ok());
    let has_salt = hash.salt.is_some_and(|salt| salt.len() >= MIN_SALT_LEN);
    match is_known && has_salt && hash.hash.is_some() {
        true => Ok(()),
        false => Err(HashError::Argon2),
    }
}

/// The other kinds that htpasswd writes have names.
fn unknown(text: &str) -> HashError {
    match text {
        _ if text.starts_with("$apr1$") || text.starts_with("$1$") => HashError::Weak("an MD5 hash"),
        _ if text.starts_with("{SHA}") || text.starts_with("{SSHA}") => HashError::Weak("a SHA-1 hash"),
        _ if text.starts_with("$5$") || text.starts_with("$6$") => HashError::Weak("a hash of crypt(3)"),
        _ => HashError::Unknown,
    }
}
