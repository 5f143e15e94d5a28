//! Sockets and who is at the other end of them.

pub mod peer;
