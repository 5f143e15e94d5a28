//! `kind = "client-certificate"`: which certificates of those that an authority has signed.

use std::fmt;
use std::str::FromStr;

use toml::Spanned;

use super::RawAuth;
use crate::client_certificate::{CertificateName, Fingerprint};
use crate::config::scalar::StringList;
use crate::config::values::{Result, invalid_literal, parsed};

/// A method that accepts certificates that a listener has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificateConfig {
    /// The certificate must have one of these names; without them, any.
    pub names: Option<Vec<NamePattern>>,
    /// It must be one of these; without them, any.
    pub fingerprints: Option<Vec<Fingerprint>>,
}

/// A name of a certificate, or several of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamePattern {
    /// A DNS name, or a common name. `*.` at its beginning stands for one label.
    Plain(String),
    /// An email address. `*` before the `@` stands for any mailbox.
    Email(String),
    /// A URI, such as a SPIFFE ID. A segment `*` of its path stands for one segment, at the end for one or more.
    Uri(String),
}

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NamePatternError {
    /// It is empty.
    #[error("the name is empty; write one such as \"probe.example.org\", or \"spiffe://example.org/ns/*\"")]
    Empty,
    /// It has characters that no name has.
    #[error("a name has no control characters; remove them")]
    Control,
    /// It has a star where it has no meaning.
    #[error(
        "a \"*\" stands for one label at the beginning of a DNS name (\"*.example.org\"), for the mailbox of an email address \
         (\"*@example.org\"), or for a segment of a URI's path (\"spiffe://example.org/ns/*\")"
    )]
    Star,
}

impl FromStr for NamePattern {
    type Err = NamePatternError;

    fn from_str(text: &str) -> std::result::Result<Self, NamePatternError> {
        if text.is_empty() {
            return Err(NamePatternError::Empty);
        }
        if text.contains(char::is_control) {
            return Err(NamePatternError::Control);
        }
        // What is left without the stars that are allowed.
        let (pattern, rest) = if let Some((scheme, after)) = text.split_once("://") {
            let (authority, path) = after.split_once('/').unwrap_or((after, ""));
            let segments = path.split('/').filter(|segment| *segment != "*");
            let rest = format!("{scheme}{authority}{}", segments.collect::<String>());
            (Self::Uri(text.to_owned()), rest)
        } else if let Some((mailbox, domain)) = text.rsplit_once('@') {
            let rest = if mailbox == "*" { domain.to_owned() } else { text.to_owned() };
            (Self::Email(text.to_owned()), rest)
        } else {
            (Self::Plain(text.to_owned()), text.strip_prefix("*.").unwrap_or(text).to_owned())
        };
        if rest.contains('*') || rest.is_empty() {
            return Err(NamePatternError::Star);
        }
        Ok(pattern)
    }
}

impl NamePattern {
    /// Whether a name of a certificate is one of those that the pattern stands for.
    pub(crate) fn matches(&self, name: &CertificateName) -> bool {
        match (self, name) {
            (Self::Plain(pattern), CertificateName::Dns(name) | CertificateName::Common(name)) => {
                matches_label(pattern, name)
            }
            (Self::Email(pattern), CertificateName::Email(name)) => matches_mailbox(pattern, name),
            (Self::Uri(pattern), CertificateName::Uri(name)) => matches_path(pattern, name),
            _ => false,
        }
    }
}

fn matches_label(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        None => pattern.eq_ignore_ascii_case(name),
        Some(parent) => name.split_once('.').is_some_and(|(label, rest)| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            !label.is_empty() && label.bytes().all(is_plain) && rest.eq_ignore_ascii_case(parent)
        }),
    }
}

/// A domain has no case, and a mailbox may have one (RFC 5321 §2.4).
fn matches_mailbox(pattern: &str, name: &str) -> bool {
    let (Some((mailbox, domain)), Some((own, own_domain))) =
        (pattern.rsplit_once('@'), name.rsplit_once('@'))
    else {
        return false;
    };
    domain.eq_ignore_ascii_case(own_domain) && (mailbox == own || mailbox == "*" && !own.is_empty())
}

