//! Tokens that are valid and tokens that are forged, with keys in files and keys from a server.

mod endpoint;
mod forged;
mod keys;

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
    },
};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{super::Denied, JwtMethod, Keys};
use crate::{
    auth::Grant,
    config::{Jwt, JwtKeys, TokenPlace},
};

const SECRET: &[u8] = b"a secret of exactly 32 bytes....";

/// As in tokens and keys (RFC 7515 §2).
fn base64(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// What signs tokens.
enum Signer {
    Secret(Vec<u8>),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
}

impl Signer {
    fn p256() -> Self {
        Self::Ecdsa(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn p384() -> Self {
        Self::Ecdsa(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap())
    }

    fn ed25519() -> Self {
        Self::Ed25519(Ed25519KeyPair::generate().unwrap())
    }

    fn rsa() -> Self {
        Self::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()))
    }

    fn signature(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Secret(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::sign(&key, message).as_ref().to_vec()
            }
            Self::Ecdsa(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let padding: &dyn aws_lc_rs::signature::RsaEncoding =
                    if algorithm == "PS256" { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                pair.sign(padding, &random, message, &mut signature).unwrap();
                signature
            }
        }
    }

    /// A token with this header and these claims. The header's `alg` says how it is signed.
    fn token(&self, header: &Value, claims: &Value) -> String {
        let message =
            format!("{}.{}", base64(header.to_string().as_bytes()), base64(claims.to_string().as_bytes()));
        let algorithm = header["alg"].as_str().unwrap_or_default();
        format!("{message}.{}", base64(&self.signature(algorithm, message.as_bytes())))
    }

    /// The public key in the form of a "PUBLIC KEY" (RFC 5280 §4.1.2.7).
    fn spki(&self) -> Vec<u8> {
        use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
        fn der(key: &impl AsDer<PublicKeyX509Der<'static>>) -> Vec<u8> {
            key.as_der().unwrap().as_ref().to_vec()
        }
        match self {
            Self::Secret(_) => panic!("a secret has no public key"),
            Self::Ecdsa(pair) => der(pair.public_key()),
            Self::Ed25519(pair) => der(pair.public_key()),
            Self::Rsa(pair) => der(pair.public_key()),
        }
    }

    fn pem(&self) -> String {
        pem("PUBLIC KEY", &self.spki())
    }

    /// The public key as a JSON Web Key (RFC 7517), with more members.
    fn jwk(&self, more: Value) -> Value {
        let mut jwk = match self {
            Self::Secret(secret) => json!({ "kty": "oct", "k": base64(secret) }),
            Self::Ecdsa(pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({ "kty": "EC", "crv": curve, "x": base64(x), "y": base64(y) })
            }
            Self::Ed25519(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(pair.public_key().as_ref()) })
            }
            Self::Rsa(pair) => {
                let key = pair.public_key();
                let n = key.modulus().big_endian_without_leading_zero().to_vec();
                let e = key.exponent().big_endian_without_leading_zero().to_vec();
                json!({ "kty": "RSA", "n": base64(&n), "e": base64(&e) })
            }
        };
        for (name, value) in more.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        jwk
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64(der).replace('-', "+").replace('_', "/");
    let padding = "=".repeat((4 - text.len() % 4) % 4);
    format!("-----BEGIN {label}-----\n{text}{padding}\n-----END {label}-----\n")
}

fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Claims that are valid at [`now`].
fn claims() -> Value {
    json!({ "sub": "ann", "exp": 1_800_000_060 })
}

pub(super) fn config(algorithms: &[Algorithm], keys: JwtKeys) -> Jwt {
    Jwt {
        algorithms: algorithms.to_vec(),
        keys,
        issuer: None,
        audience: Vec::new(),
        leeway: Duration::ZERO,
        from: vec![TokenPlace::Header],
        required_claims: BTreeMap::new(),
        user_claim: "sub".into(),
        target_claim: None,
        routes_claim: None,
        max_session_claim: None,
    }
}

/// A file, and a method that uses it.
fn load(
    algorithms: &[Algorithm],
    keys: impl Fn(&Path) -> JwtKeys,
    text: impl AsRef<[u8]>,
) -> Result<(JwtMethod, TempDir), String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, text).unwrap();
    let method = JwtMethod::load("site", &config(algorithms, keys(&path)), None)?;
    Ok((method, directory))
}

/// Fetches the keys, as the background task does.
async fn fetch(method: &JwtMethod) {
    let Keys::Endpoint(endpoint) = &method.keys else { panic!("{method:?}") };
    let _ = endpoint.update().await;
}

fn in_pem(path: &Path) -> JwtKeys {
    JwtKeys::Pem(path.into())
}

fn in_secret(path: &Path) -> JwtKeys {
    JwtKeys::Secret(path.into())
}

fn in_set(path: &Path) -> JwtKeys {
    JwtKeys::SetFile(path.into())
}

#[track_caller]
fn refused(result: Result<Grant, Denied>) -> String {
    match result {
        Err(Denied::Unauthorized { detail, attempted: true }) => detail,
        other => panic!("{other:?}"),
    }
}
