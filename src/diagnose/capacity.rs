//! How many sessions a machine can hold under a configuration, and what gives way first.
//!
//! Pure: from numbers to words. Each limit is counted by itself, in sessions, as if there were no other. What a session
//! costs was measured; docs/capacity.md says how.

use std::{collections::BTreeSet, fmt::Write};

use super::machine::Machine;
use crate::{
    config::{Backend, Config, Destinations, Limits, Route},
    transport::listener::BACKLOG,
};

/// Descriptors, tracked connections and watched sockets of a session: the client's and the server's.
const SOCKETS: u64 = 2;
/// What an idle session takes in the process, in bytes; with TLS and without.
const IDLE_TLS: u64 = 11 * 1024;
const IDLE_PLAIN: u64 = 3 * 1024;
/// What the kernel takes for the two sockets of an idle session, in bytes.
const KERNEL: u64 = 8 * 1024;
/// What a session holds at most while both sides stall, beside its socket buffers, in bytes.
const STALLED: u64 = 2 * 128 * 1024;
/// Processor time from the accepted connection to the end of a short session with a whole TLS handshake, in µs.
const HANDSHAKE: u64 = 400;

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limit {
    /// What it is a limit of.
    pub name: String,
    /// How many sessions it lets be.
    pub sessions: u64,
    /// How that was counted.
    pub why: String,
    /// What to change, if more are wanted.
    pub advice: String,
}

/// All limits, and what else is worth knowing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// The lowest first.
    pub limits: Vec<Limit>,
    /// What is no number of sessions.
    pub notes: Vec<String>,
    /// `limits.max_sessions`.
    wanted: u64,
}

impl Capacity {
    /// Counts.
    pub(crate) fn count(config: &Config, machine: &Machine) -> Self {
        let wanted = config.limits.max_sessions as u64;
        let mut limits = vec![Limit {
            name: "limits.max_sessions".to_owned(),
            sessions: wanted,
            why: "as configured".to_owned(),
            advice: "raise limits.max_sessions".to_owned(),
        }];
        limits.extend(of_the_process(config, machine));
        limits.extend(of_the_machine(config, machine));
        for route in &config.routes {
            limits.extend(of_a_route(route, machine));
        }
        // Of equals, the configured one is the first.
        limits.sort_by_key(|limit| limit.sessions);
        Self { limits, notes: notes(config, machine), wanted }
    }

    /// The limit that is hit first.
    pub(crate) fn first(&self) -> &Limit {
        // There is always the configured one.
        &self.limits[0]
    }

    /// What gives way before the configured limit, if anything does.
    pub(crate) fn shortfall(&self) -> Option<String> {
        let Limit { name, sessions, advice, .. } = self.first();
        let wanted = self.wanted;
        (*sessions < wanted).then(|| {
            format!("{name} give(s) way first, at {sessions} sessions, before limits.max_sessions = {wanted}: {advice}")
        })
    }

    /// For people: a line for each limit, the lowest first, then what else there is to know.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from("  sessions  limit\n");
        for Limit { name, sessions, why, .. } in &self.limits {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{sessions:>10}  {name}: {why}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        if self.first().sessions >= self.wanted {
            let _ = writeln!(
                text,
                "limits.max_sessions is hit first, at {}; everything else has room for it",
                self.wanted
            );
        }
        text
    }
}

/// Descriptors.
fn of_the_process(config: &Config, machine: &Machine) -> Option<Limit> {
    let others = config.limits.other_descriptors(config.listeners.len());
    let most = machine.nr_open.map_or_else(String::new, |most| format!(", at most {most} (fs.nr_open)"));
    Some(Limit {
        name: "descriptors".to_owned(),
        sessions: machine.descriptors.saturating_sub(others) / SOCKETS,
        why: format!(
            "({} - {others} for handshakes and the like) / {SOCKETS} a session; the hard limit is that of this shell",
            machine.descriptors
        ),
        advice: format!("raise LimitNOFILE= in the unit, or ulimit -Hn{most}"),
    })
}

