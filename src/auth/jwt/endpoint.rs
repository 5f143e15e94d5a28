//! Keys at a URL, which are fetched in the background.
//!
//! Owns the key set that is in use and the task that fetches the next. Invariants: one fetch at a time; a fetch that fails
//! changes nothing, the last set stays valid; no redirect is followed.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::rand;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Full;
use jsonwebtoken::Algorithm;
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    keys::{KeyError, KeySet},
    schedule::Schedule,
};
use crate::http_client::{FetchError, HttpClient};

/// The time for one fetch.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest key set, in bytes.
pub(super) const MAX_BODY: usize = 256 << 10;
/// How long a token waits for a fetch: its whole time, and a bit more in case it begins late.
const WAIT: Duration = Duration::from_secs(6);

/// Why there is no new key set.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndpointError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the server answered {0}; redirects are not followed, set the URL where the key set is")]
    Redirect(StatusCode),
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error("what the server sent cannot be used: {0}")]
    Keys(#[from] KeyError),
}

#[derive(Debug)]
pub(super) struct Endpoint {
    /// The name of the method, for the log.
    method: String,
    client: HttpClient,
    url: Uri,
    algorithms: Vec<Algorithm>,
    keys: RwLock<Option<Arc<KeySet>>>,
    schedule: Mutex<Schedule>,
    /// Notified when a fetch is due earlier than before.
    earlier: Notify,
    /// Changes when a fetch is over.
    completed: watch::Sender<()>,
}

impl Endpoint {
    /// `keys` are those of a previous configuration with the same URL.
    pub(super) fn new(
        method: &str,
        client: HttpClient,
        url: &Uri,
        algorithms: &[Algorithm],
        keys: Option<Arc<KeySet>>,
    ) -> Self {
        Self {
            method: method.to_owned(),
            client,
            url: url.clone(),
            algorithms: algorithms.to_vec(),
            keys: RwLock::new(keys),
            schedule: Mutex::new(Schedule::new(Instant::now())),
            earlier: Notify::new(),
            completed: watch::Sender::new(()),
        }
    }

    /// The last key set that was fetched.
    pub(super) fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.read().clone()
    }

    /// Whether the last fetch failed.
    pub(super) fn is_failing(&self) -> bool {
        self.schedule.lock().is_failing()
    }

    /// A token names a key that is not in the set: waits for a fetch if one is running, or may begin.
    pub(super) async fn refresh(&self) {
        // Subscribed before the request, so that no end of a fetch is missed.
        let mut completed = self.completed.subscribe();
        if !self.schedule.lock().request(Instant::now()) {
            return;
        }
        self.earlier.notify_one();
        let _ = time::timeout(WAIT, completed.changed()).await;
    }

    /// Fetches the key set whenever it is due, until `stop` is cancelled.
    pub(super) async fn watch(&self, stop: CancellationToken) {
        let fetches = async {
            loop {
                let next = self.schedule.lock().next();
                tokio::select! {
                    () = time::sleep_until(next) => drop(self.update().await),
                    () = self.earlier.notified() => {}
                }
            }
        };
        stop.run_until_cancelled(fetches).await;
    }

    /// Fetches the key set, and installs it if it can be used.
    ///
    /// # Errors
    /// It cannot be fetched or used; that is in the log too.
    pub(super) async fn update(&self) -> Result<(), EndpointError> {
        self.schedule.lock().begin();
        let fetched = self.fetch().await;
        let (now, random) = (Instant::now(), random());
        let was_failing = self.is_failing();
        let result = match fetched {
            Ok(keys) => {
                let count = keys.len();
                let previous = self.keys.write().replace(Arc::new(keys));
                let is_changed = match (previous, self.keys()) {
                    (Some(previous), Some(current)) => !previous.is_same(&current),
                    _ => true,
                };
                if is_changed || was_failing {
                    tracing::info!(method = self.method, keys = count, "key set fetched");
                }
                self.schedule.lock().succeeded(now, random);
                Ok(())
            }
            Err(error) => {
                let keys = self.keys().map_or(0, |keys| keys.len());
                if was_failing {
                    tracing::debug!(method = self.method, keys, detail = %error, "key set not fetched again");
                } else {
                    tracing::warn!(
                        method = self.method,
                        keys,
                        detail = %error,
                        "key set not fetched: the keys of the previous one stay valid, if there was one"
                    );
                }
                self.schedule.lock().failed(now, random);
                Err(error)
            }
        };
        self.completed.send_replace(());
        result
    }

    async fn fetch(&self) -> Result<KeySet, EndpointError> {
        let mut request = Request::new(Full::<Bytes>::default());
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        // The next fetch is in minutes: no connection waits for it.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let response = self.client.send(request).await?;
        match response.status() {
            StatusCode::OK => Ok(KeySet::from_jwks(response.body(), &self.algorithms)?),
            status if status.is_redirection() => Err(EndpointError::Redirect(status)),
            status => Err(EndpointError::Status(status)),
        }
    }
}

/// A number from 0 to 1.
fn random() -> f64 {
    let mut bytes = [0; 2];
    // Without random numbers the pauses are the longest.
    match rand::fill(&mut bytes) {
        Ok(()) => f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX),
        Err(_) => 1.0,
    }
}
