//! Where a request may carry a token (the key `from` of a method).

use std::str::FromStr;

use toml::Spanned;

use crate::config::scalar::StringList;
use crate::config::values::{Result, invalid, invalid_literal, parsed};
use crate::websocket::is_token;

/// A place in a request head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenPlace {
    /// `Authorization: Bearer …` (RFC 6750 §2.1). Browsers cannot send it with a WebSocket.
    Header,
    /// The cookie with this name.
    Cookie(String),
    /// The parameter of the query with this name. Queries can end up in the logs of proxies.
    Query(String),
    /// What follows this prefix in an offered subprotocol.
    Subprotocol(String),
}

/// Why a text names no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write \"header\", \"cookie:NAME\", \"query:NAME\" or \"subprotocol:PREFIX\"")]
pub struct PlaceError;

impl FromStr for TokenPlace {
    type Err = PlaceError;

    fn from_str(text: &str) -> std::result::Result<Self, PlaceError> {
        if text == "header" {
            return Ok(Self::Header);
        }
        let (place, name) = text.split_once(':').ok_or(PlaceError)?;
        if !is_token(name) {
            return Err(PlaceError);
        }
        let name = name.to_owned();
        match place {
            "cookie" => Ok(Self::Cookie(name)),
            "query" => Ok(Self::Query(name)),
            "subprotocol" => Ok(Self::Subprotocol(name)),
            _ => Err(PlaceError),
        }
    }
}

/// A list of places, each named once. `empty` is the message if there is none.
pub(super) fn places(key: &str, written: Spanned<StringList>, empty: &str) -> Result<Vec<TokenPlace>> {
    if written.get_ref().is_empty() {
        return Err(invalid_literal(key, written.span(), "[]", empty));
    }
    let mut places = Vec::new();
    for text in written.into_inner() {
        let place = parsed(key, &text)?;
        if places.contains(&place) {
            return Err(invalid(key, &text, "listed twice; remove one of them"));
        }
        places.push(place);
    }
    Ok(places)
}
