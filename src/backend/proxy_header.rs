//! The PROXY protocol header that is sent to a backend (`send_proxy`): it names the client.
//!
//! Owns the contents of the header; the crate `proxy-header` owns its encoding. Pure: no I/O. Specification:
//! <https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>.

use std::net::{IpAddr, SocketAddr};

use proxy_header::{ProxiedAddress, ProxyHeader, SslInfo, Tlv};
use rustls::ProtocolVersion;

use crate::{
    admission::canonical,
    client_certificate::ClientCertificate,
    config::{SendProxy, TlsVersion},
    session::ConnectionId,
};

/// The `verify` field of a client with a certificate, which the handshake has verified (§2.2.6).
const VERIFIED: u32 = 0;
/// That of a client without a certificate: any other value.
const NOT_VERIFIED: u32 = 1;
/// The type of the field with the user's name: the first of those that each application may define (§2.2.8).
const USER: u8 = 0xE0;
/// The longest common name that is sent, in bytes. Those of X.520 have at most 64 characters.
const MAX_COMMON_NAME: usize = 1024;

/// The client of a session, and how it is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientInfo<'a> {
    /// The client's canonical address; port 0 when it is not known.
    pub client: SocketAddr,
    /// The gateway's address that the client connected to.
    pub local: SocketAddr,
    /// The TLS version between client and gateway; `None` without TLS.
    pub tls: Option<ProtocolVersion>,
    /// The certificate that the client has presented to the gateway.
    pub(crate) certificate: Option<&'a ClientCertificate>,
    /// The name of the user, if the route's credential names one.
    pub user: Option<&'a str>,
    /// The identifier in its access log line.
    pub id: ConnectionId,
}

/// The header, which is sent before anything else, TLS included.
///
/// Without a client, the connection is the gateway's own, for a health check: `UNKNOWN` in version 1, `LOCAL` in
/// version 2. If the client and the gateway's address are of different families, which happens behind a trusted
/// proxy, both are written as IPv6, because a header has one family only. Version 2 carries the connection's
/// identifier as its unique id, the TLS version, the common name of the client's certificate, and the user's name.
pub(crate) fn header(version: SendProxy, client_info: Option<&ClientInfo<'_>>) -> Vec<u8> {
    let addresses = client_info.map(addresses);
    let mut bytes = Vec::with_capacity(128);
    // The encoder fails only for mixed families, for TLVs in version 1 and for TLVs of 64 KiB.
    let written = match version {
        SendProxy::V1 => ProxyHeader::with_tlvs(addresses, []).encode_v1(&mut bytes),
        SendProxy::V2 => {
            ProxyHeader::with_tlvs(addresses, client_info.into_iter().flat_map(tlvs)).encode_v2(&mut bytes)
        }
    };
    debug_assert_eq!(written, Ok(()));
    bytes
}

fn addresses(client_info: &ClientInfo<'_>) -> ProxiedAddress {
    let client = SocketAddr::new(canonical(client_info.client.ip()), client_info.client.port());
    let local = SocketAddr::new(canonical(client_info.local.ip()), client_info.local.port());
    if client.is_ipv4() == local.is_ipv4() {
        ProxiedAddress::stream(client, local)
    } else {
        ProxiedAddress::stream(as_ipv6(client), as_ipv6(local))
    }
}

fn as_ipv6(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn tlvs<'a>(client_info: &ClientInfo<'a>) -> impl Iterator<Item = Tlv<'a>> + use<'a> {
    let ClientInfo { certificate, .. } = *client_info;
    let tls = client_info.tls.map(|version| {
        let presented = certificate.is_some();
        let verify = if presented { VERIFIED } else { NOT_VERIFIED };
        // Presented over this connection, and so in its TLS session: sessions are not resumed where there are certificates.
        let mut info = SslInfo::new(true, presented, presented, verify);
        info.append_tlv(Tlv::SslVersion(version_name(version).into()));
        if let Some(name) = certificate.and_then(common_name) {
            info.append_tlv(Tlv::SslCn(name.into()));
        }
        Tlv::Ssl(info)
    });
    let id = Tlv::UniqueId(client_info.id.to_string().into_bytes().into());
    let user = client_info.user.map(|user| Tlv::Custom(USER, user.as_bytes().into()));
    [Some(id), tls, user].into_iter().flatten()
}

/// The common name, if a log of the backend can show it.
fn common_name(certificate: &ClientCertificate) -> Option<&str> {
    let name = certificate.common_name.as_deref()?;
    (name.len() <= MAX_COMMON_NAME && !name.chars().any(char::is_control)).then_some(name)
}

