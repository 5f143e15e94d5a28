//! Permits in every order that their threads can have.

use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    sync::Arc,
    time::Instant,
};

use loom::thread;

use super::{ConcurrencyLimit, LimitExceeded, PerIp, PerNetwork, RateLimiter, TrackedSources};

#[test]
fn permits_never_exceed_the_limit() {
    loom::model(|| {
        let limit = ConcurrencyLimit::new(1);
        let attempt = {
            let limit = Arc::clone(&limit);
            thread::spawn(move || {
                let permit = limit.try_acquire();
                assert!(limit.in_use() <= 1);
                permit.is_some()
            })
        };
        let permit = limit.try_acquire();
        assert!(limit.in_use() <= 1);
        let here = permit.is_some();
        drop(permit);
        let there = attempt.join().unwrap();
        assert!(here || there, "both were refused, although a permit was free");
        assert_eq!(limit.in_use(), 0);
    });
}

#[test]
fn a_reload_that_lowers_the_limit_counts_for_every_later_permit() {
    loom::model(|| {
        let limit = ConcurrencyLimit::new(2);
        let _held = limit.try_acquire();
        let reload = {
            let limit = Arc::clone(&limit);
            thread::spawn(move || limit.set_limit(1))
        };
        let early = limit.try_acquire();
        reload.join().unwrap();
        drop(early);
        assert!(limit.try_acquire().is_none(), "there are as many as the new limit allows");
        assert_eq!(limit.in_use(), 1);
    });
}

#[test]
fn an_address_never_has_more_connections_than_its_limit() {
    loom::model(|| {
        let epoch = Instant::now();
        let (one, ten) = (NonZeroU32::MIN, NonZeroU32::new(10).unwrap());
        let per_ip = PerIp { rate: ten, burst: ten, sessions: one, handshakes: ten, exempt: Vec::new() };
        let bounds = TrackedSources { sources: 8, networks: 8, refused: 8 };
        let limiter = RateLimiter::new(per_ip, &PerNetwork::UNLIMITED, None, bounds, epoch);
        let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
        let other = {
            let limiter = Arc::clone(&limiter);
            thread::spawn(move || limiter.admit(client, epoch).map(drop))
        };
        let here = limiter.admit(client, epoch);
        if let Err(exceeded) = &here {
            assert_eq!(*exceeded, LimitExceeded::Sessions);
        }
        let there = other.join().unwrap();
        assert!(here.is_ok() || there.is_ok(), "both were refused");
        drop(here);
        assert!(limiter.admit(client, epoch).is_ok(), "a permit was not released");
    });
}
