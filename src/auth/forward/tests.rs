//! What the authority is asked, and what its answers mean.

use std::time::{Duration, SystemTime};

use http::{
    HeaderName, Request, Response,
    header::{LOCATION, SET_COOKIE, WWW_AUTHENTICATE},
    response::Parts,
};

use super::{answer::evaluate, *};
use crate::outcome::Reason;

/// The time of the tests, in seconds since 1970.
const NOW: u64 = 1_800_000_000;

fn head(fields: &[(&str, &str)]) -> Request<()> {
    let builder = Request::get("/desk/one?a=b&token=x").header("host", "desk.example:8443");
    fields.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value)).body(()).unwrap()
}

fn asked_by(head: &Request<()>) -> AuthRequest<'_> {
    AuthRequest {
        head,
        client: ([192, 0, 2, 7], 4711).into(),
        https: true,
        host: "desk.example:8443",
        certificate: None,
        route: Some("desk"),
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(NOW),
    }
}

fn rules() -> Forward {
    Forward {
        url: "http://127.0.0.1:1/check?from=gateway".parse().unwrap(),
        ca: None,
        timeout: Duration::from_secs(5),
        max_in_flight: 1,
        cache: None,
        user_header: None,
        target_header: None,
        expires_header: None,
    }
}

/// The fields of a request to the authority, in the order of their names.
fn passed_on(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    let head = head(fields);
    let question = question::question(&rules().url, &asked_by(&head)).unwrap();
    assert_eq!((question.method().as_str(), question.uri()), ("GET", &rules().url));
    let fields = question.headers().iter();
    let mut fields: Vec<_> = fields
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    fields.sort();
    fields
}

