use std::num::NonZeroU32;

use proptest::prelude::*;

use super::{
    bucket::{SourceState, TokenBucket},
    *,
};
use crate::admission::table::BoundedTable;

const SECOND: Duration = Duration::from_secs(1);

impl RateLimiter {
    /// The number of sources in both tables.
    fn source_count(&self) -> usize {
        self.v4.lock().sources().len() + self.v6.lock().sources().len()
    }
}

impl Family {
    fn sources(&self) -> &BoundedTable<SourceState> {
        &self.tables.last().unwrap().1
    }
}

fn rows(rows: usize) -> TrackedSources {
    TrackedSources { sources: rows, networks: rows, refused: rows }
}

/// Without limits on networks.
fn new_limiter(limits: PerIp, sources: usize, epoch: Instant) -> Arc<RateLimiter> {
    RateLimiter::new(limits, &PerNetwork::UNLIMITED, None, rows(sources), epoch)
}

fn penalties(rate: u32, burst: u32) -> Penalties {
    let some = |n| NonZeroU32::new(n).unwrap();
    Penalties { rate: some(rate), burst: some(burst), min: SECOND * 10, max: SECOND * 600 }
}

/// With penalties, and limits that are not reached.
fn penalizing(rate: u32, burst: u32, refused: usize, epoch: Instant) -> Arc<RateLimiter> {
    let rows = TrackedSources { sources: 16, networks: 16, refused };
    let limits = limits(u32::MAX, u32::MAX, u32::MAX);
    RateLimiter::new(limits, &PerNetwork::UNLIMITED, Some(penalties(rate, burst)), rows, epoch)
}