/// A star stands for no segment that another program could read as a step to elsewhere.
fn matches_path(pattern: &str, name: &str) -> bool {
    let parts = |uri: &str| -> Option<(String, Vec<String>)> {
        let (scheme, after) = uri.split_once("://")?;
        let (authority, path) =
            after.split_once('/').map_or((after, None), |(authority, path)| (authority, Some(path)));
        let origin = format!("{scheme}://{authority}").to_ascii_lowercase();
        let segments = path.map(|path| path.split('/').map(str::to_owned).collect());
        Some((origin, segments.unwrap_or_default()))
    };
    let (Some((origin, pattern)), Some((own_origin, own))) = (parts(pattern), parts(name)) else {
        return false;
    };
    let is_plain = |segment: &String| {
        !matches!(segment.as_str(), "" | "." | "..") && !segment.contains(['?', '#', '%', '*', '\\'])
    };
    let is_one = |(pattern, own): (&String, &String)| pattern == own || pattern == "*" && is_plain(own);
    let (compared, rest) = match pattern.split_last() {
        Some((last, first)) if last == "*" => match own.split_at_checked(first.len()) {
            Some((compared, rest)) if !rest.is_empty() => (first.iter().zip(compared), rest),
            _ => return false,
        },
        _ if pattern.len() == own.len() => (pattern.iter().zip(own.as_slice()), [].as_slice()),
        _ => return false,
    };
    origin == own_origin && compared.into_iter().all(is_one) && rest.iter().all(is_plain)
}

/// A text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "write \"sha256:\" and the 64 hexadecimal digits that \"openssl x509 -noout -fingerprint -sha256 -in FILE\" prints, with or \
     without colons"
)]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> std::result::Result<Self, FingerprintError> {
        let digits: String = text.strip_prefix("sha256:").ok_or(FingerprintError)?.replace(':', "");
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(FingerprintError);
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| FingerprintError)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl ClientCertificateConfig {
    /// Whether a certificate with this name could be accepted.
    pub(crate) fn admits_name(&self, name: &str) -> bool {
        let owned = || name.to_owned();
        let kinds = match name {
            uri if uri.contains("://") => vec![CertificateName::Uri(owned())],
            email if email.contains('@') => vec![CertificateName::Email(owned())],
            _ => vec![CertificateName::Dns(owned()), CertificateName::Common(owned())],
        };
        let Some(patterns) = &self.names else { return true };
        kinds.iter().any(|name| patterns.iter().any(|pattern| pattern.matches(name)))
    }
}

/// Takes the keys of this kind. `key` writes one in full.
pub(super) fn client_certificate(
    raw: &mut RawAuth,
    key: &dyn Fn(&str) -> String,
) -> Result<ClientCertificateConfig> {
    Ok(ClientCertificateConfig {
        names: raw.names.take().map(|list| all(&key("names"), list)).transpose()?,
        fingerprints: raw.fingerprints.take().map(|list| all(&key("fingerprints"), list)).transpose()?,
    })
}

