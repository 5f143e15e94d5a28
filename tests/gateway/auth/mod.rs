//! The methods of authentication with the real binary.

mod jwt;
mod stolen;
mod ticket;
mod users;
