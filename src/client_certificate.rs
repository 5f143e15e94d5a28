//! What a client certificate says of its owner: names, end of validity, and what identifies it.
//!
//! Pure. Knows nothing of handshakes and of who is admitted: that the certificate is genuine was verified before. Invariant:
//! the common name counts only in a certificate without subject alternative names (RFC 6125 §6.4.4).

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256, digest};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer,
    revocation_list::CertificateRevocationList, time::ASN1Time,
};

/// The certificate at the beginning of a client's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    /// In the order of the certificate.
    pub names: Vec<CertificateName>,
    /// The common name of the subject, if it has exactly one. It is a name of the owner only if it is in `names`.
    pub common_name: Option<String>,
    pub fingerprint: Fingerprint,
    pub id: CertificateId,
    /// The end of its validity.
    pub expires: SystemTime,
}

/// A name of the owner, of one of the kinds that are compared with those of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CertificateName {
    /// In lower case.
    Dns(String),
    Email(String),
    Uri(String),
    /// The common name, for want of subject alternative names.
    Common(String),
}

impl CertificateName {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Dns(name) | Self::Email(name) | Self::Uri(name) | Self::Common(name) => name,
        }
    }
}

/// The SHA-256 digest of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub(crate) [u8; 32]);

/// Identifies a certificate as revocation lists do: a digest of its issuer and its serial number (RFC 5280 §5.1.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CertificateId([u8; 16]);

impl CertificateId {
    fn new(issuer: &[u8], serial: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&(issuer.len() as u64).to_be_bytes());
        context.update(issuer);
        context.update(serial);
        let mut id = [0; 16];
        id.copy_from_slice(&context.finish().as_ref()[..16]);
        Self(id)
    }
}

impl ClientCertificate {
    /// Reads a certificate in DER. `None` if it cannot be read: then it identifies no user.
    pub(crate) fn parse(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let mut common_names = certificate.subject().iter_common_name();
        let common_name = match (common_names.next(), common_names.next()) {
            (Some(name), None) => name.as_str().ok().map(str::to_owned),
            _ => None,
        };
        let names = match certificate.subject_alternative_name().ok()? {
            Some(names) => names.value.general_names.iter().filter_map(alternative_name).collect(),
            None => common_name.iter().cloned().map(CertificateName::Common).collect(),
        };
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, der).as_ref());
        Some(Self {
            names,
            common_name,
            fingerprint: Fingerprint(fingerprint),
            id: CertificateId::new(certificate.issuer().as_raw(), certificate.raw_serial()),
            expires: time(certificate.validity().not_after)?,
        })
    }
}

fn alternative_name(name: &GeneralName<'_>) -> Option<CertificateName> {
    match name {
        GeneralName::DNSName(name) => Some(CertificateName::Dns(name.to_ascii_lowercase())),
        GeneralName::RFC822Name(name) => Some(CertificateName::Email((*name).to_owned())),
        GeneralName::URI(name) => Some(CertificateName::Uri((*name).to_owned())),
        _ => None,
    }
}

/// What a revocation list says: which certificates are revoked, and when its next issue is due.
#[derive(Debug)]
pub(crate) struct RevocationList {
    pub revoked: Vec<CertificateId>,
    pub next_update: Option<SystemTime>,
}

impl RevocationList {
    /// Reads a list in DER (RFC 5280 §5). `None` if it cannot be read.
    pub(crate) fn parse(der: &[u8]) -> Option<Self> {
        let (_, list) = CertificateRevocationList::from_der(der).ok()?;
        let issuer = list.issuer().as_raw();
        let revoked = list
            .iter_revoked_certificates()
            .map(|certificate| CertificateId::new(issuer, certificate.raw_serial()))
            .collect();
        Some(Self { revoked, next_update: list.next_update().and_then(time) })
    }
}

fn time(time: ASN1Time) -> Option<SystemTime> {
    let since = Duration::from_secs(u64::try_from(time.timestamp()).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, CertificateRevocationListParams, DnType, Issuer, KeyIdMethod, KeyPair,
        KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
    };

    use super::*;

    fn certificate(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_names_are_the_alternative_ones_in_their_order() {
        let der = certificate(|params| {
            params.distinguished_name.push(DnType::CommonName, "common");
            params.subject_alt_names = vec![
                SanType::URI("spiffe://example.org/ns/web".try_into().unwrap()),
                SanType::IpAddress([192, 0, 2, 7].into()),
                SanType::DnsName("Probe.Example.org".try_into().unwrap()),
                SanType::Rfc822Name("Ann@example.org".try_into().unwrap()),
            ];
            params.not_after = date_time_ymd(2040, 1, 1);
        });
        let certificate = ClientCertificate::parse(&der).unwrap();
        let names = [
            CertificateName::Uri("spiffe://example.org/ns/web".into()),
            CertificateName::Dns("probe.example.org".into()),
            CertificateName::Email("Ann@example.org".into()),
        ];
        assert_eq!(certificate.names, names);
        assert_eq!(certificate.common_name.as_deref(), Some("common"));
        assert_eq!(certificate.fingerprint.0, digest(&SHA256, &der).as_ref());
        assert_eq!(certificate.expires, SystemTime::UNIX_EPOCH + Duration::from_secs(2_208_988_800));
    }

    #[test]
    fn the_common_name_counts_only_without_alternative_ones() {
        let of = |change: fn(&mut CertificateParams)| ClientCertificate::parse(&certificate(change)).unwrap();
        let alone = of(|params| params.distinguished_name.push(DnType::CommonName, "probe"));
        assert_eq!(alone.names, [CertificateName::Common("probe".into())]);
        let beside_an_address = of(|params| {
            params.distinguished_name.push(DnType::CommonName, "probe");
            params.subject_alt_names = vec![SanType::IpAddress([192, 0, 2, 7].into())];
        });
        assert_eq!(beside_an_address.names, []);
        assert_eq!(of(|_| {}).names, []);
    }

    #[test]
    fn what_is_no_certificate_is_not_read() {
        let mut der = certificate(|_| {});
        der.truncate(der.len() / 2);
        assert_eq!(ClientCertificate::parse(&der), None);
        assert_eq!(ClientCertificate::parse(b""), None);
        assert!(RevocationList::parse(&der).is_none());
    }

    #[test]
    fn a_revocation_list_identifies_certificates_by_issuer_and_serial_number() {
        let issuer = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.key_usages = vec![KeyUsagePurpose::CrlSign];
            Issuer::new(params, KeyPair::generate().unwrap())
        };
        let (one, other) = (issuer("one"), issuer("other"));
        let issued = |issuer: &Issuer<'_, KeyPair>, serial: u64| {
            let mut params = CertificateParams::default();
            params.serial_number = Some(serial.into());
            let certificate = params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap();
            ClientCertificate::parse(certificate.der()).unwrap().id
        };
        let revoked = |serial: u64| RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2040, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked(7), revoked(0xff00)],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = RevocationList::parse(list.signed_by(&one).unwrap().der()).unwrap();
        assert_eq!(list.revoked, [issued(&one, 7), issued(&one, 0xff00)]);
        assert!(!list.revoked.contains(&issued(&one, 8)) && !list.revoked.contains(&issued(&other, 7)));
        let next_update = SystemTime::UNIX_EPOCH + Duration::from_secs(2_208_988_800);
        assert_eq!(list.next_update, Some(next_update));
    }
}
