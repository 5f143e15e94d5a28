//! Responses of the admin address: headers, JSON bodies, errors.
//!
//! Invariant: every response forbids caching, framing and reading by other origins, whatever it carries.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
        X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
    },
};
use http_body_util::Full;
use serde::Serialize;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Nothing from elsewhere, nothing inline, no framing and no forms.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                              base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) type AdminResponse = Response<Full<Bytes>>;

/// A refused or failed API request: the status, and one line for the `error` field of the JSON body.
pub(super) struct ApiError(pub(super) StatusCode, pub(super) String);

impl ApiError {
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, message.into())
    }
}

impl From<ApiError> for AdminResponse {
    fn from(ApiError(status, error): ApiError) -> Self {
        #[derive(Serialize)]
        struct ErrorBody {
            error: String,
        }
        json(status, &ErrorBody { error })
    }
}

pub(super) fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> AdminResponse {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let fields: [(HeaderName, &'static str); 7] = [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        // Not "no-referrer": browsers would then send "Origin: null" with the status page's own requests.
        (REFERRER_POLICY, "same-origin"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
    ];
    for (name, value) in fields {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> AdminResponse {
    match serde_json::to_vec(value) {
        Ok(body) => response(status, JSON, body),
        Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}

/// A JSON body with one line for people in its `message` field.
pub(super) fn message(status: StatusCode, message: impl Into<String>) -> AdminResponse {
    #[derive(Serialize)]
    struct MessageBody {
        message: String,
    }
    json(status, &MessageBody { message: message.into() })
}
