//! The yardstick: a TLS terminator that copies bytes and knows nothing else.

use std::{io::Write as _, path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, copy_bidirectional_with_sizes, stdin},
    net::{TcpListener, TcpStream, UnixStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, server::TlsStream};

use super::{
    backend::Way,
    client::{Handshake, connector},
};

/// The buffer of each direction, in bytes.
const BUFFER: usize = 64 * 1024;

/// Serves until standard input ends. Prints its address first.
pub(super) async fn serve(certificate: &Path, key: &Path, way: Way, backend: &str) -> anyhow::Result<()> {
    let front = Front {
        acceptor: acceptor(certificate, key)?,
        connector: connector(certificate, Handshake::Whole)?,
        way,
        backend: backend.to_owned(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    tokio::spawn(async move {
        loop {
            if let Ok((socket, _)) = listener.accept().await {
                // A client that leaves is no news.
                let front = front.clone();
                tokio::spawn(async move { front.carry(socket).await.ok() });
            }
        }
    });
    stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

/// The server's end of TLS, with the defaults of rustls and tickets.
pub(super) fn acceptor(certificate: &Path, key: &Path) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[derive(Clone)]
struct Front {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    way: Way,
    backend: String,
}

impl Front {
    async fn carry(self, socket: TcpStream) -> anyhow::Result<()> {
        socket.set_nodelay(true)?;
        let client = self.acceptor.accept(socket).await?;
        match self.way {
            Way::Tcp => copy(client, tcp(&self.backend).await?).await,
            Way::Unix => copy(client, UnixStream::connect(&self.backend).await?).await,
            Way::Tls => {
                let (name, socket) = (ServerName::try_from("localhost")?, tcp(&self.backend).await?);
                copy(client, self.connector.connect(name, socket).await?).await
            }
        }
    }
}

async fn tcp(address: &str) -> anyhow::Result<TcpStream> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn copy(
    mut client: TlsStream<TcpStream>,
    mut backend: impl AsyncRead + AsyncWrite + Unpin,
) -> anyhow::Result<()> {
    copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER, BUFFER).await?;
    Ok(())
}
