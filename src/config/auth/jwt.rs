//! `kind = "jwt"`: tokens that an issuer has signed (RFC 7519).
//!
//! Owns which keys belong together. Reads no key: whether a key suits the algorithms is found out when it is loaded.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use jsonwebtoken::Algorithm;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use toml::Spanned;

use super::super::scalar::{OptionalKey, StringList, StringOrList};
use super::super::url::server_url;
use super::super::values::{
    Result, conflict, duration_or_off, invalid, invalid_literal, missing, one_of, resolve_path,
};
use super::{RawAuth, TokenPlace, place::places};

/// The leeway of a method that sets none: what clocks differ by that are set over the network.
const LEEWAY: Duration = Duration::from_secs(5);
/// With more leeway than this, a clock is wrong and is to be set.
const MAX_LEEWAY: Duration = Duration::from_secs(5 * 60);

const ALGORITHMS: &[(&str, Algorithm)] = &[
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// How tokens are verified, and what their claims mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Jwt {
    /// The algorithms that a token may be signed with: all of them with a secret, or none.
    pub algorithms: Vec<Algorithm>,
    /// Where the keys are that verify tokens.
    pub keys: JwtKeys,
    /// The `iss` claim that tokens must have.
    pub issuer: Option<String>,
    /// The `aud` claims of which tokens must have one. If there is none, tokens may have no `aud` claim.
    pub audience: Vec<String>,
    /// How much the clocks of the issuer and of this machine may differ.
    pub leeway: Duration,
    /// Where tokens are looked for.
    pub from: Vec<TokenPlace>,
    /// The claims that tokens must have, with the values of which they must have one.
    pub required_claims: BTreeMap<String, Vec<String>>,
    /// The claim with the user's name.
    pub user_claim: String,
    /// The claim that selects one of the route's targets.
    pub target_claim: Option<String>,
    /// The claim with the names of the routes that the token is for.
    pub routes_claim: Option<String>,
    /// The claim with how long a session may be open, in seconds.
    pub max_session_claim: Option<String>,
}

/// Where the keys are that verify tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum JwtKeys {
    /// A file with one public key or certificate in PEM form.
    Pem(PathBuf),
    /// A file with a secret that the issuer shares.
    Secret(PathBuf),
    /// A file with a JSON Web Key Set (RFC 7517 §5).
    SetFile(PathBuf),
    /// The URL of a key set.
    SetUrl {
        /// With `https`, or with `http` and a loopback address.
        url: Uri,
        /// The PEM file with the authorities that the server's certificate must be of, if not one of the system's.
        ca: Option<PathBuf>,
    },
}

/// The table `required_claims`.
#[derive(Debug)]
pub(super) struct RawClaims(BTreeMap<String, Spanned<StringOrList>>);

impl<'de> Deserialize<'de> for RawClaims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Expected;
        impl<'de> Visitor<'de> for Expected {
            type Value = RawClaims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of claims such as { role = \"staff\" }")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawClaims, A::Error> {
                let mut claims = BTreeMap::new();
                while let Some((claim, values)) = map.next_entry()? {
                    claims.insert(claim, values);
                }
                Ok(RawClaims(claims))
            }
        }
        deserializer.deserialize_map(Expected)
    }
}

/// Names a key of the method in messages.
type Key<'a> = &'a dyn Fn(&str) -> String;

/// Takes the keys of this kind. `at` is where the table is.
pub(super) fn jwt(table: &mut RawAuth, at: Range<usize>, key: Key<'_>, base: &Path) -> Result<Jwt> {
    let algorithms = algorithms(&key("algorithms"), table.algorithms.take(), at.clone())?;
    let keys = keys(table, at, key, base, &algorithms)?;
    let claim = |name: &str, written: OptionalKey<String>| {
        written.map(|written| nonempty(&key(name), written)).transpose()
    };
    Ok(Jwt {
        algorithms,
        keys,
        issuer: claim("issuer", table.issuer.take())?,
        audience: match table.audience.take() {
            Some(written) => values(&key("audience"), written)?,
            None => Vec::new(),
        },
        leeway: match table.leeway.take() {
            Some(written) => {
                let at = written.span();
                let text = written.get_ref().0.clone();
                let leeway = duration_or_off(&key("leeway"), Some(written), None)?.unwrap_or_default();
                if leeway > MAX_LEEWAY {
                    let wrong = "must be at most \"5m\"; set the clocks of both machines instead";
                    return Err(invalid(key("leeway"), &Spanned::new(at, text), wrong));
                }
                leeway
            }
            None => LEEWAY,
        },
        from: match table.from.take() {
            Some(written) => {
                let empty = "an empty list; name a place such as \"header\", or remove the key";
                places(&key("from"), written, empty)?
            }
            None => vec![TokenPlace::Header],
        },
        required_claims: match table.required_claims.take() {
            Some(claims) => required(key, claims)?,
            None => BTreeMap::new(),
        },
        user_claim: claim("user_claim", table.user_claim.take())?.unwrap_or_else(|| "sub".to_owned()),
        target_claim: claim("target_claim", table.target_claim.take())?,
        routes_claim: claim("routes_claim", table.routes_claim.take())?,
        max_session_claim: claim("max_session_claim", table.max_session_claim.take())?,
    })
}

