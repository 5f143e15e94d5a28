//! The request ID of a connection: in the access log, and in the PROXY header for its backend.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

/// Identifies one connection, for example `9f1c03ab77d2-42`: the same in the log of the gateway and in that of the
/// backend. Unique in this process; a collision with another process or machine is very unlikely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    process: u64,
    number: u64,
}

impl ConnectionId {
    pub(crate) const fn new(process: u64, number: u64) -> Self {
        Self { process, number }
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}-{}", self.process, self.number)
    }
}

/// Generates [`ConnectionId`]s.
#[derive(Debug)]
pub(crate) struct ConnectionIds {
    process: u64,
    last_number: AtomicU64,
}

impl Default for ConnectionIds {
    fn default() -> Self {
        // RandomState takes its keys from the random numbers of the operating system.
        let random = RandomState::new().hash_one(std::process::id());
        Self { process: random >> 16, last_number: AtomicU64::new(0) }
    }
}

impl ConnectionIds {
    pub(crate) fn next(&self) -> ConnectionId {
        ConnectionId::new(self.process, self.last_number.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_unique_within_and_across_processes() {
        let (one, other) = (ConnectionIds::default(), ConnectionIds::default());
        let ids: HashSet<String> =
            (0..100).flat_map(|_| [one.next().to_string(), other.next().to_string()]).collect();
        assert_eq!(ids.len(), 200);
        for id in ids {
            let (process, number) = id.split_once('-').unwrap();
            assert!(process.len() == 12 && process.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
            assert!((1..=100).contains(&number.parse::<u64>().unwrap()), "{id}");
        }
    }
}
