//! `[auth.NAME]`: the methods of authentication.
//!
//! Owns the rules between methods and between the keys of one. The keys of a kind are converted in the file of that kind.

mod basic;
mod client_certificate;
mod forward;
mod jwt;
mod place;
mod ticket;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;

pub use self::basic::Basic;
pub use self::client_certificate::{
    ClientCertificateConfig, FingerprintError, NamePattern, NamePatternError,
};
pub use self::forward::Forward;
use self::jwt::RawClaims;
pub use self::jwt::{Jwt, JwtKeys};
pub use self::place::{PlaceError, TokenPlace};
pub use self::ticket::{BaseUrl, BaseUrlError, TicketConfig};
use super::error::{ConfigFault, ConfigWarning, nearest};
use super::listener::Listener;
use super::scalar::{DurationText, Integer, OptionalKey, StringList, StringOrList};
use super::values::{Result, conflict, invalid, invalid_literal, one_of};

/// A method of authentication, and its name.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthMethod {
    /// The name that routes refer to.
    pub name: String,
    /// What it checks.
    pub kind: AuthKind,
}

/// The kinds of methods.
#[derive(Debug, Clone, PartialEq)]
pub enum AuthKind {
    /// One of the methods with these names suffices.
    Any(Vec<String>),
    /// A user and a password of a file.
    Basic(Basic),
    /// A certificate that the client has presented in the TLS handshake.
    ClientCertificate(ClientCertificateConfig),
    /// An HTTP server decides.
    Forward(Box<Forward>),
    /// A token that an issuer has signed.
    Jwt(Box<Jwt>),
    /// Tickets that the gateway itself has issued.
    Ticket(TicketConfig),
}

/// What `kind` can be.
const KINDS: &[(&str, Kind)] = &[
    ("basic", Kind::Basic),
    ("client-certificate", Kind::ClientCertificate),
    ("forward", Kind::Forward),
    ("jwt", Kind::Jwt),
    ("ticket", Kind::Ticket),
];

#[derive(Debug, Clone, Copy)]
enum Kind {
    Basic,
    ClientCertificate,
    Forward,
    Jwt,
    Ticket,
}

/// The tables `[auth.NAME]`.
pub(super) type RawAuthTables = BTreeMap<Spanned<String>, Spanned<RawAuth>>;

/// The keys of all kinds. The conversion of a kind takes those that it knows.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAuth {
    kind: OptionalKey<String>,
    any: OptionalKey<StringList>,
    algorithms: OptionalKey<StringList>,
    key: OptionalKey<String>,
    jwks: OptionalKey<String>,
    secret_file: OptionalKey<String>,
    ca: OptionalKey<String>,
    issuer: OptionalKey<String>,
    audience: OptionalKey<StringOrList>,
    leeway: OptionalKey<DurationText>,
    from: OptionalKey<StringList>,
    required_claims: OptionalKey<RawClaims>,
    user_claim: OptionalKey<String>,
    target_claim: OptionalKey<String>,
    routes_claim: OptionalKey<String>,
    max_session_claim: OptionalKey<String>,
    base: OptionalKey<String>,
    names: OptionalKey<StringList>,
    fingerprints: OptionalKey<StringList>,
    file: OptionalKey<String>,
    realm: OptionalKey<String>,
    url: OptionalKey<String>,
    timeout: OptionalKey<DurationText>,
    max_in_flight: OptionalKey<Integer>,
    cache: OptionalKey<DurationText>,
    user_header: OptionalKey<String>,
    target_header: OptionalKey<String>,
    expires_header: OptionalKey<String>,
}

impl RawAuth {
    /// A key that is still there, and where its value is: it belongs to another kind.
    fn leftover(&self) -> Option<(&'static str, Range<usize>)> {
        fn at<T>(key: &'static str, value: &OptionalKey<T>) -> Option<(&'static str, Range<usize>)> {
            value.as_ref().map(|value| (key, value.span()))
        }
        let keys = [
            at("kind", &self.kind),
            at("any", &self.any),
            at("algorithms", &self.algorithms),
            at("key", &self.key),
            at("jwks", &self.jwks),
            at("secret_file", &self.secret_file),
            at("ca", &self.ca),
            at("issuer", &self.issuer),
            at("audience", &self.audience),
            at("leeway", &self.leeway),
            at("from", &self.from),
            at("required_claims", &self.required_claims),
            at("user_claim", &self.user_claim),
            at("target_claim", &self.target_claim),
            at("routes_claim", &self.routes_claim),
            at("max_session_claim", &self.max_session_claim),
            at("base", &self.base),
            at("names", &self.names),
            at("fingerprints", &self.fingerprints),
            at("file", &self.file),
            at("realm", &self.realm),
            at("url", &self.url),
            at("timeout", &self.timeout),
            at("max_in_flight", &self.max_in_flight),
            at("cache", &self.cache),
            at("user_header", &self.user_header),
            at("target_header", &self.target_header),
            at("expires_header", &self.expires_header),
        ];
        keys.into_iter().flatten().next()
    }
}

