//! The living sessions as an operator sees them: chosen, with their rates, as JSON.
//!
//! Pure: time is an argument.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use serde::Serialize;

use crate::session::{Payload, SessionSnapshot};

/// Rates are told over at least this long, and a reading is not taken more often.
const WINDOW: Duration = Duration::from_secs(1);
/// A reading older than this says nothing about now.
const STALE: Duration = Duration::from_secs(10);

/// Which sessions are meant: those that fit everything that is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SessionFilter {
    /// These numbers.
    pub ids: Option<Vec<u64>>,
    /// On this route.
    pub route: Option<String>,
    /// From this address, or network of addresses.
    pub peer: Option<IpNet>,
    /// With this text in their number, address, route or backend; without regard to case.
    pub text: Option<String>,
}

impl SessionFilter {
    /// Whether nothing is said, which means every session.
    pub(crate) fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a session is meant.
    pub(crate) fn matches(&self, session: &SessionSnapshot) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.contains(&session.id))
            && self.route.as_deref().is_none_or(|route| route == &*session.route)
            && self.peer.is_none_or(|peer| peer.contains(&session.peer.ip().to_canonical()))
            && self.text.as_deref().is_none_or(|text| shows(session, &text.to_lowercase()))
    }
}

fn shows(session: &SessionSnapshot, text: &str) -> bool {
    let has = |field: &str| field.to_lowercase().contains(text);
    has(&session.id.to_string())
        || has(&session.peer.to_string())
        || has(&session.route)
        || session.backend.as_deref().is_some_and(has)
}

/// An address, or a network of addresses.
///
/// # Errors
/// It is neither; one line for the caller's terminal.
pub(crate) fn peer(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    address.or_else(|_| text.parse::<IpNet>().map(|net| net.trunc())).map_err(|_| {
        format!("{text:?}: no address; write one such as 192.0.2.7, or a network such as 2001:db8::/32")
    })
}

/// What sessions have carried at two moments, from which rates are told. Only kept while somebody looks.
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
    /// Whether a reading must be taken now, and another one a moment later, before there are rates.
    pub(super) fn is_cold(&self, now: Instant) -> bool {
        self.last.as_ref().is_none_or(|last| now.saturating_duration_since(last.at) > STALE)
    }

    /// Takes a reading if one is due. `at_once`: whether it is due however short the time since the last.
    pub(super) fn read(&mut self, now: Instant, sessions: &[SessionSnapshot], at_once: bool) {
        let age = self.last.as_ref().map(|last| now.saturating_duration_since(last.at));
        match age {
            Some(age) if age < WINDOW && !at_once => return,
            // What is that old is no beginning of a rate.
            Some(age) if age > STALE => self.before = None,
            _ => self.before = self.last.take(),
        }
        let payload = sessions.iter().map(|session| (session.id, session.payload)).collect();
        self.last = Some(RateSample { at: now, payload });
    }

    /// Bytes per second in each direction between the last two readings; since its beginning if a session is younger.
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

/// What is told of the sessions.
#[derive(Debug, Serialize)]
pub(super) struct SessionList {
    /// How many live.
    pub(super) live: usize,
    /// How many of them are meant.
    pub(super) matching: usize,
    /// Those, or the oldest of them if fewer were asked for.
    pub(super) sessions: Vec<SessionEntry>,
}

/// What is told of one session.
#[derive(Debug, Serialize)]
pub(super) struct SessionEntry {
    id: u64,
    peer: String,
    route: String,
    backend: Option<String>,
    since: String,
    age_seconds: f64,
    bytes_in: u64,
    bytes_out: u64,
    /// Bytes per second, rounded; null in the first moment.
    rate_in: Option<u64>,
    rate_out: Option<u64>,
    round_trip_ms: Option<f64>,
    buffered: u32,
}

/// The sessions that are meant, oldest first, `most` of them at most.
pub(super) fn list(
    sessions: &[SessionSnapshot],
    choice: &SessionFilter,
    most: usize,
    rates: &RateTable,
    now: SystemTime,
) -> SessionList {
    let chosen: Vec<&SessionSnapshot> = sessions.iter().filter(|session| choice.matches(session)).collect();
    SessionList {
        live: sessions.len(),
        matching: chosen.len(),
        sessions: chosen.into_iter().take(most).map(|session| told(session, rates, now)).collect(),
    }
}

