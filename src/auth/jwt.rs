//! `kind = "jwt"`: tokens that an issuer has signed (RFC 7519, RFC 8725).
//!
//! Owns the steps from a request to what its token grants: the token, its key, its signature, its claims. Invariants: no claim
//! is looked at before the signature is verified; no part of a token is in an error or in the log; a token that names a key
//! that is not known causes at most one fetch of the key set in 30 seconds.

mod claims;
mod endpoint;
mod key_file;
mod keys;
mod schedule;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::SystemTime};

use jsonwebtoken::{DecodingKey, Header, Validation, decode, decode_header, errors::ErrorKind};
use tokio_util::sync::CancellationToken;

use self::{
    claims::Claims,
    endpoint::Endpoint,
    key_file::{FileKind, KeyFile},
    keys::{KeySet, NoKey},
};
use super::{AuthRequest, Denied, Grant, place};
use crate::{
    config::{Jwt, JwtKeys},
    http_client::HttpClient,
};

/// The longest token, in bytes.
const MAX_TOKEN: usize = 8 << 10;

/// A method of this kind.
#[derive(Debug)]
pub(crate) struct JwtMethod {
    config: Jwt,
    keys: Keys,
}

#[derive(Debug)]
enum Keys {
    File(Arc<KeyFile>),
    Endpoint(Box<Endpoint>),
}

impl Keys {
    fn current(&self) -> Option<Arc<KeySet>> {
        match self {
            Self::File(file) => Some(file.keys()),
            Self::Endpoint(endpoint) => endpoint.keys(),
        }
    }
}

impl JwtMethod {
    /// Loads the keys, or prepares to fetch them. `previous` is the method of the same name in the configuration that this
    /// one replaces.
    ///
    /// # Errors
    /// What is wrong with a file, and what to do.
    pub(super) fn load(name: &str, config: &Jwt, previous: Option<&Self>) -> Result<Self, String> {
        let (kind, path, key) = match &config.keys {
            JwtKeys::SetUrl { url, ca } => {
                let client = HttpClient::new("ca", ca.as_deref(), endpoint::TIMEOUT, endpoint::MAX_BODY);
                let client = client.map_err(|error| error.to_string())?;
                let keys = previous.filter(|previous| previous.config == *config);
                let keys = keys.and_then(|previous| previous.keys.current());
                let endpoint = Endpoint::new(name, client, url, &config.algorithms, keys);
                return Ok(Self { config: config.clone(), keys: Keys::Endpoint(Box::new(endpoint)) });
            }
            JwtKeys::Pem(path) => (FileKind::Pem, path, "key"),
            JwtKeys::Secret(path) => (FileKind::Secret, path, "secret_file"),
            JwtKeys::SetFile(path) => (FileKind::Set, path, "jwks"),
        };
        let file = KeyFile::open(kind, path, &config.algorithms).map_err(|error| {
            // The caller reports this failure, so the watcher of this file need not report it again.
            if let Some(Self { keys: Keys::File(previous), config: Jwt { keys, .. } }) = previous
                && *keys == config.keys
            {
                previous.mark_rejected();
            }
            format!("{key}: {error}")
        })?;
        Ok(Self { config: config.clone(), keys: Keys::File(Arc::new(file)) })
    }

    /// Whether a reload keeps this: it has the same configuration, and that names no file that may have changed.
    pub(super) fn is_kept(&self, config: &Jwt) -> bool {
        matches!(config.keys, JwtKeys::SetUrl { ca: None, .. }) && self.config == *config
    }

    /// Keeps the keys current until `stop` is cancelled.
    pub(super) async fn watch(&self, stop: CancellationToken) {
        match &self.keys {
            Keys::File(file) => Arc::clone(file).watch(stop).await,
            Keys::Endpoint(endpoint) => endpoint.watch(stop).await,
        }
    }

