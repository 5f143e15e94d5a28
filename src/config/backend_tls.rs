//! `[route.tls]`: TLS to the backends.
//!
//! Owns the keys and the rule that a backend's certificate can have the name that is expected of it. Certificate files
//! are named here and read by `backend`.

use std::path::{Path, PathBuf};

use rustls::pki_types::DnsName;
use toml::Spanned;

use super::backend::WITH_TLS;
use super::error::{ConfigWarning, quoted};
use super::host::{Host, without_trailing_dot};
use super::scalar::OptionalKey;
use super::tls_version::TlsVersion;
use super::values::{Result, RouteKey, SpannedBackend, conflict, invalid, keyword, missing, resolve_path};

/// TLS to the backends that use it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackendTls {
    /// PEM file with the only certificate authorities to trust; `None` trusts those of the system.
    pub ca: Option<PathBuf>,
    /// The name that the backend's certificate must be valid for: a host name in lower-case ASCII and without trailing
    /// dot, or an IP address without brackets. `None` stands for the host of the backend, or its `xmpp_domain`.
    pub server_name: Option<String>,
    /// PEM files of the client certificate: the chain, and its private key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// The oldest TLS version that is accepted.
    pub min_version: TlsVersion,
    /// Accept any certificate, from any issuer and for any name.
    pub insecure_no_verify: bool,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    ca: OptionalKey<String>,
    server_name: OptionalKey<String>,
    client_certificate: OptionalKey<String>,
    client_key: OptionalKey<String>,
    min_version: OptionalKey<String>,
    insecure_no_verify: OptionalKey<bool>,
}

