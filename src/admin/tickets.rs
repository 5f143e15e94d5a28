//! The shapes of requests and responses about tickets. One type for the API and its client.

use std::{
    net::IpAddr,
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{control::TicketRoute, sessions::peer};
use crate::{
    auth::{Grant, IssuedTicket, MAX_TICKET_TIME, TicketId, TicketSnapshot, TicketState, TicketTerms},
    config::{BaseUrl, read_duration},
};

/// How long a ticket may be used, unless the request says otherwise.
const DEFAULT_VALID_FOR: Duration = Duration::from_secs(60);
/// The shortest duration of a request.
const MIN_TIME: Duration = Duration::from_secs(1);
/// How often a ticket can be used at most.
const MAX_USES: u32 = 1_000_000;

/// The body of `POST /api/tickets`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TicketRequest {
    /// The name of the route.
    pub route: String,
    /// The target that a session is opened to: a token of the route's token file, or one of its backends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The name of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The only Origin that may use the ticket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The only address, or network, that may use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// How often it may be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// How long it may be used, such as `1m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_for: Option<String>,
    /// How long a session may be open, such as `8h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_for: Option<String>,
    /// What the link begins with, such as `wss://desk.example.com`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
}

/// The response to it. No Debug: it contains the ticket.
#[derive(Serialize, Deserialize)]
pub(crate) struct TicketResponse {
    pub id: String,
    pub ticket: String,
    pub url: String,
    pub expires: String,
}

/// The body of `POST /api/tickets/check`. No Debug: it contains the ticket.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckRequest {
    pub ticket: String,
    /// The name of the route.
    pub route: String,
    /// The Origin of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The address of the client; without it, any that the ticket is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

/// The response to it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CheckResponse {
    /// A session would be opened, and the ticket used.
    Valid(ValidTicket),
    /// Why the ticket is refused.
    Refused(String),
}

/// What a ticket that is valid grants.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ValidTicket {
    pub id: String,
    pub user: Option<String>,
    pub target: Option<String>,
    /// The only addresses that may use it.
    pub address: Option<String>,
    pub uses_left: u32,
    pub expires: String,
    pub session_for: Option<String>,
}

/// The response to `DELETE /api/tickets/ID`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RevokeResponse {
    /// How many sessions are being ended.
    pub ended: usize,
}

/// The response to `GET /api/tickets/ID`.
#[derive(Debug, Serialize)]
pub(super) struct TicketStatus {
    id: String,
    state: &'static str,
    route: String,
    target: Option<String>,
    user: Option<String>,
    origin: Option<String>,
    address: Option<String>,
    uses: u32,
    uses_left: u32,
    expires: String,
    session_for: Option<String>,
}

impl TicketRequest {
    /// What the ticket is issued for, and what its link begins with.
    ///
    /// # Errors
    /// A value is not valid. One line for the caller's terminal.
    pub(super) fn terms(&self) -> Result<(TicketTerms, Option<BaseUrl>), String> {
        let user = self.user.as_deref().map(|user| {
            let wrong = "user: must be a name of 1 to 256 characters, none of them a control character";
            Grant::of_user(user).map(|grant| grant.user).map_err(|_| wrong.to_owned())
        });
        let origin = self.origin.as_deref().map(|text| {
            text.parse().map_err(|wrong| {
                format!("origin {text:?}: {wrong}; write one such as https://desk.example.com")
            })
        });
        let address =
            self.address.as_deref().map(|text| peer(text).map_err(|wrong| format!("address {wrong}")));
        let base = self
            .base
            .as_deref()
            .map(|text| text.parse::<BaseUrl>().map_err(|wrong| format!("base {text:?}: {wrong}")));
        let uses = NonZeroU32::new(self.uses.unwrap_or(1)).filter(|uses| uses.get() <= MAX_USES);
        let terms = TicketTerms {
            route: self.route.clone(),
            target: self.target.clone(),
            user: user.transpose()?.flatten(),
            origin: origin.transpose()?,
            address: address.transpose()?,
            uses: uses.ok_or_else(|| format!("uses: must be a whole number from 1 to {MAX_USES}"))?,
            valid_for: duration("valid_for", self.valid_for.as_deref())?.unwrap_or(DEFAULT_VALID_FOR),
            session_for: duration("session_for", self.session_for.as_deref())?,
        };
        Ok((terms, base.transpose()?))
    }
}

impl TicketResponse {
    pub(super) fn new(issued: &IssuedTicket, route: &TicketRoute, base: Option<&BaseUrl>) -> Self {
        let ticket = issued.ticket.expose();
        let base = base.map(BaseUrl::as_str).or(route.base.as_deref()).unwrap_or_default();
        let url = format!("{base}{}", route.path);
        // Without a place in the query, the page sends the ticket as a subprotocol.
        let url = match &route.parameter {
            Some(name) => {
                let query =
                    url::form_urlencoded::Serializer::new(String::new()).append_pair(name, ticket).finish();
                format!("{url}?{query}")
            }
            None => url,
        };
        Self { id: issued.id.to_string(), ticket: ticket.to_owned(), url, expires: text_of(issued.expires) }
    }
}

