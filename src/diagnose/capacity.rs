//! How many sessions a machine can hold with a configuration, and which limit is reached first.
//!
//! Pure: from numbers to text. Each limit is converted to sessions by itself, as if there were no other. The cost of a
//! session was measured; docs/capacity.md describes how.

use std::{collections::BTreeSet, fmt::Write};

use super::machine::Machine;
use crate::{
    admission::PerNetwork,
    config::{Backend, Config, Destinations, Limits, Route},
    transport::listener::BACKLOG,
};

/// Sockets of a session, which count as descriptors, tracked connections and watched sockets: the client's and the backend's.
const SOCKETS: u64 = 2;
/// Memory of an idle session in the process, in bytes, with TLS and without.
const IDLE_TLS: u64 = 11 * 1024;
const IDLE_PLAIN: u64 = 3 * 1024;
/// Memory of an idle session's two sockets in the kernel, in bytes.
const KERNEL: u64 = 8 * 1024;
/// The most that a session buffers while both peers stall, beside its socket buffers, in bytes.
const STALLED: u64 = 2 * 128 * 1024;
/// The most that the kernel keeps for it in that case, in units of `limits.socket_buffer`: for each of its two sockets
/// twice the size for what was received, and four times for what is not yet sent.
const SOCKET_BUFFERS: u64 = 12;
/// Processor time of a short session with a full TLS handshake, from accept to close, in µs.
const HANDSHAKE: u64 = 400;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limit {
    /// The resource or the configuration key.
    pub name: String,
    /// How many sessions it permits.
    pub sessions: u64,
    /// How that was computed.
    pub why: String,
    /// How to raise it.
    pub advice: String,
}

/// All limits, and remarks on what no number of sessions expresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// The lowest first.
    pub limits: Vec<Limit>,
    pub notes: Vec<String>,
    /// `limits.max_sessions`.
    configured: u64,
}

impl Capacity {
    pub(crate) fn compute(config: &Config, machine: &Machine) -> Self {
        let configured = config.limits.max_sessions as u64;
        let mut limits = vec![Limit {
            name: "limits.max_sessions".to_owned(),
            sessions: configured,
            why: "as configured".to_owned(),
            advice: "raise limits.max_sessions".to_owned(),
        }];
        limits.extend(process_limit(config, machine));
        limits.extend(machine_limits(config, machine));
        for route in &config.routes {
            limits.extend(route_limits(route, machine));
        }
        // The sort is stable: among equals, the configured limit stays first.
        limits.sort_by_key(|limit| limit.sessions);
        Self { limits, notes: notes(config, machine), configured }
    }

    /// The limit that is reached first.
    pub(crate) fn first(&self) -> &Limit {
        // The configured limit is always in the list.
        &self.limits[0]
    }

    /// Describes the limit that is reached before the configured one, if there is one.
    pub(crate) fn shortfall(&self) -> Option<String> {
        let Limit { name, sessions, advice, .. } = self.first();
        let configured = self.configured;
        (*sessions < configured).then(|| {
            format!("{name} allow(s) only {sessions} sessions, fewer than limits.max_sessions = {configured}: {advice}")
        })
    }

    /// The text for people: one line for each limit, the lowest first, then the notes.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from("  sessions  limit\n");
        for Limit { name, sessions, why, .. } in &self.limits {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{sessions:>10}  {name}: {why}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        if self.first().sessions >= self.configured {
            let _ = writeln!(
                text,
                "limits.max_sessions is reached first, at {}; no other limit is lower",
                self.configured
            );
        }
        text
    }
}

/// The descriptor limit.
fn process_limit(config: &Config, machine: &Machine) -> Option<Limit> {
    let others = config.limits.descriptors_beside_sessions(config.listeners.len());
    let max = machine.nr_open.map_or_else(String::new, |max| format!(", at most {max} (fs.nr_open)"));
    Some(Limit {
        name: "descriptors".to_owned(),
        sessions: machine.descriptors.saturating_sub(others) / SOCKETS,
        why: format!(
            "({} - {others} for handshakes, listeners and spares) / {SOCKETS} per session; the hard limit is that of this shell",
            machine.descriptors
        ),
        advice: format!("raise LimitNOFILE= in the unit, or ulimit -Hn{max}"),
    })
}

