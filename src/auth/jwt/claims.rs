//! What the claims of a verified token grant.
//!
//! Pure: the time is an argument. Invariants: a claim of another type than is expected is no claim but an error; a claim that
//! the configuration names is required.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use crate::{
    auth::{Denied, Grant, MAX_JTI},
    config::Jwt,
    session::CredentialId,
};

/// The claims of a token.
pub(super) type Claims = Map<String, Value>;

/// What a token with these claims grants at `now`.
///
/// # Errors
/// The token is not valid at this time or in this place, or not for what the request wants.
pub(super) fn grant(claims: &Claims, rules: &Jwt, now: SystemTime) -> Result<Grant, Denied> {
    let expires = expiry(claims, rules, now)?;
    check_start(claims, rules, now)?;
    check_issuer(claims, rules)?;
    check_audience(claims, rules)?;
    let user = text(claims, &rules.user_claim)?;
    let mut grant = Grant { expires: Some(expires), ..Grant::of_user(user)? };
    grant.credential = match claims.get("jti") {
        None => None,
        Some(Value::String(id)) if id.len() <= MAX_JTI => Some(CredentialId::Jwt(id.as_str().into())),
        Some(_) => return Err(Denied::invalid("the claim jti is no text of up to 256 bytes")),
    };
    if let Some(claim) = &rules.max_session_claim {
        let seconds = claims.get(claim).and_then(Value::as_u64).filter(|seconds| *seconds > 0);
        let Some(seconds) = seconds else {
            return Err(Denied::invalid(format!("the claim {claim:?} is no number of seconds above 0")));
        };
        grant.session_for = Some(Duration::from_secs(seconds));
    }
    if let Some(claim) = &rules.target_claim {
        grant.target = Some(text(claims, claim)?.into());
    }
    if let Some(claim) = &rules.routes_claim {
        let Some(routes) = texts(claims.get(claim)) else {
            return Err(Denied::invalid(format!("the claim {claim:?} is no text and no list of texts")));
        };
        grant.routes = Some(routes.into_iter().map(str::to_owned).collect());
    }
    check_required(claims, rules)?;
    Ok(grant)
}

/// When a session must end at the latest: at the time that `exp` states, on or after which the token is not valid (RFC 7519
/// §4.1.4), with the leeway.
fn expiry(claims: &Claims, rules: &Jwt, now: SystemTime) -> Result<SystemTime, Denied> {
    let stated = claims.get("exp").ok_or_else(|| Denied::invalid("the token has no claim exp"))?;
    let expires = time(stated).and_then(|stated| stated.checked_add(rules.leeway));
    match expires {
        None => Err(Denied::invalid("the claim exp is no time in seconds")),
        Some(expires) if expires <= now => Err(Denied::invalid("the token has expired")),
        Some(expires) => Ok(expires),
    }
}

fn check_start(claims: &Claims, rules: &Jwt, now: SystemTime) -> Result<(), Denied> {
    let Some(stated) = claims.get("nbf") else { return Ok(()) };
    match time(stated) {
        None => Err(Denied::invalid("the claim nbf is no time in seconds")),
        Some(start) if now.checked_add(rules.leeway).is_none_or(|now| now < start) => {
            Err(Denied::invalid("the token is not valid yet (nbf)"))
        }
        Some(_) => Ok(()),
    }
}

fn check_issuer(claims: &Claims, rules: &Jwt) -> Result<(), Denied> {
    let Some(expected) = &rules.issuer else { return Ok(()) };
    match claims.get("iss") {
        Some(Value::String(issuer)) if issuer == expected => Ok(()),
        _ => Err(Denied::invalid("the token is not of the issuer that is configured")),
    }
}

/// A token that names its audience is refused by everyone else (RFC 7519 §4.1.3).
fn check_audience(claims: &Claims, rules: &Jwt) -> Result<(), Denied> {
    let Some(stated) = claims.get("aud") else {
        return match rules.audience.is_empty() {
            true => Ok(()),
            false => Err(Denied::invalid("the token has no audience")),
        };
    };
    let Some(stated) = texts(Some(stated)) else {
        return Err(Denied::invalid("the claim aud is no text and no list of texts"));
    };
    if stated.iter().any(|audience| rules.audience.iter().any(|ours| ours == audience)) {
        return Ok(());
    }
    Err(Denied::invalid(match rules.audience.is_empty() {
        true => "the token has an audience, and none is configured",
        false => "the token is for another audience",
    }))
}

