//! `kind = "basic"`: a user and a password (RFC 7617), compared with the hashes of a file.
//!
//! Owns the steps from a request to its user. Invariants: no password is compared on a thread of the runtime; an unknown user and a
//! wrong password take as long and get the same response; no password is in an error, in the log or in memory for longer than
//! its comparison, except as a keyed digest.

mod file;
mod hash;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use base64::prelude::{BASE64_STANDARD, Engine};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::file::PasswordFile;
use super::{AuthRequest, Credentials, Denied, Grant, cache::GrantCache};
use crate::config::{Basic, Secret};

/// How long a password that was right counts without being hashed again: a browser sends it with every file of a page.
const CACHED: Duration = Duration::from_secs(5 * 60);

/// A method of this kind.
#[derive(Debug)]
pub(crate) struct BasicMethod {
    config: Basic,
    challenge: HeaderValue,
    file: Arc<PasswordFile>,
    credentials: Arc<Credentials>,
    cache: GrantCache,
}

impl BasicMethod {
    /// Reads the file. `previous` is the method of the same name in the configuration that this one replaces.
    ///
    /// # Errors
    /// What is wrong with the file, and what to do.
    pub(super) fn load(
        config: &Basic,
        credentials: &Arc<Credentials>,
        previous: Option<&Self>,
    ) -> Result<Self, String> {
        let file = PasswordFile::open(&config.file).map_err(|error| {
            // The caller reports this failure, so the watcher of this file need not report it again.
            if let Some(previous) = previous.filter(|previous| previous.config.file == config.file) {
                previous.file.mark_rejected();
            }
            format!("file: {error}")
        })?;
        let challenge = format!("Basic realm=\"{}\", charset=\"UTF-8\"", config.realm);
        Ok(Self {
            config: config.clone(),
            challenge: HeaderValue::try_from(challenge).map_err(|error| format!("realm: {error}"))?,
            file: Arc::new(file),
            credentials: Arc::clone(credentials),
            cache: GrantCache::new(CACHED)?,
        })
    }

    /// What a client without a password is asked for (RFC 7617 §2).
    pub(super) fn challenge(&self) -> &HeaderValue {
        &self.challenge
    }

    /// Keeps the users current until `stop` is cancelled.
    pub(super) async fn watch(&self, stop: CancellationToken) {
        Arc::clone(&self.file).watch(stop).await;
    }

    pub(super) async fn check(&self, request: &AuthRequest<'_>) -> Result<Grant, Denied> {
        let Some(Login { user, password }) = login(request.head.headers())? else {
            return Err(Denied::missing("the request has no user and password"));
        };
        let wrong = || Denied::invalid("the user is unknown, or the password is wrong");
        let comparison = self.file.users().comparison(&user).ok_or_else(wrong)?;
        let parts = [user.as_bytes(), password.expose().as_bytes(), comparison.hash.text().as_bytes()];
        let key = self.cache.key(parts);
        // The hash of an unknown user is another's, who may have had another name when the password was right.
        if comparison.is_known
            && let Some(grant) = self.cache.get(key, Instant::now(), request.now)
        {
            return Ok(grant);
        }
        let grant = Grant::of_user(&user)?;
        let compare = move || comparison.hash.verify(password.expose()) && comparison.is_known;
        match self.credentials.hashing.run(compare).await {
            Ok(true) => {
                self.cache.insert(key, grant.clone(), Instant::now());
                Ok(grant)
            }
            Ok(false) => Err(wrong()),
            Err(full) => Err(Denied::Unavailable { detail: full.to_string() }),
        }
    }
}

/// What a client sends.
#[derive(Debug)]
struct Login {
    user: String,
    password: Secret,
}

/// The user and the password of `Authorization: Basic …`; `None` if there are none. The name of the scheme has no case (RFC
/// 9110 §11.1).
fn login(headers: &HeaderMap) -> Result<Option<Login>, Denied> {
    let lines = headers.get_all(AUTHORIZATION).iter().filter_map(|value| value.to_str().ok());
    let mut encoded = lines.filter_map(|line| {
        let (scheme, encoded) = line.split_once(' ')?;
        scheme.eq_ignore_ascii_case("basic").then(|| encoded.trim())
    });
    let Some(first) = encoded.next() else { return Ok(None) };
    if encoded.next().is_some() {
        return Err(Denied::invalid("there are several credentials in the same place"));
    }
    let malformed = || Denied::invalid("the credentials are not a user and a password in UTF-8 and Base64");
    let decoded = BASE64_STANDARD.decode(first).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let decoded = decoded.ok_or_else(malformed)?;
    let (user, password) = decoded.split_once(':').ok_or_else(malformed)?;
    // RFC 7617 §2 allows none. In C, NUL would end a password.
    if decoded.chars().any(char::is_control) {
        return Err(malformed());
    }
    Ok(Some(Login { user: user.to_owned(), password: Secret::new(password.to_owned()) }))
}
