//! The entry functions of the fuzz targets: each takes any bytes, and panics if a promise of the program is broken.
//!
//! Compiled only for `cargo fuzz` (`--cfg fuzzing`, see `fuzz/`) and for the tests, which run the same functions on the
//! seeds in `fuzz/corpus` and on mutations of them. Owns what is promised of each parser; knows nothing of how the
//! bytes are chosen.

mod addresses;
mod admin;
mod frames;
mod input;
#[cfg(test)]
mod mutate;
mod requests;
mod texts;

pub use self::{
    addresses::{forwarded, origin, proxy_header},
    admin::admin_request,
    frames::frames,
    requests::{request_head, subprotocols, target_and_host},
    texts::{config_text, starttls, token_file},
};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target by the name of its directory in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 11] = [
    ("frames", frames),
    ("request_head", request_head),
    ("target_and_host", target_and_host),
    ("subprotocols", subprotocols),
    ("origin", origin),
    ("forwarded", forwarded),
    ("proxy_header", proxy_header),
    ("starttls", starttls),
    ("token_file", token_file),
    ("config_text", config_text),
    ("admin_request", admin_request),
];