/// Memory, files, tracked connections, watched sockets.
fn machine_limits(config: &Config, machine: &Machine) -> Vec<Limit> {
    let mut limits = Vec::new();
    let mut add = |name: &str, sessions: u64, why: String, advice: &str| {
        limits.push(Limit { name: name.to_owned(), sessions, why, advice: advice.to_owned() });
    };
    if let Some(memory) = machine.memory {
        let is_tls = config.listeners.iter().any(|listener| listener.identity.is_some());
        let per_session = KERNEL + if is_tls { IDLE_TLS } else { IDLE_PLAIN };
        add(
            "memory",
            memory / per_session,
            format!(
                "{} MiB available / {} KiB per idle session, kernel memory included",
                memory >> 20,
                per_session >> 10
            ),
            "add memory, or distribute the sessions over several machines",
        );
    }
    if let Some((open, max)) = machine.files {
        let why = format!("({max} - {open} that are open) / {SOCKETS} per session");
        add("open files of the machine", max.saturating_sub(open) / SOCKETS, why, "raise fs.file-max");
    }
    if let Some((count, max)) = machine.tracked {
        add(
            "tracked connections",
            max.saturating_sub(count) / SOCKETS,
            format!("({max} - {count}) / {SOCKETS} per session, if the firewall tracks both sides"),
            "raise net.netfilter.nf_conntrack_max, or do not track these ports (notrack in nftables)",
        );
    }
    if let Some(watchers) = machine.watchers {
        let why = format!("{watchers} / {SOCKETS} per session");
        add("watched sockets", watchers / SOCKETS, why, "raise fs.epoll.max_user_watches");
    }
    limits
}

/// The limits of a route's backends: local ports towards them, and their `max_sessions`.
fn route_limits(route: &Route, machine: &Machine) -> Vec<Limit> {
    // The number of backends that tokens select is unknown.
    let Destinations::Fixed(backends) = &route.upstream.destinations else { return Vec::new() };
    let mut limits = Vec::new();
    let count = backends.len() as u64;
    if let Some(each) = route.upstream.max_sessions {
        limits.push(Limit {
            name: format!("route {:?}, max_sessions", route.name),
            sessions: count * each as u64,
            why: format!("{count} backend(s), {each} each"),
            advice: format!("raise max_sessions of route {:?}, or add backends to it", route.name),
        });
    }
    let addresses: BTreeSet<String> = backends.iter().filter_map(address).collect();
    let is_all_tcp = backends.iter().all(|backend| backend.host_and_port().is_some());
    if let Some(ports) = machine.local_ports().filter(|_| is_all_tcp)
        && let Some((first, last, _)) = machine.ports
    {
        limits.push(Limit {
            name: format!("route {:?}, local ports", route.name),
            sessions: addresses.len() as u64 * ports,
            why: format!(
                "{} backend address(es), {ports} local ports for each (net.ipv4.ip_local_port_range {first}-{last})",
                addresses.len()
            ),
            advice: format!(
                "widen net.ipv4.ip_local_port_range, let the backend listen on more addresses or ports and list them \
                 in route {:?}, or connect to it by unix:",
                route.name
            ),
        });
    }
    limits
}

/// The host and port that connections go to, without a name lookup.
fn address(backend: &Backend) -> Option<String> {
    backend.host_and_port().map(|(host, port)| format!("{host}:{port}"))
}

