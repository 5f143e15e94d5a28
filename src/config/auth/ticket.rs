//! `kind = "ticket"`: where a request may carry a ticket, and what its links begin with.

use std::fmt;
use std::str::FromStr;

use url::Url;

use super::{RawAuth, TokenPlace, place::places};
use crate::config::values::{Result, parsed};

/// A method that accepts the tickets of this gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketConfig {
    /// Where a ticket may be, in the order of the search.
    pub from: Vec<TokenPlace>,
    /// What links begin with; without it a link is a path.
    pub base: Option<BaseUrl>,
}

/// The scheme, host and port of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl(String);

/// A text that is not a scheme and a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write a scheme and a host, such as \"wss://desk.example.com\" or \"https://desk.example.com:8443\"")]
pub struct BaseUrlError;

impl BaseUrl {
    /// Without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BaseUrl {
    type Err = BaseUrlError;

    fn from_str(text: &str) -> std::result::Result<Self, BaseUrlError> {
        let url = Url::parse(text).map_err(|_| BaseUrlError)?;
        let is_base = matches!(url.scheme(), "http" | "https" | "ws" | "wss")
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if !is_base {
            return Err(BaseUrlError);
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

/// Takes the keys of this kind. `key` writes one in full.
pub(super) fn ticket(raw: &mut RawAuth, key: &dyn Fn(&str) -> String) -> Result<TicketConfig> {
    let from = match raw.from.take() {
        None => vec![TokenPlace::Query("ticket".to_owned()), TokenPlace::Subprotocol("ticket.".to_owned())],
        Some(written) => {
            let empty =
                "no request could present a ticket; name a place such as \"query:ticket\", or remove the key";
            places(&key("from"), written, empty)?
        }
    };
    let base = raw.base.take().map(|text| parsed(&key("base"), &text)).transpose()?;
    Ok(TicketConfig { from, base })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_a_scheme_and_a_host() {
        for (text, base) in [
            ("wss://desk.example.com", "wss://desk.example.com"),
            ("https://Desk.example.com/", "https://desk.example.com"),
            ("http://[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(text.parse::<BaseUrl>().unwrap().as_str(), base);
        }
        for text in [
            "",
            "desk.example.com",
            "/desk",
            "ftp://desk.example.com",
            "javascript:alert(1)",
            "https://desk.example.com/path",
            "https://desk.example.com/?a",
            "https://desk.example.com/#a",
            "https://ann@desk.example.com",
            "https://:secret@desk.example.com",
        ] {
            assert_eq!(text.parse::<BaseUrl>(), Err(BaseUrlError), "{text}");
        }
    }
}
