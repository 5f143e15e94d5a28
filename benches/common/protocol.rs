//! What the processes of a benchmark agree on: how the backend is reached, what a program under test speaks with its
//! clients, and the commands that a client sends to the backend.

use std::{fmt, str::FromStr};

use anyhow::Context as _;

/// The length of an encoded command, in bytes.
pub(super) const COMMAND_LEN: usize = 9;

/// How the backend is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TCP.
    Tcp,
    /// A Unix socket.
    Unix,
    /// TLS over TCP. After STARTTLS the bytes are the same.
    Tls,
}

impl Transport {
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::Unix, Self::Tls];
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Tls => "tls",
        })
    }
}

impl FromStr for Transport {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        let transport = Self::ALL.into_iter().find(|transport| transport.to_string() == name);
        transport.with_context(|| format!("unknown transport {name}"))
    }
}

/// What a client asks the backend to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    /// Read this many bytes, then send one.
    Sink(u64),
    /// Send this many bytes.
    Source(u64),
    /// Echo this many bytes.
    Echo(u64),
}

impl Command {
    pub(super) fn encode(self) -> [u8; COMMAND_LEN] {
        let (code, count) = match self {
            Self::Sink(count) => (b'k', count),
            Self::Source(count) => (b's', count),
            Self::Echo(count) => (b'e', count),
        };
        let mut bytes = [code; COMMAND_LEN];
        bytes[1..].copy_from_slice(&count.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: [u8; COMMAND_LEN]) -> Option<Self> {
        let [code, count @ ..] = bytes;
        let count = u64::from_le_bytes(count);
        match code {
            b'k' => Some(Self::Sink(count)),
            b's' => Some(Self::Source(count)),
            b'e' => Some(Self::Echo(count)),
            _ => None,
        }
    }
}

/// The protocol between a program under test and its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientProtocol {
    /// WebSocket over TLS.
    Wss,
    /// WebSocket.
    Ws,
    /// TLS only: the frames of an upload are opaque bytes, and replies carry none.
    Tls,
}

impl fmt::Display for ClientProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wss => "wss",
            Self::Ws => "ws",
            Self::Tls => "tls",
        })
    }
}

impl FromStr for ClientProtocol {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        [Self::Wss, Self::Ws, Self::Tls]
            .into_iter()
            .find(|protocol| protocol.to_string() == name)
            .with_context(|| format!("unknown client protocol {name}"))
    }
}
