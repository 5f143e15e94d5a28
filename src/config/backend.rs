//! The URL of a backend, such as `tcp://host:port`.
//!
//! Owns its syntax; nothing is resolved or dialled here.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::host::{Host, HostError};

/// A backend: a server and the transport to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Plain TCP.
    Tcp {
        /// The host.
        host: Host,
        /// The port, 1 to 65535.
        port: u16,
    },
    /// TLS from the first byte.
    Tls {
        /// The host.
        host: Host,
        /// The port, 1 to 65535.
        port: u16,
    },
    /// An XMPP server; STARTTLS (RFC 6120 §5) is negotiated before a client's bytes are relayed.
    StartTlsXmpp {
        /// The host.
        host: Host,
        /// The port, 1 to 65535.
        port: u16,
    },
    /// A Unix socket: an absolute path of at most 107 bytes without control characters.
    Unix(PathBuf),
}

impl Backend {
    /// The host and the port, unless it is a Unix socket.
    pub fn host_and_port(&self) -> Option<(&Host, u16)> {
        match self {
            Self::Tcp { host, port } | Self::Tls { host, port } | Self::StartTlsXmpp { host, port } => {
                Some((host, *port))
            }
            Self::Unix(_) => None,
        }
    }

    /// Whether the connection to it uses TLS.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls { .. } | Self::StartTlsXmpp { .. })
    }

    /// The host name that its certificate must be valid for, if the route sets no other.
    pub(super) fn certificate_name<'a>(&'a self, xmpp_domain: Option<&'a str>) -> Option<&'a str> {
        match self {
            Self::Tls { host: Host::Name(name), .. } => Some(name),
            Self::StartTlsXmpp { .. } => xmpp_domain,
            Self::Tls { .. } | Self::Tcp { .. } | Self::Unix(_) => None,
        }
    }
}