/// Whether an algorithm uses one secret for signing and for verifying.
fn is_secret(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

fn algorithms(key: &str, written: OptionalKey<StringList>, at: Range<usize>) -> Result<Vec<Algorithm>> {
    const ADVICE: &str = "name those that the issuer signs with, such as \"ES256\"";
    let Some(written) = written else {
        return Err(missing(at, key, "add algorithms = [\"ES256\"], with those that the issuer signs with"));
    };
    if written.get_ref().is_empty() {
        return Err(invalid_literal(key, written.span(), "[]", format!("an empty list; {ADVICE}")));
    }
    let mut algorithms: Vec<Algorithm> = Vec::new();
    for name in written.into_inner() {
        if name.get_ref().eq_ignore_ascii_case("none") {
            let wrong = format!("a token without a signature proves nothing; {ADVICE}");
            return Err(invalid(key, &name, wrong));
        }
        let algorithm = one_of(key, &name, ALGORITHMS)?;
        if algorithms.contains(&algorithm) {
            return Err(invalid(key, &name, "listed twice; remove one of them"));
        }
        // A public key is no secret: a token that is signed with it would be valid (RFC 8725 §2.1).
        if algorithms.first().is_some_and(|first| is_secret(first) != is_secret(&algorithm)) {
            let wrong = "HS algorithms use a secret and the others a public key; make a method of each";
            return Err(invalid(key, &name, wrong));
        }
        algorithms.push(algorithm);
    }
    Ok(algorithms)
}

fn keys(
    table: &mut RawAuth,
    at: Range<usize>,
    key: Key<'_>,
    base: &Path,
    algorithms: &[Algorithm],
) -> Result<JwtKeys> {
    let is_secret = algorithms.iter().all(is_secret);
    let written = [
        table.key.take().map(|text| ("key", text)),
        table.jwks.take().map(|text| ("jwks", text)),
        table.secret_file.take().map(|text| ("secret_file", text)),
    ];
    let mut written = written.into_iter().flatten();
    let Some((name, text)) = written.next() else {
        let sentence = format!("{} is missing; add one of key, jwks and secret_file", key("key"));
        return Err(conflict(at, sentence));
    };
    if let Some((other, text)) = written.next() {
        let wrong =
            format!("there is {name} already, and a method has one source of keys; remove one of them");
        return Err(invalid(key(other), &text, wrong));
    }
    match (name, is_secret) {
        ("secret_file", false) => {
            let wrong = "these algorithms use a public key, not a secret; set key or jwks instead";
            return Err(invalid(key(name), &text, wrong));
        }
        ("key" | "jwks", true) => {
            let wrong = "HS algorithms use a secret, and a public key is none; set secret_file instead, or other algorithms";
            return Err(invalid(key(name), &text, wrong));
        }
        _ => {}
    }
    let ca = table.ca.take();
    let keys = match name {
        "key" => JwtKeys::Pem(resolve_path(&key(name), &text, base)?),
        "secret_file" => JwtKeys::Secret(resolve_path(&key(name), &text, base)?),
        _ if text.get_ref().contains("://") => {
            // Who can change what it returns can issue tokens.
            let (url, is_https) = server_url(&key(name), &text, "https://id.example.com/keys.json")?;
            if let Some(ca) = ca.as_ref().filter(|_| !is_https) {
                return Err(invalid(key("ca"), ca, "jwks does not use https; remove this key"));
            }
            let ca = ca.map(|path| resolve_path(&key("ca"), &path, base)).transpose()?;
            return Ok(JwtKeys::SetUrl { url, ca });
        }
        _ => JwtKeys::SetFile(resolve_path(&key(name), &text, base)?),
    };
    match ca {
        Some(ca) => Err(invalid(key("ca"), &ca, "there is no jwks with an https URL; remove this key")),
        None => Ok(keys),
    }
}

fn required(key: Key<'_>, claims: Spanned<RawClaims>) -> Result<BTreeMap<String, Vec<String>>> {
    let claims = claims.into_inner().0.into_iter();
    claims
        .map(|(claim, written)| {
            let values = values(&key(&format!("required_claims.{claim}")), written)?;
            Ok((claim, values))
        })
        .collect()
}

/// One or several strings, none of them empty.
fn values(key: &str, written: Spanned<StringOrList>) -> Result<Vec<String>> {
    let at = written.span();
    match written.into_inner() {
        StringOrList::One(text) => Ok(vec![nonempty(key, Spanned::new(at, text))?]),
        StringOrList::Many(list) if list.is_empty() => {
            Err(invalid_literal(key, at, "[]", "an empty list; name at least one value, or remove the key"))
        }
        StringOrList::Many(list) => list.into_iter().map(|text| nonempty(key, text)).collect(),
    }
}

fn nonempty(key: &str, written: Spanned<String>) -> Result<String> {
    match written.get_ref().is_empty() {
        true => Err(invalid(key, &written, "the text is empty; write one, or remove the key")),
        false => Ok(written.into_inner()),
    }
}
