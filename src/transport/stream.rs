//! The stream of a client: with TLS, or without.

use rustls::ProtocolVersion;
use tokio_rustls::server::TlsStream;

use super::socket::Socket;
use crate::{
    client_certificate::ClientCertificate,
    counting_stream::{CountingStream, delegate_io},
};

/// A plaintext stream of a client.
#[derive(Debug)]
pub(crate) enum ClientStream {
    /// `ws://` and `http://`.
    Plain(CountingStream<Socket>),
    /// `wss://` and `https://`. Boxed, so that sessions without TLS do not pay for its size.
    Tls(Box<TlsStream<CountingStream<Socket>>>),
}

impl ClientStream {
    /// The client's TLS version; `None` without TLS.
    pub(crate) fn tls_version(&self) -> Option<ProtocolVersion> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.protocol_version(),
        }
    }

    /// The certificate that the client has presented, if the handshake has verified one. `None` also if its names cannot be
    /// read.
    pub(crate) fn client_certificate(&self) -> Option<ClientCertificate> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => {
                let chain = stream.get_ref().1.peer_certificates()?;
                ClientCertificate::parse(chain.first()?)
            }
        }
    }

    /// Bytes written to the socket so far, TLS overhead included.
    pub(crate) fn bytes_written(&self) -> u64 {
        match self {
            Self::Plain(stream) => stream.bytes_written(),
            Self::Tls(stream) => stream.get_ref().0.bytes_written(),
        }
    }

    /// See [`CountingStream::force_write`].
    pub(crate) fn force_write(&mut self) {
        match self {
            Self::Plain(stream) => stream.force_write(),
            Self::Tls(stream) => stream.get_mut().0.force_write(),
        }
    }
}

delegate_io!(ClientStream { Plain, Tls });