/// Why a text is not a backend. A `&str` in it is the scheme that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// No `scheme://` at the beginning.
    #[error("the scheme is missing; write {ALL}")]
    NoScheme,
    /// An unknown scheme.
    #[error("unknown scheme; write {ALL}")]
    Scheme,
    /// An IPv6 address without brackets, so that the port cannot be told from the address.
    #[error("an IPv6 address must be in brackets; write {0}://[::1]:port")]
    Brackets(&'static str),
    /// No `:port` at the end.
    #[error("the port is missing; write {0}://host:port")]
    NoPort(&'static str),
    /// A port that is not a number from 1 to 65535.
    #[error("the port must be a number from 1 to 65535; write {0}://host:port")]
    Port(&'static str),
    /// A path, query or fragment.
    #[error("nothing may follow the port; write {0}://host:port")]
    Tail(&'static str),
    /// A user or password.
    #[error("a backend cannot contain a user or password; write {0}://host:port")]
    User(&'static str),
    /// An invalid host.
    #[error("{1}; write {0}://host:port")]
    Host(&'static str, HostError),
    /// A Unix socket whose path is relative, or begins with `//`.
    #[error("a socket path must begin with a single \"/\"; write unix:/path")]
    NotAbsolute,
    /// A Unix socket whose path the system would refuse, or a log line could not show.
    #[error(
        "a socket path must have at most {MAX_SOCKET_PATH} bytes, only visible characters and no trailing \"/\"; write unix:/path"
    )]
    Path,
}

/// The forms of a backend, for messages.
const ALL: &str = "tcp://host:port, tls://host:port, starttls+xmpp://host:port or unix:/path";
/// The schemes with TLS, for messages.
pub(super) const WITH_TLS: &str = "tls:// or starttls+xmpp://";
/// The capacity of `sun_path` on Linux, without the terminating NUL.
const MAX_SOCKET_PATH: usize = 107;

impl FromStr for Backend {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket(path);
        }
        let (scheme, authority) = text.split_once("://").ok_or(BackendError::NoScheme)?;
        match scheme {
            "tcp" => host_and_port("tcp", authority).map(|(host, port)| Self::Tcp { host, port }),
            "tls" => host_and_port("tls", authority).map(|(host, port)| Self::Tls { host, port }),
            "starttls+xmpp" => host_and_port("starttls+xmpp", authority)
                .map(|(host, port)| Self::StartTlsXmpp { host, port }),
            _ => Err(BackendError::Scheme),
        }
    }
}

fn socket(path: &str) -> Result<Backend, BackendError> {
    if !path.starts_with('/') || path.starts_with("//") {
        return Err(BackendError::NotAbsolute);
    }
    if path.len() > MAX_SOCKET_PATH || path.ends_with('/') || path.chars().any(char::is_control) {
        return Err(BackendError::Path);
    }
    Ok(Backend::Unix(path.into()))
}

fn host_and_port(scheme: &'static str, authority: &str) -> Result<(Host, u16), BackendError> {
    if authority.contains(['/', '?', '#']) {
        return Err(BackendError::Tail(scheme));
    }
    if authority.contains('@') {
        return Err(BackendError::User(scheme));
    }
    let (host, port) = match authority.rfind(']') {
        Some(bracket) => authority.split_at(bracket + 1),
        None if authority.matches(':').count() > 1 => return Err(BackendError::Brackets(scheme)),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let host = host.parse().map_err(|wrong| BackendError::Host(scheme, wrong))?;
    let digits = port.strip_prefix(':').ok_or(BackendError::NoPort(scheme))?;
    // `parse` alone would accept "+80".
    match digits.parse() {
        Ok(port) if port != 0 && digits.bytes().all(|digit| digit.is_ascii_digit()) => Ok((host, port)),
        _ => Err(BackendError::Port(scheme)),
    }
}

impl fmt::Display for Backend {
    /// As it is written in the file: `tcp://host:port`, `tls://[::1]:5223`, `unix:/run/app.sock`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Tls { host, port } => write!(f, "tls://{host}:{port}"),
            Self::StartTlsXmpp { host, port } => write!(f, "starttls+xmpp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_scheme_is_parsed_and_displayed_as_it_is_written() {
        for text in [
            "tcp://127.0.0.1:5900",
            "tcp://[::1]:5222",
            "tcp://vnc.local:1",
            "tcp://my_db:65535",
            "tls://xmpp.example.com:5223",
            "tls://[2001:db8::1]:443",
            "starttls+xmpp://xmpp.example.com:5222",
            "starttls+xmpp://192.0.2.1:5222",
            "unix:/run/postgresql/.s.PGSQL.5432",
            "unix:/tmp/a socket?#@[:]",
        ] {
            assert_eq!(text.parse::<Backend>().map(|backend| backend.to_string()), Ok(text.to_owned()));
        }
        let host = Host::Address([0, 0, 0, 0, 0, 0, 0, 1].into());
        for (scheme, backend) in [
            ("tcp", Backend::Tcp { host: host.clone(), port: 5900 }),
            ("tls", Backend::Tls { host: host.clone(), port: 5900 }),
            ("starttls+xmpp", Backend::StartTlsXmpp { host: host.clone(), port: 5900 }),
        ] {
            assert_eq!(format!("{scheme}://[::1]:5900").parse(), Ok(backend.clone()));
            assert_eq!(backend.host_and_port(), Some((&host, 5900)));
            assert_eq!(backend.is_encrypted(), scheme != "tcp");
        }
        let socket = Backend::Unix("/run/x.sock".into());
        assert_eq!((socket.host_and_port(), socket.is_encrypted()), (None, false));
        assert_eq!("unix:/run/x.sock".parse(), Ok(socket));
    }

    #[test]
    fn each_mistake_has_its_own_error() {
        let long = format!("unix:/{}", "a".repeat(MAX_SOCKET_PATH));
        for (text, error) in [
            ("", BackendError::NoScheme),
            ("vnc.local", BackendError::NoScheme),
            ("127.0.0.1:5900", BackendError::NoScheme),
            ("tcp:127.0.0.1:5900", BackendError::NoScheme),
            ("/run/x.sock", BackendError::NoScheme),
            ("http://127.0.0.1:5900", BackendError::Scheme),
            ("TCP://127.0.0.1:5900", BackendError::Scheme),
            ("starttls://127.0.0.1:5900", BackendError::Scheme),
            ("starttls+smtp://127.0.0.1:25", BackendError::Scheme),
            ("://127.0.0.1:5900", BackendError::Scheme),
            ("tcp://::1:5900", BackendError::Brackets("tcp")),
            ("tls://[::1]", BackendError::NoPort("tls")),
            ("tcp://[::1]5900", BackendError::NoPort("tcp")),
            ("starttls+xmpp://vnc.local", BackendError::NoPort("starttls+xmpp")),
            ("tcp://vnc.local:", BackendError::Port("tcp")),
            ("tls://vnc.local:0", BackendError::Port("tls")),
            ("tcp://vnc.local:+80", BackendError::Port("tcp")),
            ("tcp://vnc.local:65536", BackendError::Port("tcp")),
            ("tcp://vnc.local:vnc", BackendError::Port("tcp")),
            ("tls://vnc.local:5900/", BackendError::Tail("tls")),
            ("tcp://vnc.local:5900?x", BackendError::Tail("tcp")),
            ("tcp://me:secret@vnc.local:5900", BackendError::User("tcp")),
            ("tls://:5900", BackendError::Host("tls", HostError::Empty)),
            ("tcp://127.1:5900", BackendError::Host("tcp", HostError::NotIpv4)),
            ("tcp://[fe80::1%lo]:5900", BackendError::Host("tcp", HostError::NotIpv6)),
            ("unix:", BackendError::NotAbsolute),
            ("unix:run/x.sock", BackendError::NotAbsolute),
            ("unix://run/x.sock", BackendError::NotAbsolute),
            ("unix:///run/x.sock", BackendError::NotAbsolute),
            ("unix:/run/a\nb", BackendError::Path),
            ("unix:/run/a\0b", BackendError::Path),
            ("unix:/run/", BackendError::Path),
            (&long, BackendError::Path),
        ] {
            assert_eq!(text.parse::<Backend>(), Err(error), "{text}");
            assert!(error.to_string().contains("; write "), "{error} says what to write");
        }
    }

    #[test]
    fn errors_say_what_to_write() {
        for (error, message) in [
            (
                BackendError::NoScheme,
                "the scheme is missing; write tcp://host:port, tls://host:port, starttls+xmpp://host:port or unix:/path",
            ),
            (
                BackendError::Scheme,
                "unknown scheme; write tcp://host:port, tls://host:port, starttls+xmpp://host:port or unix:/path",
            ),
            (BackendError::Brackets("tls"), "an IPv6 address must be in brackets; write tls://[::1]:port"),
            (BackendError::NoPort("tcp"), "the port is missing; write tcp://host:port"),
            (BackendError::Host("tcp", HostError::Empty), "the host is empty; write tcp://host:port"),
            (BackendError::NotAbsolute, "a socket path must begin with a single \"/\"; write unix:/path"),
            (
                BackendError::Path,
                "a socket path must have at most 107 bytes, only visible characters and no trailing \"/\"; write unix:/path",
            ),
        ] {
            assert_eq!(error.to_string(), message);
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(text in "(tcp://|tls://|starttls\\+xmpp://|unix:/)?(\\PC{0,20}|[a-z0-9.:\\[\\]-]{1,30})(:[0-9]{1,6})?") {
            if let Ok(backend) = text.parse::<Backend>() {
                prop_assert_eq!(backend.to_string().parse::<Backend>(), Ok(backend));
            }
        }
    }
}