fn all<T: FromStr<Err: fmt::Display>>(key: &str, written: Spanned<StringList>) -> Result<Vec<T>> {
    if written.get_ref().is_empty() {
        let wrong = "no client could be admitted; list some, or remove the key to admit every certificate of client_ca";
        return Err(invalid_literal(key, written.span(), "[]", wrong));
    }
    written.get_ref().iter().map(|text| parsed(key, text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: CertificateName) -> bool {
        pattern.parse::<NamePattern>().unwrap().matches(&name)
    }

    #[test]
    fn a_plain_name_is_that_of_a_host_or_a_common_name() {
        let dns = |name: &str| CertificateName::Dns(name.into());
        for (pattern, name, is_match) in [
            ("probe.example.org", "probe.example.org", true),
            ("Probe.Example.org", "probe.example.org", true),
            ("probe.example.org", "probe.example.org.evil.example", false),
            ("*.example.org", "probe.example.org", true),
            ("*.example.org", "example.org", false),
            ("*.example.org", "a.probe.example.org", false),
            ("*.example.org", ".example.org", false),
            ("*.example.org", "*.example.org", false),
            ("*.example.org", "probe.example.com", false),
        ] {
            assert_eq!(matches(pattern, dns(name)), is_match, "{pattern} {name}");
            assert_eq!(matches(pattern, CertificateName::Common(name.into())), is_match, "{pattern} {name}");
            assert!(!matches(pattern, CertificateName::Uri(name.into())));
            assert!(!matches(pattern, CertificateName::Email(name.into())));
        }
    }

    #[test]
    fn an_email_address_has_a_mailbox_and_a_domain() {
        for (pattern, name, is_match) in [
            ("ann@example.org", "ann@Example.org", true),
            ("ann@example.org", "Ann@example.org", false),
            ("*@example.org", "bob@example.org", true),
            ("*@example.org", "@example.org", false),
            ("*@example.org", "bob@evil.example@example.org", true),
            ("*@example.org", "bob@example.org@evil.example", false),
            ("*@example.org", "example.org", false),
        ] {
            assert_eq!(matches(pattern, CertificateName::Email(name.into())), is_match, "{pattern} {name}");
            assert!(!matches(pattern, CertificateName::Common(name.into())), "{pattern} {name}");
        }
    }

    #[test]
    fn a_star_in_a_uri_stands_for_segments() {
        for (pattern, name, is_match) in [
            ("spiffe://example.org/ns/web", "spiffe://example.org/ns/web", true),
            ("spiffe://example.org/ns/web", "SPIFFE://Example.org/ns/web", true),
            ("spiffe://example.org/ns/web", "spiffe://example.org/ns/Web", false),
            ("spiffe://example.org/ns/web", "spiffe://example.org/ns/web/", false),
            ("spiffe://example.org/ns/web", "spiffe://example.org/ns", false),
            ("spiffe://example.org/ns/*", "spiffe://example.org/ns/web", true),
            ("spiffe://example.org/ns/*", "spiffe://example.org/ns/prod/sa/web", true),
            ("spiffe://example.org/ns/*", "spiffe://example.org/ns", false),
            ("spiffe://example.org/ns/*", "spiffe://example.org/ns/", false),
            ("spiffe://example.org/ns/*", "spiffe://example.org/ns/../admin", false),
            ("spiffe://example.org/ns/*", "spiffe://example.org/ns/%2e%2e/admin", false),
            ("spiffe://example.org/ns/*", "spiffe://example.org/ns/web?x", false),
            ("spiffe://example.org/ns/*", "spiffe://example.org.evil.example/ns/web", false),
            ("spiffe://example.org/ns/*", "spiffe://evil.example/ns/web", false),
            ("spiffe://example.org/ns/*", "https://example.org/ns/web", false),
            ("spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/prod/sa/web", true),
            ("spiffe://example.org/ns/*/sa/web", "spiffe://example.org/ns/a/b/sa/web", false),
            ("spiffe://example.org/*", "spiffe://example.org/web", true),
            ("spiffe://example.org/*", "spiffe://example.org", false),
            ("spiffe://example.org", "spiffe://example.org", true),
        ] {
            assert_eq!(matches(pattern, CertificateName::Uri(name.into())), is_match, "{pattern} {name}");
            assert!(!matches(pattern, CertificateName::Dns(name.into())), "{pattern} {name}");
        }
    }

    #[test]
    fn a_star_elsewhere_is_refused() {
        for text in [
            "*",
            "*.",
            "probe*.example.org",
            "a.*.example.org",
            "*ann@example.org",
            "ann@*.example.org",
            "spiffe://*/ns",
        ] {
            assert_eq!(text.parse::<NamePattern>(), Err(NamePatternError::Star), "{text}");
        }
        for text in ["spiffe://example.org/n*", "*://example.org/ns", "spiffe://example.org/**"] {
            assert_eq!(text.parse::<NamePattern>(), Err(NamePatternError::Star), "{text}");
        }
        assert_eq!("".parse::<NamePattern>(), Err(NamePatternError::Empty));
        assert_eq!("a\0b".parse::<NamePattern>(), Err(NamePatternError::Control));
    }

    #[test]
    fn a_fingerprint_is_what_openssl_prints() {
        let digits = "0123456789abcdef".repeat(4);
        let plain: Fingerprint = format!("sha256:{digits}").parse().unwrap();
        assert_eq!(plain.to_string(), format!("sha256:{digits}"));
        let pairs: Vec<&str> =
            digits.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap()).collect();
        let colons = format!("sha256:{}", pairs.join(":").to_ascii_uppercase());
        assert_eq!(colons.parse(), Ok(plain));
        for text in [
            digits.as_str(),
            "sha1:00",
            "sha256:",
            &format!("sha256:{digits}0"),
            &format!("sha256:+{}", &digits[1..]),
        ] {
            assert_eq!(text.parse::<Fingerprint>(), Err(FingerprintError), "{text}");
        }
    }

    #[test]
    fn a_name_alone_is_compared_as_the_kind_that_it_looks_like() {
        let config = |names: &[&str]| ClientCertificateConfig {
            names: Some(names.iter().map(|name| name.parse().unwrap()).collect()),
            fingerprints: None,
        };
        let some = config(&["*.example.org", "*@example.org", "spiffe://example.org/ns/*", "Probe 7"]);
        for name in ["a.example.org", "ann@example.org", "spiffe://example.org/ns/web", "Probe 7"] {
            assert!(some.admits_name(name), "{name}");
        }
        for name in ["ann", "a.example.com", "ann@example.com", "spiffe://example.org/web"] {
            assert!(!some.admits_name(name), "{name}");
        }
        assert!(ClientCertificateConfig { names: None, fingerprints: None }.admits_name("ann"));
    }
}
