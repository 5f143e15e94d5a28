//! The kill request: which sessions to close, and why. One type for the API and its client.

use serde::{Deserialize, Serialize};

use super::sessions::{SessionFilter, peer};
use crate::websocket::MAX_CLOSE_REASON;

/// The body of `POST /api/sessions/kill`. A session is closed if it matches every criterion given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KillRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// An address, or a network such as `192.0.2.0/24`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The name of a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The reason in the Close frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The numbers of the sessions that are being closed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KillResponse {
    pub(super) killed: Vec<u64>,
}

impl KillRequest {
    /// The sessions to close.
    ///
    /// # Errors
    /// No criterion is given, so every session would match; `peer` is invalid; or the reason does not fit into a Close
    /// frame. One line for the caller's terminal.
    pub(super) fn filter(&self) -> Result<SessionFilter, String> {
        let Self { ids, route, peer: network, user, reason } = self;
        let network = network.as_deref().map(peer).transpose()?;
        let filter = SessionFilter {
            ids: ids.clone(),
            route: route.clone(),
            peer: network,
            user: user.clone(),
            text: None,
        };
        if filter.matches_all() {
            return Err("name the sessions to close: ids, route, peer or user".to_owned());
        }
        if reason
            .as_ref()
            .is_some_and(|text| text.len() > MAX_CLOSE_REASON || text.contains(char::is_control))
        {
            return Err(format!("the reason must be one line of at most {MAX_CLOSE_REASON} bytes"));
        }
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_criteria_are_not_serialised() {
        let request = KillRequest { route: Some("vnc".into()), ..KillRequest::default() };
        assert_eq!(serde_json::to_string(&request).unwrap(), "{\"route\":\"vnc\"}");
        assert_eq!(serde_json::from_str::<KillRequest>("{\"route\":\"vnc\"}").unwrap(), request);
        assert!(serde_json::from_str::<KillRequest>("{\"find\":\"vnc\"}").is_err());
    }

    #[test]
    fn a_request_needs_a_criterion_and_a_reason_that_fits() {
        let with = |reason: &str| KillRequest {
            ids: Some(vec![1]),
            reason: Some(reason.into()),
            ..Default::default()
        };
        assert!(with(&"x".repeat(MAX_CLOSE_REASON)).filter().is_ok());
        for (request, message) in [
            (KillRequest::default(), "ids, route, peer or user"),
            (KillRequest { reason: Some("bye".into()), ..Default::default() }, "ids, route, peer or user"),
            (KillRequest { peer: Some("here".into()), ..Default::default() }, "192.0.2.7"),
            (with(&"x".repeat(MAX_CLOSE_REASON + 1)), "123 bytes"),
            (with("a\nb"), "one line"),
        ] {
            let error = request.filter().unwrap_err();
            assert!(error.contains(message), "{request:?}: {error}");
        }
    }
}
