//! The yardstick: a TLS terminator that copies bytes and knows nothing else.

use std::{io::Write as _, net::SocketAddr, path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, copy_bidirectional_with_sizes, stdin},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

/// The buffer of each direction, in bytes.
const BUFFER: usize = 64 * 1024;

/// Serves until standard input ends. Prints its address first.
pub(super) async fn serve(certificate: &Path, key: &Path, backend: SocketAddr) -> anyhow::Result<()> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    tokio::spawn(async move {
        loop {
            if let Ok((socket, _)) = listener.accept().await {
                // A client that leaves is no news.
                let acceptor = acceptor.clone();
                tokio::spawn(async move { carry(socket, acceptor, backend).await.ok() });
            }
        }
    });
    stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

async fn carry(socket: TcpStream, acceptor: TlsAcceptor, backend: SocketAddr) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let mut client = acceptor.accept(socket).await?;
    let mut backend = TcpStream::connect(backend).await?;
    backend.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER, BUFFER).await?;
    Ok(())
}
