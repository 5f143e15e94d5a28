//! `[[listener]]`: an address, its certificate and the proxies in front of it.
//!
//! Owns the keys and the rules between listeners: no two may share an address. Certificate files are named here and
//! read elsewhere.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use toml::Spanned;

use super::address::{Address, Group, SocketAccess};
use super::error::{ConfigWarning, listener_key};
use super::host::{Host, without_trailing_dot};
use super::scalar::{OptionalKey, StringList, StringOrList};
use super::tls_version::TlsVersion;
use super::values::{Result, conflict, invalid, invalid_literal, keyword, missing, networks, resolve_path};

/// One address to accept clients on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where to listen.
    pub address: Address,
    /// Who may connect, if it is a Unix socket.
    pub access: SocketAccess,
    /// The certificate for TLS clients; without one the listener is plain `ws://`.
    pub identity: Option<Identity>,
    /// What verifies the certificates of clients, if they can present some.
    pub client_ca: Option<ClientCa>,
    /// The oldest TLS version that is accepted.
    pub min_tls: TlsVersion,
    /// Proxies whose forwarding headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Require that every connection comes from a trusted proxy and begins with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// The hosts that requests may name.
    pub hosts: AllowedHosts,
}

/// The hosts that requests to a listener may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedHosts {
    /// Not configured: on a plain loopback or private address, its own names and those that the configuration contains; any
    /// host elsewhere.
    Default,
    /// Any host.
    Any,
    /// These: lower-case ASCII without port or trailing dot, IPv6 in brackets. `*.example.com` stands for any one label in
    /// place of the star.
    Listed(Vec<String>),
}

/// A certificate chain and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// In two PEM files.
    Files {
        /// The chain, the leaf certificate first.
        certificate: PathBuf,
        /// The private key of the leaf certificate.
        private_key: PathBuf,
    },
    /// In memory, as PEM.
    Pem {
        /// The chain, the leaf certificate first.
        certificate: String,
        /// The private key of the leaf certificate.
        private_key: Secret,
    },
}

/// The authorities that sign the certificates of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCa {
    /// Their certificates.
    pub path: PathBuf,
    /// Whether a client without a certificate is refused in the handshake.
    pub required: bool,
    /// The certificates that they have revoked; if there are none, nothing is checked.
    pub crls: Vec<PathBuf>,
}

/// A text that neither logs nor Debug output show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListener {
    address: OptionalKey<String>,
    mode: OptionalKey<String>,
    group: OptionalKey<String>,
    certificate: OptionalKey<String>,
    private_key: OptionalKey<String>,
    client_ca: OptionalKey<String>,
    client_certificate: OptionalKey<String>,
    crl: OptionalKey<StringOrList>,
    min_tls: OptionalKey<String>,
    #[serde(default)]
    trusted_proxies: StringList,
    proxy_protocol: OptionalKey<bool>,
    hosts: OptionalKey<StringList>,
}

/// The first listener that asks for certificates of clients without requiring one: its position, and where it says so.
pub(super) fn optional_certificates(written: &[Spanned<RawListener>]) -> Option<(usize, Range<usize>)> {
    let modes = written.iter().map(|listener| listener.get_ref().client_certificate.as_ref());
    let optional = |mode: &Spanned<String>| mode.get_ref() == "optional";
    modes.enumerate().find_map(|(index, mode)| Some((index, mode.filter(|mode| optional(mode))?.span())))
}

