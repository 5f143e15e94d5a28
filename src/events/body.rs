//! The JSON that is posted.
//!
//! Pure. The fields have the names of the access log.

use serde::Serialize;

use super::{EndOfSession, Event};

#[derive(Serialize)]
struct Body<'a> {
    dropped: u64,
    events: Vec<EventFields<'a>>,
}

#[derive(Serialize)]
struct EventFields<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    time: String,
    request_id: String,
    session: u64,
    peer: String,
    route: &'a str,
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<&'a str>,
    #[serde(flatten)]
    end: Option<EndFields>,
}

#[derive(Serialize)]
struct EndFields {
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    close_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_out: Option<u64>,
    duration_ms: u64,
}

/// The body of a request. `dropped`: how many events the queue has dropped so far.
pub(super) fn body<'a>(
    events: impl Iterator<Item = &'a Event>,
    dropped: u64,
) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Body { dropped, events: events.map(EventFields::of).collect() })
}

impl<'a> EventFields<'a> {
    fn of(event: &'a Event) -> Self {
        let kind = if event.end.is_some() { "disconnect" } else { "connect" };
        Self {
            // The same each time that it is sent, so that a receiver can tell what it has already.
            id: format!("{}-{kind}", event.request_id),
            kind,
            time: humantime::format_rfc3339_millis(event.time).to_string(),
            request_id: event.request_id.to_string(),
            session: event.session,
            peer: event.peer.to_string(),
            route: &event.route,
            user: event.user.as_deref(),
            backend: event.backend.as_deref(),
            end: event.end.map(EndFields::of),
        }
    }
}

impl EndFields {
    fn of(end: EndOfSession) -> Self {
        Self {
            reason: end.reason.as_str(),
            close_code: end.close_code,
            bytes_in: end.bytes.map(|(bytes_in, _)| bytes_in),
            bytes_out: end.bytes.map(|(_, bytes_out)| bytes_out),
            duration_ms: u64::try_from(end.duration.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::*;
    use crate::outcome::Reason;

    fn json_of(events: &[Event], dropped: u64) -> Value {
        serde_json::from_slice(&body(events.iter(), dropped).unwrap()).unwrap()
    }

    #[test]
    fn a_disconnect_has_all_that_its_connect_has_and_how_the_session_ended() {
        let connect = Event::example(7, Instant::now());
        let end = EndOfSession {
            reason: Reason::ClientClosed,
            close_code: Some(1000),
            bytes: Some((3, 5)),
            duration: Duration::from_millis(1234),
        };
        let disconnect = Event { end: Some(end), ..connect.clone() };
        let common = json!({
            "time": "2023-11-14T22:13:20.123Z", "request_id": "9f1c03ab77d2-7", "session": 7, "peer": "192.0.2.7:41114",
            "route": "desk", "user": "ann", "backend": "tcp://127.0.0.1:5900",
        });
        let with = |fields: Value| {
            let mut all = common.as_object().unwrap().clone();
            all.extend(fields.as_object().unwrap().clone());
            Value::Object(all)
        };
        let expected = [
            with(json!({"id": "9f1c03ab77d2-7-connect", "type": "connect"})),
            with(json!({
                "id": "9f1c03ab77d2-7-disconnect", "type": "disconnect", "reason": "client_closed", "close_code": 1000,
                "bytes_in": 3, "bytes_out": 5, "duration_ms": 1234,
            })),
        ];
        assert_eq!(json_of(&[connect, disconnect], 2), json!({"dropped": 2, "events": expected}));
    }

    #[test]
    fn what_is_not_known_is_left_out_except_the_user() {
        let end = EndOfSession {
            reason: Reason::Draining,
            close_code: None,
            bytes: None,
            duration: Duration::ZERO,
        };
        let event = Event { user: None, backend: None, end: Some(end), ..Event::example(1, Instant::now()) };
        let fields = &json_of(&[event], 0)["events"][0];
        assert_eq!(fields.get("user"), Some(&Value::Null));
        for absent in ["backend", "close_code", "bytes_in", "bytes_out"] {
            assert_eq!(fields.get(absent), None, "{absent}");
        }
    }
}
