//! What an answer of the authority means.
//!
//! Pure: the time is part of the request. Invariants: only a status from 200 to 299 admits a request; a field that the
//! configuration names is required, once; what is passed on to the client is bounded.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{AUTHORIZATION, LOCATION, SET_COOKIE, WWW_AUTHENTICATE},
    response::Parts,
};

use crate::{
    auth::{AuthRequest, Denied, Grant},
    config::Forward,
};

/// How many fields of an answer the client receives at most, and how many bytes.
const MAX_FIELDS: usize = 16;
const MAX_BYTES: usize = 8 << 10;
/// The longest name of a target, in bytes.
const MAX_TARGET: usize = 256;

/// An answer of the authority that the client receives: a status, and some fields.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// 401, 403 or a redirection.
    pub status: StatusCode,
    /// `WWW-Authenticate`, `Location` and `Set-Cookie`.
    pub headers: HeaderMap,
}

impl Answer {
    /// Whether the user is known, and may not enter.
    pub(crate) fn is_forbidden(&self) -> bool {
        self.status == StatusCode::FORBIDDEN
    }
}

/// What an answer grants, or why it grants nothing.
///
/// # Errors
/// The answer decides nothing: what is wrong with it.
pub(super) fn evaluate(
    answer: &Parts,
    rules: &Forward,
    request: &AuthRequest<'_>,
) -> Result<Result<Grant, Denied>, String> {
    match answer.status {
        status if status.is_success() => grant(&answer.headers, rules, request.now),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            denied(answer, request, &[WWW_AUTHENTICATE, SET_COOKIE])
        }
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => match answer.headers.get_all(LOCATION).iter().count() {
            1 => denied(answer, request, &[LOCATION, SET_COOKIE]),
            _ => Err(format!("it answered {} without one Location", answer.status)),
        },
        status => Err(format!("it answered {status}")),
    }
}

fn grant(headers: &HeaderMap, rules: &Forward, now: SystemTime) -> Result<Result<Grant, Denied>, String> {
    let mut grant = Grant::default();
    if let Some(name) = &rules.user_header {
        grant = Grant::of_user(field(headers, name)?).map_err(|_| {
            format!("the user's name in {name} is empty, too long, or has control characters")
        })?;
    }
    if let Some(name) = &rules.target_header {
        let target = field(headers, name)?;
        if target.len() > MAX_TARGET {
            return Err(format!("the target in {name} is longer than {MAX_TARGET} bytes"));
        }
        grant.target = Some(target.into());
    }
    if let Some(name) = &rules.expires_header {
        let expires = time(field(headers, name)?)
            .ok_or_else(|| format!("{name} is no number of seconds since 1970"))?;
        if expires <= now {
            return Ok(Err(Denied::missing("the authority says that the user's session has ended already")));
        }
        grant.expires = Some(expires);
    }
    Ok(Ok(grant))
}

/// The value of a field that is there once.
fn field<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, String> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => {
            let text = std::str::from_utf8(value.as_bytes());
            text.map(str::trim).map_err(|_| format!("{name} in its answer is not UTF-8"))
        }
        (None, _) => Err(format!("its answer has no {name}")),
        (Some(_), Some(_)) => Err(format!("its answer has several {name}")),
    }
}

/// A time in seconds since 1970.
fn time(text: &str) -> Option<SystemTime> {
    // Digits only: parse() accepts a "+" too.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = text.parse().ok().filter(|_| is_number)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// An answer that the client receives, with these fields of it.
fn denied(
    answer: &Parts,
    request: &AuthRequest<'_>,
    passed_on: &[HeaderName],
) -> Result<Result<Grant, Denied>, String> {
    let fields: Vec<(&HeaderName, &HeaderValue)> = passed_on
        .iter()
        .flat_map(|name| answer.headers.get_all(name).iter().map(move |value| (name, value)))
        .collect();
    let bytes: usize = fields.iter().map(|(_, value)| value.len()).sum();
    if fields.len() > MAX_FIELDS || bytes > MAX_BYTES {
        return Err(format!("it answered {} with more fields than are passed on", answer.status));
    }
    let mut headers = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        headers.append(name, value.clone());
    }
    let status = answer.status;
    // Cookies are sent by every browser, also by one whose user is not logged in.
    let attempted = status == StatusCode::UNAUTHORIZED && request.head.headers().contains_key(AUTHORIZATION);
    Ok(Err(Denied::Answered { answer: Box::new(Answer { status, headers }), attempted }))
}