const DESCRIPTION: [(&str, &str); 8] = [
    ("x-forwarded-for", "192.0.2.7"),
    ("x-forwarded-host", "desk.example:8443"),
    ("x-forwarded-method", "GET"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-uri", "/desk/one?a=b&token=x"),
    ("x-original-method", "GET"),
    ("x-original-uri", "/desk/one?a=b&token=x"),
    ("x-original-url", "https://desk.example:8443/desk/one?a=b&token=x"),
];

fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn the_authority_receives_the_request_and_some_of_its_fields() {
    let sent = [
        ("accept", "text/html"),
        ("authorization", "Basic YTpi"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("origin", "https://desk.example"),
        ("user-agent", "Browser/1.0"),
    ];
    let expected: Vec<_> = [owned(&sent), owned(&DESCRIPTION)].concat();
    assert_eq!(passed_on(&sent), expected);
}

#[test]
fn no_other_field_of_the_client_reaches_the_authority() {
    let sent = [
        ("Remote-User", "root"),
        ("REMOTE-USER", "root"),
        ("X-Forwarded-User", "root"),
        ("x-auth-request-user", "root"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-FORWARDED-HOST", "admin.example"),
        ("X-Forwarded-Uri", "/public"),
        ("X-Original-URL", "https://admin.example/public"),
        ("X-Original-URI", "/public"),
        ("Forwarded", "for=127.0.0.1"),
        ("X-Real-IP", "127.0.0.1"),
        ("Connection", "Upgrade, X-Forwarded-For"),
        ("Upgrade", "websocket"),
        ("Content-Length", "5"),
        ("Sec-WebSocket-Protocol", "binary"),
    ];
    assert_eq!(passed_on(&sent), owned(&DESCRIPTION));
}

#[test]
fn two_credentials_in_the_same_place_are_none() {
    let head = head(&[("authorization", "Basic YTpi"), ("authorization", "Basic YTpj")]);
    let denied = question::question(&rules().url, &asked_by(&head)).unwrap_err();
    assert!(matches!(denied, Denied::Unauthorized { attempted: true, .. }), "{denied:?}");
}

#[test]
fn requests_that_differ_in_anything_have_other_parts() {
    let cache = GrantCache::new(Duration::from_secs(1)).unwrap();
    let key = |fields: &[(&str, &str)], change: &dyn Fn(&mut AuthRequest<'_>)| {
        let head = head(fields);
        let mut request = asked_by(&head);
        change(&mut request);
        cache.key(question::parts(&question::question(&rules().url, &request).unwrap()))
    };
    let ann = [("cookie", "session=ann")];
    let first = key(&ann, &|_| {});
    assert_eq!(key(&[("cookie", "session=ann"), ("sec-websocket-key", "x")], &|_| {}), first);
    assert_eq!(key(&ann, &|request| request.client.set_port(1)), first);
    for other in [
        key(&[("cookie", "session=bob")], &|_| {}),
        key(&[("authorization", "session=ann")], &|_| {}),
        key(&[("cookie", "session=ann"), ("origin", "https://a.example")], &|_| {}),
        key(&ann, &|request| request.https = false),
        key(&ann, &|request| request.host = "other.example"),
        key(&ann, &|request| request.client.set_ip([192, 0, 2, 8].into())),
    ] {
        assert_ne!(other, first);
    }
}

fn answer(status: u16, fields: &[(&str, &str)]) -> Parts {
    let builder = Response::builder().status(status);
    let response = fields.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
    response.body(()).unwrap().into_parts().0
}

fn evaluated(answer: &Parts, rules: &Forward) -> Result<Result<Grant, Denied>, String> {
    evaluate(answer, rules, &asked_by(&head(&[])))
}

#[test]
fn only_2xx_admits_and_only_401_403_and_redirections_are_passed_on() {
    for status in (100..=599).filter(|status| ![101].contains(status)) {
        let location = ("location", "https://login.example/?rd=x");
        let result = evaluated(&answer(status, &[location, ("www-authenticate", "Basic")]), &rules());
        match status {
            200..=299 => assert_eq!(result.unwrap().unwrap(), Grant::default(), "{status}"),
            301 | 302 | 303 | 307 | 308 | 401 | 403 => {
                let denied = result.unwrap().unwrap_err();
                let reason = if status == 403 { Reason::Forbidden } else { Reason::Unauthorized };
                assert_eq!(denied.reason(), reason, "{status}");
                assert_eq!(denied.is_question(), status != 403, "{status}");
                let Denied::Answered { answer, .. } = denied else { panic!("{denied:?}") };
                assert_eq!(answer.status.as_u16(), status);
                assert_eq!(answer.headers.contains_key(LOCATION), (301..=308).contains(&status));
                assert_eq!(answer.headers.contains_key(WWW_AUTHENTICATE), matches!(status, 401 | 403));
            }
            _ => assert!(result.unwrap_err().contains(&status.to_string()), "{status}"),
        }
    }
    for locations in [&[][..], &[("location", "/a"), ("location", "/b")]] {
        assert!(evaluated(&answer(302, locations), &rules()).unwrap_err().contains("without one Location"));
    }
}

#[test]
fn a_401_for_a_password_is_a_failed_attempt_and_for_a_cookie_it_is_none() {
    for (fields, attempted) in
        [(&[][..], false), (&[("cookie", "session=old")], false), (&[("authorization", "Basic YTpi")], true)]
    {
        let head = head(fields);
        let denied = evaluate(&answer(401, &[]), &rules(), &asked_by(&head)).unwrap().unwrap_err();
        assert_eq!(denied.is_question(), !attempted, "{fields:?}");
    }
}

#[test]
fn what_is_passed_on_is_chosen_and_bounded() {
    let fields = [
        ("www-authenticate", "Basic realm=\"a\""),
        ("www-authenticate", "Negotiate"),
        ("set-cookie", "csrf=1; HttpOnly"),
        ("location", "https://login.example/"),
        ("x-user", "ann"),
        ("transfer-encoding", "chunked"),
        ("server", "nginx"),
    ];
    let denied = evaluated(&answer(401, &fields), &rules()).unwrap().unwrap_err();
    let Denied::Answered { answer: passed_on, .. } = denied else { panic!("{denied:?}") };
    assert_eq!(passed_on.headers.len(), 3, "{:?}", passed_on.headers);
    assert_eq!(passed_on.headers.get_all(WWW_AUTHENTICATE).iter().count(), 2);
    assert_eq!(passed_on.headers[SET_COOKIE], "csrf=1; HttpOnly");

    let many = vec![("set-cookie", "a=1"); 17];
    assert!(evaluated(&answer(401, &many[..16]), &rules()).is_ok());
    assert!(evaluated(&answer(401, &many), &rules()).unwrap_err().contains("more fields"));
    let long = "x".repeat(8193);
    assert!(evaluated(&answer(401, &[("set-cookie", &long[1..])]), &rules()).is_ok());
    assert!(evaluated(&answer(401, &[("set-cookie", &long)]), &rules()).unwrap_err().contains("more fields"));
}

#[test]
fn fields_of_the_answer_name_the_user_the_target_and_the_end() {
    let rules = Forward {
        user_header: Some(HeaderName::from_static("remote-user")),
        target_header: Some(HeaderName::from_static("x-desk")),
        expires_header: Some(HeaderName::from_static("x-expires")),
        ..rules()
    };
    let end = (NOW + 60).to_string();
    let all = [("Remote-User", "Änne"), ("X-Desk", "one"), ("X-Expires", end.as_str())];
    let granted = evaluated(&answer(204, &all), &rules).unwrap().unwrap();
    let expected = Grant {
        user: Some("Änne".into()),
        target: Some("one".into()),
        expires: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(NOW + 60)),
        ..Grant::default()
    };
    assert_eq!(granted, expected);

    let long = "x".repeat(257);
    for (index, value, wrong) in [
        (0, None, "has no remote-user"),
        (0, Some(""), "empty, too long"),
        (0, Some(long.as_str()), "empty, too long"),
        (1, None, "has no x-desk"),
        (1, Some(long.as_str()), "longer than 256"),
        (2, None, "has no x-expires"),
        (2, Some("soon"), "no number of seconds"),
        (2, Some("+5"), "no number of seconds"),
        (2, Some("-1"), "no number of seconds"),
        (2, Some(""), "no number of seconds"),
        (2, Some("1.8e9"), "no number of seconds"),
        (2, Some("99999999999999999999999"), "no number of seconds"),
        (2, Some("18446744073709551615"), "no number of seconds"),
    ] {
        let mut fields = all.to_vec();
        match value {
            Some(value) => fields[index].1 = value,
            None => _ = fields.remove(index),
        }
        let cause = evaluated(&answer(200, &fields), &rules).unwrap_err();
        assert!(cause.contains(wrong), "{fields:?}: {cause}");
    }
    for twice in all {
        let fields = [&all[..], &[twice]].concat();
        let cause = evaluated(&answer(200, &fields), &rules).unwrap_err();
        assert!(cause.contains("several"), "{fields:?}: {cause}");
    }
    let past = NOW.to_string();
    let fields = [all[0], all[1], ("x-expires", past.as_str())];
    let denied = evaluated(&answer(200, &fields), &rules).unwrap().unwrap_err();
    assert_eq!(denied.reason(), Reason::Unauthorized);
}
