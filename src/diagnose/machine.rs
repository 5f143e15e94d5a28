//! The resource limits of this machine, as the kernel reports them.
//!
//! Owns where each number is under `/proc`. Knows nothing of what follows from it. A number that the kernel does not report
//! is `None`.

use std::{fs, io, path::Path};

/// A snapshot of the limits of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Machine {
    /// Descriptors that this process may open (hard RLIMIT_NOFILE).
    pub descriptors: u64,
    /// The value that RLIMIT_NOFILE can be raised to (`fs.nr_open`).
    pub nr_open: Option<u64>,
    /// Open files of the whole machine, and their limit (`fs.file-max`).
    pub files: Option<(u64, u64)>,
    /// The first and the last local port for outgoing connections, and how many of that range are reserved.
    pub ports: Option<(u16, u16, u64)>,
    /// The longest backlog of connections that wait to be accepted (`net.core.somaxconn`).
    pub somaxconn: Option<u64>,
    /// Memory that is available without swapping, in bytes.
    pub memory: Option<u64>,
    /// Tracked connections and their limit, if the firewall tracks any.
    pub tracked: Option<(u64, u64)>,
    /// Sockets that one user may watch with epoll (`fs.epoll.max_user_watches`).
    pub watchers: Option<u64>,
    /// Processors that this process may use.
    pub processors: u64,
}

impl Machine {
    /// Reads the numbers under `proc`, which is `/proc` except in tests.
    pub(crate) fn read(proc: &Path, descriptors: u64) -> Self {
        let text = |name: &str| fs::read_to_string(proc.join(name)).ok();
        let numbers = |name: &str| -> Option<Vec<u64>> {
            text(name)?.split_whitespace().map(|word| word.parse().ok()).collect()
        };
        let number = |name: &str| numbers(name)?.first().copied();
        let ports = || {
            let [first, last] = numbers("sys/net/ipv4/ip_local_port_range")?[..] else { return None };
            let (first, last) = (u16::try_from(first).ok()?, u16::try_from(last).ok()?);
            let reserved = text("sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
            Some((first, last, reserved_between(&reserved, first, last)))
        };
        let memory = || {
            let text = text("meminfo")?;
            let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
        };
        let tracked = || {
            let [count, most] =
                ["count", "max"].map(|name| number(&format!("sys/net/netfilter/nf_conntrack_{name}")));
            count.zip(most)
        };
        Self {
            descriptors,
            nr_open: number("sys/fs/nr_open"),
            files: numbers("sys/fs/file-nr").and_then(|numbers| Some((*numbers.first()?, *numbers.get(2)?))),
            ports: ports(),
            somaxconn: number("sys/net/core/somaxconn"),
            memory: memory(),
            tracked: tracked(),
            watchers: number("sys/fs/epoll/max_user_watches"),
            processors: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        }
    }

    /// Reads `/proc`.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub(crate) fn local(descriptors: u64) -> io::Result<Self> {
        let proc = Path::new("/proc");
        proc.join("meminfo").metadata()?;
        Ok(Self::read(proc, descriptors))
    }

    /// How many outgoing connections one local address can have to one remote address and port.
    pub(crate) fn local_ports(&self) -> Option<u64> {
        let (first, last, reserved) = self.ports?;
        Some((u64::from(last) + 1).saturating_sub(u64::from(first)).saturating_sub(reserved))
    }
}

/// How many ports of a list such as `8080,9000-9010` are in the range from `first` to `last`.
fn reserved_between(list: &str, first: u16, last: u16) -> u64 {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) =
            (from.trim().parse::<u16>().ok()?.max(first), to.trim().parse::<u16>().ok()?.min(last));
        (from <= to).then(|| u64::from(to - from) + 1)
    };
    list.split(',').filter_map(range).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_read_from_its_file() {
        let proc = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = proc.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(
            Machine { processors: 0, ..Machine::read(proc.path(), 20_000) },
            Machine { descriptors: 20_000, ..Machine::default() },
            "a number that is not reported is None"
        );
        write("sys/fs/nr_open", "1048576\n");
        write("sys/fs/file-nr", "5131\t0\t2466177\n");
        write("sys/net/ipv4/ip_local_port_range", "32768\t60999\n");
        write("sys/net/ipv4/ip_local_reserved_ports", "8080,40000-40009,60990-61010\n");
        write("sys/net/core/somaxconn", "4096\n");
        write("sys/net/netfilter/nf_conntrack_count", "12\n");
        write("sys/net/netfilter/nf_conntrack_max", "262144\n");
        write("sys/fs/epoll/max_user_watches", "5491511\n");
        write("meminfo", "MemTotal:       24683520 kB\nMemAvailable:   20796000 kB\n");
        let machine = Machine { processors: 2, ..Machine::read(proc.path(), 20_000) };
        let expected = Machine {
            descriptors: 20_000,
            nr_open: Some(1_048_576),
            files: Some((5131, 2_466_177)),
            ports: Some((32_768, 60_999, 20)),
            somaxconn: Some(4096),
            memory: Some(20_796_000 * 1024),
            tracked: Some((12, 262_144)),
            watchers: Some(5_491_511),
            processors: 2,
        };
        assert_eq!(machine, expected);
        assert_eq!(machine.local_ports(), Some(28_212));
    }

    #[test]
    fn the_limits_of_this_machine_are_read() {
        let machine = Machine::local(1024).unwrap();
        assert!(machine.processors > 0 && machine.memory > Some(0), "{machine:?}");
        assert!(machine.local_ports().is_some_and(|ports| ports > 0), "{machine:?}");
    }
}
