//! Where a request carries a token.
//!
//! Pure. Owns how a token is found in a header field, a cookie, the query or the list of subprotocols. Knows nothing of what
//! a token means. Invariants: a token that is there twice is none; what is not in a configured place is not looked at.

use http::{
    HeaderMap, HeaderName, Request,
    header::{AUTHORIZATION, COOKIE, SEC_WEBSOCKET_PROTOCOL},
};

use crate::config::{Secret, TokenPlace};

/// A request has a token in a place more than once. Which of them counts would be a guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are several credentials in the same place")]
pub(crate) struct Ambiguous;

/// The token in the first of `places` that has one.
///
/// # Errors
/// That place has several.
pub(crate) fn token(head: &Request<()>, places: &[TokenPlace]) -> Result<Option<Secret>, Ambiguous> {
    for place in places {
        let mut found = values(head, place);
        if let Some(token) = found.next() {
            return match found.next() {
                Some(_) => Err(Ambiguous),
                None => Ok(Some(Secret::new(token))),
            };
        }
    }
    Ok(None)
}

/// Whether an offered subprotocol is a token, and not the name of a protocol.
pub(crate) fn is_token_offer(offered: &str, places: &[TokenPlace]) -> bool {
    places.iter().any(|place| match place {
        TokenPlace::Subprotocol(prefix) => offered.starts_with(prefix.as_str()),
        _ => false,
    })
}

fn values<'a>(head: &'a Request<()>, place: &'a TokenPlace) -> Box<dyn Iterator<Item = String> + 'a> {
    match place {
        TokenPlace::Header => Box::new(bearer(head.headers())),
        TokenPlace::Cookie(name) => Box::new(cookies(head.headers(), name)),
        TokenPlace::Query(name) => Box::new(query(head.uri().query(), name)),
        TokenPlace::Subprotocol(prefix) => Box::new(offers(head.headers(), prefix)),
    }
}

/// The credentials of `Authorization: Bearer …` (RFC 6750 §2.1). The name of the scheme has no case (RFC 9110 §11.1).
fn bearer(headers: &HeaderMap) -> impl Iterator<Item = String> {
    lines(headers, AUTHORIZATION).filter_map(|line| {
        let (scheme, token) = line.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    })
}

/// The values of the cookies with this name (RFC 6265 §4.2.1). Names of cookies have a case.
fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let pairs = lines(headers, COOKIE).flat_map(|line| line.split(';'));
    pairs.filter_map(move |pair| {
        let (found, value) = pair.trim().split_once('=')?;
        let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        (found == name).then(|| quoted.unwrap_or(value).to_owned())
    })
}

/// The values of the query's parameter with this name, decoded as a form (URL Standard §5.1).
fn query<'a>(query: Option<&'a str>, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.filter(move |(found, _)| found == name).map(|(_, value)| value.into_owned())
}

/// What follows the prefix in the offered subprotocols that begin with it.
fn offers<'a>(headers: &'a HeaderMap, prefix: &'a str) -> impl Iterator<Item = String> + 'a {
    let offered = lines(headers, SEC_WEBSOCKET_PROTOCOL).flat_map(|line| line.split(','));
    offered.filter_map(move |name| name.trim().strip_prefix(prefix).map(str::to_owned))
}

fn lines(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(fields: &[(&str, &str)], target: &str, places: &[&str]) -> Result<Option<String>, Ambiguous> {
        let request =
            fields.iter().fold(Request::get(target), |request, (name, value)| request.header(*name, *value));
        let places: Vec<TokenPlace> = places.iter().map(|place| place.parse().unwrap()).collect();
        let token = token(&request.body(()).unwrap(), &places)?;
        Ok(token.map(|token| token.expose().to_owned()))
    }

    #[test]
    fn a_token_is_found_in_each_place() {
        for (name, value, target, place) in [
            ("authorization", "Bearer t0ken", "/", "header"),
            ("authorization", "bEARER  t0ken ", "/", "header"),
            ("cookie", "a=1; session=t0ken; b=2", "/", "cookie:session"),
            ("cookie", "session=\"t0ken\"", "/", "cookie:session"),
            ("x-other", "-", "/?a=1&token=t0ken", "query:token"),
            ("x-other", "-", "/?token=%740ken", "query:token"),
            ("sec-websocket-protocol", "binary, bearer.t0ken", "/", "subprotocol:bearer."),
        ] {
            let seen = found(&[(name, value)], target, &[place]);
            assert_eq!(seen, Ok(Some("t0ken".into())), "{value} {target}");
        }
    }

    #[test]
    fn what_is_in_no_configured_place_is_not_found() {
        let fields = [
            ("authorization", "Basic dDprZW4="),
            ("cookie", "Session=t0ken; xsession=t0ken"),
            ("sec-websocket-protocol", "xbearer.t0ken"),
        ];
        for place in ["header", "cookie:session", "query:token", "subprotocol:bearer."] {
            assert_eq!(found(&fields, "/?Token=t0ken&xtoken=t0ken", &[place]), Ok(None), "{place}");
        }
    }

    #[test]
    fn the_first_place_that_has_a_token_counts_and_two_in_it_are_an_error() {
        let both = [("authorization", "Bearer first"), ("cookie", "session=second")];
        assert_eq!(found(&both, "/", &["header", "cookie:session"]), Ok(Some("first".into())));
        assert_eq!(found(&both, "/", &["cookie:session", "header"]), Ok(Some("second".into())));
        for (fields, target, place) in [
            (&[("cookie", "session=a; session=b")][..], "/", "cookie:session"),
            (&[("cookie", "session=a"), ("cookie", "session=a")][..], "/", "cookie:session"),
            (&[("authorization", "Bearer a"), ("authorization", "Bearer a")][..], "/", "header"),
            (&[][..], "/?token=a&token=b", "query:token"),
            (&[("sec-websocket-protocol", "t.a, t.b")][..], "/", "subprotocol:t."),
        ] {
            assert_eq!(found(fields, target, &[place]), Err(Ambiguous), "{fields:?} {target}");
        }
    }

    #[test]
    fn only_offers_with_a_configured_prefix_are_credentials() {
        let places = ["header".parse().unwrap(), "subprotocol:bearer.".parse().unwrap()];
        assert!(is_token_offer("bearer.x", &places));
        assert!(!is_token_offer("binary", &places) && !is_token_offer("Bearer.x", &places));
    }
}