fn told(session: &SessionSnapshot, rates: &RateTable, now: SystemTime) -> SessionEntry {
    let rate = rates.rate(session.id);
    let age = now.duration_since(session.since).unwrap_or_default();
    let thousandths = |seconds: f64| (seconds * 1000.0).round() / 1000.0;
    SessionEntry {
        id: session.id,
        peer: session.peer.to_string(),
        route: session.route.to_string(),
        backend: session.backend.as_deref().map(str::to_owned),
        since: humantime::format_rfc3339_millis(session.since).to_string(),
        age_seconds: thousandths(age.as_secs_f64()),
        bytes_in: session.payload.bytes_in,
        bytes_out: session.payload.bytes_out,
        rate_in: rate.map(|(rate, _)| rate.round() as u64),
        rate_out: rate.map(|(_, rate)| rate.round() as u64),
        round_trip_ms: session.round_trip.map(|took| took.as_secs_f64() * 1000.0).map(thousandths),
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
            backend: Some("tcp://Host:5900".into()),
            since: SystemTime::UNIX_EPOCH,
            payload: Payload::default(),
            round_trip: Some(Duration::from_micros(1_234)),
            buffered: 5,
        }
    }

    fn carried(id: u64, bytes_in: u64, bytes_out: u64) -> SessionSnapshot {
        SessionSnapshot { payload: Payload { bytes_in, bytes_out }, ..session(id) }
    }

    #[test]
    fn a_session_is_meant_if_it_fits_everything_that_is_said() {
        let all = SessionFilter::default();
        assert!(all.is_everything() && all.matches(&session(1)));
        let text = |text: &str| Some(text.to_owned());
        for (fits, choice) in [
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
            assert_eq!(choice.matches(&session(1)), fits, "{choice:?}");
            assert!(!choice.is_everything());
        }
        assert!(peer("somewhere").unwrap_err().contains("192.0.2.7"));
    }

    #[test]
    fn rates_are_told_between_two_readings() {
        let (start, mut rates) = (Instant::now(), RateTable::default());
        let at = |millis| start + Duration::from_millis(millis);
        assert!(rates.is_cold(start));
        rates.read(start, &[carried(1, 1000, 0)], false);
        assert_eq!(rates.rate(1), None, "one reading tells no rate");
        assert!(!rates.is_cold(at(500)));
        rates.read(at(500), &[carried(1, 1500, 50)], true);
        assert_eq!(rates.rate(1), Some((1000.0, 100.0)));
        // Too soon: what was told is told again.
        rates.read(at(600), &[carried(1, 99_000, 99_000)], false);
        assert_eq!(rates.rate(1), Some((1000.0, 100.0)));
        rates.read(at(2500), &[carried(1, 2500, 50), carried(2, 20, 0)], false);
        assert_eq!((rates.rate(1), rates.rate(2)), (Some((500.0, 0.0)), Some((10.0, 0.0))));
        assert_eq!(rates.rate(3), None);
        // Nobody looked for a minute.
        assert!(rates.is_cold(at(62_500)));
        rates.read(at(62_500), &[carried(1, 1 << 40, 0)], false);
        assert_eq!(rates.rate(1), None);
    }

    #[test]
    fn a_list_says_how_many_there_are_and_shows_so_many() {
        let sessions = [session(1), session(2), SessionSnapshot { route: "chat".into(), ..session(3) }];
        let choice = SessionFilter { route: Some("desk".into()), ..SessionFilter::default() };
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        let list = list(&sessions, &choice, 1, &RateTable::default(), now);
        let expected = serde_json::json!({
            "live": 3,
            "matching": 2,
            "sessions": [{
                "id": 1, "peer": "192.0.2.7:4711", "route": "desk", "backend": "tcp://Host:5900",
                "since": "1970-01-01T00:00:00.000Z", "age_seconds": 1.5, "bytes_in": 0, "bytes_out": 0,
                "rate_in": null, "rate_out": null, "round_trip_ms": 1.234, "buffered": 5,
            }],
        });
        assert_eq!(serde_json::to_value(list).unwrap(), expected);
    }
}
