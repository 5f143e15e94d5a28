//! Resource usage of this process, from /proc. What cannot be read is left out.

use procfs::{
    WithCurrentSystemInfo,
    process::{LimitValue, Process},
    ticks_per_second,
};
use serde::Serialize;

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct ProcessStats {
    pub(super) open_fds: Option<u64>,
    /// The soft limit of open descriptors.
    pub(super) max_fds: Option<u64>,
    pub(super) resident_bytes: Option<u64>,
    /// User and system time of all threads.
    pub(super) cpu_seconds: Option<f64>,
}

pub(super) fn measure() -> ProcessStats {
    let Ok(process) = Process::myself() else { return ProcessStats::default() };
    let stat = process.stat().ok();
    let limit = process.limits().ok().map(|limits| limits.max_open_files.soft_limit);
    let ticks = ticks_per_second() as f64;
    ProcessStats {
        open_fds: process.fd_count().ok().map(|count| count as u64),
        max_fds: limit.and_then(|limit| match limit {
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
    fn proc_has_every_figure() {
        let stats = measure();
        assert!(stats.open_fds.is_some_and(|count| (3..100_000).contains(&count)), "{stats:?}");
        assert!(stats.max_fds >= stats.open_fds, "{stats:?}");
        assert!(stats.resident_bytes.is_some_and(|bytes| bytes > 1 << 20), "{stats:?}");
        assert!(stats.cpu_seconds.is_some_and(|seconds| seconds < 1e6), "{stats:?}");
    }
}
