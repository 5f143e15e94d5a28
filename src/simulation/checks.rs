//! What must hold after every simulation.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    backends::Served,
    log::Line,
    network::Network,
    outcome::{Kill, Outcome},
    plan::{Closes, Plan, Seen},
    scenario::{GATEWAY, Scenario},
};
use crate::{admin::control::ProcessControl, gateway::Control, outcome::Reason};

/// A timer can be late by a millisecond or two, and a task acts at the next event.
const SLACK: u64 = 100;

/// Every connection was counted once and left one line.
pub(super) fn accounts(control: &Control, network: &Network, lines: &[Line]) -> Vec<String> {
    let metrics = &control.shared().metrics;
    let accepted = network.world().accepted.get(&GATEWAY).copied().unwrap_or(0);
    let ended: u64 = Reason::ALL.iter().map(|&reason| metrics.ended(reason)).sum();
    let mut problems = Vec::new();
    if accepted != ended || accepted != lines.len() as u64 {
        problems.push(format!("{accepted} connections accepted, {ended} counted, {} logged", lines.len()));
    }
    for &reason in Reason::ALL {
        let logged = lines.iter().filter(|line| line.reason == reason.as_str()).count() as u64;
        let counted = metrics.ended(reason);
        if logged != counted {
            problems.push(format!("{reason} was counted {counted} times and logged {logged} times"));
        }
    }
    let peers: BTreeSet<_> = lines.iter().map(|line| line.peer).collect();
    if peers.len() != lines.len() {
        problems.push("a connection was logged twice".to_owned());
    }
    let mut text = String::new();
    metrics.encode(&mut text).expect("a String takes everything");
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok());
    let exposed: Vec<&str> =
        text.lines().filter(|line| line.starts_with("portcullis_connections_ended_total{")).collect();
    let sum: u64 = exposed.iter().copied().filter_map(value).sum();
    if sum != ended {
        problems.push(format!("{ended} connections were counted, and the metrics show {sum}"));
    }
    let open = text.lines().filter(|line| line.starts_with("portcullis_sessions{") && value(line) != Some(0));
    problems.extend(open.map(|line| format!("after the end: {line}")));
    problems
}

/// Nothing is held any more.
pub(super) fn released(
    control: &Control,
    network: &Network,
    scenario: &Scenario,
    now: Instant,
) -> Vec<String> {
    let (shared, status) = (control.shared(), control.status());
    let mut problems = Vec::new();
    let held = [
        ("sessions in the registry", shared.registry.len()),
        ("session permits", status.sessions.0),
        ("handshake permits", status.handshakes.0),
        ("backend permits", status.backends.iter().map(|backend| backend.sessions).sum()),
        ("sockets of the gateway", {
            let world = network.world();
            world.sockets.iter().filter(|socket| socket.open && socket.local.ip() == GATEWAY.ip()).count()
        }),
    ];
    problems.extend(
        held.into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{count} {name} are held")),
    );
    // As many permits as an address may have can be acquired again, when its rate limit has recovered.
    let mut later = now;
    for host in scenario.client_hosts().collect::<BTreeSet<_>>() {
        // The network's has recovered from the host before.
        later += Duration::from_secs(3600);
        let permits: Vec<_> =
            (0..scenario.limits.address_sessions).map(|_| shared.limiter.admit(host, later)).collect();
        let refused = permits.iter().filter(|permit| permit.is_err()).count();
        if refused > 0 {
            problems.push(format!("{refused} permits of {host} are held"));
        }
    }
    problems
}

/// What each side received is what the other sent, as far as it could arrive.
pub(super) fn payload(scenario: &Scenario, network: &Network, outcome: &Outcome) -> Vec<String> {
    let lines: BTreeMap<_, _> = outcome.lines.iter().map(|line| (line.peer, line)).collect();
    let mut problems = Vec::new();
    for served in &outcome.served {
        problems.extend(served.received.wrong.clone());
    }
    for seen in &outcome.seen {
        problems.extend(seen.received.wrong.clone());
        let Some(line) = seen.address.and_then(|address| lines.get(&address)) else { continue };
        let backend = outcome.served.iter().find(|served| served.received.number() == Some(seen.number));
        let source = seen.received.number().filter(|number| *number != seen.number);
        let source =
            source.and_then(|source| outcome.served.iter().find(|served| served.number == Some(source)));
        let mut check = |holds: bool, what: &str| {
            if !holds {
                problems.push(format!("{what}: {seen:?}, {line:?}, {backend:?}, {source:?}"));
            }
        };
        let aborted = line.bytes_in.is_none() && line.session.is_some();
        let (bytes_in, bytes_out) = (line.bytes_in.unwrap_or(0), line.bytes_out.unwrap_or(0));
        check(bytes_in <= seen.sent, "more was counted than the client sent");
        check(aborted || seen.received.len <= bytes_out, "the client received more than was counted");
        if let Some(backend) = backend {
            check(aborted || backend.received.len <= bytes_in, "the backend received more than was counted");
            check(
                !closed_well(scenario, network, seen, backend, line) || backend.received.len == seen.sent,
                "the session closed well, and its backend did not receive everything",
            );
        }
        if let Some(source) = source {
            check(seen.received.len <= source.sent, "the client received more than was sent");
            // A backend that is killed loses what its own socket has not sent yet.
            let is_all = seen.received.len == bytes_out && (!source.finished || bytes_out == source.sent);
            check(
                line.reason != "backend_closed" || seen.close_code != Some(1000) || is_all,
                "the backend closed, and the client did not receive everything",
            );
        }
        check(
            aborted || seen.close_code.is_none() || seen.close_code.map(u64::from) == line.close_code,
            "the client received another Close than was logged",
        );
    }
    problems
}

