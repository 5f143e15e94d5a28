//! The two kinds of client stream.

use rustls::ProtocolVersion;
use tokio_rustls::server::TlsStream;

use super::socket::Socket;
use crate::counting_stream::{CountingStream, delegate_io};

/// What a client is connected by.
#[derive(Debug)]
pub(crate) enum ClientStream {
    /// `ws://` and `http://`.
    Plain(CountingStream<Socket>),
    /// `wss://` and `https://`. Boxed: a plain session need not carry the room for it.
    Tls(Box<TlsStream<CountingStream<Socket>>>),
}

impl ClientStream {
    /// The version of TLS that the client speaks to us, if it does.
    pub(crate) fn tls_version(&self) -> Option<ProtocolVersion> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.protocol_version(),
        }
    }

    /// Bytes the socket has taken so far, TLS included.
    pub(crate) fn bytes_written(&self) -> u64 {
        match self {
            Self::Plain(stream) => stream.bytes_written(),
            Self::Tls(stream) => stream.get_ref().0.bytes_written(),
        }
    }
}

delegate_io!(ClientStream { Plain, Tls });
