//! The status page: what a browser is sent.
//!
//! Owns its files, which are a part of the program, and the policy they are shown under.

use http::StatusCode;

use super::api::{Answer, answer};

/// Nothing from elsewhere, nothing inline; and nobody frames it or sends forms from it.
pub(super) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                                 base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn html() -> Answer {
    answer(StatusCode::OK, "text/html; charset=utf-8", include_str!("page/index.html"))
}

pub(super) fn style() -> Answer {
    answer(StatusCode::OK, "text/css; charset=utf-8", include_str!("page/style.css"))
}

pub(super) fn script() -> Answer {
    answer(StatusCode::OK, "text/javascript; charset=utf-8", include_str!("page/script.js"))
}