fn notes(config: &Config, machine: &Machine) -> Vec<String> {
    let Limits { max_sessions, max_handshakes, socket_buffer, per_ip, per_network, .. } = &config.limits;
    let mut notes = vec![format!(
        "one client address may hold {} sessions and open {} per second (limits.per_ip); clients behind one \
             address, or behind a proxy that is not in trusted_proxies, share that",
        per_ip.sessions, per_ip.rate
    )];
    if *per_network != PerNetwork::UNLIMITED {
        notes.push(format!(
            "one IPv4 /24 or IPv6 /56 may hold {} sessions and open {} per second (limits.per_network)",
            per_network.sessions, per_network.rate
        ));
    }
    let backlog = u64::from(BACKLOG);
    if let Some(somaxconn) = machine.somaxconn.filter(|somaxconn| *somaxconn < backlog) {
        notes.push(format!(
            "only {somaxconn} connections can wait to be accepted; set net.core.somaxconn to {backlog}, or clients beyond \
             that have to retry when many connect at once"
        ));
    }
    let seconds = (*max_sessions as u64 * HANDSHAKE).div_ceil(machine.processors.max(1) * 1_000_000);
    notes.push(format!(
        "when all {max_sessions} reconnect at once, the last is connected after about {seconds} s of {} processor(s): \
         {max_handshakes} handshakes run at a time, the others wait to be accepted and none is refused",
        machine.processors.max(1)
    ));
    if let Some(memory) = machine.memory {
        let stalled = memory / (STALLED + SOCKET_BUFFERS * u64::from(*socket_buffer));
        notes.push(format!(
            "memory is computed for idle sessions; {stalled} of them could stall in both directions at once"
        ));
    }
    let mut seen = BTreeSet::new();
    let shared: BTreeSet<String> = config
        .routes
        .iter()
        .filter_map(|route| match &route.upstream.destinations {
            Destinations::Fixed(backends) => Some(backends),
            Destinations::Tokens(_) => None,
        })
        .flat_map(|backends| backends.iter().filter_map(address).collect::<BTreeSet<_>>())
        .filter(|address| !seen.insert(address.clone()))
        .collect();
    if !shared.is_empty() {
        let shared: Vec<String> = shared.into_iter().collect();
        notes.push(format!("several routes share the local ports towards {}", shared.join(", ")));
    }
    for route in &config.routes {
        if let Destinations::Tokens(_) = route.upstream.destinations {
            notes.push(format!(
                "route {:?}: the local ports are counted for each backend that a token selects",
                route.name
            ));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const ROUTE: &str = "[[route]]\nname = \"desk\"\npath = \"/desk\"\nbackend = \"tcp://192.0.2.1:5900\"\n";

    fn config(lines: &str) -> Config {
        let text = format!("[[listener]]\naddress = \"127.0.0.1:8080\"\n{lines}");
        Config::parse(&text, Path::new("/etc/portcullis/gateway.toml")).unwrap()
    }

    fn machine() -> Machine {
        Machine {
            descriptors: 100_000,
            nr_open: Some(1_048_576),
            files: Some((1000, 1_000_000)),
            ports: Some((32_768, 60_999, 0)),
            somaxconn: Some(4096),
            memory: Some(8 << 30),
            tracked: Some((144, 262_144)),
            watchers: Some(1_000_000),
            processors: 4,
        }
    }

    fn sessions(capacity: &Capacity) -> Vec<(&str, u64)> {
        capacity.limits.iter().map(|limit| (limit.name.as_str(), limit.sessions)).collect()
    }

    #[test]
    fn each_limit_is_computed_by_itself() {
        let capacity = Capacity::compute(&config(ROUTE), &machine());
        let expected = [
            ("limits.max_sessions", 9000),
            ("route \"desk\", local ports", 28_232),
            // 100,000 less 1,024 handshakes, a listener and 64 others.
            ("descriptors", 49_455),
            ("tracked connections", 131_000),
            ("open files of the machine", 499_500),
            ("watched sockets", 500_000),
            // 8 GiB at 11 KiB.
            ("memory", 762_600),
        ];
        assert_eq!(sessions(&capacity), expected);
        assert_eq!(capacity.shortfall(), None);
        let text = capacity.text();
        assert!(
            text.ends_with("limits.max_sessions is reached first, at 9000; no other limit is lower\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "     28232  route \"desk\", local ports: 1 backend address(es), 28232 local ports"
            ),
            "{text}"
        );
    }

    #[test]
    fn the_first_limit_below_max_sessions_is_named_with_advice() {
        let limits = "[limits]\nmax_sessions = 40000\n";
        for (machine, words) in [
            (
                machine(),
                ["route \"desk\", local ports", "only 28232 sessions", "widen net.ipv4.ip_local_port_range"],
            ),
            (
                Machine { descriptors: 20_000, ..machine() },
                [
                    "descriptors",
                    "only 9455 sessions",
                    "LimitNOFILE= in the unit, or ulimit -Hn, at most 1048576 (fs.nr_open)",
                ],
            ),
            (Machine { memory: Some(64 << 20), ..machine() }, ["memory", "only 5957 sessions", "add memory"]),
            (
                Machine { tracked: Some((0, 1000)), ..machine() },
                ["tracked", "only 500 sessions", "nf_conntrack_max"],
            ),
            (Machine { watchers: Some(10), ..machine() }, ["watched", "only 5 sessions", "max_user_watches"]),
            (
                Machine { files: Some((90, 100)), ..machine() },
                ["open files", "only 5 sessions", "raise fs.file-max"],
            ),
            (Machine { descriptors: 10, ..machine() }, ["descriptors", "only 0 sessions", "LimitNOFILE="]),
        ] {
            let capacity = Capacity::compute(&config(&format!("{ROUTE}{limits}")), &machine);
            let shortfall = capacity.shortfall().unwrap();
            for word in words.into_iter().chain(["fewer than limits.max_sessions = 40000: "]) {
                assert!(shortfall.contains(word), "no {word:?} in {shortfall}");
            }
            assert!(!capacity.text().contains("reached first"), "{}", capacity.text());
        }
    }

    #[test]
    fn local_ports_are_counted_for_each_backend_address() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let tokens = format!("targets = {{ from = \"file\", path = {:?} }}", file.path());
        let route =
            |name: &str, lines: &str| format!("[[route]]\nname = \"{name}\"\npath = \"/{name}\"\n{lines}\n");
        let text = route("two", "backend = [\"tcp://a:1\", \"tls://a:2\"]\nmax_sessions = 100")
            + &route("same", "backend = [\"tcp://a:1\", \"tls://a:1\"]")
            + &route("unix", "backend = [\"unix:/run/a\", \"tcp://a:3\"]")
            + &route("token", &tokens);
        let capacity = Capacity::compute(&config(&text), &machine());
        let of =
            |name: &str| capacity.limits.iter().find(|limit| limit.name == name).map(|limit| limit.sessions);
        assert_eq!(of("route \"two\", local ports"), Some(2 * 28_232));
        assert_eq!(of("route \"two\", max_sessions"), Some(200));
        assert_eq!(of("route \"same\", local ports"), Some(28_232));
        assert_eq!(of("route \"unix\", local ports"), None, "one of its backends needs none");
        let notes = capacity.notes.join("\n");
        assert!(notes.contains("several routes share the local ports towards a:1"), "{notes}");
        assert!(notes.contains("route \"token\": the local ports are counted for each backend"), "{notes}");
    }

    #[test]
    fn notes_cover_what_no_number_of_sessions_expresses() {
        let notes = Capacity::compute(&config(ROUTE), &Machine { somaxconn: Some(128), ..machine() })
            .notes
            .join("\n");
        assert!(notes.contains("one client address may hold 200 sessions and open 20 per second"), "{notes}");
        assert!(
            notes.contains("only 128 connections can wait to be accepted; set net.core.somaxconn to 4096"),
            "{notes}"
        );
        // 9,000 times 400 µs, on four processors.
        assert!(
            notes.contains(
                "all 9000 reconnect at once, the last is connected after about 1 s of 4 processor(s)"
            ),
            "{notes}"
        );
        assert!(notes.contains("1310 of them could stall in both directions"), "{notes}");
    }

    #[test]
    fn numbers_that_the_kernel_does_not_report_are_skipped() {
        let machine = Machine { descriptors: 100_000, ..Machine::default() };
        let capacity = Capacity::compute(&config(ROUTE), &machine);
        assert_eq!(sessions(&capacity), [("limits.max_sessions", 9000), ("descriptors", 49_455)]);
    }
}