    /// Verifies a token without a request and without the background task.
    pub(super) async fn examine(&self, token: &str, now: SystemTime) -> Result<Grant, Denied> {
        if let Keys::Endpoint(endpoint) = &self.keys
            && let Err(error) = endpoint.update().await
        {
            return Err(Denied::Unavailable { detail: format!("the key set cannot be fetched: {error}") });
        }
        self.grant(self.claims(token), now)
    }

    pub(super) async fn check(&self, request: &AuthRequest<'_>) -> Result<Grant, Denied> {
        let token = place::token(request.head, &self.config.from);
        match token.map_err(|error| Denied::invalid(error.to_string()))? {
            Some(token) => self.verify(token.expose(), request.now).await,
            None => Err(Denied::missing("the request has no token")),
        }
    }

    /// Whether an offered subprotocol is a token.
    pub(super) fn is_credential(&self, offered: &str) -> bool {
        place::is_token_offer(offered, &self.config.from)
    }

    /// Verifies a token and reads its claims.
    pub(super) async fn verify(&self, token: &str, now: SystemTime) -> Result<Grant, Denied> {
        let claims = match self.claims(token) {
            Err(TokenFault::Key(NoKey::Unknown)) => {
                let Keys::Endpoint(endpoint) = &self.keys else {
                    return Err(Denied::invalid(NoKey::Unknown.to_string()));
                };
                endpoint.refresh().await;
                match self.claims(token) {
                    Err(TokenFault::Key(NoKey::Unknown)) if endpoint.is_failing() => {
                        let detail = "the key set may be out of date, and cannot be fetched".to_owned();
                        return Err(Denied::Unavailable { detail });
                    }
                    claims => claims,
                }
            }
            claims => claims,
        };
        self.grant(claims, now)
    }

    fn grant(&self, claims: Result<Claims, TokenFault>, now: SystemTime) -> Result<Grant, Denied> {
        let claims = claims.map_err(|fault| match fault {
            TokenFault::NoKeys => Denied::Unavailable { detail: fault.to_string() },
            fault => Denied::invalid(fault.to_string()),
        })?;
        claims::grant(&claims, &self.config, now)
    }

    /// The claims of a token, after its signature is verified.
    fn claims(&self, token: &str) -> Result<Claims, TokenFault> {
        if token.len() > MAX_TOKEN {
            return Err(TokenFault::TooLong);
        }
        let header = decode_header(token).map_err(|_| TokenFault::Unreadable)?;
        if !self.config.algorithms.contains(&header.alg) {
            return Err(TokenFault::Algorithm);
        }
        // Extensions that are critical must be understood (RFC 7515 §4.1.11), and none is.
        if header.crit.is_some() {
            return Err(TokenFault::Extension);
        }
        let keys = self.keys.current().ok_or(TokenFault::NoKeys)?;
        let key = keys.find(header.alg, header.kid.as_deref())?;
        verified(token, &header, key)
    }
}

/// Why a token has no claims that count. The messages have nothing of the token.
#[derive(Debug, thiserror::Error)]
enum TokenFault {
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("the token is no JWT, or has an algorithm that is not supported")]
    Unreadable,
    #[error("the token is signed with an algorithm that is not configured")]
    Algorithm,
    #[error("the token has an extension that must be understood (crit), and is not")]
    Extension,
    #[error("the key set has not been fetched yet")]
    NoKeys,
    #[error(transparent)]
    Key(#[from] NoKey),
    #[error("the signature is not valid")]
    Signature,
    #[error("the claims cannot be read")]
    Claims,
}

/// The claims, if the signature is valid. Their meaning, times included, is not checked here: the crate would read the clock.
fn verified(token: &str, header: &Header, key: &DecodingKey) -> Result<Claims, TokenFault> {
    let mut validation = Validation::new(header.alg);
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    let decoded = decode::<Claims>(token, key, &validation);
    decoded.map(|token| token.claims).map_err(|error| match error.kind() {
        ErrorKind::Json(_) | ErrorKind::Utf8(_) => TokenFault::Claims,
        _ => TokenFault::Signature,
    })
}
