//! The backend: a server that does what the client asks for, in bytes of its own, whichever way it is reached.

use std::{fmt, io, io::Write as _, net::SocketAddr, path::Path, str::FromStr};

use anyhow::Context as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, stdin},
    net::{TcpListener, TcpStream, UnixListener},
};

use super::pipe::acceptor;

/// How much the backend reads or writes at a time, in bytes.
const CHUNK: usize = 64 * 1024;
/// The length of a command, in bytes.
pub(super) const COMMAND: usize = 9;

/// A way to the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// TCP.
    Tcp,
    /// A Unix socket.
    Unix,
    /// TLS over TCP. What STARTTLS comes to is the same.
    Tls,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::Unix, Self::Tls];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Tls => "tls",
        })
    }
}

impl FromStr for Way {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> anyhow::Result<Self> {
        let way = Self::ALL.into_iter().find(|way| way.to_string() == word);
        way.with_context(|| format!("{word} is not a way to a backend"))
    }
}

/// What a client may ask of the backend.
#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    /// Read this many bytes, then send one.
    Sink(u64),
    /// Send this many bytes.
    Source(u64),
    /// Send back the next so many bytes.
    Echo(u64),
}

impl Command {
    pub(super) fn encode(self) -> [u8; COMMAND] {
        let (word, count) = match self {
            Self::Sink(count) => (b'k', count),
            Self::Source(count) => (b's', count),
            Self::Echo(count) => (b'e', count),
        };
        let mut bytes = [word; COMMAND];
        bytes[1..].copy_from_slice(&count.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; COMMAND]) -> Option<Self> {
        let [word, count @ ..] = bytes;
        let count = u64::from_le_bytes(count);
        match word {
            b'k' => Some(Self::Sink(count)),
            b's' => Some(Self::Source(count)),
            b'e' => Some(Self::Echo(count)),
            _ => None,
        }
    }
}

/// Serves until standard input ends, on a Unix socket, by TCP and by TLS. Prints the last two addresses first.
pub(super) async fn serve(socket: &Path, certificate: &Path, key: &Path) -> anyhow::Result<()> {
    let unix = UnixListener::bind(socket)?;
    let (tcp, tls) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    println!("{}\n{}", tcp.local_addr()?, tls.local_addr()?);
    io::stdout().flush()?;
    let acceptor = acceptor(certificate, key)?;
    // A client that leaves is no news.
    tokio::spawn(async move {
        loop {
            match accepted(tcp.accept().await) {
                Ok(socket) => drop(tokio::spawn(async move { converse(socket).await.ok() })),
                Err(error) => eprintln!("backend: cannot accept: {error}"),
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let acceptor = acceptor.clone();
            match accepted(tls.accept().await) {
                Ok(socket) => {
                    drop(tokio::spawn(async move { converse(acceptor.accept(socket).await?).await }))
                }
                Err(error) => eprintln!("backend: cannot accept: {error}"),
            }
        }
    });
    tokio::spawn(async move {
        loop {
            match unix.accept().await {
                Ok((socket, _)) => drop(tokio::spawn(async move { converse(socket).await.ok() })),
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

async fn converse(mut socket: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<()> {
    loop {
        let mut command = [0; COMMAND];
        socket.read_exact(&mut command).await?;
        // Allocated anew for each command: thousands of idle connections hold nothing.
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
    most: u64,
) -> anyhow::Result<&'a [u8]> {
    let room = buffer.len().min(usize::try_from(most)?);
    match socket.read(&mut buffer[..room]).await? {
        0 => anyhow::bail!("the client left"),
        len => Ok(&buffer[..len]),
    }
}
