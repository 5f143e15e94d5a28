use std::collections::VecDeque;

use proptest::prelude::*;

use super::{
    by_network::Entry,
    state::{ALL_SILENT, MANY, SLOW, SUSPECT},
    *,
};
use crate::admission::source::Source;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);

fn limits(total: usize, per_ip: usize, per_network: usize) -> HandshakeLimits {
    HandshakeLimits { total, per_ip, per_network }
}

/// Host `host` of network `network`.
fn from(network: u8, host: u8) -> Newcomer {
    Newcomer { address: IpAddr::from([10, 0, network, host]), limited: true, deadline: DEADLINE }
}

fn granted(handshakes: &Arc<Handshakes>, newcomer: Newcomer, now: Instant) -> HandshakePermit {
    match handshakes.admit(newcomer, now) {
        Admission::Granted(permit) => permit,
        Admission::Wait(longest) => panic!("{newcomer:?} must wait for {longest:?}"),
        Admission::Refused(exceeded) => panic!("{newcomer:?} was refused: {exceeded}"),
    }
}

/// A permit of a client that has sent something.
fn heard(handshakes: &Arc<Handshakes>, newcomer: Newcomer, now: Instant) -> HandshakePermit {
    let mut permit = granted(handshakes, newcomer, now);
    permit.set_heard(now);
    permit
}

fn wait(handshakes: &Arc<Handshakes>, newcomer: Newcomer, now: Instant) -> Duration {
    match handshakes.admit(newcomer, now) {
        Admission::Wait(longest) => longest,
        Admission::Granted(_) => panic!("{newcomer:?} was granted a permit"),
        Admission::Refused(exceeded) => panic!("{newcomer:?} was refused: {exceeded}"),
    }
}

fn lost(permit: &HandshakePermit) -> bool {
    permit.taken_away.is_cancelled()
}

#[test]
fn row_64_the_oldest_handshake_of_the_network_that_has_most_gives_way() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(64, 64, 64));
    let good = heard(&handshakes, from(1, 1), now);
    let mut attack: Vec<_> = (0..63).map(|n| heard(&handshakes, from(2, n), now + MILLISECOND)).collect();
    // A tenth of the deadline is 1 s.
    assert_eq!(wait(&handshakes, from(3, 1), now + MILLISECOND), SECOND);
    let later = now + SECOND + MILLISECOND;
    let newcomer = granted(&handshakes, from(3, 1), later);
    assert!(lost(&attack[0]) && !lost(&attack[1]), "the oldest of the attack");
    assert!(!lost(&good) && !lost(&newcomer));
    assert_eq!(handshakes.in_use(), 64);
    // What was taken away releases nothing a second time.
    drop(attack.remove(0));
    assert_eq!(handshakes.in_use(), 64);
}

#[test]
fn row_65_newcomers_wait_while_handshakes_are_young() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(64, 64, 64));
    let mut herd: VecDeque<_> = (0..64).map(|n| heard(&handshakes, from(n, 1), now)).collect();
    for n in 64..127 {
        // No network has more than its share, so the wait is as long as half of the deadline.
        assert_eq!(wait(&handshakes, from(n, 1), now + 4 * SECOND), SECOND);
        drop(herd.pop_front());
        herd.push_back(heard(&handshakes, from(n, 1), now + 4 * SECOND));
    }
    assert!(herd.iter().all(|permit| !lost(permit)), "a handshake that makes progress was ended");
}

#[test]
fn row_64_connections_that_wait_for_another_request_give_way_first() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(3, 3, 3));
    let working = heard(&handshakes, from(1, 1), now);
    let (mut first, mut second) = (heard(&handshakes, from(2, 1), now), heard(&handshakes, from(2, 2), now));
    second.wait();
    first.wait();
    first.resume();
    first.wait();
    let mut newcomer = granted(&handshakes, from(3, 1), now);
    assert!(lost(&first) && !lost(&second) && !lost(&working), "the oldest of them");
    // A connection that works on a request again is like any other.
    second.resume();
    newcomer.set_heard(now);
    assert_eq!(wait(&handshakes, from(3, 2), now), DEADLINE / 2);
    first.resume();
    assert_eq!(handshakes.in_use(), 3, "what was taken away stays away");
}