fn limits(rate: u32, burst: u32, sessions: u32) -> PerIp {
    let some = |n| NonZeroU32::new(n).unwrap();
    let handshakes = NonZeroU32::MAX;
    PerIp { rate: some(rate), burst: some(burst), sessions: some(sessions), handshakes, exempt: Vec::new() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn v4(n: u32) -> IpAddr {
    IpAddr::V4(n.into())
}

fn v6(prefix: u64, interface: u64) -> IpAddr {
    IpAddr::V6((u128::from(prefix) << 64 | u128::from(interface)).into())
}

#[test]
fn burst_is_admitted_and_then_the_rate() {
    let epoch = Instant::now();
    let limiter = new_limiter(limits(20, 3, 100), 16, epoch);
    let admit = |at| limiter.admit(ip("192.0.2.1"), epoch + at);
    let _held: Vec<AddressPermit> = (0..3).map(|_| admit(SECOND).unwrap()).collect();
    let wait = Duration::from_millis(50);
    assert_eq!(admit(SECOND).unwrap_err(), LimitExceeded::Rate { retry_after: wait });
    let almost = SECOND + wait - Duration::from_nanos(1);
    assert_eq!(admit(almost).unwrap_err(), LimitExceeded::Rate { retry_after: Duration::from_nanos(1) });
    let _fourth = admit(SECOND + wait).unwrap();
    assert_eq!(admit(SECOND + wait).unwrap_err(), LimitExceeded::Rate { retry_after: wait });
    let _burst_again: Vec<AddressPermit> = (0..3).map(|_| admit(SECOND * 2).unwrap()).collect();
    assert!(admit(SECOND * 2).is_err());
}

#[test]
fn refused_attempts_consume_no_quota() {
    let epoch = Instant::now();
    let limiter = new_limiter(limits(1, 1, 100), 16, epoch);
    let _held = limiter.admit(v4(1), epoch).unwrap();
    for n in 0..1000 {
        let at = Duration::from_micros(n);
        let refused = limiter.admit(v4(1), epoch + at).unwrap_err();
        assert_eq!(refused, LimitExceeded::Rate { retry_after: SECOND - at });
    }
    assert!(limiter.admit(v4(1), epoch + SECOND).is_ok());
}

#[test]
fn permit_is_held_until_dropped_and_the_session_limit_consumes_no_rate() {
    let epoch = Instant::now();
    let limiter = new_limiter(limits(1, 3, 2), 16, epoch);
    let first = limiter.admit(v4(1), epoch).unwrap();
    let _second = limiter.admit(v4(1), epoch).unwrap();
    for _ in 0..10 {
        assert_eq!(limiter.admit(v4(1), epoch).unwrap_err(), LimitExceeded::Sessions);
    }
    let _other = limiter.admit(v4(2), epoch).unwrap();
    drop(first);
    let _third = limiter.admit(v4(1), epoch).unwrap();
    // Both limits are reached; the one that waiting does not lift is returned.
    assert_eq!(limiter.admit(v4(1), epoch).unwrap_err(), LimitExceeded::Sessions);
}

#[test]
fn ipv6_64_is_one_source_and_mapped_addresses_are_ipv4() {
    let epoch = Instant::now();
    let limiter = new_limiter(limits(1, 2, 100), 16, epoch);
    let admit = |address: IpAddr| limiter.admit(address, epoch).map(std::mem::forget);
    assert!(admit(v6(0x2001_0db8_0000_0001, 1)).is_ok());
    assert!(admit(v6(0x2001_0db8_0000_0001, u64::MAX)).is_ok());
    assert!(
        admit(v6(0x2001_0db8_0000_0001, 77)).is_err(),
        "another address of the same /64 does not evade the limit"
    );
    assert!(admit(v6(0x2001_0db8_0000_0002, 77)).is_ok(), "the next /64 is another source");
    assert!(admit(ip("::ffff:192.0.2.1")).is_ok());
    assert!(admit(ip("192.0.2.1")).is_ok());
    assert!(admit(ip("::ffff:192.0.2.1")).is_err());
    assert!(admit(ip("::ffff:192.0.2.2")).is_ok(), "mapped addresses do not share a /64");
    assert_eq!(limiter.source_count(), 4);
}

fn network_limits(rate: u32, burst: u32, sessions: u32) -> PerNetwork {
    let PerIp { rate, burst, sessions, handshakes, .. } = limits(rate, burst, sessions);
    PerNetwork { rate, burst, sessions, handshakes }
}

#[test]
fn row_72_neighbours_share_the_quota_of_their_network_and_others_do_not() {
    let epoch = Instant::now();
    let new = || RateLimiter::new(limits(1000, 1000, 9), &network_limits(1, 1000, 20), None, rows(99), epoch);
    for (inside, outside) in
        [(ip("192.0.2.0"), ip("192.0.3.0")), (ip("2001:db8:0:ff00::"), ip("2001:db8:0:fe00::"))]
    {
        let (limiter, mut held) = (new(), Vec::new());
        let neighbour = |n: u8| match inside {
            IpAddr::V4(base) => v4(base.to_bits() + u32::from(n)),
            IpAddr::V6(base) => IpAddr::V6((base.to_bits() + (u128::from(n) << 64)).into()),
        };
        for n in 0..20 {
            held.push(limiter.admit(neighbour(n), epoch).unwrap());
        }
        for n in 0..=255 {
            assert_eq!(limiter.admit(neighbour(n), epoch).unwrap_err(), LimitExceeded::NetworkSessions);
        }
        let _other = limiter.admit(outside, epoch).unwrap();
        held.pop();
        let _again = limiter.admit(neighbour(200), epoch).unwrap();
    }
}

#[test]
fn row_72_the_networks_of_an_ipv6_48_share_four_times_the_quota_of_one() {
    let epoch = Instant::now();
    let limiter =
        RateLimiter::new(limits(1000, 1000, 9), &network_limits(1000, 1000, 5), None, rows(99), epoch);
    let mut held = Vec::new();
    for n in 0..256 {
        held.extend(limiter.admit(v6(0x2001_0db8_0000_0000 | n << 8, 1), epoch));
    }
    assert_eq!(held.len(), 20);
    let _other = limiter.admit(v6(0x2001_0db8_0001_0000, 1), epoch).unwrap();
}

#[test]
fn row_72_the_rate_of_a_network_is_limited_and_a_refused_attempt_counts_on_no_level() {
    let epoch = Instant::now();
    let limiter = RateLimiter::new(limits(1, 2, 99), &network_limits(10, 5, 99), None, rows(99), epoch);
    let mut held = Vec::new();
    // The source's own limit refuses all but two of these, which therefore do not count for the network.
    for _ in 0..100 {
        held.extend(limiter.admit(v4(1), epoch));
    }
    for n in 2..5 {
        held.push(limiter.admit(v4(n), epoch).unwrap());
    }
    let retry_after = Duration::from_millis(100);
    for _ in 0..100 {
        assert_eq!(limiter.admit(v4(5), epoch).unwrap_err(), LimitExceeded::NetworkRate { retry_after });
    }
    // What the network refused did not count for the source.
    held.push(limiter.admit(v4(5), epoch + retry_after).unwrap());
    held.push(limiter.admit(v4(5), epoch + retry_after * 2).unwrap());
    assert_eq!(limiter.source_count(), 5);
    assert!(limiter.admit(v4(0x100), epoch).is_ok());
}

#[test]
fn new_limits_apply_at_once_and_permits_stay_valid() {
    let epoch = Instant::now();
    let limiter = new_limiter(limits(1, 1, 9), 16, epoch);
    let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse::<IpAddr>().unwrap());
    let held = limiter.admit(one, epoch).unwrap();
    assert!(matches!(limiter.admit(one, epoch), Err(LimitExceeded::Rate { .. })));
    limiter.set_limits(limits(1000, 1000, 2), &PerNetwork::UNLIMITED, None, rows(16));
    let second = limiter.admit(one, epoch + SECOND).unwrap();
    assert_eq!(limiter.admit(one, epoch + SECOND).unwrap_err(), LimitExceeded::Sessions);
    // The bound is lower now, but a source that holds a permit is not evicted.
    limiter.set_limits(limits(1000, 1000, 2), &PerNetwork::UNLIMITED, None, rows(1));
    assert_eq!(limiter.admit(other, epoch + SECOND).unwrap_err(), LimitExceeded::Sessions);
    drop((held, second));
    assert!(limiter.admit(other, epoch + SECOND).is_ok());
    assert_eq!(limiter.source_count(), 1);
}

#[test]
fn exempt_networks_are_neither_counted_nor_refused() {
    let epoch = Instant::now();
    let exempt = ["10.0.0.0/8", "2001:db8::/32", "::ffff:192.0.2.0/120"].map(|net| net.parse().unwrap());
    let limiter = new_limiter(PerIp { exempt: exempt.to_vec(), ..limits(1, 1, 1) }, 16, epoch);
    for address in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8:7::1", "192.0.2.9", "::ffff:192.0.2.9"] {
        let held: Vec<_> = (0..5).map(|_| limiter.admit(ip(address), epoch)).collect();
        assert!(held.iter().all(Result::is_ok), "{address}");
    }
    assert_eq!(limiter.source_count(), 0);
    let _one = limiter.admit(ip("192.0.3.9"), epoch).unwrap();
    assert!(limiter.admit(ip("192.0.3.9"), epoch).is_err());
}

