//! RFC 6455 framing, without I/O.
//!
//! Owns the streaming [`Decoder`] of client frames (masked), the [`encoder`] of server frames (unmasked) and the rules
//! for close codes and UTF-8. Knows nothing of sockets, time or sessions. Invariant: no payload is buffered here; it is
//! passed on in pieces as it arrives, and only control frames, at most 125 bytes each, are collected.

#[cfg(test)]
pub(crate) mod client;
mod close;
mod decoder;
mod encoder;
mod header;
mod mask;
mod token;
mod utf8;
mod violation;

pub(crate) use close::{CloseFrame, MAX_CLOSE_REASON};
pub(crate) use decoder::{DecodeProgress, Decoder, Event};
pub(crate) use encoder::{ControlFrame, MAX_HEADER, data_header};
pub(crate) use token::is_token;
pub(crate) use utf8::{InvalidUtf8, Utf8Stream};
pub(crate) use violation::Violation;