pub(super) fn tls(
    key: RouteKey<'_>,
    written: OptionalKey<RawTls>,
    backends: &[SpannedBackend],
    base: &Path,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<BackendTls> {
    let Some(table) = written else { return Ok(BackendTls::default()) };
    if !backends.iter().any(|(backend, _)| backend.is_encrypted()) {
        let sentence = format!(
            "{} has no effect without a backend that uses TLS; write the backend with {WITH_TLS}, or remove tls",
            key("tls")
        );
        return Err(conflict(table.span(), sentence));
    }
    let written = table.into_inner();
    if let Some(on) = written.insecure_no_verify.as_ref().filter(|on| *on.get_ref()) {
        let sentence = format!(
            "{} true accepts any certificate, so anyone on the network path can impersonate the backend and read \
             and change the traffic; set ca to its certificate authority instead.",
            key("tls.insecure_no_verify")
        );
        warnings.push(ConfigWarning { at: on.span(), sentence });
    }
    let file = |name: &str, text: &Spanned<String>| resolve_path(&key(name), text, base);
    let client = match (&written.client_certificate, &written.client_key) {
        (None, None) => None,
        (Some(certificate), Some(private_key)) => {
            Some((file("tls.client_certificate", certificate)?, file("tls.client_key", private_key)?))
        }
        (Some(certificate), None) => {
            let advice = "a certificate needs its key; add client_key = \"….key\", or leave both out";
            return Err(missing(certificate.span(), key("tls.client_key"), advice));
        }
        (None, Some(private_key)) => {
            let advice = "a key needs its certificate; add client_certificate = \"….crt\", or leave both out";
            return Err(missing(private_key.span(), key("tls.client_certificate"), advice));
        }
    };
    let name = written.server_name.map(|text| server_name(&key("tls.server_name"), &text));
    Ok(BackendTls {
        ca: written.ca.map(|text| file("tls.ca", &text)).transpose()?,
        server_name: name.transpose()?,
        client,
        min_version: keyword(&key("tls.min_version"), written.min_version, &TlsVersion::NAMES)?
            .unwrap_or_default(),
        insecure_no_verify: written.insecure_no_verify.is_some_and(Spanned::into_inner),
    })
}

/// Refuses a backend whose host is valid in DNS but cannot stand in a certificate. `key` is that of the backends.
pub(super) fn check_certificate_names(
    key: &str,
    backends: &[SpannedBackend],
    xmpp_domain: Option<&str>,
) -> Result<()> {
    for (backend, text) in backends {
        if let Some(name) =
            backend.certificate_name(xmpp_domain).filter(|name| DnsName::try_from(*name).is_err())
        {
            let wrong = format!("{}; add tls = {{ server_name = \"…\" }}", no_certificate_for(name));
            return Err(invalid(key, text, wrong));
        }
    }
    Ok(())
}

fn no_certificate_for(name: &str) -> String {
    format!("no certificate can be valid for {}: a label begins or ends with \"-\"", quoted(name))
}

fn server_name(key: &str, text: &Spanned<String>) -> Result<String> {
    const WRITE: &str =
        "write the name in the server's certificate, such as \"db.example.com\", without scheme and port";
    let written = text.get_ref();
    // A certificate has IPv6 addresses without brackets, so both forms are accepted here.
    match written.parse().map(Host::Address).or_else(|_| written.parse()) {
        Ok(Host::Address(address)) => Ok(address.to_string()),
        Ok(Host::Name(name)) if DnsName::try_from(name.as_str()).is_ok() => {
            Ok(without_trailing_dot(&name).to_owned())
        }
        Ok(Host::Name(name)) => Err(invalid(key, text, format!("{}; {WRITE}", no_certificate_for(&name)))),
        Err(wrong) => Err(invalid(key, text, format!("{wrong}; {WRITE}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::route_fixture::{assert_errors, upstream, warnings};
    use crate::config::TlsVersion;

    #[test]
    fn a_server_name_can_stand_in_a_certificate() {
        for (written, parsed) in [
            ("Db.Example.com.", "db.example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("192.0.2.1", "192.0.2.1"),
            ("2001:DB8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
        ] {
            let lines = format!("backend = \"tls://192.0.2.1:1\"\ntls.server_name = \"{written}\"");
            assert_eq!(upstream(&lines).tls.server_name.as_deref(), Some(parsed));
            assert!(rustls::pki_types::ServerName::try_from(parsed).is_ok(), "{parsed}");
        }
    }

    #[test]
    fn each_version_is_parsed() {
        for (word, version) in [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)] {
            let lines = format!("backend = \"starttls+xmpp://a:1\"\ntls = {{ min_version = \"{word}\" }}");
            assert_eq!(upstream(&lines).tls.min_version, version);
        }
        assert_eq!(upstream("backend = \"tls://a:1\"").tls.min_version, TlsVersion::V1_2);
    }

    #[test]
    fn tls_errors_state_position_cause_and_remedy() {
        assert_errors(&[
            (
                "backend = [\"tcp://a:1\", \"unix:/a\"]\ntls = { ca = \"ca.pem\" }",
                r#"7:7: route "a": tls has no effect without a backend that uses TLS; write the backend with tls:// or starttls+xmpp://, or remove tls"#,
            ),
            (
                "backend = \"tcp://a:1\"\n[route.tls]",
                r#"7:1: route "a": tls has no effect without a backend that uses TLS; write the backend with tls:// or starttls+xmpp://, or remove tls"#,
            ),
            (
                "backend = \"tls://a:1\"\ntls = { min_version = \"1.1\" }",
                r#"7:23: route "a": tls.min_version "1.1": must be "1.2" or "1.3"; did you mean "1.2"?"#,
            ),
            (
                "backend = \"tls://a:1\"\ntls = { min_tls = \"1.3\" }",
                r#"7:9: unknown key "min_tls" in [route.tls]; "min_tls" belongs in [[listener]]"#,
            ),
            (
                "backend = \"tls://a:1\"\ntls = { cert = \"a\" }",
                r#"7:9: unknown key "cert" in [route.tls]; did you mean "certificate", which belongs in [[listener]]?"#,
            ),
            (
                "backend = \"tls://a:1\"\ntls = { client_certificate = \"a.crt\" }",
                r#"7:30: route "a": tls.client_key is missing; a certificate needs its key; add client_key = "….key", or leave both out"#,
            ),
            (
                "backend = \"tls://a:1\"\ntls = { client_key = \"a.key\" }",
                r#"7:22: route "a": tls.client_certificate is missing; a key needs its certificate; add client_certificate = "….crt", or leave both out"#,
            ),
            (
                "backend = \"tls://a:1\"\ntls = { ca = \"\" }",
                r#"7:14: route "a": tls.ca "": the path is empty; write one, relative to the directory of this file"#,
            ),
            (
                "backend = \"tls://a:1\"\ntls = { insecure_no_verify = \"yes\" }",
                r#"7:30: route "a": tls.insecure_no_verify must be a boolean, found a string"#,
            ),
            (
                "backend = \"tls://a:1\"\ntls = { server_name = \"a:1\" }",
                r#"7:23: route "a": tls.server_name "a:1": a host cannot contain ":" (put an IPv6 address in brackets, as in [::1]); write the name in the server's certificate, such as "db.example.com", without scheme and port"#,
            ),
            (
                "backend = \"tls://a:1\"\ntls = { server_name = \"-a\" }",
                r#"7:23: route "a": tls.server_name "-a": no certificate can be valid for "-a": a label begins or ends with "-"; write the name in the server's certificate, such as "db.example.com", without scheme and port"#,
            ),
            (
                "backend = [\"tcp://-a:1\", \"tls://-a:1\"]",
                r#"6:26: route "a": backend "tls://-a:1": no certificate can be valid for "-a": a label begins or ends with "-"; add tls = { server_name = "…" }"#,
            ),
            (
                "backend = \"starttls+xmpp://a-:1\"",
                r#"6:11: route "a": backend "starttls+xmpp://a-:1": no certificate can be valid for "a-": a label begins or ends with "-"; add tls = { server_name = "…" }"#,
            ),
            (
                "backend = \"tls://a:1\"\ntls = true",
                "7:1: route.tls is a table: write [route.tls] with one bracket on a line of its own, and its keys below",
            ),
        ]);
        let named = upstream("backend = \"tls://-a:1\"\ntls.server_name = \"a\"");
        assert_eq!(named.tls.server_name.as_deref(), Some("a"));
    }

    #[test]
    fn insecure_no_verify_causes_a_warning() {
        assert_eq!(
            warnings("backend = \"tls://a:1\"\ntls = { insecure_no_verify = true }"),
            [
                "gateway.toml:7:30: route \"a\": tls.insecure_no_verify true accepts any certificate, so anyone on the network path can impersonate the backend and read and change the traffic; set ca to its certificate authority instead."
            ]
        );
        let verified = upstream("backend = \"tls://a:1\"\ntls = { insecure_no_verify = false }");
        assert!(!verified.tls.insecure_no_verify);
    }
}
