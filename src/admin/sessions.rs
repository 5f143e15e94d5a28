//! Sessions as the API lists them: filters, rates, JSON.
//!
//! Pure: time is an argument.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::session::{Payload, SessionSnapshot};

/// The least time between two samples, which is what rates are averaged over.
const WINDOW: Duration = Duration::from_secs(1);
/// A sample older than this is no basis for a current rate.
const STALE: Duration = Duration::from_secs(10);

/// Selects the sessions that match every criterion that is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SessionFilter {
    pub(super) ids: Option<Vec<u64>>,
    pub(super) route: Option<String>,
    pub(super) peer: Option<IpNet>,
    pub(super) user: Option<String>,
    /// A part of the number, address, route, user or backend; case-insensitive.
    pub(super) text: Option<String>,
}

impl SessionFilter {
    /// Whether no criterion is set.
    pub(super) fn matches_all(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn matches(&self, session: &SessionSnapshot) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.contains(&session.id))
            && self.route.as_deref().is_none_or(|route| route == &*session.route)
            && self.user.as_deref().is_none_or(|user| session.user.as_deref() == Some(user))
            && self.peer.is_none_or(|peer| peer.contains(&session.peer.ip().to_canonical()))
            && self.text.as_deref().is_none_or(|text| has_text(session, &text.to_lowercase()))
    }
}

fn has_text(session: &SessionSnapshot, text: &str) -> bool {
    let has = |field: &str| field.to_lowercase().contains(text);
    has(&session.id.to_string())
        || has(&session.peer.to_string())
        || has(&session.route)
        || session.user.as_deref().is_some_and(has)
        || session.backend.as_deref().is_some_and(has)
}

/// Parses an address, or a network of addresses.
///
/// # Errors
/// It is neither; one line for the caller's terminal.
pub(super) fn peer(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    address.or_else(|_| text.parse::<IpNet>().map(|net| net.trunc())).map_err(|_| {
        format!(
            "{text:?}: not an address or network; use one such as 192.0.2.7, or a network such as 2001:db8::/32"
        )
    })
}

/// The byte counts of all sessions at two moments, from which rates are computed. Filled only while clients ask for
/// the list.
#[derive(Debug, Default)]
pub(super) struct RateTable {
    before: Option<RateSample>,
    last: Option<RateSample>,
}

#[derive(Debug)]
struct RateSample {
    at: Instant,
    payload: HashMap<u64, Payload>,
}

impl RateTable {
    /// Whether there is no current sample, so that two are needed, a moment apart, before there are rates.
    pub(super) fn is_cold(&self, now: Instant) -> bool {
        self.last.as_ref().is_none_or(|last| now.saturating_duration_since(last.at) > STALE)
    }

    /// Stores a sample if one is due. `force`: even if the last one is younger than [`WINDOW`].
    pub(super) fn sample(&mut self, now: Instant, sessions: &[SessionSnapshot], force: bool) {
        let age = self.last.as_ref().map(|last| now.saturating_duration_since(last.at));
        match age {
            Some(age) if age < WINDOW && !force => return,
            // The average since a stale sample would not be a current rate.
            Some(age) if age > STALE => self.before = None,
            _ => self.before = self.last.take(),
        }
        let payload = sessions.iter().map(|session| (session.id, session.payload)).collect();
        self.last = Some(RateSample { at: now, payload });
    }

    /// Bytes per second, in and out, between the last two samples. A session that is younger counts from 0.
    fn rate(&self, id: u64) -> Option<(f64, f64)> {
        let (before, last) = (self.before.as_ref()?, self.last.as_ref()?);
        let seconds = last.at.saturating_duration_since(before.at).as_secs_f64();
        let end = last.payload.get(&id)?;
        let begin = before.payload.get(&id).copied().unwrap_or_default();
        let per_second = |begin: u64, end: u64| (end.saturating_sub(begin)) as f64 / seconds;
        (seconds > 0.0)
            .then(|| (per_second(begin.bytes_in, end.bytes_in), per_second(begin.bytes_out, end.bytes_out)))
    }
}

/// The body of `GET /api/sessions`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SessionList {
    pub live: usize,
    /// Those that match the filter.
    pub matching: usize,
    /// The oldest of those, up to the limit that was asked for.
    pub sessions: Vec<SessionEntry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SessionEntry {
    pub id: u64,
    pub peer: String,
    pub route: String,
    /// The name that the user's credential has proved.
    pub user: Option<String>,
    pub backend: Option<String>,
    pub since: String,
    pub age_seconds: f64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Bytes per second, rounded; null until there are two samples.
    pub rate_in: Option<u64>,
    pub rate_out: Option<u64>,
    pub round_trip_ms: Option<f64>,
    pub buffered: u32,
}

/// The sessions that match, oldest first, at most `limit` of them.
pub(super) fn list(
    sessions: &[SessionSnapshot],
    filter: &SessionFilter,
    limit: usize,
    rates: &RateTable,
    now: SystemTime,
) -> SessionList {
    let matching: Vec<&SessionSnapshot> = sessions.iter().filter(|session| filter.matches(session)).collect();
    SessionList {
        live: sessions.len(),
        matching: matching.len(),
        sessions: matching.into_iter().take(limit).map(|session| entry(session, rates, now)).collect(),
    }
}