/// A user without them is known, and may not enter.
fn check_required(claims: &Claims, rules: &Jwt) -> Result<(), Denied> {
    for (claim, allowed) in &rules.required_claims {
        let has = |value: &str| allowed.iter().any(|allowed| allowed == value);
        let is_allowed = match claims.get(claim) {
            Some(Value::Bool(value)) => has(if *value { "true" } else { "false" }),
            stated => texts(stated).is_some_and(|values| values.into_iter().any(has)),
        };
        if !is_allowed {
            return Err(Denied::Forbidden {
                detail: format!("the claim {claim:?} has none of the required values"),
            });
        }
    }
    Ok(())
}

fn text<'a>(claims: &'a Claims, claim: &str) -> Result<&'a str, Denied> {
    let text = claims.get(claim).and_then(Value::as_str);
    text.ok_or_else(|| Denied::invalid(format!("the token has no claim {claim:?} that is a text")))
}

/// The text, or the texts of a list. `None` if it is something else.
fn texts(value: Option<&Value>) -> Option<Vec<&str>> {
    match value? {
        Value::String(text) => Some(vec![text]),
        Value::Array(list) => list.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// A time in seconds since 1970, which may have a fraction (RFC 7519 §2).
fn time(value: &Value) -> Option<SystemTime> {
    let since = match (value.as_u64(), value.as_f64()) {
        (Some(seconds), _) => Duration::from_secs(seconds),
        (None, Some(seconds)) => Duration::try_from_secs_f64(seconds).ok()?,
        (None, None) => return None,
    };
    SystemTime::UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jsonwebtoken::Algorithm;
    use serde_json::json;

    use super::{super::tests::config, *};
    use crate::config::JwtKeys;

    /// The time of the tests, in seconds since 1970.
    const NOW: u64 = 1_800_000_000;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn rules() -> Jwt {
        config(&[Algorithm::ES256], JwtKeys::Pem("key.pem".into()))
    }

    /// Claims that are valid, with some of them changed; null removes one.
    fn claims(changes: Value) -> Claims {
        let mut claims = Claims::new();
        claims.insert("sub".into(), json!("ann"));
        claims.insert("exp".into(), json!(NOW + 60));
        for (claim, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => claims.remove(claim),
                value => claims.insert(claim.clone(), value.clone()),
            };
        }
        claims
    }

    /// The reason for which these claims are no valid credential.
    #[track_caller]
    fn invalid(changes: Value, rules: &Jwt) -> String {
        match grant(&claims(changes.clone()), rules, at(NOW)) {
            Err(Denied::Unauthorized { detail, attempted: true }) => detail,
            other => panic!("{changes}: {other:?}"),
        }
    }

    #[track_caller]
    fn forbidden(changes: Value, rules: &Jwt) -> String {
        match grant(&claims(changes.clone()), rules, at(NOW)) {
            Err(Denied::Forbidden { detail }) => detail,
            other => panic!("{changes}: {other:?}"),
        }
    }

    #[track_caller]
    fn granted(changes: Value, rules: &Jwt) -> Grant {
        grant(&claims(changes.clone()), rules, at(NOW)).unwrap_or_else(|error| panic!("{changes}: {error:?}"))
    }

    #[test]
    fn a_token_ends_when_it_says() {
        for exp in [
            json!(null),
            json!("1900000000"),
            json!(true),
            json!([NOW + 60]),
            json!(-1),
            json!(1e300),
            json!(NOW),
            json!(NOW - 1),
            json!(0),
        ] {
            invalid(json!({ "exp": exp }), &rules());
        }
        assert_eq!(invalid(json!({ "exp": "1900000000" }), &rules()), "the claim exp is no time in seconds");
        assert_eq!(invalid(json!({ "exp": NOW }), &rules()), "the token has expired");
        assert_eq!(granted(json!({}), &rules()).expires, Some(at(NOW + 60)));
        let fraction = granted(json!({ "exp": 1_800_000_000.5 }), &rules());
        assert_eq!(fraction.expires, Some(at(NOW) + Duration::from_millis(500)));
    }

    #[test]
    fn leeway_moves_both_ends() {
        let rules = Jwt { leeway: Duration::from_secs(5), ..rules() };
        assert_eq!(granted(json!({ "exp": NOW - 4 }), &rules).expires, Some(at(NOW + 1)));
        invalid(json!({ "exp": NOW - 5 }), &rules);
        granted(json!({ "nbf": NOW + 5 }), &rules);
        invalid(json!({ "nbf": NOW + 6 }), &rules);
    }

    #[test]
    fn a_token_of_the_future_is_refused() {
        assert_eq!(invalid(json!({ "nbf": NOW + 1 }), &rules()), "the token is not valid yet (nbf)");
        for nbf in [json!("0"), json!(-5), json!([]), json!(1e300)] {
            invalid(json!({ "nbf": nbf }), &rules());
        }
        granted(json!({ "nbf": NOW }), &rules());
    }

    #[test]
    fn issuer_and_audience_must_be_those_of_the_configuration() {
        let issued = Jwt { issuer: Some("https://id.example".into()), ..rules() };
        for iss in [json!(null), json!("https://id.example/"), json!(["https://id.example"])] {
            invalid(json!({ "iss": iss }), &issued);
        }
        granted(json!({ "iss": "https://id.example" }), &issued);
        let meant = Jwt { audience: vec!["desk".into(), "chat".into()], ..rules() };
        for aud in [json!(null), json!("Desk"), json!([]), json!(["mail"]), json!(["desk", 1]), json!(1)] {
            invalid(json!({ "aud": aud }), &meant);
        }
        granted(json!({ "aud": "chat" }), &meant);
        granted(json!({ "aud": ["mail", "desk"] }), &meant);
        let detail = invalid(json!({ "aud": "desk" }), &rules());
        assert_eq!(detail, "the token has an audience, and none is configured");
    }

    #[test]
    fn a_user_without_the_required_claims_is_known_and_forbidden() {
        let required = BTreeMap::from([("role".to_owned(), vec!["staff".to_owned(), "true".to_owned()])]);
        let rules = Jwt { required_claims: required, ..rules() };
        for role in
            [json!(null), json!("viewer"), json!(["viewer"]), json!([]), json!(false), json!({ "staff": 1 })]
        {
            forbidden(json!({ "role": role }), &rules);
        }
        for role in [json!("staff"), json!(["viewer", "staff"]), json!(true)] {
            granted(json!({ "role": role }), &rules);
        }
        // What is wrong with the token itself comes first.
        invalid(json!({ "role": "viewer", "exp": NOW }), &rules);
    }

    #[test]
    fn every_claim_that_the_configuration_names_is_required() {
        let rules = Jwt {
            user_claim: "email".into(),
            target_claim: Some("desk".into()),
            routes_claim: Some("routes".into()),
            max_session_claim: Some("max".into()),
            ..rules()
        };
        let all = json!({ "email": "ann@example", "desk": "d1", "routes": "a", "max": 60, "jti": "id" });
        let expected = Grant {
            user: Some("ann@example".into()),
            expires: Some(at(NOW + 60)),
            session_for: Some(Duration::from_secs(60)),
            target: Some("d1".into()),
            routes: Some(vec!["a".into()]),
            credential: Some(CredentialId::Jwt("id".into())),
        };
        assert_eq!(granted(all.clone(), &rules), expected);
        for (claim, value) in [
            ("email", json!(null)),
            ("email", json!(7)),
            ("email", json!("")),
            ("email", json!("a\u{1b}[2J")),
            ("desk", json!(null)),
            ("desk", json!(["d1"])),
            ("routes", json!(null)),
            ("routes", json!([1])),
            ("max", json!(null)),
            ("max", json!("60")),
            ("max", json!(-60)),
            ("max", json!(0)),
            ("max", json!(0.5)),
            ("jti", json!(7)),
            ("jti", json!("x".repeat(257))),
        ] {
            let mut changes = all.clone();
            changes[claim] = value;
            invalid(changes, &rules);
        }
        let lists = granted(json!({ "routes": ["a", "b"], "email": "a", "desk": "d", "max": 1 }), &rules);
        assert_eq!(lists.routes, Some(vec!["a".to_owned(), "b".to_owned()]));
    }
}