#[test]
fn row_03_silent_clients_give_way_soon() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(200, 200, 200));
    let mut silent: Vec<_> = (0..200).map(|n| granted(&handshakes, from(n, 1), now)).collect();
    // No client says anything.
    assert_eq!(wait(&handshakes, from(201, 1), now), DEADLINE / ALL_SILENT);
    let later = now + DEADLINE / ALL_SILENT;
    let mut held: Vec<_> = (0..199).map(|n| granted(&handshakes, from(n, 2), later)).collect();
    assert_eq!(silent.iter().filter(|permit| lost(permit)).count(), 199);
    // Clients speak: there are handshakes in progress, and silent ones are given more time.
    held[0].set_heard(later);
    let mut last = silent.drain(..).find(|permit| !lost(permit)).unwrap();
    last.set_heard(later + 400 * MILLISECOND);
    // Unless no more of them speak for as long.
    assert_eq!(wait(&handshakes, from(202, 1), later + 400 * MILLISECOND), DEADLINE / ALL_SILENT);
    assert_eq!(wait(&handshakes, from(202, 1), later + 600 * MILLISECOND), 300 * MILLISECOND);
    held[1].set_heard(later + 800 * MILLISECOND);
    assert_eq!(wait(&handshakes, from(202, 1), later + 900 * MILLISECOND), 100 * MILLISECOND);
    assert!(!lost(&held[0]) && !lost(&held[2]) && !lost(&last));
    let _newcomer = granted(&handshakes, from(202, 1), later + DEADLINE / SUSPECT);
    assert_eq!(held.iter().filter(|permit| lost(permit)).count(), 1);
    assert!(!lost(&last), "older, but it was heard");
}

/// The clients that have not been heard, of 160 of whom each tenth of a second a sixteenth is heard and done at once, and
/// others take their places: it takes 1.6 s until all are.
fn herd(handshakes: &Arc<Handshakes>, size: u8, now: Instant, steps: u32) -> VecDeque<HandshakePermit> {
    let mut herd: VecDeque<_> = (0..size).map(|n| granted(handshakes, from(n, 1), now)).collect();
    for step in 0..steps {
        let at = now + 100 * MILLISECOND * step;
        for n in 0..160 / MANY {
            herd.pop_front().unwrap().set_heard(at);
            let network = (160 + step as usize * (160 / MANY) + n) % 250;
            herd.push_back(granted(handshakes, from(network as u8, 2), at));
        }
    }
    herd
}

#[test]
fn row_65_silent_clients_are_given_time_while_many_others_are_heard() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(160, 160, 160));
    let herd = herd(&handshakes, 160, now, 47);
    let at = now + 4600 * MILLISECOND;
    assert_eq!(wait(&handshakes, from(251, 1), at), DEADLINE / SUSPECT, "as long as many are heard");
    assert_eq!(wait(&handshakes, from(251, 1), at + 50 * MILLISECOND), DEADLINE / SUSPECT - 50 * MILLISECOND);
    assert!(herd.iter().all(|permit| !lost(permit)));
    // When no more are heard, silence counts again.
    let _newcomer = granted(&handshakes, from(251, 1), at + DEADLINE / SUSPECT);
    assert_eq!(herd.iter().filter(|permit| lost(permit)).count(), 1);
}

#[test]
fn row_65_a_client_that_is_silent_for_half_of_its_time_gives_way_to_a_herd() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(160, 160, 160));
    let silent = granted(&handshakes, from(252, 1), now);
    let herd = herd(&handshakes, 159, now, 47);
    let at = now + 4600 * MILLISECOND;
    assert_eq!(wait(&handshakes, from(251, 1), at), DEADLINE / SLOW - 4600 * MILLISECOND);
    let _newcomer = granted(&handshakes, from(251, 1), now + DEADLINE / SLOW);
    assert!(lost(&silent) && herd.iter().all(|permit| !lost(permit)));
}

#[test]
fn row_65_fewer_than_a_sixteenth_are_not_many() {
    for (count, longest) in [(160 / MANY - 1, DEADLINE / ALL_SILENT), (160 / MANY, DEADLINE / SUSPECT)] {
        let now = Instant::now();
        let handshakes = Handshakes::new(limits(160, 160, 160));
        for n in 0..count {
            drop(heard(&handshakes, from(200, n as u8), now));
        }
        let _silent: Vec<_> = (0..160).map(|n| granted(&handshakes, from(n, 1), now)).collect();
        assert_eq!(wait(&handshakes, from(251, 1), now), longest, "{count} of 160 were heard");
    }
}