/// Whether both ends closed a session in good order, and no packet was late enough for a timeout.
fn closed_well(scenario: &Scenario, network: &Network, seen: &Seen, backend: &Served, line: &Line) -> bool {
    let world = network.world();
    let late = |socket: usize| {
        let endpoint = &world.sockets[socket];
        let peer = world
            .sockets
            .iter()
            .find(|other| other.local == endpoint.remote && other.remote == endpoint.local);
        let peer = peer.map_or(Duration::ZERO, |peer| peer.longest_delay);
        endpoint.longest_delay.max(peer).as_millis() as u64
    };
    let limit = scenario.timeouts.close.min(scenario.timeouts.stall) / 2;
    line.reason == "client_closed"
        && seen.sent_close
        && seen.plan.closes != Closes::InAnswer
        && backend.end
        && seen.socket.is_none_or(|socket| late(socket) < limit)
        && late(backend.socket) < limit
}

/// Nothing lasted longer than the timeouts allow.
pub(super) fn times(scenario: &Scenario, outcome: &Outcome) -> Vec<String> {
    let times = scenario.timeouts;
    let mut problems = Vec::new();
    let setup = 2 * times.handshake + times.connect;
    for line in &outcome.lines {
        // With few handshake permits a connection first waits for one.
        let waiting = if scenario.limits.max_handshakes >= 100 { 0 } else { 30_000 };
        let end = line.session.map_or(times.close, |_| times.lifetime + times.close);
        let bounded = line.session.is_none() || times.lifetime > 0;
        if bounded && line.duration_ms > waiting + setup + end + SLACK {
            problems.push(format!("it lasted too long: {line:?}"));
        }
    }
    for seen in outcome.seen.iter().filter(|_| times.lifetime > 0) {
        let line = outcome.lines.iter().find(|line| Some(line.peer) == seen.address);
        if let (Some(line), Some(opened)) = (line, seen.opened)
            && line.at > opened + times.lifetime + times.close + SLACK
        {
            problems.push(format!("it was open at {opened} ms and outlived its lifetime: {line:?}"));
        }
    }
    for Kill { session, bytes_in, at } in &outcome.kills {
        let line = outcome.lines.iter().find(|line| line.session == Some(*session));
        let Some(line) = line else { continue };
        if line.at > at + times.connect + times.close + SLACK {
            problems.push(format!("killed at {at} ms, and it went on: {line:?}"));
        }
        if line.bytes_in.is_some_and(|accepted| accepted > *bytes_in) {
            problems
                .push(format!("killed at {at} ms after {bytes_in} bytes, and more was accepted: {line:?}"));
        }
    }
    if let Some((from, to)) = outcome.drain {
        // The connections that wait in the backlog have a second of their own.
        let most = times.drain + 1000 + SLACK;
        if to - from > most {
            problems.push(format!("the drain took {} ms instead of {most} ms", to - from));
        }
    }
    problems
}

/// Where nothing fails, every connection ends as its client and its backend determine.
pub(super) fn expected_ends(outcome: &Outcome) -> Vec<String> {
    let mut problems = Vec::new();
    for seen in &outcome.seen {
        // An aborted client may not have been connected yet.
        let Some(address) = seen.address else { continue };
        let Some(line) = outcome.lines.iter().find(|line| line.peer == address) else {
            problems.push(format!("no line for {seen:?}"));
            continue;
        };
        let expected = expected_reasons(&seen.plan);
        let mut check = |holds: bool, what: &str| {
            if !holds {
                problems.push(format!("{what}: {seen:?}, {line:?}"));
            }
        };
        let aborted = matches!(seen.plan.closes, Closes::Aborts(_));
        let expected: Vec<&str> =
            [expected, if aborted { &["client_gone", "tls_failed"] } else { &[] }].concat();
        check(expected.contains(&line.reason.as_str()), &format!("expected {expected:?}"));
        if matches!(seen.plan.name, "echo" | "pipelined" | "pings" | "upload" | "download" | "slow reader") {
            check(seen.close_code == Some(1000) && seen.end, "it did not close in good order");
        }
        if matches!(seen.plan.name, "echo" | "pipelined" | "pings") {
            check(seen.received.len == seen.plan.upload, "not everything came back");
        }
    }
    problems
}

/// The reasons for which a connection may end where nothing fails.
fn expected_reasons(plan: &Plan) -> &'static [&'static str] {
    match (plan.name, plan.path) {
        ("echo" | "pipelined" | "pings" | "upload", _) => &["client_closed"],
        ("silent", _) => &["request_timeout", "tls_timeout"],
        ("half a head", _) => &["request_timeout"],
        ("foreign origin", _) => &["origin_refused"],
        ("unknown route", _) => &["unknown_route"],
        ("bad frame", _) => &["protocol_error"],
        ("deaf", _) => &["pong_timeout", "client_stalled"],
        (_, "/source") => &["backend_closed"],
        (_, "/refusing") => &["backend_refused", "no_healthy_backend"],
        (_, "/dead") => &["backend_timeout", "no_healthy_backend"],
        (_, "/closing") => &["backend_closed", "backend_failed"],
        // Others wait until the client is out of patience.
        (_, "/deaf") => &["backend_stalled", "client_gone"],
        _ => &["client_gone"],
    }
}