impl TicketStatus {
    pub(super) fn new(id: TicketId, snapshot: TicketSnapshot) -> Self {
        let TicketSnapshot { terms, expires, uses_left, state } = snapshot;
        Self {
            id: id.to_string(),
            state: match state {
                TicketState::Valid => "valid",
                TicketState::UsedUp => "used_up",
                TicketState::Expired => "expired",
                TicketState::Revoked => "revoked",
            },
            route: terms.route,
            target: terms.target,
            user: terms.user.map(String::from),
            origin: terms.origin.map(|origin| origin.to_string()),
            address: terms.address.map(|network| network.to_string()),
            uses: terms.uses.get(),
            uses_left,
            expires: text_of(expires),
            session_for: terms.session_for.map(|time| humantime::format_duration(time).to_string()),
        }
    }
}

impl ValidTicket {
    pub(super) fn new(id: TicketId, snapshot: TicketSnapshot) -> Self {
        let TicketStatus { id, user, target, address, uses_left, expires, session_for, .. } =
            TicketStatus::new(id, snapshot);
        Self { id, user, target, address, uses_left, expires, session_for }
    }
}

fn text_of(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn duration(key: &str, text: Option<&str>) -> Result<Option<Duration>, String> {
    let Some(text) = text else { return Ok(None) };
    let duration = read_duration(text).ok().filter(|time| (MIN_TIME..=MAX_TICKET_TIME).contains(time));
    let wrong =
        || format!("{key} {text:?}: must be a duration from 1s to 365 days, such as \"1m\" or \"8h\"");
    duration.map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> TicketRequest {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_request_needs_no_more_than_a_route() {
        let (terms, base) = parsed(r#"{"route": "desk"}"#).terms().unwrap();
        assert_eq!((terms.uses.get(), terms.valid_for, terms.session_for), (1, DEFAULT_VALID_FOR, None));
        assert_eq!((terms.user, terms.origin, terms.address, base), (None, None, None, None));
    }

    #[test]
    fn every_field_is_understood() {
        let json = r#"{"route": "desk", "target": "lab1", "user": "ann", "origin": "https://Desk.example.com:443",
            "address": "192.0.2.7", "uses": 3, "valid_for": "1h 30m", "session_for": "8h",
            "base": "wss://desk.example.com/"}"#;
        let (terms, base) = parsed(json).terms().unwrap();
        assert_eq!(terms.target.as_deref(), Some("lab1"));
        assert_eq!(terms.origin.unwrap().to_string(), "https://desk.example.com");
        assert_eq!(terms.address.unwrap().to_string(), "192.0.2.7/32");
        assert_eq!((terms.uses.get(), terms.valid_for.as_secs()), (3, 5400));
        assert_eq!(terms.session_for, Some(Duration::from_secs(8 * 3600)));
        assert_eq!(base.unwrap().as_str(), "wss://desk.example.com");
    }

    #[test]
    fn nonsense_is_refused_with_words() {
        for (fields, words) in [
            (r#""uses": 0"#, "uses: must be"),
            (r#""uses": 1000001"#, "uses: must be"),
            (r#""valid_for": "0s""#, "valid_for \"0s\": must be a duration"),
            (r#""valid_for": "60""#, "valid_for \"60\""),
            (r#""valid_for": "-1s""#, "valid_for"),
            (r#""valid_for": "999999999999999999y 999999999999999999y""#, "valid_for"),
            (r#""session_for": "366d""#, "session_for"),
            (r#""user": """#, "user: must be"),
            (r#""user": "a\nb""#, "user: must be"),
            (r#""origin": "desk.example.com""#, "origin \"desk.example.com\""),
            (r#""origin": "null""#, "origin \"null\""),
            (r#""address": "here""#, "address \"here\": not an address"),
            (r#""base": "desk.example.com""#, "base \"desk.example.com\""),
        ] {
            let error = parsed(&format!(r#"{{"route": "desk", {fields}}}"#)).terms().unwrap_err();
            assert!(error.starts_with(words) && !error.contains('\n'), "{fields}: {error}");
        }
        for json in [
            r#"{"route": "desk", "usage": 1}"#,
            r#"{"route": "desk", "uses": -1}"#,
            r#"{"route": "desk", "uses": "1"}"#,
            r#"{"uses": 1}"#,
            r#"{"route": "desk", "route": "chat"}"#,
        ] {
            assert!(serde_json::from_str::<TicketRequest>(json).is_err(), "{json}");
        }
    }
}