/// Memory, files, tracked connections, watched sockets.
fn of_the_machine(config: &Config, machine: &Machine) -> Vec<Limit> {
    let mut limits = Vec::new();
    let mut add = |name: &str, sessions: u64, why: String, advice: &str| {
        limits.push(Limit { name: name.to_owned(), sessions, why, advice: advice.to_owned() });
    };
    if let Some(memory) = machine.memory {
        let is_tls = config.listeners.iter().any(|listener| listener.identity.is_some());
        let each = KERNEL + if is_tls { IDLE_TLS } else { IDLE_PLAIN };
        add(
            "memory",
            memory / each,
            format!(
                "{} MiB available / {} KiB for each idle session, the kernel's part included",
                memory >> 20,
                each >> 10
            ),
            "give the machine more memory, or spread the sessions over several",
        );
    }
    if let Some((open, most)) = machine.files {
        let why = format!("({most} - {open} that are open) / {SOCKETS} a session");
        add("open files of the machine", most.saturating_sub(open) / SOCKETS, why, "raise fs.file-max");
    }
    if let Some((count, most)) = machine.tracked {
        add(
            "tracked connections",
            most.saturating_sub(count) / SOCKETS,
            format!("({most} - {count}) / {SOCKETS} a session, if the firewall tracks both sides"),
            "raise net.netfilter.nf_conntrack_max, or do not track these ports (notrack in nftables)",
        );
    }
    if let Some(watchers) = machine.watchers {
        let why = format!("{watchers} / {SOCKETS} a session");
        add("watched sockets", watchers / SOCKETS, why, "raise fs.epoll.max_user_watches");
    }
    limits
}

/// What the servers of a route allow: local ports towards them, and their own `max_sessions`.
fn of_a_route(route: &Route, machine: &Machine) -> Vec<Limit> {
    // Nobody knows how many servers tokens lead to.
    let Destinations::Fixed(backends) = &route.upstream.destinations else { return Vec::new() };
    let mut limits = Vec::new();
    let servers = backends.len() as u64;
    if let Some(each) = route.upstream.max_sessions {
        limits.push(Limit {
            name: format!("route {:?}, max_sessions", route.name),
            sessions: servers * each as u64,
            why: format!("{servers} server(s), {each} each"),
            advice: format!("raise max_sessions of route {:?}, or add servers to it", route.name),
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
                "{} address(es) of servers, {ports} ports towards each (net.ipv4.ip_local_port_range {first}-{last})",
                addresses.len()
            ),
            advice: format!(
                "widen net.ipv4.ip_local_port_range, let the server listen on more addresses or ports and list them \
                 in route {:?}, or reach it by unix:",
                route.name
            ),
        });
    }
    limits
}

/// The address and port that connections go to, as far as it is known without asking anybody.
fn address(backend: &Backend) -> Option<String> {
    backend.host_and_port().map(|(host, port)| format!("{host}:{port}"))
}

