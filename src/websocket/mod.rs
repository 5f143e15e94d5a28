//! RFC 6455 frames, without I/O.
//!
//! Owns the streaming [`Decoder`] of client frames, the [`encoder`](self) of server frames and the rules about close
//! codes and UTF-8. Knows nothing of sockets, time or sessions. Invariant: no function here holds payload; a
//! payload is handed on chunk by chunk as it arrives, and only control frames, at most 125 bytes, are collected.

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

pub(crate) use close::CloseFrame;
pub(crate) use decoder::{DecodeProgress, Decoder, Event};
pub(crate) use encoder::{ControlFrame, MAX_HEADER, data_header};
pub(crate) use token::is_token;
pub(crate) use utf8::{InvalidUtf8, Utf8Stream};
pub(crate) use violation::Violation;
