//! The files of the status page, compiled into the program.

use http::StatusCode;

use super::response::{AdminResponse, response};

pub(super) fn html() -> AdminResponse {
    response(StatusCode::OK, "text/html; charset=utf-8", include_str!("page/index.html"))
}

pub(super) fn style() -> AdminResponse {
    response(StatusCode::OK, "text/css; charset=utf-8", include_str!("page/style.css"))
}

pub(super) fn script() -> AdminResponse {
    response(StatusCode::OK, "text/javascript; charset=utf-8", include_str!("page/script.js"))
}
