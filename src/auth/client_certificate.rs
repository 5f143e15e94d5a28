//! The method `kind = "client-certificate"`: who may enter with the certificate that the TLS handshake has verified.
//!
//! Pure. Invariant: only a certificate of this connection's handshake counts, never what a header says of one.

use super::{AuthRequest, Denied, Grant};
use crate::{
    client_certificate::{CertificateName, ClientCertificate},
    config::ClientCertificateConfig,
    session::CredentialId,
};

/// Accepts client certificates with some names, or some certificates.
#[derive(Debug)]
pub(crate) struct ClientCertificateMethod {
    config: ClientCertificateConfig,
}

impl ClientCertificateMethod {
    pub(super) fn new(config: &ClientCertificateConfig) -> Self {
        Self { config: config.clone() }
    }

    pub(super) fn check(&self, request: &AuthRequest<'_>) -> Result<Grant, Denied> {
        let certificate =
            request.certificate.ok_or_else(|| Denied::missing("there is no client certificate"))?;
        // The handshake may have been some requests ago.
        if certificate.expires <= request.now {
            return Err(Denied::invalid("the client certificate has expired"));
        }
        let is_pinned = |pins: &Vec<_>| pins.contains(&certificate.fingerprint);
        if !self.config.fingerprints.as_ref().is_none_or(is_pinned) {
            return Err(forbidden("fingerprints do not list the client certificate", certificate));
        }
        let grant = match self.name(certificate)? {
            Some(name) => Grant::of_user(name.as_str())?,
            None => Grant::default(),
        };
        Ok(Grant {
            expires: Some(certificate.expires),
            credential: Some(CredentialId::Certificate(certificate.id)),
            ..grant
        })
    }

    /// The name that stands for the user: the first that `names` lists or, without them, the first.
    fn name<'a>(&self, certificate: &'a ClientCertificate) -> Result<Option<&'a CertificateName>, Denied> {
        let Some(patterns) = &self.config.names else { return Ok(certificate.names.first()) };
        let is_listed = |name: &&CertificateName| patterns.iter().any(|pattern| pattern.matches(name));
        let listed = certificate.names.iter().find(is_listed);
        listed.map(Some).ok_or_else(|| forbidden("names list no name of the client certificate", certificate))
    }
}

/// For the operator: which certificate it is, by its first name if that can be shown.
fn forbidden(what: &str, certificate: &ClientCertificate) -> Denied {
    let name = certificate.names.first().and_then(|name| Grant::of_user(name.as_str()).ok()?.user);
    let detail = match name {
        Some(name) => format!("{what}, {name:?}"),
        None => what.to_owned(),
    };
    Denied::Forbidden { detail }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use http::Request;
    use rcgen::{CertificateParams, KeyPair, SanType, date_time_ymd};

    use super::*;

    const NOW: Duration = Duration::from_secs(2_000_000_000);

    fn certificate(names: &[&str]) -> ClientCertificate {
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(2040, 1, 1);
        let name = |name: &&str| match *name {
            uri if uri.contains("://") => SanType::URI(uri.try_into().unwrap()),
            dns => SanType::DnsName(dns.try_into().unwrap()),
        };
        params.subject_alt_names = names.iter().map(name).collect();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let signed = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        ClientCertificate::parse(signed.der()).unwrap()
    }

    fn method(
        names: Option<&[&str]>,
        fingerprints: Option<&[&ClientCertificate]>,
    ) -> ClientCertificateMethod {
        let names = names.map(|names| names.iter().map(|name| name.parse().unwrap()).collect());
        let fingerprints = fingerprints.map(|pins| pins.iter().map(|pin| pin.fingerprint).collect());
        ClientCertificateMethod::new(&ClientCertificateConfig { names, fingerprints })
    }

    fn check(
        method: &ClientCertificateMethod,
        certificate: Option<&ClientCertificate>,
        now: Duration,
    ) -> Result<Grant, Denied> {
        let head = Request::new(());
        let client = ([192, 0, 2, 7], 4711).into();
        let now = SystemTime::UNIX_EPOCH + now;
        let (https, host, route) = (true, "desk.example", Some("desk"));
        method.check(&AuthRequest { head: &head, client, https, host, certificate, route, now })
    }

    #[test]
    fn the_user_is_the_first_name_that_is_listed() {
        let certificate = certificate(&["a.example.com", "spiffe://example.org/ns/web", "b.example.org"]);
        for (names, user) in [
            (None, "a.example.com"),
            (Some(&["*.example.org"][..]), "b.example.org"),
            (Some(&["*.example.org", "spiffe://example.org/*"]), "spiffe://example.org/ns/web"),
        ] {
            let grant = check(&method(names, None), Some(&certificate), NOW).unwrap();
            assert_eq!(grant.user.as_deref(), Some(user));
            assert_eq!(grant.expires, Some(certificate.expires));
            assert_eq!(grant.credential, Some(CredentialId::Certificate(certificate.id)));
        }
    }

    #[test]
    fn a_certificate_without_a_name_names_no_user() {
        let nameless = certificate(&[]);
        assert_eq!(check(&method(None, None), Some(&nameless), NOW).unwrap().user, None);
        let denied = check(&method(Some(&["*.example.org"]), None), Some(&nameless), NOW).unwrap_err();
        assert!(matches!(denied, Denied::Forbidden { .. }), "{denied:?}");
    }

    #[test]
    fn names_and_fingerprints_must_both_agree() {
        let (one, other) = (certificate(&["a.example.org"]), certificate(&["a.example.org"]));
        let names: Option<&[&str]> = Some(&["a.example.org"]);
        assert!(check(&method(names, Some(&[&one])), Some(&one), NOW).is_ok());
        for (method, detail) in [
            (
                method(names, Some(&[&one])),
                "fingerprints do not list the client certificate, \"a.example.org\"",
            ),
            (
                method(Some(&["b.example.org"]), Some(&[&other])),
                "names list no name of the client certificate, \"a.example.org\"",
            ),
        ] {
            let denied = check(&method, Some(&other), NOW).unwrap_err();
            assert!(matches!(&denied, Denied::Forbidden { detail: seen } if seen == detail), "{denied:?}");
        }
    }

    #[test]
    fn without_a_valid_certificate_there_is_no_credential() {
        let certificate = certificate(&["a.example.org"]);
        let missing = check(&method(None, None), None, NOW).unwrap_err();
        assert!(matches!(missing, Denied::Unauthorized { attempted: false, .. }), "{missing:?}");
        let late = certificate.expires.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert!(check(&method(None, None), Some(&certificate), late - Duration::from_secs(1)).is_ok());
        let expired = check(&method(None, None), Some(&certificate), late).unwrap_err();
        assert!(matches!(expired, Denied::Unauthorized { attempted: true, .. }), "{expired:?}");
    }
}
