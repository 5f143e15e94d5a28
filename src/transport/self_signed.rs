//! A self-signed certificate for development. Browsers warn about it once.

use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};

/// The longest validity that browsers accept for any certificate.
const VALID_FOR: Duration = Duration::from_secs(397 * 24 * 3600);
/// Allows for clocks that are behind.
const VALID_BEFORE: Duration = Duration::from_secs(3600);

/// A certificate and its key, both in PEM form.
#[derive(Debug)]
pub struct SelfSigned {
    /// The certificate.
    pub certificate: String,
    /// Its private key (ECDSA P-256, PKCS #8).
    pub private_key: String,
}

/// Makes a certificate for `names` (DNS names and IP addresses), valid for 397 days.
///
/// # Errors
/// A name is not a DNS name.
pub fn self_signed(names: &[String]) -> Result<SelfSigned, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, names.first().map_or("localhost", String::as_str));
    params.distinguished_name = subject;
    let now = SystemTime::now();
    params.not_before = (now - VALID_BEFORE).into();
    params.not_after = (now + VALID_FOR).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(SelfSigned { certificate: certificate.pem(), private_key: key.serialize_pem() })
}