/// Converts all methods.
pub(super) fn methods(
    raw: RawAuthTables,
    listeners: &[Listener],
    base: &Path,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Vec<AuthMethod>> {
    let combined: Vec<String> = raw
        .iter()
        .filter(|(_, table)| table.get_ref().any.is_some())
        .map(|(name, _)| name.get_ref().clone())
        .collect();
    let known: Vec<String> = raw.keys().map(|name| name.get_ref().clone()).collect();
    let mut methods = Vec::with_capacity(raw.len());
    for (name, table) in raw {
        let (at, name) = (table.span(), name.into_inner());
        let mut table = table.into_inner();
        let key = |key: &str| format!("auth.{name}.{key}");
        let kind = match (table.kind.take(), table.any.take()) {
            (Some(kind), Some(_)) => {
                let wrong = "a method has either a kind or a list of others, any; remove one of them";
                return Err(invalid(key("kind"), &kind, wrong));
            }
            (Some(kind), None) => match one_of(&key("kind"), &kind, KINDS)? {
                Kind::Basic => AuthKind::Basic(basic::basic(&mut table, at.clone(), &key, base)?),
                Kind::ClientCertificate => {
                    AuthKind::ClientCertificate(client_certificate::client_certificate(&mut table, &key)?)
                }
                Kind::Forward => AuthKind::Forward(Box::new(forward::forward(
                    &mut table,
                    at.clone(),
                    &key,
                    base,
                    warnings,
                )?)),
                Kind::Jwt => AuthKind::Jwt(Box::new(jwt::jwt(&mut table, at.clone(), &key, base)?)),
                Kind::Ticket => AuthKind::Ticket(ticket::ticket(&mut table, &key)?),
            },
            (None, Some(any)) => {
                let key = key("any");
                let names = references(&key, any, &known)?;
                if let Some(name) = names.iter().find(|name| combined.contains(name.get_ref())) {
                    let wrong = "this method is a list of others itself; name these instead";
                    return Err(invalid(key, name, wrong));
                }
                AuthKind::Any(names.into_iter().map(Spanned::into_inner).collect())
            }
            (None, None) => {
                let sentence = format!("[auth.{name}] has no kind; add kind = \"…\"");
                return Err(conflict(at, sentence));
            }
        };
        if let Some((leftover, at)) = table.leftover() {
            let sentence = format!("{} does not belong to this kind of method; remove it", key(leftover));
            return Err(conflict(at, sentence));
        }
        let no_client_ca = || listeners.iter().all(|listener| listener.client_ca.is_none());
        if matches!(kind, AuthKind::ClientCertificate(_)) && no_client_ca() {
            let sentence = format!(
                "[auth.{name}] admits no client, because no [[listener]] has client_ca, so that no client can present a certificate; \
                 add client_ca = \"….pem\" to one"
            );
            return Err(conflict(at, sentence));
        }
        methods.push(AuthMethod { name, kind });
    }
    Ok(methods)
}

/// The key `auth` of a route or of the files: one name of a method, or a list of them.
pub(super) fn required(
    key: &str,
    written: OptionalKey<StringOrList>,
    methods: &[AuthMethod],
) -> Result<Vec<Spanned<String>>> {
    let Some(written) = written else { return Ok(Vec::new()) };
    let known: Vec<String> = methods.iter().map(|method| method.name.clone()).collect();
    let at = written.span();
    let names = match written.into_inner() {
        StringOrList::One(name) => vec![Spanned::new(at.clone(), name)],
        StringOrList::Many(names) => names,
    };
    references(key, Spanned::new(at, names), &known)
}

/// A list of names of methods: at least one, each configured and named once.
fn references(key: &str, written: Spanned<StringList>, known: &[String]) -> Result<Vec<Spanned<String>>> {
    if written.get_ref().is_empty() {
        let wrong = "an empty list; name at least one [auth.NAME], or remove the key";
        return Err(invalid_literal(key, written.span(), "[]", wrong));
    }
    let names = written.into_inner();
    for (index, name) in names.iter().enumerate() {
        if !known.contains(name.get_ref()) {
            return Err(unknown(key, name, known));
        }
        if names[..index].iter().any(|other| other.get_ref() == name.get_ref()) {
            return Err(invalid(key, name, "listed twice; remove one of them"));
        }
    }
    Ok(names)
}

fn unknown(key: &str, name: &Spanned<String>, known: &[String]) -> ConfigFault {
    let advice = match nearest(name.get_ref(), known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("add a table [auth.{}], or name one that is there", name.get_ref()),
    };
    invalid(key, name, format!("there is no [auth.{}]; {advice}", name.get_ref()))
}
