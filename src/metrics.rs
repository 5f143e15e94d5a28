//! What was counted.
//!
//! Owns the process's counters. Refuses to know who reads them. Invariant: every connection is counted under exactly
//! one reason, so the sum of all reasons is the number of connections that ended.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::outcome::Reason;

/// The counters of the process. All only grow.
#[derive(Debug)]
pub struct Metrics {
    ended: [AtomicU64; Reason::ALL.len()],
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    accept_errors: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            ended: [const { AtomicU64::new(0) }; Reason::ALL.len()],
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            accept_errors: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// Counts one connection that ended for `reason`.
    pub fn count_end(&self, reason: Reason) {
        self.ended[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the payload of one session: `bytes_in` from client to backend, `bytes_out` the other way.
    pub fn count_bytes(&self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
    }

    /// Counts one failed accept.
    pub fn count_accept_error(&self) {
        self.accept_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// How many connections ended for `reason`.
    pub fn ended(&self, reason: Reason) -> u64 {
        self.ended[reason as usize].load(Ordering::Relaxed)
    }

    /// Payload bytes of ended sessions, from client to backend.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }

    /// Payload bytes of ended sessions, from backend to client.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Ordering::Relaxed)
    }

    /// How many accepts failed.
    pub fn accept_errors(&self) -> u64 {
        self.accept_errors.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let metrics = Metrics::default();
        for &reason in Reason::ALL {
            metrics.count_end(reason);
        }
        assert!(Reason::ALL.iter().all(|&reason| metrics.ended(reason) == 1));
    }
}
