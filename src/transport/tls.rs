//! TLS with clients: the settings of a listener and the handshake.
//!
//! Owns protocol versions, ALPN and session tickets of a listener, and tells TLS from anything else by its first byte.
//! Knows nothing of what is sent inside. Invariants: a reload of the configuration or of a certificate invalidates no
//! ticket; where clients can present certificates, each handshake verifies the certificate anew.

use std::{fmt, io, sync::Arc, time::SystemTime};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{NoServerSessionStorage, ProducesTickets},
};
use tokio_rustls::TlsAcceptor;

pub(crate) use super::certificate::IdentityError;
use super::{
    certificate::CertificateResolver,
    client_ca::{ClientCaError, ClientCaVerifier},
    socket::Socket,
    stream::ClientStream,
    turns::Turns,
};
use crate::{
    client_certificate::CertificateId,
    config::{ClientCa, Identity, TlsVersion},
    counting_stream::CountingStream,
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
    /// Verifies the certificates of clients, if they can present some.
    clients: Option<Arc<ClientCaVerifier>>,
    tickets: Arc<dyn ProducesTickets>,
}

/// Why the TLS settings of a listener cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The listener's own certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What verifies the certificates of clients.
    #[error(transparent)]
    Clients(#[from] ClientCaError),
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Loads a certificate chain and its key and checks that they belong together, and what verifies the certificates of
    /// clients. If it replaces `before`, it accepts the session tickets issued by that: clients that reconnect can still
    /// resume.
    ///
    /// # Errors
    /// A file is missing, unreadable or not PEM, the pair does not match, or it would replace `before` by a certificate
    /// that is not valid now.
    pub(crate) fn load(
        identity: &Identity,
        client_ca: Option<&ClientCa>,
        min_tls: TlsVersion,
        before: Option<&Self>,
    ) -> Result<Self, TlsError> {
        let certificate = Arc::new(match before {
            Some(before) => CertificateResolver::load_after(identity, &before.certificate)?,
            None => CertificateResolver::load(identity)?,
        });
        let unusable = |cause| IdentityError::Library { certificate: certificate.certificate(), cause };
        let tickets = match before {
            Some(before) => Arc::clone(&before.tickets),
            None => aws_lc_rs::Ticketer::new().map_err(unusable)?,
        };
        let clients = client_ca.map(ClientCaVerifier::load).transpose()?.map(Arc::new);
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(min_tls.or_newer())
            .map_err(unusable)?;
        let builder = match &clients {
            None => builder.with_no_client_auth(),
            Some(clients) => builder.with_client_cert_verifier(Arc::clone(clients) as _),
        };
        let mut config = builder.with_cert_resolver(Arc::clone(&certificate) as _);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if clients.is_some() {
            // rustls takes the certificate of a resumed session from its ticket and does not verify it again: it could have
            // expired or be revoked since, and a ticket from before a reload may have been issued without one.
            config.send_tls13_tickets = 0;
            config.session_storage = Arc::new(NoServerSessionStorage {});
        } else {
            // Tickets instead of a session cache: resumption without memory or a lock. One is enough for a client that
            // keeps its connection for hours.
            config.send_tls13_tickets = 1;
            config.ticketer = Arc::clone(&tickets);
        }
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate, clients, tickets })
    }

    pub(crate) fn certificate(&self) -> &CertificateResolver {
        &self.certificate
    }

    /// What is questionable about the files that were just loaded: one whole sentence each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let outdated = self.clients.as_ref().and_then(|clients| clients.warning(SystemTime::now()));
        self.certificate.warnings().into_iter().chain(outdated).collect()
    }

    /// Reads the files that have changed.
    pub(crate) fn check(&self) {
        self.certificate.check();
        if let Some(clients) = &self.clients {
            clients.check();
        }
    }

    /// Tells which client certificates are revoked; `None` if none is.
    pub(crate) fn revoked(&self) -> Option<impl Fn(&CertificateId) -> bool + use<>> {
        self.clients.as_ref().and_then(|clients| clients.revoked())
    }

    /// A reload of the configuration has rejected files and reported why: these need no second report here.
    pub(crate) fn mark_rejected(&self, error: &TlsError, identity: &Identity, client_ca: Option<&ClientCa>) {
        match (error, &self.clients, client_ca) {
            (TlsError::Identity(_), ..) => self.certificate.mark_rejected(identity),
            (TlsError::Clients(_), Some(clients), Some(config)) => clients.mark_rejected(config),
            (TlsError::Clients(_), ..) => {}
        }
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
