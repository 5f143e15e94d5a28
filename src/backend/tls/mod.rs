//! TLS with backends.
//!
//! Owns the loaded TLS settings of a route, and the handshake. Knows nothing of how the stream underneath was
//! connected and what it will carry. Invariants: a certificate is verified unless the operator disabled that; after
//! the handshake nothing is read before the session begins, because in many protocols the client speaks first.

mod load;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    AlertDescription, CertificateError,
    pki_types::{ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};
use tokio_rustls::client::TlsStream;

pub(crate) use self::load::{SystemRoots, TlsConfigError};
use self::{load::client_config, verify::is_an_authority};
use crate::{config::BackendTls, outcome::Reason};

/// How many names of a certificate an error lists.
const LISTED_NAMES: usize = 4;

/// Why TLS with a backend was not established. The texts continue "cannot reach tls://…: ".
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate is for other names.
    #[error(
        "its certificate is not for {expected} but for {presented}; if that is right, set tls.server_name"
    )]
    WrongName {
        /// The name it should be for.
        expected: String,
        /// The names it is for.
        presented: String,
    },
    /// The certificate has expired.
    #[error("its certificate expired{}", at(.0))]
    Expired(Option<SystemTime>),
    /// The certificate is not valid yet, or the clock is wrong.
    #[error("its certificate is not valid yet{}; check the clock", at(.0))]
    NotYetValid(Option<SystemTime>),
    /// No trusted authority signed the certificate.
    #[error(
        "its certificate is not signed by a trusted authority; set tls.ca to that authority's certificate"
    )]
    UnknownAuthority,
    /// The certificate is an authority's, most likely self-signed.
    #[error(
        "its certificate is an authority's own, not a server's; to trust it, set tls.ca to that very certificate"
    )]
    AuthorityItself,
    /// Something else is wrong with the certificate.
    #[error("its certificate cannot be used: {0}")]
    Certificate(CertificateError),
    /// It answered with something other than TLS.
    #[error("it does not speak TLS on this port")]
    NotTls,
    /// It sent an alert.
    #[error("it refused the TLS handshake: {0:?}")]
    Refused(AlertDescription),
    /// There is no common version or cipher suite, or it violated the protocol.
    #[error("the TLS handshake failed: {0}")]
    Handshake(rustls::Error),
    /// It closed the connection.
    #[error("it closed the connection during the TLS handshake; does it speak TLS on this port?")]
    Closed,
    #[error("the connection broke during the TLS handshake: {0}")]
    Broken(io::Error),
    /// The deadline came first.
    #[error("it did not finish the TLS handshake in time; does it speak TLS on this port?")]
    Silent,
    /// No certificate can be issued for its name.
    #[error("no certificate can be issued for the name {0:?}; set tls.server_name")]
    Name(String),
}

/// " on 2026-11-20T00:00:00Z", if the date is known.
fn at(when: &Option<SystemTime>) -> String {
    when.map(|when| format!(" on {}", humantime::format_rfc3339_seconds(when))).unwrap_or_default()
}

impl TlsError {
    /// The reason that a session ends with.
    pub fn reason(&self) -> Reason {
        Reason::BackendTlsFailed
    }
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => error.clone().into(),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            None => Self::Broken(error),
        }
    }
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        let time = |time: UnixTime| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs()));
        let error = match error {
            rustls::Error::InvalidCertificate(error) => error,
            rustls::Error::InvalidMessage(_) => return Self::NotTls,
            rustls::Error::AlertReceived(alert) => return Self::Refused(alert),
            error => return Self::Handshake(error),
        };
        match error {
            CertificateError::NotValidForNameContext { expected, presented } => {
                Self::WrongName { expected: expected.to_str().into_owned(), presented: names(&presented) }
            }
            CertificateError::Expired => Self::Expired(None),
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired(time(not_after)),
            CertificateError::NotValidYet => Self::NotYetValid(None),
            CertificateError::NotValidYetContext { not_before, .. } => Self::NotYetValid(time(not_before)),
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            error if is_an_authority(&error) => Self::AuthorityItself,
            error => Self::Certificate(error),
        }
    }
}

/// The names of a certificate, which rustls formats as `DnsName("example.com")`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        inside.unwrap_or(name).trim_matches('"').to_owned()
    };
    let listed: Vec<String> = presented.iter().take(LISTED_NAMES).map(bare).collect();
    match (listed.is_empty(), presented.len().saturating_sub(LISTED_NAMES)) {
        (true, _) => "no name at all".to_owned(),
        (_, 0) => listed.join(", "),
        (_, more) => format!("{} and {more} more", listed.join(", ")),
    }
}

/// Does TLS handshakes with the backends of a route.
#[derive(Clone)]
pub(crate) struct TlsConnector {
    tls: tokio_rustls::TlsConnector,
    server_name: Option<ServerName<'static>>,
    insecure: bool,
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector")
            .field("server_name", &self.server_name)
            .field("insecure", &self.insecure)
            .finish_non_exhaustive()
    }
}

impl TlsConnector {
    /// Loads the TLS settings of a route and the files they name.
    ///
    /// # Errors
    /// A file is missing, unreadable, not PEM or unusable, or neither the system nor the route has a trusted authority.
    pub(crate) fn load(config: &BackendTls, system: &SystemRoots) -> Result<Self, TlsConfigError> {
        let server_name = config
            .server_name
            .as_deref()
            .map(|name| parse_server_name(name).ok_or_else(|| TlsConfigError::ServerName(name.to_owned())));
        Ok(Self {
            tls: tokio_rustls::TlsConnector::from(Arc::new(client_config(config, system)?)),
            server_name: server_name.transpose()?,
            insecure: config.insecure_no_verify,
        })
    }

    /// Does the handshake over `stream`. The certificate must be for the route's `server_name`, or else for `name`: the
    /// backend's host as it is displayed, or an XMPP domain (RFC 6120 §13.7.2.1).
    ///
    /// # Errors
    /// [`TlsError`] has a variant for each cause. In TLS 1.3 a server rejects a client's certificate only after the
    /// handshake, so that this error is seen at the first read (RFC 8446 §4.4.2.4).
    pub(crate) async fn connect<S>(
        &self,
        name: &str,
        stream: S,
        deadline: Instant,
    ) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => parse_server_name(name).ok_or_else(|| TlsError::Name(name.to_owned()))?,
        };
        match timeout_at(deadline, self.tls.connect(name, stream)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(TlsError::Silent),
        }
    }
}

/// A host name, with or without a dot at its end, or an IP address, with or without brackets.
fn parse_server_name(text: &str) -> Option<ServerName<'static>> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    ServerName::try_from(bare.to_owned()).ok()
}