#[test]
fn mapped_ipv4_networks_cover_ipv4_addresses() {
    let covers = |net: &str, address: &str| covers(&[net.parse().unwrap()], ip(address));
    assert!(covers("0.0.0.0/0", "::ffff:1.2.3.4"));
    assert!(covers("::ffff:0:0/96", "1.2.3.4"));
    assert!(covers("::ffff:10.0.0.0/104", "10.9.9.9"));
    assert!(!covers("::ffff:10.0.0.0/104", "11.9.9.9"));
    assert!(!covers("::/0", "1.2.3.4"));
    assert!(!covers("0.0.0.0/0", "::1"));
    assert!(covers("10.0.0.7/8", "10.200.0.1"), "host bits of a network are ignored");
    assert!(covers("192.0.2.1/32", "192.0.2.1") && !covers("192.0.2.1/32", "192.0.2.2"));
}

#[test]
fn one_million_sources_stay_within_the_bound_and_permits_survive() {
    const BOUND: usize = 65_536;
    let epoch = Instant::now();
    let limiter = new_limiter(limits(20, 2, 1), BOUND, epoch);
    let permits: Vec<AddressPermit> = (0..9_000).map(|n| limiter.admit(v4(n), epoch).unwrap()).collect();
    for n in 0..1_000_000_u32 {
        let now = epoch + Duration::from_micros(n.into());
        drop(limiter.admit(v4(0x0100_0000 + n), now).unwrap());
        if n % 4 == 0 {
            drop(limiter.admit(v6(0x2001_0db8 << 32 | u64::from(n), 1), now).unwrap());
        }
        if n % 4096 == 0 {
            assert!(limiter.source_count() <= 2 * BOUND, "{} sources after {n}", limiter.source_count());
        }
    }
    let (v4_family, v6_family) = (limiter.v4.lock(), limiter.v6.lock());
    let (v4_table, v6_table) = (v4_family.sources(), v6_family.sources());
    assert_eq!((v4_table.len(), v6_table.len()), (BOUND, BOUND));
    // A row takes 32 bytes with its hash, an index entry 9; growth may have over-allocated both twofold.
    for capacity in [v4_table.capacity(), v6_table.capacity()] {
        assert!(capacity <= 4 * BOUND, "capacity for {capacity} rows in a table of {BOUND}");
    }
    drop((v4_family, v6_family));
    let later = epoch + SECOND * 60;
    for n in 0..9_000 {
        assert_eq!(
            limiter.admit(v4(n), later).unwrap_err(),
            LimitExceeded::Sessions,
            "source {n} was evicted"
        );
    }
    drop(permits);
    assert!(limiter.admit(v4(0), later).is_ok());
}

