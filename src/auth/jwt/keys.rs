//! The keys that verify tokens.
//!
//! Pure. Owns which keys of a text can be used, and which of them verifies a token. Invariants: each key verifies only
//! algorithms of its own type that the configuration lists and, where a key names its algorithm, only that; the `kid` of a
//! token is compared with those of the keys and used for nothing else.

use std::{fmt, ops::RangeInclusive};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use rustls::pki_types::pem::{PemObject, SectionKind};
use serde_json::Value;
use x509_parser::{
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
    },
    prelude::{FromDer, X509Certificate},
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

use crate::auth::sha256;

/// A set with more keys than this is no key set.
const MAX_KEYS: usize = 100;
/// The sizes of RSA keys that can be used, in bits (RFC 7518 §3.3).
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;

/// Why a text has no key that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyError {
    #[error("it has no public key in PEM form; it should contain \"-----BEGIN PUBLIC KEY-----\"")]
    NotPem,
    #[error("it has a private key; only the issuer needs that one, name a file with the public key")]
    Private,
    #[error("it has several keys; leave the one that the issuer signs with, or use jwks")]
    Several,
    #[error("its key is none of RSA, P-256, P-384 and Ed25519; no supported algorithm uses it")]
    UnknownType,
    #[error("its RSA key has {0} bits, and 2048 to 8192 are supported; let the issuer use another")]
    RsaSize(usize),
    #[error("its key is for {0}, and {1:?} cannot use it; name the algorithm that the issuer signs with")]
    OtherAlgorithm(KeyType, Algorithm),
    #[error("it has a key or a certificate in PEM form, which is no secret; set key instead")]
    PemSecret,
    #[error(
        "the secret has {has} bytes, and {needs:?} needs {min}; make one with \"openssl rand -hex {min}\""
    )]
    ShortSecret { has: usize, needs: Algorithm, min: usize },
    #[error("it is no JSON Web Key Set; it should begin with {{\"keys\":[")]
    NotSet,
    #[error("it has {0} keys, and {MAX_KEYS} are the most; remove those that are not used")]
    TooMany(usize),
    #[error("none of its {0} keys can be used with these algorithms")]
    NoneUsable(usize),
}

/// Why no key verifies a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoKey {
    #[error("the token is signed with a key that is not in the key set")]
    Unknown,
    #[error("the token does not name its key with kid, and there are several")]
    Ambiguous,
}

/// The types of public keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyType {
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl KeyType {
    fn suits(self, algorithm: Algorithm) -> bool {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        match self {
            Self::Rsa => matches!(algorithm, RS256 | RS384 | RS512 | PS256 | PS384 | PS512),
            Self::P256 => algorithm == ES256,
            Self::P384 => algorithm == ES384,
            Self::Ed25519 => algorithm == EdDSA,
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rsa => "RSA",
            Self::P256 => "ECDSA with P-256",
            Self::P384 => "ECDSA with P-384",
            Self::Ed25519 => "Ed25519",
        })
    }
}

/// A key, and the algorithms that it may verify.
struct VerificationKey {
    id: Option<Box<str>>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// The keys of a text: at least one.
pub(super) struct KeySet {
    keys: Vec<VerificationKey>,
    /// Of the text, to tell whether another has the same keys.
    digest: [u8; 32],
}

impl KeySet {
    fn new(text: &[u8], keys: Vec<VerificationKey>) -> Self {
        Self { keys, digest: sha256(text) }
    }

