//! Where a route leads.
//!
//! Owns the writing of a backend, `tcp://host:port`; nothing is resolved or dialled here.

use std::fmt;
use std::str::FromStr;

use super::host::{Host, HostError};

/// A TCP server behind the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Backend {
    /// The machine.
    pub host: Host,
    /// The port, 1 to 65535.
    pub port: u16,
}

/// What is wrong with a text that should be a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// No `scheme://` in front.
    #[error("the scheme is missing; write tcp://host:port")]
    NoScheme,
    /// A scheme that this release does not speak.
    #[error("only tcp:// is understood; write tcp://host:port")]
    Scheme,
    /// An IPv6 address without brackets, so that nobody can tell where the port begins.
    #[error("an IPv6 address stands in brackets; write tcp://[::1]:port")]
    Brackets,
    /// No `:port` at the end.
    #[error("the port is missing; write tcp://host:port")]
    NoPort,
    /// A port that is no number from 1 to 65535.
    #[error("the port must be a number from 1 to 65535; write tcp://host:port")]
    Port,
    /// A path, query or fragment.
    #[error("nothing may follow the port; write tcp://host:port")]
    Tail,
    /// A user or password.
    #[error("a TCP backend takes no user or password; write tcp://host:port")]
    User,
    /// A host that is none.
    #[error("{0}; write tcp://host:port")]
    Host(#[from] HostError),
}

impl FromStr for Backend {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, authority) = text.split_once("://").ok_or(BackendError::NoScheme)?;
        if scheme != "tcp" {
            return Err(BackendError::Scheme);
        }
        if authority.contains(['/', '?', '#']) {
            return Err(BackendError::Tail);
        }
        if authority.contains('@') {
            return Err(BackendError::User);
        }
        let (host, port) = match authority.rfind(']') {
            Some(bracket) => authority.split_at(bracket + 1),
            None if authority.matches(':').count() > 1 => return Err(BackendError::Brackets),
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let host = host.parse()?;
        let digits = port.strip_prefix(':').ok_or(BackendError::NoPort)?;
        // Rust would take "+80" for a number.
        match digits.parse() {
            Ok(port) if port != 0 && digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                Ok(Self { host, port })
            }
            _ => Err(BackendError::Port),
        }
    }
}

impl fmt::Display for Backend {
    /// As it is written in the file: `tcp://host:port`, `tcp://[::1]:5900`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp://{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_and_names_with_ports_are_understood() {
        for text in ["tcp://127.0.0.1:5900", "tcp://[::1]:5222", "tcp://vnc.local:1", "tcp://my_db:65535"] {
            assert_eq!(text.parse::<Backend>().map(|backend| backend.to_string()), Ok(text.to_owned()));
        }
        let backend: Backend = "tcp://[::1]:5900".parse().unwrap();
        assert_eq!(backend, Backend { host: Host::Address([0, 0, 0, 0, 0, 0, 0, 1].into()), port: 5900 });
    }

    #[test]
    fn everything_else_is_refused_by_its_true_name() {
        for (text, error) in [
            ("", BackendError::NoScheme),
            ("vnc.local", BackendError::NoScheme),
            ("127.0.0.1:5900", BackendError::NoScheme),
            ("tls://127.0.0.1:5900", BackendError::Scheme),
            ("TCP://127.0.0.1:5900", BackendError::Scheme),
            ("unix:///run/x.sock", BackendError::Scheme),
            ("tcp://::1:5900", BackendError::Brackets),
            ("tcp://[::1]", BackendError::NoPort),
            ("tcp://[::1]5900", BackendError::NoPort),
            ("tcp://vnc.local", BackendError::NoPort),
            ("tcp://vnc.local:", BackendError::Port),
            ("tcp://vnc.local:0", BackendError::Port),
            ("tcp://vnc.local:+80", BackendError::Port),
            ("tcp://vnc.local:65536", BackendError::Port),
            ("tcp://vnc.local:vnc", BackendError::Port),
            ("tcp://vnc.local:5900/", BackendError::Tail),
            ("tcp://vnc.local:5900?x", BackendError::Tail),
            ("tcp://me:secret@vnc.local:5900", BackendError::User),
            ("tcp://:5900", BackendError::Host(HostError::Empty)),
            ("tcp://127.1:5900", BackendError::Host(HostError::NotIpv4)),
            ("tcp://[fe80::1%lo]:5900", BackendError::Host(HostError::NotIpv6)),
        ] {
            let answer = text.parse::<Backend>();
            assert_eq!(answer, Err(error), "{text}");
            assert!(error.to_string().contains("write tcp://"), "{error} tells what to write");
        }
    }

    proptest! {
        #[test]
        fn what_is_displayed_is_understood_again(text in "(tcp://)?(\\PC{0,20}|[a-z0-9.:\\[\\]-]{1,30})(:[0-9]{1,6})?") {
            if let Ok(backend) = text.parse::<Backend>() {
                prop_assert_eq!(backend.to_string().parse::<Backend>(), Ok(backend));
            }
        }
    }
}
