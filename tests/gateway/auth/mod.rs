//! The methods of authentication with the real binary.

mod client_certificate;
mod jwt;
pub(crate) mod machines;
mod stolen;
mod ticket;
mod users;
