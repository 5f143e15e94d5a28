//! Tokens that no issuer signed.

use jsonwebtoken::Algorithm::{self, ES256, ES384, EdDSA, HS256, PS256, RS256};
use serde_json::json;

use super::*;

#[tokio::test]
async fn each_algorithm_verifies_its_own_tokens() {
    let (p256, p384, ed25519, rsa) = (Signer::p256(), Signer::p384(), Signer::ed25519(), Signer::rsa());
    for (signer, algorithm, name) in [
        (&p256, ES256, "ES256"),
        (&p384, ES384, "ES384"),
        (&ed25519, EdDSA, "EdDSA"),
        (&rsa, RS256, "RS256"),
        (&rsa, PS256, "PS256"),
    ] {
        let token = signer.token(&json!({ "alg": name, "kid": "a" }), &claims());
        let (method, _directory) = load(&[algorithm], in_pem, signer.pem()).unwrap();
        let grant = method.verify(&token, now()).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(grant.user.as_deref(), Some("ann"), "{name}");
        let keys = set(&[signer.jwk(json!({ "kid": "a", "alg": name, "use": "sig" }))]);
        let (method, _directory) = load(&[algorithm], in_set, keys).unwrap();
        assert!(method.verify(&token, now()).await.is_ok(), "{name} by a key set");
    }
    let secret = Signer::Secret(SECRET.to_vec());
    let (method, _directory) = load(&[HS256], in_secret, [SECRET, b"\r\n"].concat()).unwrap();
    assert!(method.verify(&secret.token(&json!({ "alg": "HS256" }), &claims()), now()).await.is_ok());
    let other = Signer::Secret(b"another secret of exactly 32 byt".to_vec());
    let token = other.token(&json!({ "alg": "HS256" }), &claims());
    assert_eq!(refused(method.verify(&token, now()).await), "the signature is not valid");
}

#[tokio::test]
async fn a_certificate_has_a_key_too() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["id.example".into()]).unwrap().self_signed(&pair);
    let signer = Signer::Ecdsa(
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pair.serialized_der()).unwrap(),
    );
    let (method, _directory) = load(&[ES256], in_pem, certificate.unwrap().pem()).unwrap();
    assert!(method.verify(&signer.token(&json!({ "alg": "ES256" }), &claims()), now()).await.is_ok());
}

#[tokio::test]
async fn a_token_without_a_signature_is_refused() {
    let signer = Signer::p256();
    let (method, _directory) = load(&[ES256], in_pem, signer.pem()).unwrap();
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let token = signer.token(&json!({ "alg": alg }), &claims());
        let unsigned = &token[..=token.rfind('.').unwrap()];
        for token in [&token, unsigned, unsigned.trim_end_matches('.')] {
            refused(method.verify(token, now()).await);
        }
    }
    let token = signer.token(&json!({ "typ": "JWT" }), &claims());
    refused(method.verify(&token, now()).await);
    let token = signer.token(&json!({ "alg": "ES256" }), &claims());
    assert!(method.verify(&token, now()).await.is_ok());
    let unsigned = &token[..=token.rfind('.').unwrap()];
    assert_eq!(refused(method.verify(unsigned, now()).await), "the signature is not valid");
}

#[tokio::test]
async fn a_public_key_is_no_secret() {
    let rsa = Signer::rsa();
    let jwk = rsa.jwk(json!({ "kid": "a" }));
    let in_file = |keys: fn(&Path) -> JwtKeys, text: String| load(&[RS256, PS256], keys, text).unwrap();
    for (method, _directory) in [in_file(in_pem, rsa.pem()), in_file(in_set, set(std::slice::from_ref(&jwk)))]
    {
        assert!(
            method.verify(&rsa.token(&json!({ "alg": "RS256", "kid": "a" }), &claims()), now()).await.is_ok()
        );
        for secret in [
            rsa.pem().into_bytes(),
            rsa.pem().trim_end().as_bytes().to_vec(),
            rsa.spki(),
            jwk.to_string().into_bytes(),
            jwk["n"].as_str().unwrap().as_bytes().to_vec(),
            Vec::new(),
        ] {
            let token = Signer::Secret(secret).token(&json!({ "alg": "HS256", "kid": "a" }), &claims());
            let detail = refused(method.verify(&token, now()).await);
            assert_eq!(detail, "the token is signed with an algorithm that is not configured");
        }
    }
}

