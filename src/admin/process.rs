//! What the system says of this process (/proc). What it does not say is left out.

use procfs::{
    WithCurrentSystemInfo,
    process::{LimitValue, Process},
    ticks_per_second,
};
use serde::Serialize;

/// A process at one moment.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct ProcessStats {
    /// Descriptors that are open.
    pub(super) open_fds: Option<u64>,
    /// Descriptors that may be.
    pub(super) max_fds: Option<u64>,
    /// Memory that is not swapped out, in bytes.
    pub(super) resident_bytes: Option<u64>,
    /// Processor time of all threads, in seconds.
    pub(super) cpu_seconds: Option<f64>,
}

/// Looks at ourselves.
pub(super) fn measure() -> ProcessStats {
    let Ok(process) = Process::myself() else { return ProcessStats::default() };
    let stat = process.stat().ok();
    let allowed = process.limits().ok().map(|limits| limits.max_open_files.soft_limit);
    let ticks = ticks_per_second() as f64;
    ProcessStats {
        open_fds: process.fd_count().ok().map(|count| count as u64),
        max_fds: allowed.and_then(|limit| match limit {
            LimitValue::Value(limit) => Some(limit),
            LimitValue::Unlimited => None,
        }),
        resident_bytes: stat.as_ref().map(|stat| stat.rss_bytes().get()),
        cpu_seconds: stat.map(|stat| (stat.utime + stat.stime) as f64 / ticks),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_knows_us() {
        let seen = measure();
        assert!(seen.open_fds.is_some_and(|count| (3..100_000).contains(&count)), "{seen:?}");
        assert!(seen.max_fds >= seen.open_fds, "{seen:?}");
        assert!(seen.resident_bytes.is_some_and(|bytes| bytes > 1 << 20), "{seen:?}");
        assert!(seen.cpu_seconds.is_some_and(|seconds| seconds < 1e6), "{seen:?}");
    }
}