/// As OpenSSL writes it, which is what backends compare with.
fn version_name(version: ProtocolVersion) -> String {
    // The gateway speaks no other version.
    TlsVersion::negotiated(version).map_or("unknown".into(), |version| format!("TLSv{version}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proxy_header::ParseConfig;

    use super::*;

    fn client_info(client: &str, local: &str) -> ClientInfo<'static> {
        ClientInfo {
            client: client.parse().unwrap(),
            local: local.parse().unwrap(),
            tls: None,
            certificate: None,
            user: None,
            id: ConnectionId::new(0xabc, 7),
        }
    }

    fn line(client: &str, local: &str) -> String {
        String::from_utf8(header(SendProxy::V1, Some(&client_info(client, local)))).unwrap()
    }

    #[test]
    fn version_1_is_one_line() {
        for (client, local, written) in [
            ("192.0.2.1:5555", "127.0.0.1:8443", "PROXY TCP4 192.0.2.1 127.0.0.1 5555 8443\r\n"),
            ("[2001:db8::1]:5555", "[::1]:8443", "PROXY TCP6 2001:db8::1 ::1 5555 8443\r\n"),
            ("192.0.2.1:0", "[::1]:8443", "PROXY TCP6 ::ffff:192.0.2.1 ::1 0 8443\r\n"),
            ("[2001:db8::1]:1", "10.0.0.1:2", "PROXY TCP6 2001:db8::1 ::ffff:10.0.0.1 1 2\r\n"),
            ("192.0.2.1:5555", "[::ffff:10.0.0.1]:8443", "PROXY TCP4 192.0.2.1 10.0.0.1 5555 8443\r\n"),
        ] {
            assert_eq!(line(client, local), written);
        }
    }

    #[test]
    fn health_check_names_no_client() {
        assert_eq!(header(SendProxy::V1, None), b"PROXY UNKNOWN\r\n");
        assert_eq!(header(SendProxy::V2, None), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    }

    #[test]
    fn version_2_has_the_tls_version_and_the_connection_id() {
        let local = ClientInfo {
            tls: Some(ProtocolVersion::TLSv1_3),
            id: ConnectionId::new(0x9f1c_03ab_77d2, 12_345),
            ..client_info("192.0.2.1:5555", "127.0.0.1:8443")
        };
        let bytes = header(SendProxy::V2, Some(&local));
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x33".to_vec();
        expected.extend_from_slice(&[192, 0, 2, 1, 127, 0, 0, 1, 0x15, 0xb3, 0x20, 0xfb]);
        expected.extend_from_slice(b"\x05\0\x129f1c03ab77d2-12345");
        expected.extend_from_slice(b"\x20\0\x0f\x01\0\0\0\x01\x21\0\x07TLSv1.3");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn without_tls_there_is_no_tls_field() {
        let bytes = header(SendProxy::V2, Some(&client_info("[2001:db8::1]:1", "[::1]:2")));
        let (parsed, length) = ProxyHeader::parse(&bytes, ParseConfig::default()).unwrap();
        assert_eq!(length, bytes.len());
        assert_eq!(parsed.unique_id(), Some(&b"000000000abc-7"[..]));
        assert!(parsed.ssl().is_none());
    }

    #[test]
    fn version_2_has_the_user_and_the_common_name_of_the_certificate() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "Änne");
        let signed = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let mut certificate = ClientCertificate::parse(signed.der()).unwrap();
        let of = |certificate: &ClientCertificate| {
            let info = ClientInfo {
                tls: Some(ProtocolVersion::TLSv1_3),
                certificate: Some(certificate),
                user: Some("änne@example.org"),
                ..client_info("192.0.2.1:5555", "127.0.0.1:8443")
            };
            header(SendProxy::V2, Some(&info))
        };
        let bytes = of(&certificate);
        let (parsed, _) = ProxyHeader::parse(&bytes, ParseConfig::default()).unwrap();
        let user = Tlv::Custom(0xE0, "änne@example.org".as_bytes().into());
        assert!(parsed.tlvs().any(|tlv| tlv.as_ref() == Ok(&user)), "{parsed:?}");
        let ssl = parsed.ssl().unwrap();
        assert!(ssl.client_ssl() && ssl.client_cert_conn() && ssl.client_cert_sess());
        assert_eq!((ssl.verify(), ssl.cn(), ssl.version()), (0, Some("Änne"), Some("TLSv1.3")));
        for hostile in ["a\nb".to_owned(), "x".repeat(1025)] {
            certificate.common_name = Some(hostile);
            let bytes = of(&certificate);
            let (parsed, _) = ProxyHeader::parse(&bytes, ParseConfig::default()).unwrap();
            assert_eq!(parsed.ssl().unwrap().cn(), None);
        }
    }

    proptest! {
        #[test]
        fn every_header_can_be_parsed(
            client: IpAddr, local: IpAddr, ports: (u16, u16), number: u64, tls: bool, user: Option<String>,
        ) {
            let client_info = ClientInfo {
                client: SocketAddr::new(client, ports.0),
                local: SocketAddr::new(local, ports.1),
                tls: tls.then_some(ProtocolVersion::TLSv1_2),
                certificate: None,
                user: user.as_deref(),
                id: ConnectionId::new(number, number),
            };
            for version in [SendProxy::V1, SendProxy::V2] {
                let bytes = header(version, Some(&client_info));
                let (parsed, length) = ProxyHeader::parse(&bytes, ParseConfig::default()).unwrap();
                prop_assert_eq!(length, bytes.len());
                let addresses = parsed.proxied_address().unwrap();
                prop_assert_eq!(canonical(addresses.source.ip()), canonical(client));
                prop_assert_eq!(canonical(addresses.destination.ip()), canonical(local));
                prop_assert_eq!((addresses.source.port(), addresses.destination.port()), ports);
                if version == SendProxy::V1 {
                    prop_assert!(bytes.len() <= 107, "{} bytes are too many for a line", bytes.len());
                }
            }
        }
    }
}