#[test]
fn row_03_one_client_that_was_heard_protects_the_silent_ones_for_a_twentieth_of_their_time() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(160, 160, 160));
    drop(heard(&handshakes, from(200, 1), now));
    let silent: Vec<_> = (0..160).map(|n| granted(&handshakes, from(n, 1), now)).collect();
    let _newcomer = granted(&handshakes, from(251, 1), now + DEADLINE / ALL_SILENT);
    assert_eq!(silent.iter().filter(|permit| lost(permit)).count(), 1);
}

#[test]
fn row_64_silent_clients_of_a_network_with_many_handshakes_give_way_sooner() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(64, 64, 64));
    let good = granted(&handshakes, from(1, 1), now);
    let attack: Vec<_> = (0..62).map(|n| granted(&handshakes, from(2, n), now)).collect();
    for n in 0..20 {
        drop(heard(&handshakes, from(3, n), now + u32::from(n) * DEADLINE / 200));
    }
    let _last = granted(&handshakes, from(4, 1), now);
    let shortly_before = now + DEADLINE / SUSPECT - MILLISECOND;
    assert_eq!(wait(&handshakes, from(5, 1), shortly_before), MILLISECOND);
    let _newcomer = granted(&handshakes, from(5, 1), now + DEADLINE / SUSPECT);
    assert!(lost(&attack[0]) && !lost(&good), "the client that is alone in its network gave way");
}

#[test]
fn row_72_a_source_and_a_network_have_a_share_of_their_own() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(100, 2, 3));
    let refused = |newcomer| match handshakes.admit(newcomer, now) {
        Admission::Refused(exceeded) => exceeded,
        other => panic!("{other:?}"),
    };
    let (mut first, second) = (granted(&handshakes, from(1, 1), now), granted(&handshakes, from(1, 1), now));
    assert_eq!(refused(from(1, 1)), LimitExceeded::Handshakes);
    let third = granted(&handshakes, from(1, 2), now);
    assert_eq!(refused(from(1, 3)), LimitExceeded::NetworkHandshakes);
    let _unlimited = granted(&handshakes, Newcomer { limited: false, ..from(1, 1) }, now);
    let _other = granted(&handshakes, from(2, 1), now);
    drop((second, third));
    // Waiting for another request is no handshake.
    first.wait();
    let _two = [granted(&handshakes, from(1, 1), now), granted(&handshakes, from(1, 1), now)];
    assert_eq!(refused(from(1, 1)), LimitExceeded::Handshakes);
}

#[test]
fn a_client_behind_a_proxy_counts_for_itself_once_it_is_known() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(100, 1, 100));
    let by_proxy = || granted(&handshakes, Newcomer { limited: false, ..from(9, 9) }, now);
    let (mut first, mut second) = (by_proxy(), by_proxy());
    let IpAddr::V4(client) = from(1, 1).address else { panic!("not IPv4") };
    assert_eq!(first.set_client(client.into(), true), Ok(()));
    assert_eq!(second.set_client(client.into(), true), Err(LimitExceeded::Handshakes));
    assert_eq!(handshakes.in_use(), 2);
    drop((first, second));
    assert_eq!(handshakes.in_use(), 0);
    assert!(handshakes.state.lock().sources.is_empty());
}

#[tokio::test]
async fn a_release_wakes_those_who_wait_in_their_order() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(1, 1, 1));
    let permit = granted(&handshakes, from(1, 1), now);
    let mut waiting = [Box::pin(handshakes.released()), Box::pin(handshakes.released())];
    assert!(waiting.iter_mut().all(|released| !released.as_mut().enable()));
    drop(permit);
    let [first, second] = &mut waiting;
    assert!(first.as_mut().enable(), "the first is ready");
    assert!(!second.as_mut().enable(), "one permit wakes one");
}

