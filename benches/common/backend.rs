//! The backend: a server that runs the commands of its clients. It listens on every transport that is measured.

use std::{io, io::Write as _, net::SocketAddr, path::Path};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, stdin},
    net::{TcpListener, TcpStream, UnixListener},
};

use super::{
    protocol::{COMMAND_LEN, Command},
    tls::acceptor,
};

/// How much the backend reads or writes at a time, in bytes.
const CHUNK: usize = 64 * 1024;

/// Serves on a Unix socket, TCP and TLS until standard input ends. Prints the addresses of the last two first.
pub(super) async fn serve(socket: &Path, certificate: &Path, key: &Path) -> anyhow::Result<()> {
    let unix = UnixListener::bind(socket)?;
    let (tcp, tls) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    println!("{}\n{}", tcp.local_addr()?, tls.local_addr()?);
    io::stdout().flush()?;
    let acceptor = acceptor(certificate, key)?;
    // A client that disconnects is normal: errors of connections are ignored.
    tokio::spawn(async move {
        loop {
            match accepted(tcp.accept().await) {
                Ok(socket) => drop(tokio::spawn(async move { serve_connection(socket).await.ok() })),
                Err(error) => eprintln!("backend: cannot accept: {error}"),
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let acceptor = acceptor.clone();
            match accepted(tls.accept().await) {
                Ok(socket) => {
                    drop(tokio::spawn(async move { serve_connection(acceptor.accept(socket).await?).await }))
                }
                Err(error) => eprintln!("backend: cannot accept: {error}"),
            }
        }
    });
    tokio::spawn(async move {
        loop {
            match unix.accept().await {
                Ok((socket, _)) => drop(tokio::spawn(async move { serve_connection(socket).await.ok() })),
                Err(error) => eprintln!("backend: cannot accept: {error}"),
            }
        }
    });
    stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

fn accepted(accepted: io::Result<(TcpStream, SocketAddr)>) -> io::Result<TcpStream> {
    let (socket, _) = accepted?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn serve_connection(mut socket: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<()> {
    loop {
        let mut command = [0; COMMAND_LEN];
        socket.read_exact(&mut command).await?;
        // Allocated for each command, so that thousands of idle connections hold no buffers.
        match Command::decode(command) {
            Some(Command::Sink(mut left)) => {
                let mut buffer = vec![0; CHUNK];
                while left > 0 {
                    left -= read_some(&mut socket, &mut buffer, left).await?.len() as u64;
                }
                socket.write_all(b"k").await?;
                socket.flush().await?;
            }
            Some(Command::Source(mut left)) => {
                let buffer = vec![0x5a; CHUNK];
                while left > 0 {
                    let len = left.min(CHUNK as u64);
                    socket.write_all(&buffer[..len as usize]).await?;
                    left -= len;
                }
                socket.flush().await?;
            }
            Some(Command::Echo(mut left)) => {
                let mut buffer = vec![0; 1024];
                while left > 0 {
                    let piece = read_some(&mut socket, &mut buffer, left).await?;
                    left -= piece.len() as u64;
                    socket.write_all(piece).await?;
                    socket.flush().await?;
                }
            }
            None => anyhow::bail!("not a command: {command:?}"),
        }
    }
}

async fn read_some<'a>(
    socket: &mut (impl AsyncRead + Unpin),
    buffer: &'a mut [u8],
    limit: u64,
) -> anyhow::Result<&'a [u8]> {
    let wanted = buffer.len().min(usize::try_from(limit)?);
    match socket.read(&mut buffer[..wanted]).await? {
        0 => anyhow::bail!("the client disconnected"),
        len => Ok(&buffer[..len]),
    }
}
