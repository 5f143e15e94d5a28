//! The backend: a TCP server that does what the client asks for, in bytes of its own.

use std::io::Write as _;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, stdin},
    net::{TcpListener, TcpStream},
};

/// How much the backend reads or writes at a time, in bytes.
const CHUNK: usize = 64 * 1024;
/// The length of a command, in bytes.
pub(super) const COMMAND: usize = 9;

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

/// Serves until standard input ends. Prints its address first.
pub(super) async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    // A client that leaves is no news.
                    tokio::spawn(async move { converse(socket).await.ok() });
                }
                Err(error) => eprintln!("backend: cannot accept: {error}"),
            }
        }
    });
    stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

async fn converse(mut socket: TcpStream) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
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
            }
            Some(Command::Source(mut left)) => {
                let buffer = vec![0x5a; CHUNK];
                while left > 0 {
                    let len = left.min(CHUNK as u64);
                    socket.write_all(&buffer[..len as usize]).await?;
                    left -= len;
                }
            }
            Some(Command::Echo(mut left)) => {
                let mut buffer = vec![0; 1024];
                while left > 0 {
                    let piece = read_some(&mut socket, &mut buffer, left).await?;
                    left -= piece.len() as u64;
                    socket.write_all(piece).await?;
                }
            }
            None => anyhow::bail!("not a command: {command:?}"),
        }
    }
}

async fn read_some<'a>(socket: &mut TcpStream, buffer: &'a mut [u8], most: u64) -> anyhow::Result<&'a [u8]> {
    let room = buffer.len().min(usize::try_from(most)?);
    match socket.read(&mut buffer[..room]).await? {
        0 => anyhow::bail!("the client left"),
        len => Ok(&buffer[..len]),
    }
}
