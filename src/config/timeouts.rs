//! `[timeouts]`: every deadline, declared once.
//!
//! Owns each key's type, its default and whether `"0s"` may turn it off. A new timeout is one line of the declaration
//! below, plus its row in docs/configuration.md, its line in gateway.toml and the code that keeps it.

use std::time::Duration;

use super::scalar::{DurationText, OptionalKey};
use super::values::{Result, duration, duration_or_off};

/// Declares the domain type, its defaults, the shape of the table in the file and the conversion between them.
macro_rules! timeouts {
    (
        always_on { $($(#[$always_doc:meta])* $always:ident: $always_default:expr,)* }
        may_be_off { $($(#[$off_doc:meta])* $off:ident: $off_default:expr,)* }
    ) => {
        /// When connections and sessions are closed. `None` is off.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Timeouts {
            $($(#[$always_doc])* pub $always: Duration,)*
            $($(#[$off_doc])* pub $off: Option<Duration>,)*
        }

        impl Default for Timeouts {
            fn default() -> Self {
                Self { $($always: $always_default,)* $($off: $off_default,)* }
            }
        }

        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct RawTimeouts {
            $($always: OptionalKey<DurationText>,)*
            $($off: OptionalKey<DurationText>,)*
        }

        pub(super) fn timeouts(raw: RawTimeouts) -> Result<Timeouts> {
            let default = Timeouts::default();
            Ok(Timeouts {
                $($always: duration(concat!("timeouts.", stringify!($always)), raw.$always, default.$always)?,)*
                $($off: duration_or_off(concat!("timeouts.", stringify!($off)), raw.$off, default.$off)?,)*
            })
        }

        #[cfg(test)]
        const ALWAYS_ON: &[&str] = &[$(stringify!($always)),*];
        #[cfg(test)]
        const MAY_BE_OFF: &[&str] = &[$(stringify!($off)),*];
    };
}

timeouts! {
    // Without these, a client or a backend that does nothing would hold its resources for ever.
    always_on {
        /// Close the connection if the TLS handshake takes longer than this.
        tls: Duration::from_secs(5),
        /// Refuse the request if its head takes longer than this to arrive.
        request: Duration::from_secs(5),
        /// Give up on the backends if none is connected within this time, over all backends and addresses.
        connect: Duration::from_secs(5),
        /// Close the connection if the peer has not answered a Close, or has not finished sending, within this time.
        close: Duration::from_secs(2),
        /// Close the sessions that are still open this long after the gateway started to drain.
        drain: Duration::from_secs(30),
        /// Close a connection that requests only files when it is this old, after the response to its next request.
        keep_alive: Duration::from_secs(300),
    }
    may_be_off {
        /// Close the session if a peer reads nothing for this long while data is pending, or a client leaves a
        /// frame header incomplete.
        stall: Some(Duration::from_secs(120)),
        /// Send a Ping if the client has been silent for this long.
        ping: Some(Duration::from_secs(30)),
        /// Close the session if a Ping is not answered within this time.
        pong: Some(Duration::from_secs(20)),
        /// Close the session if it carries no payload in either direction for this long.
        idle: None,
        /// Close the session when it is this old.
        lifetime: None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, ConfigError};

    fn parse(lines: &str) -> std::result::Result<Config, ConfigError> {
        const ROUTE: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"a\"\npath = \"/a\"\nbackend = \"tcp://a:1\"\n[timeouts]\n";
        Config::parse(&format!("{ROUTE}{lines}\n"), Path::new("gateway.toml"))
    }

    #[test]
    fn timeouts_that_bound_an_attack_cannot_be_turned_off() {
        assert_eq!(ALWAYS_ON, ["tls", "request", "connect", "close", "drain", "keep_alive"]);
        for key in ALWAYS_ON {
            let error = parse(&format!("{key} = \"0s\"")).unwrap_err().to_string();
            assert!(
                error.contains(&format!("timeouts.{key} \"0s\": this timeout cannot be turned off")),
                "{error}"
            );
        }
    }

    #[test]
    fn zero_turns_the_other_timeouts_off() {
        let lines: Vec<String> = MAY_BE_OFF.iter().map(|key| format!("{key} = \"0s\"")).collect();
        let Timeouts { stall, ping, pong, idle, lifetime, .. } = parse(&lines.join("\n")).unwrap().timeouts;
        assert_eq!([stall, ping, pong, idle, lifetime], [None; 5]);
    }
}
