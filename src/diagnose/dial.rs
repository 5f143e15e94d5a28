//! Test dials: connects to a backend as a session would.
//!
//! Owns what is reported of a backend that is reachable. Knows nothing of how to connect: that is the `backend` module's.

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

use super::text::list;
use crate::{
    backend::{BackendStream, ConnectError, Upstream, tls::TlsError},
    config::{Backend, TlsVersion},
    http::Routed,
};

/// How long to wait for a TLS alert after the handshake. In TLS 1.3 a server rejects or requires the client's certificate
/// only then (RFC 8446 §4.4.2.4).
const LATE_ALERT_WAIT: Duration = Duration::from_millis(250);

/// What is known of a reachable backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reached {
    /// How long the dial took, TLS included.
    pub took: Duration,
    /// The address that was connected to, or the path of the socket.
    pub address: String,
    pub tls: Option<TlsDetails>,
}

/// The result of the TLS handshake with a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsDetails {
    pub version: Option<ProtocolVersion>,
    pub suite: Option<CipherSuite>,
    /// The backend's certificate, if it can be parsed.
    pub certificate: Option<Certificate>,
    /// Whether the certificate was verified.
    pub is_verified: bool,
}

/// The parts of a certificate that are reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// Its DNS names and IP addresses (RFC 5280 §4.2.1.6).
    pub names: Vec<String>,
    pub not_after: SystemTime,
}

/// Connects to a backend of a route within `limit`, and disconnects. Where the route sends a PROXY header, it is one that
/// names no client.
///
/// # Errors
/// The same error that the access log line of a session would have.
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
        #[cfg(test)]
        BackendStream::Simulated(stream) => {
            Ok(Reached { took, address: stream.get_ref().peer_addr().to_string(), tls: None })
        }
        BackendStream::Unix(_) => {
            let address = match backend {
                Backend::Unix(path) => path.display().to_string(),
                other => other.to_string(),
            };
            Ok(Reached { took, address, tls: None })
        }
        BackendStream::Tls(mut stream) => {
            let late_read = timeout(LATE_ALERT_WAIT, stream.read(&mut [0])).await;
            let (socket, tls) = stream.get_ref();
            let details = TlsDetails {
                version: tls.protocol_version(),
                suite: tls.negotiated_cipher_suite().map(|suite| suite.suite()),
                certificate: tls.peer_certificates().and_then(|chain| Certificate::read(chain.first()?)),
                is_verified: !route.upstream.tls.insecure_no_verify,
            };
            let address = peer(socket.get_ref());
            match late_read.map(|read| read.map_err(TlsError::from)) {
                Ok(Err(refused @ TlsError::Refused(_))) => Err(refused.into()),
                // Some servers close a silent connection at once: that is no failure.
                _ => Ok(Reached { took, address, tls: Some(details) }),
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

/// The result of a dial in words, with one more line each for TLS and for the certificate.
pub(crate) fn lines(outcome: &Result<Reached, ConnectError>) -> Vec<String> {
    match outcome {
        Err(error) => vec![format!("FAILED: {error}")],
        Ok(Reached { took, address, tls }) => {
            let mut lines = vec![format!("reachable in {} ms at {address}", took.as_millis())];
            lines.extend(tls.iter().flat_map(tls_lines));
            lines
        }
    }
}

fn tls_lines(TlsDetails { version, suite, certificate, is_verified }: &TlsDetails) -> [String; 2] {
    let version =
        version.and_then(TlsVersion::negotiated).map_or("TLS".to_owned(), |version| format!("TLS {version}"));
    let suite = suite.map(|suite| format!(" with {suite:?}")).unwrap_or_default();
    let certificate =
        certificate.as_ref().map_or("certificate that cannot be parsed".to_owned(), |certificate| {
            let names = match certificate.names.as_slice() {
                [] => "no name".to_owned(),
                names => list(names, Clone::clone),
            };
            let end = humantime::format_rfc3339_seconds(certificate.not_after);
            let valid = if certificate.not_after < SystemTime::now() { "expired on" } else { "valid until" };
            format!("certificate for {names}, {valid} {end}")
        });
    let unchecked = if *is_verified { "" } else { " (not checked: insecure_no_verify)" };
    [format!("{version}{suite}"), format!("{certificate}{unchecked}")]
}
