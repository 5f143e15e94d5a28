//! What a connection is called: in its closing line, and towards its server.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

/// The name of one connection, such as `9f1c03ab77d2-42`: the same in the log of the gateway and in that of the server
/// behind it. No other connection of this process has it, and hardly one of another process or machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    process: u64,
    number: u64,
}

impl ConnectionId {
    /// The connection of that number, of the process of that number.
    pub const fn new(process: u64, number: u64) -> Self {
        Self { process, number }
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}-{}", self.process, self.number)
    }
}

/// Gives out names.
#[derive(Debug)]
pub struct ConnectionIds {
    process: u64,
    last: AtomicU64,
}

impl Default for ConnectionIds {
    fn default() -> Self {
        // The keys of a new hasher come from the system's random numbers.
        let random = RandomState::new().hash_one(std::process::id());
        Self { process: random >> 16, last: AtomicU64::new(0) }
    }
}

impl ConnectionIds {
    /// The next one.
    pub fn next(&self) -> ConnectionId {
        ConnectionId::new(self.process, self.last.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_name_is_given_twice_nor_by_two_processes() {
        let (one, other) = (ConnectionIds::default(), ConnectionIds::default());
        let names: HashSet<String> =
            (0..100).flat_map(|_| [one.next().to_string(), other.next().to_string()]).collect();
        assert_eq!(names.len(), 200);
        for name in names {
            let (process, number) = name.split_once('-').unwrap();
            assert!(process.len() == 12 && process.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
            assert!((1..=100).contains(&number.parse::<u64>().unwrap()), "{name}");
        }
    }
}