#[tokio::test]
async fn a_key_of_the_token_itself_is_not_used() {
    let (signer, attacker) = (Signer::p256(), Signer::p256());
    let (method, _directory) = load(&[ES256], in_pem, signer.pem()).unwrap();
    for header in [
        json!({ "alg": "ES256", "jwk": attacker.jwk(json!({})) }),
        json!({ "alg": "ES256", "jku": "https://attacker.example/keys" }),
        json!({ "alg": "ES256", "x5u": "https://attacker.example/cert" }),
    ] {
        refused(method.verify(&attacker.token(&header, &claims()), now()).await);
    }
}

#[tokio::test]
async fn what_is_changed_after_signing_is_refused() {
    let signer = Signer::p256();
    let (method, _directory) = load(&[ES256], in_pem, signer.pem()).unwrap();
    let token = signer.token(&json!({ "alg": "ES256" }), &claims());
    let parts: Vec<&str> = token.split('.').collect();
    let admin = base64(json!({ "sub": "root", "exp": 1_800_000_060 }).to_string().as_bytes());
    for forged in [
        format!("{}.{admin}.{}", parts[0], parts[2]),
        format!("{}.{}.{}", parts[0], parts[1], base64(&[0; 64])),
        format!("{}.{}.{}", parts[0], parts[1], base64(&[1; 63])),
        format!("{}.{}.{}", parts[0], parts[1], parts[1]),
        format!("{token}A"),
        format!("{token}."),
        format!(".{token}"),
        format!("{token}.{token}"),
        format!("a.{}.b.{}.c", parts[0], parts[1]),
        parts[..2].join("."),
        parts[1..].join("."),
        "..".to_owned(),
        ".".to_owned(),
        "x".to_owned(),
        "\u{e9}.\u{e9}.\u{e9}".to_owned(),
    ] {
        let detail = refused(method.verify(&forged, now()).await);
        assert!(!detail.contains(parts[1]) && !detail.contains("root"), "{detail}");
    }
}

#[tokio::test]
async fn signed_nonsense_is_refused() {
    let signer = Signer::p256();
    let (method, _directory) = load(&[ES256], in_pem, signer.pem()).unwrap();
    for claims in [json!([]), json!("text"), json!(7), json!(null), json!({})] {
        refused(method.verify(&signer.token(&json!({ "alg": "ES256" }), &claims), now()).await);
    }
    let header = json!({ "alg": "ES256", "crit": ["exp"] });
    let detail = refused(method.verify(&signer.token(&header, &claims()), now()).await);
    assert_eq!(detail, "the token has an extension that must be understood (crit), and is not");
    let mut long = claims();
    long["filler"] = "x".repeat(6500).into();
    let token = signer.token(&json!({ "alg": "ES256" }), &long);
    assert!(token.len() > super::super::MAX_TOKEN, "{}", token.len());
    assert_eq!(refused(method.verify(&token, now()).await), "the token is longer than 8192 bytes");
    long["filler"] = "x".repeat(5500).into();
    let token = signer.token(&json!({ "alg": "ES256" }), &long);
    assert!(method.verify(&token, now()).await.is_ok(), "{} bytes are no more than the limit", token.len());
}

#[tokio::test]
async fn a_token_is_taken_from_its_place_and_only_once() {
    let signer = Signer::p256();
    let (method, _directory) = load(&[ES256], in_pem, signer.pem()).unwrap();
    let token = signer.token(&json!({ "alg": "ES256" }), &claims());
    let check = async |fields: &[String]| {
        let head =
            fields.iter().fold(http::Request::get("/"), |head, field| head.header("authorization", field));
        let head = head.body(()).unwrap();
        let client = ([192, 0, 2, 7], 4711).into();
        let request = crate::auth::AuthRequest {
            head: &head,
            client,
            https: true,
            host: "desk.example",
            certificate: None,
            route: Some("desk"),
            now: now(),
        };
        method.check(&request).await
    };
    let bearer = format!("Bearer {token}");
    assert!(check(std::slice::from_ref(&bearer)).await.is_ok());
    let twice = check(&[bearer.clone(), bearer]).await;
    assert_eq!(refused(twice), "there are several credentials in the same place");
    let missing = check(&[]).await;
    assert!(matches!(missing, Err(Denied::Unauthorized { attempted: false, .. })), "{missing:?}");
}

#[test]
fn nothing_of_a_secret_is_shown_by_debug() {
    let (method, _directory) = load(&[HS256], in_secret, SECRET).unwrap();
    let shown = format!("{method:?}");
    assert!(shown.contains("KeySet") && !shown.contains("exactly") && !shown.contains("97, 32"), "{shown}");
    let _: &[Algorithm] = &method.config.algorithms;
}