fn entry(session: &SessionSnapshot, rates: &RateTable, now: SystemTime) -> SessionEntry {
    let rate = rates.rate(session.id);
    let age = now.duration_since(session.since).unwrap_or_default();
    let round_to_thousandths = |number: f64| (number * 1000.0).round() / 1000.0;
    SessionEntry {
        id: session.id,
        peer: session.peer.to_string(),
        route: session.route.to_string(),
        user: session.user.as_deref().map(str::to_owned),
        backend: session.backend.as_deref().map(str::to_owned),
        since: humantime::format_rfc3339_millis(session.since).to_string(),
        age_seconds: round_to_thousandths(age.as_secs_f64()),
        bytes_in: session.payload.bytes_in,
        bytes_out: session.payload.bytes_out,
        rate_in: rate.map(|(rate, _)| rate.round() as u64),
        rate_out: rate.map(|(_, rate)| rate.round() as u64),
        round_trip_ms: session.round_trip.map(|time| round_to_thousandths(time.as_secs_f64() * 1000.0)),
        buffered: session.buffered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: u64) -> SessionSnapshot {
        SessionSnapshot {
            id,
            peer: ([192, 0, 2, 7], 4711).into(),
            route: "desk".into(),
            user: None,
            backend: Some("tcp://Host:5900".into()),
            since: SystemTime::UNIX_EPOCH,
            payload: Payload::default(),
            round_trip: Some(Duration::from_micros(1_234)),
            buffered: 5,
        }
    }

    fn with_payload(id: u64, bytes_in: u64, bytes_out: u64) -> SessionSnapshot {
        SessionSnapshot { payload: Payload { bytes_in, bytes_out }, ..session(id) }
    }

    #[test]
    fn a_filter_matches_sessions_that_meet_every_criterion() {
        let all = SessionFilter::default();
        assert!(all.matches_all() && all.matches(&session(1)));
        let text = |text: &str| Some(text.to_owned());
        for (matches, filter) in [
            (true, SessionFilter { ids: Some(vec![3, 1]), ..SessionFilter::default() }),
            (false, SessionFilter { ids: Some(vec![]), ..SessionFilter::default() }),
            (true, SessionFilter { route: text("desk"), ..SessionFilter::default() }),
            (false, SessionFilter { route: text("des"), ..SessionFilter::default() }),
            (true, SessionFilter { ids: Some(vec![1]), route: text("desk"), ..SessionFilter::default() }),
            (false, SessionFilter { ids: Some(vec![1]), route: text("chat"), ..SessionFilter::default() }),
            (true, SessionFilter { peer: Some(peer("192.0.2.7").unwrap()), ..SessionFilter::default() }),
            (
                true,
                SessionFilter { peer: Some(peer("::ffff:192.0.2.7").unwrap()), ..SessionFilter::default() },
            ),
            (true, SessionFilter { peer: Some(peer("192.0.2.9/24").unwrap()), ..SessionFilter::default() }),
            (false, SessionFilter { peer: Some(peer("192.0.2.8").unwrap()), ..SessionFilter::default() }),
            (true, SessionFilter { text: text("DESK"), ..SessionFilter::default() }),
            (true, SessionFilter { text: text(":47"), ..SessionFilter::default() }),
            (true, SessionFilter { text: text("host:5"), ..SessionFilter::default() }),
            (false, SessionFilter { text: text("bob"), ..SessionFilter::default() }),
        ] {
            assert_eq!(filter.matches(&session(1)), matches, "{filter:?}");
            assert!(!filter.matches_all());
        }
        assert!(peer("somewhere").unwrap_err().contains("192.0.2.7"));
    }

    #[test]
    fn rates_are_averages_between_two_samples() {
        let (start, mut rates) = (Instant::now(), RateTable::default());
        let at = |millis| start + Duration::from_millis(millis);
        assert!(rates.is_cold(start));
        rates.sample(start, &[with_payload(1, 1000, 0)], false);
        assert_eq!(rates.rate(1), None, "one sample gives no rate");
        assert!(!rates.is_cold(at(500)));
        rates.sample(at(500), &[with_payload(1, 1500, 50)], true);
        assert_eq!(rates.rate(1), Some((1000.0, 100.0)));
        // Too soon for another sample: the rate stays.
        rates.sample(at(600), &[with_payload(1, 99_000, 99_000)], false);
        assert_eq!(rates.rate(1), Some((1000.0, 100.0)));
        rates.sample(at(2500), &[with_payload(1, 2500, 50), with_payload(2, 20, 0)], false);
        assert_eq!((rates.rate(1), rates.rate(2)), (Some((500.0, 0.0)), Some((10.0, 0.0))));
        assert_eq!(rates.rate(3), None);
        // No sample for a minute.
        assert!(rates.is_cold(at(62_500)));
        rates.sample(at(62_500), &[with_payload(1, 1 << 40, 0)], false);
        assert_eq!(rates.rate(1), None);
    }

    #[test]
    fn a_list_counts_all_matches_and_contains_up_to_the_limit() {
        let sessions = [session(1), session(2), SessionSnapshot { route: "chat".into(), ..session(3) }];
        let filter = SessionFilter { route: Some("desk".into()), ..SessionFilter::default() };
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        let list = list(&sessions, &filter, 1, &RateTable::default(), now);
        let expected = serde_json::json!({
            "live": 3,
            "matching": 2,
            "sessions": [{
                "id": 1, "peer": "192.0.2.7:4711", "route": "desk", "user": null,
                "backend": "tcp://Host:5900",
                "since": "1970-01-01T00:00:00.000Z", "age_seconds": 1.5, "bytes_in": 0, "bytes_out": 0,
                "rate_in": null, "rate_out": null, "round_trip_ms": 1.234, "buffered": 5,
            }],
        });
        assert_eq!(serde_json::to_value(list).unwrap(), expected);
    }
}