fn notes(config: &Config, machine: &Machine) -> Vec<String> {
    let Limits { max_sessions, max_handshakes, per_ip } = &config.limits;
    let mut notes = vec![format!(
        "one client address may hold {} sessions and open {} a second (limits.per_ip); people behind one address, and a \
         proxy that is not in trusted_proxies, share that",
        per_ip.sessions, per_ip.rate
    )];
    let backlog = u64::from(BACKLOG);
    if let Some(somaxconn) = machine.somaxconn.filter(|somaxconn| *somaxconn < backlog) {
        notes.push(format!(
            "only {somaxconn} connections can wait to be accepted; set net.core.somaxconn to {backlog}, or more clients that \
             come at once have to try again"
        ));
    }
    let seconds = (*max_sessions as u64 * HANDSHAKE).div_ceil(machine.processors.max(1) * 1_000_000);
    notes.push(format!(
        "when all {max_sessions} come back at once, their handshakes take about {seconds} s of {} processor(s), \
         {max_handshakes} at a time",
        machine.processors.max(1)
    ));
    if let Some(memory) = machine.memory {
        let stalled = memory / STALLED;
        notes.push(format!(
            "memory is counted for sessions that keep up; {stalled} of them could stall in both directions at once"
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
                "route {:?}: each server that a token leads to has its own local ports",
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
    fn each_limit_is_counted_by_itself() {
        let capacity = Capacity::count(&config(ROUTE), &machine());
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
            text.ends_with("limits.max_sessions is hit first, at 9000; everything else has room for it\n"),
            "{text}"
        );
        assert!(
            text.contains("     28232  route \"desk\", local ports: 1 address(es) of servers, 28232 ports"),
            "{text}"
        );
    }

    #[test]
    fn what_gives_way_first_is_named_with_what_to_do() {
        let wanted = "[limits]\nmax_sessions = 40000\n";
        for (machine, words) in [
            (
                machine(),
                ["route \"desk\", local ports", "at 28232 sessions", "widen net.ipv4.ip_local_port_range"],
            ),
            (
                Machine { descriptors: 20_000, ..machine() },
                [
                    "descriptors",
                    "at 9455 sessions",
                    "LimitNOFILE= in the unit, or ulimit -Hn, at most 1048576 (fs.nr_open)",
                ],
            ),
            (Machine { memory: Some(64 << 20), ..machine() }, ["memory", "at 5957 sessions", "more memory"]),
            (
                Machine { tracked: Some((0, 1000)), ..machine() },
                ["tracked", "at 500 sessions", "nf_conntrack_max"],
            ),
            (Machine { watchers: Some(10), ..machine() }, ["watched", "at 5 sessions", "max_user_watches"]),
            (
                Machine { files: Some((90, 100)), ..machine() },
                ["open files", "at 5 sessions", "raise fs.file-max"],
            ),
            (Machine { descriptors: 10, ..machine() }, ["descriptors", "at 0 sessions", "LimitNOFILE="]),
        ] {
            let capacity = Capacity::count(&config(&format!("{ROUTE}{wanted}")), &machine);
            let shortfall = capacity.shortfall().unwrap();
            for word in words.into_iter().chain(["before limits.max_sessions = 40000: "]) {
                assert!(shortfall.contains(word), "no {word:?} in {shortfall}");
            }
            assert!(!capacity.text().contains("has room"), "{}", capacity.text());
        }
    }

    #[test]
    fn ports_are_counted_for_each_address_of_a_server() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let tokens = format!("targets = {{ from = \"file\", path = {:?} }}", file.path());
        let route =
            |name: &str, lines: &str| format!("[[route]]\nname = \"{name}\"\npath = \"/{name}\"\n{lines}\n");
        let text = route("two", "backend = [\"tcp://a:1\", \"tls://a:2\"]\nmax_sessions = 100")
            + &route("same", "backend = [\"tcp://a:1\", \"tls://a:1\"]")
            + &route("unix", "backend = [\"unix:/run/a\", \"tcp://a:3\"]")
            + &route("token", &tokens);
        let capacity = Capacity::count(&config(&text), &machine());
        let of =
            |name: &str| capacity.limits.iter().find(|limit| limit.name == name).map(|limit| limit.sessions);
        assert_eq!(of("route \"two\", local ports"), Some(2 * 28_232));
        assert_eq!(of("route \"two\", max_sessions"), Some(200));
        assert_eq!(of("route \"same\", local ports"), Some(28_232));
        assert_eq!(of("route \"unix\", local ports"), None, "one of its servers needs none");
        let notes = capacity.notes.join("\n");
        assert!(notes.contains("several routes share the local ports towards a:1"), "{notes}");
        assert!(notes.contains("route \"token\": each server that a token leads to"), "{notes}");
    }

    #[test]
    fn notes_tell_what_is_no_number_of_sessions() {
        let notes =
            Capacity::count(&config(ROUTE), &Machine { somaxconn: Some(128), ..machine() }).notes.join("\n");
        assert!(notes.contains("one client address may hold 200 sessions and open 20 a second"), "{notes}");
        assert!(
            notes.contains("only 128 connections can wait to be accepted; set net.core.somaxconn to 4096"),
            "{notes}"
        );
        // 9,000 times 400 µs, on four processors.
        assert!(
            notes.contains("all 9000 come back at once, their handshakes take about 1 s of 4 processor(s)"),
            "{notes}"
        );
        assert!(notes.contains("32768 of them could stall in both directions"), "{notes}");
    }

    #[test]
    fn a_kernel_that_tells_nothing_leaves_what_is_known() {
        let machine = Machine { descriptors: 100_000, ..Machine::default() };
        let capacity = Capacity::count(&config(ROUTE), &machine);
        assert_eq!(sessions(&capacity), [("limits.max_sessions", 9000), ("descriptors", 49_455)]);
    }
}
