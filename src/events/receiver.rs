//! The server that events are posted to.
//!
//! Owns the request and its signature. Invariants: the secret is in no message and not in what Debug prints; no redirect is followed.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Full;

use super::{body::body, waiting::Numbered};
use crate::{
    config::Events,
    http_client::{FetchError, HttpClient, HttpClientError},
};

/// The header with the signature.
const SIGNATURE: HeaderName = HeaderName::from_static("portcullis-signature");
/// The longest response, in bytes. It is not used.
const MAX_RESPONSE: usize = 64 << 10;
/// The shortest secret, in bytes: the length of the hash. A shorter one can be found by trying.
const MIN_SECRET: usize = 32;
/// A larger file has no secret.
const MAX_SECRET: usize = 4096;

/// Why events cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    /// The file cannot be read.
    #[error("events.secret_file: cannot read {}: {cause}; check the path and its permissions", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// The file is not one with a secret.
    #[error(
        "events.secret_file: {} has {has} bytes, and a secret has {MIN_SECRET} to {MAX_SECRET}; make one with \"openssl rand -hex 32\"",
        .path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// How long it is without the end of its line.
        has: usize,
    },
    /// The certificates of authorities cannot be used.
    #[error("{0}")]
    Client(String),
}

/// What a configuration says of events, ready to be used.
#[derive(Debug)]
pub(crate) struct EventSettings {
    pub(super) receiver: Receiver,
    /// How many events wait at most.
    pub(super) queue: usize,
    /// How long an event waits at most.
    pub(super) max_age: Duration,
}

impl EventSettings {
    /// Reads the secret and the certificates.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub(crate) fn load(config: &Events) -> Result<Self, ReceiverError> {
        let client = HttpClient::new("events.ca", config.ca.as_deref(), config.timeout, MAX_RESPONSE)
            .map_err(|error: HttpClientError| ReceiverError::Client(error.to_string()))?;
        let key = secret(&config.secret_file)?;
        let receiver = Receiver { client, url: config.url.clone(), key };
        Ok(Self { receiver, queue: config.queue, max_age: config.max_age })
    }
}

fn secret(path: &Path) -> Result<hmac::Key, ReceiverError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(2 * MAX_SECRET as u64).read_to_end(&mut text))
        .map_err(|cause| ReceiverError::Unreadable { path: path.to_owned(), cause })?;
    let secret = text.trim_ascii_end();
    if !(MIN_SECRET..=MAX_SECRET).contains(&secret.len()) {
        return Err(ReceiverError::Length { path: path.to_owned(), has: secret.len() });
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, secret))
}

/// Why events were not delivered.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliveryError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the receiver answered {0}; redirects are not followed, set events.url where it leads to")]
    Redirect(StatusCode),
    #[error("the receiver answered {0}")]
    Status(StatusCode),
    #[error("the request cannot be written: {0}")]
    Request(String),
}

impl DeliveryError {
    /// Whether the receiver says that what was sent is wrong, and will be wrong the next time.
    pub(super) fn is_rejection(&self) -> bool {
        matches!(
            self,
            Self::Status(
                StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY
            )
        )
    }
}

/// The server, and the key that signs for it.
pub(super) struct Receiver {
    client: HttpClient,
    url: Uri,
    key: hmac::Key,
}

impl Receiver {
    /// Posts events. `dropped`: how many the queue has dropped so far.
    pub(super) async fn post(
        &self,
        events: &[Numbered],
        dropped: u64,
        now: SystemTime,
    ) -> Result<(), DeliveryError> {
        let unwritable = |error: &dyn fmt::Display| DeliveryError::Request(error.to_string());
        let body =
            body(events.iter().map(|waiting| &waiting.event), dropped).map_err(|error| unwritable(&error))?;
        let signature = signature(&self.key, now, &body);
        let mut signature = HeaderValue::try_from(signature).map_err(|error| unwritable(&error))?;
        signature.set_sensitive(true);
        let request = Request::post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("portcullis/", env!("CARGO_PKG_VERSION")))
            .header(SIGNATURE, signature)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| unwritable(&error))?;
        let response = self.client.send(request).await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status if status.is_redirection() => Err(DeliveryError::Redirect(status)),
            status => Err(DeliveryError::Status(status)),
        }
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the secret nor the URL, whose query may be one.
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// The value of the header: the time, and the HMAC-SHA-256 of the time, a full stop and the body.
fn signature(key: &hmac::Key, now: SystemTime, body: &[u8]) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{seconds}.").as_bytes());
    context.update(body);
    let hex: String = context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={hex}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_signature_is_the_hmac_of_time_and_body() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef0123456789abcdef");
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        // printf '1700000000.{"events":[]}' | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
        let expected = "t=1700000000,v1=df29826f9365a4c39eb569c867ae31fb39108dee0a0b3e4bcf09f11a0ba43081";
        assert_eq!(signature(&key, at(1_700_000_000), b"{\"events\":[]}"), expected);
        assert_ne!(signature(&key, at(1_700_000_001), b"{\"events\":[]}")[13..], expected[13..]);
        assert_ne!(signature(&key, at(1_700_000_000), b"{\"events\":{}}"), expected);
    }

    #[test]
    fn a_secret_has_the_length_of_the_hash_at_least() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let error = |text: &str| {
            fs::write(&path, text).unwrap();
            secret(&path).map(drop).map_err(|error| error.to_string())
        };
        let good = "0123456789abcdef0123456789abcdef";
        assert_eq!(error(&format!("{good}\r\n")), Ok(()));
        for (text, has) in [("", 0), (&good[1..], 31), (&format!("{}\n\n", &good[1..]), 31)] {
            let error = error(text).unwrap_err();
            assert!(error.contains(&format!(" has {has} bytes, and a secret has 32 to 4096")), "{error}");
        }
        assert!(error(&"x".repeat(4097)).is_err());
        fs::remove_file(&path).unwrap();
        let error = secret(&path).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("events.secret_file"), "{error}");
    }

    #[test]
    fn debug_shows_neither_secret_nor_url() {
        let directory = tempfile::tempdir().unwrap();
        let secret_file = directory.path().join("secret");
        fs::write(&secret_file, "0123456789abcdef0123456789abcdef").unwrap();
        let config = Events {
            url: Uri::from_static("http://127.0.0.1:1/?key=hidden"),
            secret_file,
            ca: None,
            queue: 1,
            timeout: Duration::from_secs(1),
            max_age: Duration::from_secs(1),
        };
        let shown = format!("{:?}", EventSettings::load(&config).unwrap());
        assert!(!shown.contains("0123456789") && !shown.contains("hidden"), "{shown}");
    }
}