pub(super) fn listeners(
    written: Vec<Spanned<RawListener>>,
    base: &Path,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Vec<Listener>> {
    if written.is_empty() {
        let wrong =
            "there is no [[listener]]; add one with address = \"0.0.0.0:8443\", certificate and private_key";
        return Err(conflict(0..0, wrong));
    }
    let mut listeners: Vec<Listener> = Vec::with_capacity(written.len());
    for (index, table) in written.into_iter().enumerate() {
        let listener = listener(index, table, base, &listeners, warnings)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn listener(
    index: usize,
    table: Spanned<RawListener>,
    base: &Path,
    before: &[Listener],
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Listener> {
    let key = |name: &str| listener_key(index, name);
    let at = table.span();
    let written = table.into_inner();
    let Some(text) = written.address else {
        return Err(missing(at, key("address"), "add address = \"0.0.0.0:8443\""));
    };
    let address = address(&key("address"), &text, base, before)?;
    let access = access(&key, matches!(address, Address::Unix(_)), written.mode, written.group)?;
    let identity = identity(index, written.certificate, written.private_key, base)?;
    if identity.is_none() && !address.is_local() {
        let sentence = format!(
            "{} {address} is reachable from other machines without TLS, so anyone on the network path can read and change \
             the traffic; add certificate and private_key, or listen on 127.0.0.1 behind a TLS proxy.",
            key("address")
        );
        warnings.push(ConfigWarning { at: text.span(), sentence });
    }
    let client_certificates = (written.client_ca, written.client_certificate, written.crl);
    let client_ca = client_ca(&key, client_certificates, identity.is_some(), base)?;
    let min_tls_at = written.min_tls.as_ref().filter(|_| identity.is_none()).map(Spanned::span);
    if let Some(at) = min_tls_at {
        let sentence = format!("{} has no effect on a listener without a certificate.", key("min_tls"));
        warnings.push(ConfigWarning { at, sentence });
    }
    let min_tls = keyword(&key("min_tls"), written.min_tls, &TlsVersion::NAMES)?.unwrap_or_default();
    let trusted_proxies = trusted_proxies(&key("trusted_proxies"), &written.trusted_proxies, warnings)?;
    let proxy_protocol = written.proxy_protocol.as_ref().is_some_and(|on| *on.get_ref());
    if let Some(on) = written.proxy_protocol.filter(|on| *on.get_ref() && trusted_proxies.is_empty()) {
        let wrong = "anyone could send a PROXY header and claim any address; list your proxies, such as \
                     trusted_proxies = [\"10.0.0.0/8\"]";
        return Err(invalid_literal(key("proxy_protocol"), on.span(), true, wrong));
    }
    let hosts = hosts(&key("hosts"), written.hosts)?;
    Ok(Listener { address, access, identity, client_ca, min_tls, trusted_proxies, proxy_protocol, hosts })
}

/// Where to listen; no listener `before` may have the same address.
fn address(key: &str, text: &Spanned<String>, base: &Path, before: &[Listener]) -> Result<Address> {
    let parsed = text.get_ref().parse::<Address>();
    let address = match parsed.map_err(|error| invalid(key, text, error.to_string()))? {
        Address::Unix(path) => Address::Unix(base.join(path)),
        address => address,
    };
    let Some(other) = before.iter().position(|other| other.address.collides_with(&address)) else {
        return Ok(address);
    };
    let wrong = match address {
        Address::Ip(_) => {
            format!("listener {} already has this address and port; choose another port", other + 1)
        }
        _ => format!("listener {} already has this address; choose another", other + 1),
    };
    Err(invalid(key, text, wrong))
}

fn trusted_proxies(key: &str, written: &StringList, warnings: &mut Vec<ConfigWarning>) -> Result<Vec<IpNet>> {
    let trusted_proxies = networks(key, written, warnings)?;
    for (net, text) in trusted_proxies.iter().zip(written) {
        if net.prefix_len() == 0 {
            let sentence = format!(
                "{key} {net} trusts every address, so any client can claim any address; list only your proxies."
            );
            warnings.push(ConfigWarning { at: text.span(), sentence });
        }
    }
    Ok(trusted_proxies)
}

/// Who may connect to a Unix socket. `key` writes a key in full.
pub(super) fn access(
    key: &dyn Fn(&str) -> String,
    is_unix: bool,
    mode: OptionalKey<String>,
    group: OptionalKey<String>,
) -> Result<SocketAccess> {
    for (name, written) in [("mode", &mode), ("group", &group)] {
        if let Some(text) = written.as_ref().filter(|_| !is_unix) {
            return Err(invalid(key(name), text, "only a unix: address has it; remove it"));
        }
    }
    let mut access = SocketAccess::default();
    if let Some(text) = mode {
        let digits = text.get_ref();
        let is_octal = (3..=4).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
        access.mode = match u32::from_str_radix(digits, 8) {
            Ok(mode) if is_octal && mode <= 0o777 => mode,
            _ => {
                let wrong = "write the permissions as three octal digits, such as \"0660\"";
                return Err(invalid(key("mode"), &text, wrong));
            }
        };
    }
    if let Some(text) = group {
        let name = text.get_ref();
        if name.is_empty() || name.contains(|c: char| c == ':' || c.is_control()) {
            let wrong = "write the name or the number of a group, such as \"www-data\"";
            return Err(invalid(key("group"), &text, wrong));
        }
        access.group = Some(name.parse().map_or_else(|_| Group::Name(name.clone()), Group::Number));
    }
    Ok(access)
}

fn hosts(key: &str, written: OptionalKey<StringList>) -> Result<AllowedHosts> {
    let Some(written) = written else { return Ok(AllowedHosts::Default) };
    if written.get_ref().is_empty() {
        let wrong = "no request could be served; list hosts such as \"desk.example.com\", \"*\" for any, or leave it out";
        return Err(invalid_literal(key, written.span(), "[]", wrong));
    }
    if written.get_ref().iter().any(|host| host.get_ref() == "*") {
        return Ok(AllowedHosts::Any);
    }
    let hosts = written.get_ref().iter().map(|text| {
        let (star, name) = match text.get_ref().strip_prefix("*.") {
            Some(parent) => ("*.", parent),
            None => ("", text.get_ref().as_str()),
        };
        let host = name.parse::<Host>().map_err(|wrong| {
            let advice = "write the host alone, such as \"desk.example.com\", without scheme and port";
            invalid(key, text, format!("{wrong}; {advice}"))
        })?;
        Ok(format!("{star}{}", without_trailing_dot(&host.to_string())))
    });
    Ok(AllowedHosts::Listed(hosts.collect::<Result<_>>()?))
}

fn identity(
    index: usize,
    certificate: OptionalKey<String>,
    private_key: OptionalKey<String>,
    base: &Path,
) -> Result<Option<Identity>> {
    let key = |name| listener_key(index, name);
    match (certificate, private_key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(private_key)) => Ok(Some(Identity::Files {
            certificate: resolve_path(&key("certificate"), &certificate, base)?,
            private_key: resolve_path(&key("private_key"), &private_key, base)?,
        })),
        (Some(certificate), None) => {
            let advice =
                "a certificate needs its key; add private_key = \"….key\", or leave both out for plain ws://";
            Err(missing(certificate.span(), key("private_key"), advice))
        }
        (None, Some(private_key)) => {
            let advice =
                "a key needs its certificate; add certificate = \"….crt\", or leave both out for plain ws://";
            Err(missing(private_key.span(), key("certificate"), advice))
        }
    }
}

/// The keys for certificates of clients. `key` writes one in full.
fn client_ca(
    key: &dyn Fn(&str) -> String,
    (path, mode, crl): (OptionalKey<String>, OptionalKey<String>, OptionalKey<StringOrList>),
    has_tls: bool,
    base: &Path,
) -> Result<Option<ClientCa>> {
    let Some(path) = path else {
        let advice = "add client_ca = \"….pem\", the authority that signs the certificates of clients";
        let others = [mode.map(|mode| mode.span()), crl.map(|crl| crl.span())];
        return match others.into_iter().flatten().next() {
            Some(at) => Err(missing(at, key("client_ca"), advice)),
            None => Ok(None),
        };
    };
    if !has_tls {
        let wrong = "clients present certificates only over TLS; add certificate and private_key";
        return Err(invalid(key("client_ca"), &path, wrong));
    }
    let required = keyword(&key("client_certificate"), mode, &[("required", true), ("optional", false)])?;
    let crls = match crl {
        None => Vec::new(),
        Some(written) => {
            let at = written.span();
            let written = match written.into_inner() {
                StringOrList::One(path) => vec![Spanned::new(at.clone(), path)],
                StringOrList::Many(paths) => paths,
            };
            if written.is_empty() {
                let wrong = "an empty list revokes nothing; name a file, or remove the key";
                return Err(invalid_literal(key("crl"), at, "[]", wrong));
            }
            written.iter().map(|path| resolve_path(&key("crl"), path, base)).collect::<Result<_>>()?
        }
    };
    let path = resolve_path(&key("client_ca"), &path, base)?;
    Ok(Some(ClientCa { path, required: required.unwrap_or(true), crls }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown_by_debug() {
        let private_key = Secret::new("-----BEGIN PRIVATE KEY-----");
        assert_eq!(private_key.expose(), "-----BEGIN PRIVATE KEY-----");
        let identity = Identity::Pem { certificate: "public".into(), private_key };
        assert_eq!(format!("{identity:?}"), r#"Pem { certificate: "public", private_key: Secret(***) }"#);
    }
}