/// Runs in a process of its own, whose memory no other test changes.
#[test]
fn row_30_one_million_sources_and_networks_add_at_most_16_mib() {
    const NAME: &str = "admission::rate::tests::row_30_one_million_sources_and_networks_add_at_most_16_mib";
    const ALONE: &str = "PORTCULLIS_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", NAME, "--nocapture"]).env(ALONE, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        // Without the pages of the program itself, which the test touches for the first time.
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap().trim();
        line.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let epoch = Instant::now();
    let bounds = TrackedSources { sources: 65_536, networks: 20_048, refused: 16_384 };
    let per_network = network_limits(160, 480, 1600);
    let limiter = RateLimiter::new(limits(20, 60, 200), &per_network, Some(penalties(2, 200)), bounds, epoch);
    let before = resident();
    for n in 0..1_000_000_u32 {
        let now = epoch + Duration::from_micros(n.into());
        // Half of them IPv4, each in a /24 of its own; half of them IPv6, each in a /48 of its own.
        let source = if n % 2 == 0 { v4(n << 8) } else { v6(0x2000 << 48 | u64::from(n) << 16, 1) };
        drop(limiter.admit(source, now).unwrap());
        limiter.count_refusal(source, now);
    }
    let added = resident().saturating_sub(before);
    assert!(added <= 16 * 1024, "{added} KiB");
    eprintln!("{added} KiB");
}

#[test]
fn row_28_a_penalty_is_that_of_one_source_and_ends() {
    let epoch = Instant::now();
    for (hostile, same, neighbour) in [
        (ip("192.0.2.1"), ip("::ffff:192.0.2.1"), ip("192.0.2.2")),
        (ip("2001:db8:0:1::1"), ip("2001:db8:0:1:ffff::9"), ip("2001:db8:0:2::1")),
    ] {
        let limiter = penalizing(1, 3, 16, epoch);
        let before = limiter.admit(hostile, epoch).unwrap();
        let begun: Vec<_> = (0..5).map(|_| limiter.count_refusal(hostile, epoch)).collect();
        assert_eq!(begun, [None, None, None, Some(SECOND * 10), None]);
        let retry_after = SECOND * 9;
        for address in [hostile, same] {
            let refused = limiter.admit(address, epoch + SECOND).unwrap_err();
            assert_eq!(refused, LimitExceeded::Penalty { retry_after });
            assert_eq!(refused.retry_after(), Some(retry_after));
        }
        assert!(limiter.admit(neighbour, epoch + SECOND).is_ok(), "a neighbour of {hostile}");
        assert!(limiter.admit(same, epoch + SECOND * 10).is_ok(), "the penalty of {hostile} has ended");
        drop(before);
    }
}

#[test]
fn row_28_exempt_sources_and_disabled_penalties_leave_no_row() {
    let epoch = Instant::now();
    let exempt = vec!["192.0.2.0/24".parse().unwrap()];
    let limits = PerIp { exempt, ..limits(1, 1, 1) };
    let exempting =
        RateLimiter::new(limits.clone(), &PerNetwork::UNLIMITED, Some(penalties(1, 1)), rows(9), epoch);
    let disabled = new_limiter(PerIp { exempt: Vec::new(), ..limits }, 9, epoch);
    for limiter in [exempting, disabled] {
        for _ in 0..100 {
            assert_eq!(limiter.count_refusal(ip("192.0.2.1"), epoch), None);
        }
        assert!(limiter.admit(ip("192.0.2.1"), epoch).is_ok());
        assert_eq!(limiter.v4.lock().refused.len(), 0);
    }
}

#[test]
fn row_28_a_reload_ends_all_penalties() {
    let epoch = Instant::now();
    let limiter = penalizing(1, 1, 16, epoch);
    while limiter.count_refusal(v4(1), epoch).is_none() {}
    assert!(limiter.admit(v4(1), epoch).is_err());
    limiter.set_limits(limits(9, 9, 9), &PerNetwork::UNLIMITED, Some(penalties(1, 1)), rows(16));
    assert!(limiter.admit(v4(1), epoch).is_ok());
    assert_eq!(limiter.count_refusal(v4(1), epoch), None);
}

