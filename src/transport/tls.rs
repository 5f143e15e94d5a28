//! TLS with clients: the settings of a listener and the handshake.
//!
//! Owns protocol versions, ALPN and session tickets of a listener, and tells TLS from anything else by its first byte.
//! Knows nothing of what is sent inside. Invariant: a reload of the configuration or of a certificate invalidates no
//! ticket.

use std::{fmt, io, sync::Arc};

use rustls::{ServerConfig, crypto::aws_lc_rs, server::ProducesTickets};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub(crate) use super::certificate::IdentityError;
use super::{certificate::CertificateResolver, socket::Socket, stream::ClientStream, turns::Turns};
use crate::{
    config::{Identity, TlsVersion},
    counting_stream::CountingStream,
    watched_file,
};

/// The first byte of every TLS connection: a record with handshake messages (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// The result of accepting a connection on a TLS listener.
#[derive(Debug)]
pub(crate) enum TlsAccept {
    Stream(ClientStream),
    /// The client does not speak TLS; nothing was read.
    NotTls(Socket),
}

/// A listener's side of TLS. Clones share the certificate.
#[derive(Clone)]
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    certificate: Arc<CertificateResolver>,
    tickets: Arc<dyn ProducesTickets>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Loads a certificate chain and its key and checks that they belong together. If it replaces `before`, it
    /// accepts the session tickets issued by that: clients that reconnect can still resume.
    ///
    /// # Errors
    /// A file is missing, unreadable or not PEM, the pair does not match, or it would replace `before` by a certificate
    /// that is not valid now.
    pub(crate) fn load(
        identity: &Identity,
        min_tls: TlsVersion,
        before: Option<&Self>,
    ) -> Result<Self, IdentityError> {
        let certificate = Arc::new(match before {
            Some(before) => CertificateResolver::load_after(identity, &before.certificate)?,
            None => CertificateResolver::load(identity)?,
        });
        let unusable = |cause| IdentityError::Library { certificate: certificate.certificate(), cause };
        let tickets = match before {
            Some(before) => Arc::clone(&before.tickets),
            None => aws_lc_rs::Ticketer::new().map_err(unusable)?,
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(min_tls.or_newer())
            .map_err(unusable)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificate) as _);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Tickets instead of a session cache: resumption without memory or a lock. One is enough for a client that
        // keeps its connection for hours.
        config.send_tls13_tickets = 1;
        config.ticketer = Arc::clone(&tickets);
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate, tickets })
    }

    pub(crate) fn certificate(&self) -> &CertificateResolver {
        &self.certificate
    }

    /// Reloads the certificate when its files change, until `stop`.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        watched_file::poll(move || self.certificate.check(), stop).await;
    }

    /// Does the handshake, whose steps take turns; calls `heard` when the first byte has arrived, which no turn delays. It
    /// takes as long as the client does: put a deadline around it.
    ///
    /// # Errors
    /// The connection broke, or the handshake failed and the client has been sent the alert that says why.
    pub(crate) async fn accept(
        &self,
        socket: Socket,
        turns: &Turns,
        heard: impl FnOnce(),
    ) -> io::Result<TlsAccept> {
        let mut first = [0];
        if socket.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        heard();
        if first[0] != HANDSHAKE_RECORD {
            return Ok(TlsAccept::NotTls(socket));
        }
        let stream = turns.run(self.acceptor.accept(CountingStream::new(socket))).await?;
        Ok(TlsAccept::Stream(ClientStream::Tls(Box::new(stream))))
    }
}
