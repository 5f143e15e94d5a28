//! The baseline: a TLS terminator that only copies bytes.

use std::{io::Write as _, path::Path};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, copy_bidirectional_with_sizes, stdin},
    net::{TcpListener, TcpStream, UnixStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, server::TlsStream};

use super::{
    protocol::Transport,
    tls::{Handshake, acceptor, connector},
};

/// The buffer of each direction, in bytes.
const BUFFER: usize = 64 * 1024;

/// Serves until standard input ends. Prints its address first.
pub(super) async fn serve(
    certificate: &Path,
    key: &Path,
    transport: Transport,
    backend: &str,
) -> anyhow::Result<()> {
    let pipe = Pipe {
        acceptor: acceptor(certificate, key)?,
        connector: connector(certificate, Handshake::Full)?,
        transport,
        backend: backend.to_owned(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    tokio::spawn(async move {
        loop {
            if let Ok((socket, _)) = listener.accept().await {
                // A client that disconnects is normal: errors are ignored.
                let pipe = pipe.clone();
                tokio::spawn(async move { pipe.relay(socket).await.ok() });
            }
        }
    });
    stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

#[derive(Clone)]
struct Pipe {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    transport: Transport,
    backend: String,
}

impl Pipe {
    async fn relay(self, socket: TcpStream) -> anyhow::Result<()> {
        socket.set_nodelay(true)?;
        let client = self.acceptor.accept(socket).await?;
        match self.transport {
            Transport::Tcp => copy(client, tcp(&self.backend).await?).await,
            Transport::Unix => copy(client, UnixStream::connect(&self.backend).await?).await,
            Transport::Tls => {
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