#[test]
fn row_28_refused_sources_are_bounded_and_penalties_are_evicted_last() {
    const BOUND: usize = 1_024;
    let epoch = Instant::now();
    let limiter = penalizing(1, 3, BOUND, epoch);
    while limiter.count_refusal(v4(0), epoch).is_none() {}
    while limiter.count_refusal(v6(0, 1), epoch).is_none() {}
    for n in 1..100_000 {
        limiter.count_refusal(v4(n), epoch);
        limiter.count_refusal(v6(n.into(), 1), epoch);
        assert!(limiter.v4.lock().refused.len() <= BOUND && limiter.v6.lock().refused.len() <= BOUND);
    }
    for hostile in [v4(0), v6(0, 1)] {
        assert!(limiter.admit(hostile, epoch).is_err(), "other sources evicted the penalty of {hostile}");
    }
}

#[test]
fn table_full_of_permits_refuses_only_new_sources() {
    let epoch = Instant::now();
    let limiter = new_limiter(limits(1000, 1000, 2), 64, epoch);
    let mut permits: Vec<AddressPermit> = (0..64).map(|n| limiter.admit(v4(n), epoch).unwrap()).collect();
    assert_eq!(limiter.admit(v4(64), epoch).unwrap_err(), LimitExceeded::Sessions);
    assert!(limiter.admit(v4(63), epoch).is_ok(), "a known source is admitted");
    // The one evictable row of 64 is found, even if the random sample misses it.
    drop(permits.remove(17));
    let _new_source = limiter.admit(v4(64), epoch).unwrap();
    assert_eq!(limiter.source_count(), 64);
    assert!(limiter.v4.lock().sources().get(17).is_none());
}

#[test]
fn refused_source_is_evicted_after_quiet_ones() {
    let epoch = Instant::now();
    let limiter = new_limiter(limits(1, 60, 100), 1024, epoch);
    let greedy = v4(0);
    while limiter.admit(greedy, epoch).is_ok() {}
    for n in 1..100_000 {
        drop(limiter.admit(v4(n), epoch).unwrap());
    }
    assert!(limiter.admit(greedy, epoch).is_err(), "other sources evicted the greedy one from the table");
}

#[test]
fn table_has_at_least_one_row() {
    let epoch = Instant::now();
    let limiter = new_limiter(limits(1, 1, 1), 0, epoch);
    let held = limiter.admit(v4(1), epoch).unwrap();
    assert_eq!(limiter.admit(v4(2), epoch).unwrap_err(), LimitExceeded::Sessions);
    drop(held);
    assert!(limiter.admit(v4(2), epoch).is_ok());
}

#[test]
fn extreme_limits_and_times_saturate() {
    let epoch = Instant::now() + SECOND;
    let limiter = new_limiter(limits(u32::MAX, u32::MAX, u32::MAX), 16, epoch);
    assert!(limiter.admit(v4(1), epoch).is_ok());
    assert!(limiter.admit(v4(1), epoch - SECOND).is_ok(), "a time before the epoch counts as the epoch");
    let slow = new_limiter(limits(1, u32::MAX, u32::MAX), 16, epoch);
    assert!(slow.admit(v4(1), epoch + SECOND).is_ok());
    assert!(slow.admit(v4(1), epoch).is_ok(), "a time that steps back does not panic");
    let mut source = SourceState { tat: u64::MAX, held: 0 };
    let one = NonZeroU32::MIN;
    let bucket = TokenBucket::new(one, one, one);
    assert_eq!(source.admit(u64::MAX, &bucket), Ok(u64::MAX));
    assert_eq!(source.tat, u64::MAX);
}

#[test]
fn permits_cross_threads() {
    fn is_send_and_sync<T: Send + Sync + 'static>() {}
    is_send_and_sync::<RateLimiter>();
    is_send_and_sync::<AddressPermit>();
    let epoch = Instant::now();
    let limiter = new_limiter(limits(u32::MAX, 1_000_000, 7), 16, epoch);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..2_000).for_each(|_| drop(limiter.admit(v4(1), epoch))));
        }
    });
    assert_eq!(limiter.v4.lock().sources().get(1).unwrap().held, 0);
    let held: Vec<_> = (0..8).filter_map(|_| limiter.admit(v4(1), epoch).ok()).collect();
    assert_eq!(held.len(), 7);
}

