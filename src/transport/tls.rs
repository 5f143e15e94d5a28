//! The TLS handshake of a listener.

use std::{fmt, io, sync::Arc, time::Duration};

use rustls::{ServerConfig, crypto::aws_lc_rs, server::ProducesTickets};
use tokio::{
    task::spawn_blocking,
    time::{self, MissedTickBehavior},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub(crate) use super::certificate::IdentityError;
use super::{certificate::CertificateResolver, socket::Socket, stream::ClientStream};
use crate::{
    config::{Identity, TlsVersion},
    counting_stream::CountingStream,
};

/// The first byte of every TLS connection: a record that holds handshake messages (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// How often the files of a certificate are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// What came of a connection on a TLS listener.
#[derive(Debug)]
pub(crate) enum TlsAccept {
    /// TLS.
    Stream(ClientStream),
    /// Something else was spoken; nothing of it has been read.
    NotTls(Socket),
}

/// A listener's TLS side. Clones show the same certificate.
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
    /// Loads a certificate chain and its key and checks that they belong together. In place of `before`, it takes the tickets
    /// that were given out there: a client that comes again need not notice that anything has changed.
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
        let unusable = |cause| IdentityError::Unusable { certificate: certificate.certificate(), cause };
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
        // Tickets instead of a session cache: resumption without memory or a lock. One is enough for a client that keeps
        // its connection for hours.
        config.send_tls13_tickets = 1;
        config.ticketer = Arc::clone(&tickets);
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate, tickets })
    }

    /// The certificate and its key.
    pub(crate) fn certificate(&self) -> &CertificateResolver {
        &self.certificate
    }

    /// Takes over certificates that are renewed, until `stop`.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let mut clock = time::interval_at(time::Instant::now() + WATCH_INTERVAL, WATCH_INTERVAL);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let check = async {
            loop {
                clock.tick().await;
                let certificate = Arc::clone(&self.certificate);
                // Files can be far away; a panic has been reported by its hook, and the next look is as good as any.
                let _ = spawn_blocking(move || certificate.check()).await;
            }
        };
        stop.run_until_cancelled(check).await;
    }

    /// Shakes hands. Takes as long as the client does: put a deadline around it.
    ///
    /// # Errors
    /// The connection broke, or the handshake failed and the client has been sent the alert that says why.
    pub(crate) async fn accept(&self, socket: Socket) -> io::Result<TlsAccept> {
        let mut first = [0];
        if socket.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[0] != HANDSHAKE_RECORD {
            return Ok(TlsAccept::NotTls(socket));
        }
        let stream = self.acceptor.accept(CountingStream::new(socket)).await?;
        Ok(TlsAccept::Stream(ClientStream::Tls(Box::new(stream))))
    }
}
