//! Which keys can be used, and which of them verifies a token.

use std::sync::Arc;

use jsonwebtoken::Algorithm::{ES256, ES384, EdDSA, HS256, HS512, PS256, RS256};
use serde_json::json;

use super::*;
use crate::auth::jwt::{
    Keys,
    keys::{KeySet, NoKey},
};

#[test]
fn a_key_must_suit_every_algorithm() {
    let (p256, ed25519, rsa) = (Signer::p256(), Signer::ed25519(), Signer::rsa());
    for (algorithms, text, expected) in [
        (&[RS256][..], p256.pem(), "its key is for ECDSA with P-256, and RS256 cannot use it"),
        (&[ES384], p256.pem(), "its key is for ECDSA with P-256, and ES384 cannot use it"),
        (&[ES256, EdDSA], p256.pem(), "its key is for ECDSA with P-256, and EdDSA cannot use it"),
        (&[ES256], ed25519.pem(), "its key is for Ed25519, and ES256 cannot use it"),
        (&[EdDSA], rsa.pem(), "its key is for RSA, and EdDSA cannot use it"),
        (&[ES256], String::new(), "it has no public key in PEM form"),
        (&[ES256], "-----BEGIN PUBLIC KEY-----\n".to_owned(), "it has no public key in PEM form"),
        (&[ES256], pem("PUBLIC KEY", b"nonsense"), "it has no public key in PEM form"),
        (&[ES256], p256.pem() + &ed25519.pem(), "it has several keys"),
        (&[ES256], pem("PRIVATE KEY", b"x"), "it has a private key"),
        (&[ES256], pem("EC PRIVATE KEY", b"x"), "it has a private key"),
    ] {
        let error = load(algorithms, in_pem, text).map(|_| ()).unwrap_err();
        assert!(error.starts_with("key: /") && error.contains(expected), "{error}");
    }
    assert!(load(&[RS256, PS256], in_pem, rsa.pem()).is_ok());
}