proptest! {
    #[test]
    fn permits_are_counted_exactly_and_never_exceed_the_limit(
        steps in prop::collection::vec((0_u8..8, 0_u8..4, 0_u8..4, 0_usize..8, 0_u64..3_000), 1..300),
    ) {
        const TOTAL: usize = 12;
        let handshakes = Handshakes::new(limits(TOTAL, 3, 6));
        let (mut now, mut held): (Instant, Vec<HandshakePermit>) = (Instant::now(), Vec::new());
        for (what, network, host, index, elapsed) in steps {
            now += Duration::from_millis(elapsed);
            let permit = (!held.is_empty()).then(|| index % held.len());
            match (what, permit) {
                (0, Some(index)) => drop(held.swap_remove(index)),
                (1, Some(index)) => held[index].wait(),
                (2, Some(index)) => held[index].resume(),
                (3, Some(index)) => held[index].set_heard(now),
                _ => match handshakes.admit(from(network, host), now) {
                    Admission::Granted(permit) => held.push(permit),
                    Admission::Wait(longest) => {
                        prop_assert_eq!(handshakes.in_use(), TOTAL);
                        prop_assert!(longest > Duration::ZERO && longest <= DEADLINE / 2);
                    }
                    Admission::Refused(exceeded) => {
                        let mine = from(network, host).address;
                        let of_source = |key: &Key, entry: &Entry| {
                            (entry.source == Source::of(mine), key.network == Source::of(mine).network())
                        };
                        let state = handshakes.state.lock();
                        let entries = state.active.entries.iter().chain(&state.silent.entries);
                        let seen: Vec<_> = entries.map(|(k, e)| of_source(k, e)).collect();
                        let of_source = seen.iter().filter(|(source, _)| *source).count();
                        let of_network = seen.iter().filter(|(_, network)| *network).count();
                        prop_assert!(of_source >= 3 || of_network >= 6, "{}: {} {}", exceeded, of_source, of_network);
                    }
                },
            }
            let live = held.iter().filter(|permit| !lost(permit)).count();
            prop_assert_eq!(handshakes.in_use(), live);
            prop_assert!(live <= TOTAL);
        }
        drop(held);
        let state = handshakes.state.lock();
        prop_assert!(state.sources.is_empty());
        for group in [&state.silent, &state.active, &state.waiting] {
            prop_assert!(group.counts.is_empty() && group.by_count.is_empty());
        }
    }
}

#[test]
fn a_network_may_have_twice_as_many_handshakes_as_that_of_the_newcomer_and_a_margin() {
    // The margin is 640 / 32 = 20, so 2 * 5 + 20 are disproportionate beside 5.
    for (largest, longest) in [(29, DEADLINE / 2), (30, DEADLINE / SUSPECT)] {
        let now = Instant::now();
        let handshakes = Handshakes::new(limits(640, 640, 640));
        let mut held: Vec<_> = (0..largest).map(|n| heard(&handshakes, from(0, n), now)).collect();
        held.extend((0..5).map(|n| heard(&handshakes, from(1, n), now)));
        // No other network has more than 4.
        for n in 0..640 - held.len() {
            let host = u8::try_from(n % 4).unwrap();
            held.push(heard(&handshakes, from(u8::try_from(2 + n / 4).unwrap(), host), now));
        }
        assert_eq!(wait(&handshakes, from(1, 99), now), longest, "{largest} beside 5");
    }
}

#[test]
fn a_client_behind_a_proxy_counts_for_its_network_once_it_is_known() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(100, 100, 1));
    let by_proxy = || granted(&handshakes, Newcomer { limited: false, ..from(9, 9) }, now);
    let (mut first, mut second) = (by_proxy(), by_proxy());
    assert_eq!(first.set_client(from(1, 1).address, true), Ok(()));
    assert_eq!(second.set_client(from(1, 2).address, true), Err(LimitExceeded::NetworkHandshakes));
    assert_eq!(second.set_client(from(2, 2).address, true), Ok(()));
}

#[tokio::test]
async fn a_changed_limit_applies_to_those_who_wait() {
    let now = Instant::now();
    let handshakes = Handshakes::new(limits(1, 9, 9));
    let mut permit = heard(&handshakes, from(1, 1), now);
    assert_eq!((handshakes.limit(), permit.is_waiting()), (1, false));
    let mut released = Box::pin(handshakes.released());
    assert!(!released.as_mut().enable());
    handshakes.set_limits(limits(2, 9, 9));
    assert!(released.as_mut().enable(), "the one who waits is not woken");
    assert_eq!(handshakes.limit(), 2);
    let _second = granted(&handshakes, from(1, 2), now);
    permit.wait();
    assert!(permit.is_waiting());
    permit.resume();
    assert!(!permit.is_waiting());
}