    /// One public key, or the one of a certificate, in PEM form. It must suit all of the algorithms.
    pub(super) fn from_pem(text: &[u8], algorithms: &[Algorithm]) -> Result<Self, KeyError> {
        let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
        let sections = sections.map_err(|_| KeyError::NotPem)?;
        let (kind, der) = match sections.as_slice() {
            [] => return Err(KeyError::NotPem),
            [one] => one,
            _ => return Err(KeyError::Several),
        };
        let (key_type, key) = match kind {
            SectionKind::PublicKey => {
                let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| KeyError::NotPem)?;
                public_key(&info)?
            }
            SectionKind::Certificate => {
                let (_, certificate) = X509Certificate::from_der(der).map_err(|_| KeyError::NotPem)?;
                public_key(certificate.public_key())?
            }
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                return Err(KeyError::Private);
            }
            _ => return Err(KeyError::NotPem),
        };
        if let Some(other) = algorithms.iter().find(|algorithm| !key_type.suits(**algorithm)) {
            return Err(KeyError::OtherAlgorithm(key_type, *other));
        }
        let key = VerificationKey { id: None, algorithms: algorithms.to_vec(), key };
        Ok(Self::new(text, vec![key]))
    }

    /// A secret: the whole text, without a line break at its end.
    pub(super) fn from_secret(text: &[u8], algorithms: &[Algorithm]) -> Result<Self, KeyError> {
        let secret = text.strip_suffix(b"\n").map_or(text, |line| line.strip_suffix(b"\r").unwrap_or(line));
        if secret.windows(10).any(|window| window == b"-----BEGIN") {
            return Err(KeyError::PemSecret);
        }
        for &needs in algorithms {
            // The length of the hash (RFC 7518 §3.2): a shorter secret can be found by trying.
            let min = match needs {
                Algorithm::HS256 => 32,
                Algorithm::HS384 => 48,
                _ => 64,
            };
            if secret.len() < min {
                return Err(KeyError::ShortSecret { has: secret.len(), needs, min });
            }
        }
        let key = DecodingKey::from_secret(secret);
        Ok(Self::new(text, vec![VerificationKey { id: None, algorithms: algorithms.to_vec(), key }]))
    }

    /// The public keys of a JSON Web Key Set (RFC 7517 §5). Keys that cannot be used are ignored, as that section says.
    pub(super) fn from_jwks(text: &[u8], algorithms: &[Algorithm]) -> Result<Self, KeyError> {
        #[derive(serde::Deserialize)]
        struct RawSet {
            keys: Vec<Value>,
        }
        let RawSet { keys: raw } = serde_json::from_slice(text).map_err(|_| KeyError::NotSet)?;
        if raw.len() > MAX_KEYS {
            return Err(KeyError::TooMany(raw.len()));
        }
        let count = raw.len();
        let keys: Vec<_> = raw.into_iter().filter_map(|raw| jwk(raw, algorithms)).collect();
        if keys.is_empty() {
            return Err(KeyError::NoneUsable(count));
        }
        Ok(Self::new(text, keys))
    }

    /// The key for a token of this algorithm and `kid`.
    ///
    /// # Errors
    /// There is none, or it could be one of several: trying all of them would let a client choose how much work that is.
    pub(super) fn find(&self, algorithm: Algorithm, id: Option<&str>) -> Result<&DecodingKey, NoKey> {
        let suitable = || self.keys.iter().filter(|key| key.algorithms.contains(&algorithm));
        if let Some(id) = id
            && let Some(key) = suitable().find(|key| key.id.as_deref() == Some(id))
        {
            return Ok(&key.key);
        }
        let mut candidates = suitable().filter(|key| id.is_none() || key.id.is_none());
        match (candidates.next(), candidates.next()) {
            (Some(key), None) => Ok(&key.key),
            (None, _) => Err(NoKey::Unknown),
            (Some(_), Some(_)) => Err(NoKey::Ambiguous),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether both were read from the same text.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// The key of a certificate or of a "PUBLIC KEY".
fn public_key(info: &SubjectPublicKeyInfo<'_>) -> Result<(KeyType, DecodingKey), KeyError> {
    let bits = info.subject_public_key.data.as_ref();
    let algorithm = &info.algorithm;
    if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(key)) = info.parsed() else { return Err(KeyError::UnknownType) };
        rsa_size(key.modulus)?;
        return Ok((KeyType::Rsa, DecodingKey::from_rsa_der(bits)));
    }
    if algorithm.algorithm == OID_SIG_ED25519 {
        return checked(KeyType::Ed25519, DecodingKey::from_ed_der(bits), bits);
    }
    if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let key_type = match curve {
            Some(curve) if curve == OID_EC_P256 => KeyType::P256,
            Some(curve) if curve == OID_NIST_EC_P384 => KeyType::P384,
            _ => return Err(KeyError::UnknownType),
        };
        return checked(key_type, DecodingKey::from_ec_der(bits), bits);
    }
    Err(KeyError::UnknownType)
}

/// The key, if it is a point of its curve.
fn checked(key_type: KeyType, key: DecodingKey, bits: &[u8]) -> Result<(KeyType, DecodingKey), KeyError> {
    let parsed = match key_type {
        KeyType::P256 => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, bits),
        KeyType::P384 => ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, bits),
        KeyType::Ed25519 => ParsedPublicKey::new(&ED25519, bits),
        KeyType::Rsa => return Ok((key_type, key)),
    };
    parsed.map(|_| (key_type, key)).map_err(|_| KeyError::UnknownType)
}

fn rsa_size(modulus: &[u8]) -> Result<(), KeyError> {
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let bits = match modulus.get(zeros) {
        Some(first) => (modulus.len() - zeros) * 8 - first.leading_zeros() as usize,
        None => 0,
    };
    if RSA_BITS.contains(&bits) { Ok(()) } else { Err(KeyError::RsaSize(bits)) }
}

/// A key of a set, if it is a public key for signatures that one of the algorithms can use.
fn jwk(raw: Value, algorithms: &[Algorithm]) -> Option<VerificationKey> {
    let jwk: Jwk = serde_json::from_value(raw).ok()?;
    let is_for_signatures = match (&jwk.common.public_key_use, &jwk.common.key_operations) {
        (Some(usage), _) if *usage != PublicKeyUse::Signature => false,
        (_, Some(operations)) => operations.contains(&KeyOperations::Verify),
        _ => true,
    };
    if !is_for_signatures {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    let (key_type, key) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => {
            let jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } = key.kind() else { return None };
            rsa_size(n).ok()?;
            (KeyType::Rsa, key)
        }
        AlgorithmParameters::EllipticCurve(parameters) => {
            let key_type = match parameters.curve {
                EllipticCurve::P256 => KeyType::P256,
                EllipticCurve::P384 => KeyType::P384,
                _ => return None,
            };
            let bits = key.as_bytes().to_vec();
            checked(key_type, key, &bits).ok()?
        }
        AlgorithmParameters::OctetKeyPair(parameters) if parameters.curve == EllipticCurve::Ed25519 => {
            let bits = key.as_bytes().to_vec();
            checked(KeyType::Ed25519, key, &bits).ok()?
        }
        // A secret has no place in a set of public keys.
        AlgorithmParameters::OctetKeyPair(_) | AlgorithmParameters::OctetKey(_) => return None,
    };
    let own = match jwk.common.key_algorithm {
        Some(own) => Some(own.to_string().parse::<Algorithm>().ok()?),
        None => None,
    };
    let is_usable =
        |algorithm: &Algorithm| key_type.suits(*algorithm) && own.is_none_or(|own| own == *algorithm);
    let algorithms: Vec<Algorithm> = algorithms.iter().copied().filter(is_usable).collect();
    let id = jwk.common.key_id.map(String::into_boxed_str);
    (!algorithms.is_empty()).then_some(VerificationKey { id, algorithms, key })
}