#[test]
fn a_point_beside_the_curve_and_a_short_rsa_key_are_refused() {
    let mut spki = Signer::p256().spki();
    *spki.last_mut().unwrap() ^= 1;
    let error = load(&[ES256], in_pem, pem("PUBLIC KEY", &spki)).map(|_| ()).unwrap_err();
    assert!(error.contains("its key is none of RSA, P-256, P-384 and Ed25519"), "{error}");
    // An RSA key of 1024 bits: SEQUENCE { rsaEncryption, BIT STRING { SEQUENCE { modulus, 65537 } } }.
    let mut modulus = vec![0x02, 0x81, 0x81, 0x00];
    modulus.extend([0xc1; 128]);
    modulus.extend([0x02, 0x03, 0x01, 0x00, 0x01]);
    let mut key = vec![0x30, 0x81, modulus.len() as u8];
    key.extend(&modulus);
    let mut bits = vec![0x03, 0x81, key.len() as u8 + 1, 0x00];
    bits.extend(&key);
    let oid = [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let mut spki = vec![0x30, 0x81, (oid.len() + bits.len()) as u8];
    spki.extend(oid);
    spki.extend(bits);
    let error = load(&[RS256], in_pem, pem("PUBLIC KEY", &spki)).map(|_| ()).unwrap_err();
    assert!(error.contains("its RSA key has 1024 bits, and 2048 to 8192 are supported"), "{error}");
}

#[test]
fn a_public_key_is_refused_as_a_secret_and_so_is_a_short_one() {
    let error = load(&[HS256], in_secret, Signer::p256().pem()).map(|_| ()).unwrap_err();
    assert!(
        error.contains("secret_file: /") && error.contains("which is no secret; set key instead"),
        "{error}"
    );
    for (algorithm, secret, expected) in [
        (HS256, &SECRET[1..], "the secret has 31 bytes, and HS256 needs 32"),
        (HS512, SECRET, "the secret has 32 bytes, and HS512 needs 64"),
        (HS256, b"\n", "the secret has 0 bytes"),
    ] {
        let error = load(&[algorithm], in_secret, secret).map(|_| ()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    assert!(load(&[HS256], in_secret, SECRET).is_ok());
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let missing = config(&[ES256], in_pem(Path::new("/nowhere/site.pem")));
    let error = JwtMethod::load("site", &missing, None).map(|_| ()).unwrap_err();
    assert!(error.starts_with("key: cannot read /nowhere/site.pem: "), "{error}");
    let error = load(&[ES256], in_set, vec![b' '; (256 << 10) + 1]).map(|_| ()).unwrap_err();
    assert!(error.contains("is larger than 262144 bytes"), "{error}");
}

#[test]
fn keys_of_a_set_that_cannot_be_used_are_ignored() {
    let (signer, other) = (Signer::p256(), Signer::ed25519());
    let good = signer.jwk(json!({ "kid": "good" }));
    let unusable = [
        other.jwk(json!({ "kid": "type" })),
        signer.jwk(json!({ "kid": "use", "use": "enc" })),
        signer.jwk(json!({ "kid": "operations", "key_ops": ["encrypt"] })),
        signer.jwk(json!({ "kid": "algorithm", "alg": "ES384" })),
        signer.jwk(json!({ "kid": "unknown algorithm", "alg": "XX" })),
        signer.jwk(json!({ "kid": "curve", "crv": "P-384" })),
        signer.jwk(json!({ "kid": "short", "x": "AA" })),
        signer.jwk(json!({ "kid": 7 })),
        Signer::Secret(SECRET.to_vec()).jwk(json!({ "kid": "secret" })),
        json!({ "kty": "XX", "kid": "kind" }),
        json!({}),
        json!(7),
    ];
    let mut keys = unusable.to_vec();
    keys.push(good.clone());
    let keys = KeySet::from_jwks(set(&keys).as_bytes(), &[ES256]).unwrap();
    assert_eq!(keys.len(), 1);
    assert!(keys.find(ES256, Some("good")).is_ok());
    assert_eq!(keys.find(ES256, Some("use")).map(|_| ()), Err(NoKey::Unknown));
    for (text, expected) in [
        (set(&unusable), "none of its 12 keys can be used with these algorithms"),
        (set(&[]), "none of its 0 keys"),
        (set(&vec![good; 101]), "it has 101 keys, and 100 are the most"),
        ("{}".to_owned(), "it is no JSON Web Key Set"),
        ("<html>".to_owned(), "it is no JSON Web Key Set"),
        ("[".repeat(100_000), "it is no JSON Web Key Set"),
    ] {
        let error = KeySet::from_jwks(text.as_bytes(), &[ES256]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // A secret in a set never verifies, whatever is configured.
    let secret = set(&[Signer::Secret(SECRET.to_vec()).jwk(json!({}))]);
    assert!(KeySet::from_jwks(secret.as_bytes(), &[HS256]).is_err());
}

#[test]
fn a_key_is_chosen_by_kid_and_by_its_own_algorithm() {
    let rsa = Signer::rsa();
    let find = |keys: &[Value], algorithm, id| {
        let keys = KeySet::from_jwks(set(keys).as_bytes(), &[RS256, PS256]).unwrap();
        keys.find(algorithm, id).map(|_| ())
    };
    let (a, b) = (rsa.jwk(json!({ "kid": "a" })), rsa.jwk(json!({ "kid": "b", "alg": "RS256" })));
    let without = rsa.jwk(json!({}));
    assert_eq!(find(&[a.clone(), b.clone()], RS256, Some("b")), Ok(()));
    assert_eq!(find(&[a.clone(), b.clone()], PS256, Some("b")), Err(NoKey::Unknown), "its alg is another");
    assert_eq!(find(&[a.clone(), b.clone()], RS256, None), Err(NoKey::Ambiguous));
    assert_eq!(find(&[a.clone(), b.clone()], PS256, None), Ok(()), "only one is for this algorithm");
    assert_eq!(find(std::slice::from_ref(&a), RS256, Some("c")), Err(NoKey::Unknown));
    assert_eq!(find(&[a.clone(), without.clone()], RS256, Some("c")), Ok(()));
    assert_eq!(find(&[without.clone(), without], RS256, Some("c")), Err(NoKey::Ambiguous));
    for id in ["../a", "/etc/passwd", "file:///a", "https://attacker.example/a", "A", "a\0", " a", ""] {
        assert_eq!(find(std::slice::from_ref(&a), RS256, Some(id)), Err(NoKey::Unknown), "{id:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_is_read_again_when_it_changes() {
    let (first, second) = (Signer::p256(), Signer::p256());
    let (method, directory) = load(&[ES256], in_pem, first.pem()).unwrap();
    let header = json!({ "alg": "ES256" });
    let stop = tokio_util::sync::CancellationToken::new();
    let Keys::File(file) = &method.keys else { panic!("{method:?}") };
    let watching = tokio::spawn(Arc::clone(file).watch(stop.clone()));
    let path = directory.path().join("file");
    // Half of a file, and then the whole of another.
    std::fs::write(&path, &second.pem()[..30]).unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(method.verify(&first.token(&header, &claims()), now()).await.is_ok(), "the previous key stays");
    std::fs::write(&path, second.pem()).unwrap();
    for _ in 0..1000 {
        if method.verify(&second.token(&header, &claims()), now()).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(method.verify(&second.token(&header, &claims()), now()).await.is_ok(), "the new key is in use");
    refused(method.verify(&first.token(&header, &claims()), now()).await);
    stop.cancel();
    watching.await.unwrap();
}
