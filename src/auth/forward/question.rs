//! What the authority is asked.
//!
//! Pure. Invariant: of the fields that the client has sent, only those in [`COPIED`] are passed on: the authority may trust
//! the others to be the gateway's.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Uri,
    header::{ACCEPT, AUTHORIZATION, COOKIE, ORIGIN, USER_AGENT},
};
use http_body_util::Full;

use crate::auth::{AuthRequest, Denied};

/// The fields of the client that the authority receives as they are.
const COPIED: [HeaderName; 5] = [ACCEPT, AUTHORIZATION, COOKIE, ORIGIN, USER_AGENT];

/// The request to the authority: a GET of its URL, whatever the client's method is.
///
/// # Errors
/// The request has several `Authorization` fields: which of them the authority reads would be a guess.
pub(super) fn question(url: &Uri, request: &AuthRequest<'_>) -> Result<Request<Full<Bytes>>, Denied> {
    let sent = request.head.headers();
    if sent.get_all(AUTHORIZATION).iter().nth(1).is_some() {
        return Err(Denied::invalid("there are several credentials in the same place"));
    }
    let mut question = Request::new(Full::default());
    *question.uri_mut() = url.clone();
    let headers = question.headers_mut();
    for name in COPIED {
        for value in sent.get_all(&name) {
            headers.append(name.clone(), value.clone());
        }
    }
    describe(headers, request).ok_or_else(|| Denied::invalid("the request cannot be passed on"))?;
    Ok(question)
}

/// Adds what the client has asked for, by the names that nginx and Traefik use. `None` if a value cannot be part of a head.
fn describe(headers: &mut HeaderMap, request: &AuthRequest<'_>) -> Option<()> {
    let proto = if request.https { "https" } else { "http" };
    let (method, target) = (request.head.method().as_str(), request.head.uri());
    let path = target.path_and_query().map_or("/", |path| path.as_str());
    let url = format!("{proto}://{}{path}", request.host);
    let client = request.client.ip().to_string();
    for (name, value) in [
        ("x-forwarded-method", method),
        ("x-forwarded-proto", proto),
        ("x-forwarded-host", request.host),
        ("x-forwarded-uri", path),
        ("x-forwarded-for", &client),
        ("x-original-method", method),
        ("x-original-url", &url),
        ("x-original-uri", path),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    Some(())
}

/// Everything in which two requests to the same URL can differ.
pub(super) fn parts(question: &Request<Full<Bytes>>) -> impl Iterator<Item = &[u8]> {
    question.headers().iter().flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()])
}
