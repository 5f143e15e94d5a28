//! `kind = "forward"`: an HTTP server decides who may enter, the authority, such as a login service that the site has already.
//!
//! Owns how many requests the authority has at the same time, how long a client waits, and which answers count again. Invariants:
//! only an answer of the authority itself admits a request, never a field that the client has sent; without an answer in time
//! nothing is admitted; no part of a request is in an error or in the log.

mod answer;
mod question;

use std::time::Duration;

use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

pub(crate) use self::answer::Answer;
use super::{AuthRequest, Denied, Grant, cache::GrantCache};
use crate::{
    config::Forward,
    http_client::{FetchError, HttpClient},
};

/// The longest body of an answer, in bytes. It is not kept.
const MAX_BODY: usize = 1 << 20;
/// How often the log says that the authority does not answer.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// A method of this kind.
#[derive(Debug)]
pub(crate) struct ForwardMethod {
    /// The name of the method, for the log.
    name: String,
    config: Forward,
    client: HttpClient,
    in_flight: Semaphore,
    cache: Option<GrantCache>,
    /// When the log last said that the authority does not answer.
    warned: Mutex<Option<Instant>>,
}

impl ForwardMethod {
    /// Prepares to ask the authority.
    ///
    /// # Errors
    /// What is wrong with the file `ca`, and what to do.
    pub(super) fn load(name: &str, config: &Forward) -> Result<Self, String> {
        let client = HttpClient::new("ca", config.ca.as_deref(), config.timeout, MAX_BODY)
            .map_err(|error| error.to_string())?;
        Ok(Self {
            name: name.to_owned(),
            config: config.clone(),
            client,
            in_flight: Semaphore::new(config.max_in_flight as usize),
            cache: config.cache.map(GrantCache::new).transpose()?,
            warned: Mutex::new(None),
        })
    }

    /// Whether a reload keeps this: it has the same configuration, and that names no file that may have changed.
    pub(super) fn is_kept(&self, config: &Forward) -> bool {
        config.ca.is_none() && self.config == *config
    }

    pub(super) async fn check(&self, request: &AuthRequest<'_>) -> Result<Grant, Denied> {
        let question = question::question(&self.config.url, request)?;
        let cached = self.cache.as_ref().map(|cache| (cache, cache.key(question::parts(&question))));
        if let Some((cache, key)) = cached
            && let Some(grant) = cache.get(key, Instant::now(), request.now)
        {
            return Ok(grant);
        }
        let ask = async {
            // The semaphore is never closed. A permit is held until the answer is there, or not waited for any more.
            let _permit = self.in_flight.acquire().await;
            self.client.ask(question).await
        };
        let answer = match timeout(self.config.timeout, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(FetchError::Timeout(self.config.timeout)),
        };
        let answer = answer.map_err(|error| error.to_string());
        let granted = answer
            .and_then(|answer| answer::evaluate(&answer, &self.config, request))
            .unwrap_or_else(|cause| {
                self.warn(&cause);
                Err(Denied::Unavailable { detail: format!("the authority: {cause}") })
            })?;
        if let Some((cache, key)) = cached {
            cache.insert(key, granted.clone(), Instant::now());
        }
        Ok(granted)
    }

    /// Says in the log that the authority cannot be used. Clients can cause this as often as they like, so it is said rarely.
    fn warn(&self, cause: &str) {
        let now = Instant::now();
        let mut warned = self.warned.lock();
        if warned.is_some_and(|last| now.duration_since(last) < WARNING_INTERVAL) {
            return;
        }
        *warned = Some(now);
        tracing::warn!(
            method = self.name,
            detail = cause,
            "the authority cannot be used: no client is admitted without it"
        );
    }
}

#[cfg(test)]
mod tests;
