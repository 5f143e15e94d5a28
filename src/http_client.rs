//! Requests to HTTP servers that the operator named: a login service, a key set, a receiver of events.
//!
//! Owns the connections, which are reused, and the bounds of a request: its time, the size of the answer. Knows nothing of what
//! is asked. Invariants: no redirect is followed, because it could lead to a server that is not configured; at most `max_body`
//! bytes of an answer are held; a certificate is always verified.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, response::Parts};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tokio::time;

use crate::pem::{PemError, PemSource, certificates, read_pem};

/// How long a connection is kept for the next request. Shorter than the keep-alive time of common servers.
const IDLE: Duration = Duration::from_secs(4);
/// How many unused connections are kept.
const IDLE_CONNECTIONS: usize = 8;
/// The longest head of an answer, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// Why a client cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpClientError {
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A certificate of an authority is invalid.
    #[error("{0}: a certificate in it cannot be used: {1}; export it again")]
    BadAuthority(PemSource, rustls::Error),
    /// The system trusts no authority.
    #[error("the system has no certificate authorities; install ca-certificates, or set {0}")]
    NoSystemRoots(&'static str),
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
}

/// Why there is no answer. The messages name neither the request nor the server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("{0}")]
    Failed(String),
}

/// A client for one server.
#[derive(Debug, Clone)]
pub(crate) struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeout: Duration,
    max_body: usize,
}

impl HttpClient {
    /// A client that trusts the authorities in the PEM file `ca`, or those of the system. `key` names the file's key in the
    /// configuration.
    ///
    /// # Errors
    /// There are no authorities.
    pub(crate) fn new(
        key: &'static str,
        ca: Option<&Path>,
        timeout: Duration,
        max_body: usize,
    ) -> Result<Self, HttpClientError> {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(HttpClientError::Tls)?
            .with_root_certificates(roots(key, ca)?)
            .with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(MAX_HEAD)
            .build(connector);
        Ok(Self { client, timeout, max_body })
    }

    /// Sends a request with an absolute URI, and reads the whole answer.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, FetchError> {
        let fetched = async {
            let (head, body) = self.begin(request).await?;
            let body = body.collect().await.map_err(|error| self.failed(&*error))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        time::timeout(self.timeout, fetched).await.map_err(|_| FetchError::Timeout(self.timeout))?
    }

    /// Sends a request with an absolute URI, and returns the head of the answer. The body is read, so that the connection can be
    /// used again, and not kept.
    pub(crate) async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Parts, FetchError> {
        let asked = async {
            let (head, mut body) = self.begin(request).await?;
            while let Some(frame) = body.frame().await {
                frame.map_err(|error| self.failed(&*error))?;
            }
            Ok(head)
        };
        time::timeout(self.timeout, asked).await.map_err(|_| FetchError::Timeout(self.timeout))?
    }

    async fn begin(&self, request: Request<Full<Bytes>>) -> Result<(Parts, Limited<Incoming>), FetchError> {
        let response = self.client.request(request).await;
        let (head, body) = response.map_err(|error| FetchError::Failed(causes(&error)))?.into_parts();
        Ok((head, Limited::new(body, self.max_body)))
    }

    /// Why a body was not read to its end.
    fn failed(&self, error: &(dyn std::error::Error + Send + Sync + 'static)) -> FetchError {
        match error.downcast_ref::<LengthLimitError>() {
            Some(_) => FetchError::TooLong(self.max_body),
            None => FetchError::Failed(causes(error)),
        }
    }
}

fn roots(key: &'static str, ca: Option<&Path>) -> Result<RootCertStore, HttpClientError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let source = PemSource::file(key, path);
            for certificate in certificates(&source, &read_pem(key, path)?)? {
                roots
                    .add(certificate)
                    .map_err(|error| HttpClientError::BadAuthority(PemSource::file(key, path), error))?;
            }
        }
        None => {
            // Some are always too old for the parser; the others still count.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(HttpClientError::NoSystemRoots(key));
            }
        }
    }
    Ok(roots)
}

/// An error and what caused it, in one line.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
