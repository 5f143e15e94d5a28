//! Trying whether a server answers, as a session would reach it.
//!
//! Owns what is told of a server that answers, and the words for it. Refuses to know how it is reached: that is the backend room's.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{CipherSuite, ProtocolVersion, pki_types::CertificateDer};
use tokio::{
    io::AsyncReadExt,
    time::{Instant, timeout},
};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, ParsedExtension},
};

use super::explain::list;
use crate::{
    backend::{BackendStream, ConnectError, Upstream, tls::TlsError},
    config::Backend,
    http::Routed,
    tls::version_number,
};

/// How long a server with TLS is listened to: in TLS 1.3 it says only after the handshake that it does not take the
/// client's certificate, or wants one (RFC 8446 §4.4.2.4).
const SECOND_THOUGHTS: Duration = Duration::from_millis(250);

/// A server that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reached {
    /// How long it took, TLS included.
    pub took: Duration,
    /// The address that won, or the path of the socket.
    pub address: String,
    /// What was agreed upon, if TLS was.
    pub tls: Option<Secured>,
}

/// What TLS with a server comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Secured {
    /// The version.
    pub version: Option<ProtocolVersion>,
    /// The cipher suite.
    pub suite: Option<CipherSuite>,
    /// Its certificate, if it can be read.
    pub certificate: Option<Certificate>,
    /// Whether the certificate was checked.
    pub is_verified: bool,
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// The DNS names and addresses it is for (RFC 5280 §4.2.1.6).
    pub names: Vec<String>,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// Connects to a server of a route within `limit`, and hangs up. Where the route sends a PROXY header, it is that of a
/// connection of the gateway's own.
///
/// # Errors
/// In the words of a session's closing line.
pub(crate) async fn dial(
    Routed { route, upstream }: &Routed<Arc<Upstream>>,
    backend: &Backend,
    limit: Duration,
) -> Result<Reached, ConnectError> {
    let begin = Instant::now();
    let stream = upstream.connector().connect(backend, None, begin + limit).await?;
    let took = begin.elapsed();
    let peer = |socket: &tokio::net::TcpStream| {
        socket.peer_addr().map_or_else(|_| backend.to_string(), |address| address.to_string())
    };
    match stream {
        BackendStream::Tcp(stream) => Ok(Reached { took, address: peer(stream.get_ref()), tls: None }),
        BackendStream::Unix(_) => {
            let address = match backend {
                Backend::Unix(path) => path.display().to_string(),
                other => other.to_string(),
            };
            Ok(Reached { took, address, tls: None })
        }
        BackendStream::Tls(mut stream) => {
            let heard = timeout(SECOND_THOUGHTS, stream.read(&mut [0])).await;
            let (socket, tls) = stream.get_ref();
            let secured = Secured {
                version: tls.protocol_version(),
                suite: tls.negotiated_cipher_suite().map(|suite| suite.suite()),
                certificate: tls.peer_certificates().and_then(|chain| Certificate::read(chain.first()?)),
                is_verified: !route.upstream.tls.insecure_no_verify,
            };
            let address = peer(socket.get_ref());
            match heard.map(|heard| heard.map_err(TlsError::from)) {
                Ok(Err(refused @ TlsError::Refused(_))) => Err(refused.into()),
                // Some hang up on whoever says nothing.
                _ => Ok(Reached { took, address, tls: Some(secured) }),
            }
        }
    }
}

impl Certificate {
    fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names =
            certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    Some(names.general_names.iter().filter_map(name).collect())
                }
                _ => None,
            });
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        let not_after = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
        Some(Self { names: names.unwrap_or_default(), not_after })
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.escape_default().to_string()),
        GeneralName::IPAddress(octets) => {
            let v4 = <[u8; 4]>::try_from(*octets).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(*octets).map(IpAddr::from)).ok().map(|ip| ip.to_string())
        }
        _ => None,
    }
}

/// What came of dialling a server, a line each for TLS and for its certificate.
pub(crate) fn words(outcome: &Result<Reached, ConnectError>) -> Vec<String> {
    match outcome {
        Err(error) => vec![format!("FAILED: {error}")],
        Ok(Reached { took, address, tls }) => {
            let mut lines = vec![format!("reachable in {} ms at {address}", took.as_millis())];
            lines.extend(tls.iter().flat_map(secured));
            lines
        }
    }
}

fn secured(Secured { version, suite, certificate, is_verified }: &Secured) -> [String; 2] {
    let version =
        version.and_then(version_number).map_or_else(|| "TLS".to_owned(), |number| format!("TLS {number}"));
    let suite = suite.map(|suite| format!(" with {suite:?}")).unwrap_or_default();
    let certificate =
        certificate.as_ref().map_or("certificate that cannot be read".to_owned(), |certificate| {
            let names = match certificate.names.as_slice() {
                [] => "no name at all".to_owned(),
                names => list(names, Clone::clone),
            };
            let end = humantime::format_rfc3339_seconds(certificate.not_after);
            let valid = if certificate.not_after < SystemTime::now() { "expired on" } else { "valid until" };
            format!("certificate for {names}, {valid} {end}")
        });
    let unchecked = if *is_verified { "" } else { " (not checked: insecure_no_verify)" };
    [format!("{version}{suite}"), format!("{certificate}{unchecked}")]
}
