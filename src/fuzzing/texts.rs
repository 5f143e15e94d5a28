//! Texts: configuration, token files, and what an XMPP server says before TLS.

use std::{path::Path, time::Duration};

use tokio::time::Instant;

use super::input::{Pieces, block_on};
use crate::{
    backend::{
        starttls::{self, StartTlsError},
        targets::{LineError, parse_line},
    },
    config::{Backend, Config},
};

/// A configuration file: accepted or refused with one message, and the same every time.
pub fn config_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parse = || Config::parse(text, Path::new("/nonexistent/gateway.toml"));
    match parse() {
        Ok(config) => {
            assert!(!config.listeners.is_empty());
            assert_eq!(parse().ok(), Some(config));
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("/nonexistent/gateway.toml"), "{message}");
        }
    }
}

/// A token file: a message about a line never shows its token.
pub fn token_file(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        match parse_line(line) {
            Ok(None) => {}
            Ok(Some((token, backend))) => {
                assert!(!token.is_empty() && !token.contains(|c: char| c.is_whitespace() || c.is_control()));
                assert_eq!(backend.to_string().parse::<Backend>().as_ref(), Ok(&backend));
            }
            Err(error @ LineError::Target(_)) => {
                let line = std::str::from_utf8(line).expect("the token was read");
                let is_separator = |at: &usize| line[at + 1..].starts_with(char::is_whitespace);
                let colon = line.match_indices(':').map(|(at, _)| at).find(is_separator);
                let other = format!("another-token{}", &line[colon.expect("a separator")..]);
                if let Err(changed) = parse_line(other.as_bytes()) {
                    assert_eq!(changed.to_string(), error.to_string(), "the message depends on the token");
                }
            }
            Err(_) => {}
        }
    }
}

/// What an XMPP server answers up to TLS. The first byte chooses how it is split.
pub fn starttls(data: &[u8]) {
    let Some((&split, bytes)) = data.split_first() else { return };
    let negotiate = |size| {
        block_on(async {
            let mut stream = Pieces::new(bytes, size);
            let deadline = Instant::now() + Duration::from_secs(60);
            let result = starttls::negotiate(&mut stream, "xmpp.example", deadline).await;
            (result, stream.consumed())
        })
    };
    let (whole, consumed) = negotiate(usize::MAX);
    let (pieces, _) = negotiate(usize::from(split % 32) + 1);
    assert!(consumed <= 64 * 1024, "{consumed} bytes");
    for result in [&whole, &pieces] {
        match result {
            Ok(()) => {
                let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
                assert!(has(b"starttls") && has(b"proceed"), "neither was sent");
            }
            Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
        }
    }
    // What follows <proceed/> must not arrive with it; whether it does depends on the split.
    let is_injected = |result: &Result<(), StartTlsError>| matches!(result, Err(StartTlsError::Injected));
    if !is_injected(&whole) && !is_injected(&pieces) {
        assert_eq!(whole.is_ok(), pieces.is_ok(), "{whole:?} at once, {pieces:?} in pieces");
    }
}