proptest! {
    #[test]
    fn no_window_admits_more_than_burst_and_rate(
        rate in 1_u32..2_000,
        burst in 1_u32..50,
        gaps in prop::collection::vec(0_u64..20_000_000, 1..300),
    ) {
        let epoch = Instant::now();
        let limiter = new_limiter(limits(rate, burst, u32::MAX), 16, epoch);
        let (mut at, mut admitted, mut held) = (0, Vec::new(), Vec::new());
        for gap in gaps {
            at += gap;
            match limiter.admit(v4(1), epoch + Duration::from_nanos(at)) {
                Ok(permit) => { admitted.push(at); held.push(permit); }
                Err(LimitExceeded::Rate { retry_after }) => {
                    prop_assert!(retry_after > Duration::ZERO);
                    prop_assert!(retry_after <= SECOND.div_f64(f64::from(rate)) + Duration::from_nanos(2));
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
        for (first, &from) in admitted.iter().enumerate() {
            for (count, &to) in (1_u64..).zip(&admitted[first..]) {
                let allowed = u64::from(burst) + (to - from) * u64::from(rate) / 1_000_000_000;
                prop_assert!(count <= allowed, "{count} in {} ns, {allowed} allowed", to - from);
            }
        }
    }

    #[test]
    fn waiting_for_retry_after_is_enough(
        rate in 1_u32..2_000, burst in 1_u32..20, gaps in prop::collection::vec(0_u64..5_000_000, 1..100),
    ) {
        let epoch = Instant::now();
        let limiter = new_limiter(limits(rate, burst, u32::MAX), 16, epoch);
        let mut now = epoch;
        for gap in gaps {
            now += Duration::from_nanos(gap);
            if let Err(refused) = limiter.admit(v4(1), now) {
                let LimitExceeded::Rate { retry_after } = refused else { panic!("{refused}") };
                prop_assert!(limiter.admit(v4(1), now + retry_after - Duration::from_nanos(1)).is_err());
                now += retry_after;
                prop_assert!(limiter.admit(v4(1), now).is_ok());
            }
        }
    }

    #[test]
    fn row_28_a_source_without_refusals_is_never_refused(
        refusals in prop::collection::vec((0_u32..64, 0_u64..2_000_000_000), 1..500),
    ) {
        let epoch = Instant::now();
        let limiter = penalizing(1, 2, 16, epoch);
        let mut now = epoch;
        for (n, gap) in refusals {
            now += Duration::from_nanos(gap);
            limiter.count_refusal(v4(2 * n), now);
            prop_assert!(limiter.admit(v4(2 * n + 1), now).is_ok(), "{} was never refused", 2 * n + 1);
        }
    }

    #[test]
    fn permits_are_counted_exactly(steps in prop::collection::vec((0_u32..12, any::<bool>()), 1..400)) {
        let epoch = Instant::now();
        let limiter = new_limiter(limits(u32::MAX, u32::MAX, 3), 8, epoch);
        let mut held: Vec<(u32, AddressPermit)> = Vec::new();
        for (n, connect) in steps {
            let mine = held.iter().filter(|(source, _)| *source == n).count();
            let others = held.iter().map(|(source, _)| source).collect::<std::collections::HashSet<_>>().len();
            if connect {
                let permit = limiter.admit(v4(n), epoch);
                prop_assert_eq!(permit.is_ok(), mine < 3 && (mine > 0 || others < 8));
                held.extend(permit.ok().map(|permit| (n, permit)));
            } else if let Some(index) = held.iter().position(|(source, _)| *source == n) {
                drop(held.swap_remove(index));
            }
            prop_assert!(limiter.source_count() <= 8);
            let counted: u32 = limiter.v4.lock().sources().rows().map(|source| source.held).sum();
            prop_assert_eq!(counted as usize, held.len());
        }
    }
}

#[test]
fn only_the_permit_of_an_exempt_address_is_exempt() {
    let epoch = Instant::now();
    let exempt = vec!["192.0.2.0/24".parse().unwrap()];
    let limiter = new_limiter(PerIp { exempt, ..limits(9, 9, 9) }, 16, epoch);
    assert!(limiter.admit(ip("192.0.2.1"), epoch).unwrap().is_exempt());
    assert!(!limiter.admit(ip("198.51.100.1"), epoch).unwrap().is_exempt());
}
