//! What happens in a simulation: its network, its configuration, its clients and backends, and its faults, all drawn from
//! the seed.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::{
    backends::Server,
    link::Conditions,
    plan::{Closes, Plan},
};
use crate::random::Random;

pub(super) const GATEWAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 8080);
const BACKEND_PORT: u16 = 5900;
/// When the last client connects and the last fault begins.
const ACTIVE: u64 = 15_000;

/// A route, and the hosts of its backends.
#[derive(Debug, Clone)]
pub(super) struct SimulatedRoute {
    pub(super) path: &'static str,
    pub(super) server: Server,
    pub(super) backends: Vec<SocketAddr>,
}

/// A client, and when it connects for the first time.
#[derive(Debug, Clone)]
pub(super) struct SimulatedClient {
    pub(super) host: IpAddr,
    pub(super) start: Duration,
    /// How many times it connects, one after the other.
    pub(super) connections: u64,
    pub(super) plan: Plan,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// Packets between a host and the gateway get lost for this long.
    Partition(IpAddr, Duration),
    /// Packets between a host and the gateway wait for this long.
    Hold(IpAddr, Duration),
    /// The host of a backend fails and comes back after this time.
    CrashBackend(usize, Duration),
    /// The process of a backend is killed and started again after this time.
    KillBackend(usize, Duration),
    /// The host of a client fails for ever.
    CrashClient(usize),
    /// An operator kills a session: the one at this position among those that are open.
    KillSession(u64),
}

/// The timeouts of the configuration, in milliseconds. Those before `stall` are the same in all scenarios.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) handshake: u64,
    pub(super) connect: u64,
    pub(super) close: u64,
    pub(super) drain: u64,
    pub(super) stall: u64,
    pub(super) pong: u64,
    pub(super) idle: u64,
    pub(super) lifetime: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) max_sessions: u64,
    pub(super) max_handshakes: u64,
    pub(super) backend_sessions: u64,
    pub(super) address_sessions: u64,
}

/// Everything that the seed determines.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
    /// Nothing fails and no limit is reached, so that the end of every connection is known.
    pub(super) calm: bool,
    pub(super) tls: bool,
    pub(super) conditions: Conditions,
    pub(super) timeouts: Timeouts,
    pub(super) limits: Limits,
    pub(super) close_on_failure: bool,
    pub(super) routes: Vec<SimulatedRoute>,
    pub(super) clients: Vec<SimulatedClient>,
    pub(super) faults: Vec<(Duration, Fault)>,
    pub(super) drain_at: Option<Duration>,
    /// When a client gives up.
    pub(super) patience: Duration,
}

impl Scenario {
    pub(super) fn draw(random: &mut Random) -> Self {
        let calm = random.per_mille(300);
        let conditions = conditions(random, calm);
        let routes = routes(random);
        let clients: Vec<SimulatedClient> =
            (0..random.between(3, 12)).map(|index| client(random, index, &routes)).collect();
        let faults = if calm { Vec::new() } else { faults(random, &routes, &clients) };
        let drain_at = (!calm && random.per_mille(350)).then(|| moment(random));
        let lifetime = if calm { 0 } else { *random.one_of(&[0, 0, 3000, 8000, 20_000]) };
        let idle = if calm { 0 } else { *random.one_of(&[0, 0, 4000, 10_000]) };
        Self {
            calm,
            tls: random.per_mille(150),
            conditions,
            timeouts: Timeouts {
                handshake: 3000,
                connect: 2000,
                close: 2000,
                drain: *random.one_of(&[3000, 8000]),
                stall: if calm { 20_000 } else { *random.one_of(&[3000, 8000, 20_000]) },
                pong: if calm { 10_000 } else { *random.one_of(&[3000, 10_000]) },
                idle,
                lifetime,
            },
            limits: limits(random, calm),
            close_on_failure: random.per_mille(500),
            routes,
            clients,
            faults,
            drain_at,
            patience: Duration::from_secs(60),
        }
    }

    pub(super) fn client_hosts(&self) -> impl Iterator<Item = IpAddr> {
        self.clients.iter().map(|client| client.host)
    }

    /// The configuration of the gateway.
    pub(super) fn configuration(&self, certificate: &str) -> String {
        let Timeouts { handshake, connect, close, drain, stall, pong, idle, lifetime } = self.timeouts;
        let Limits { max_sessions, max_handshakes, backend_sessions, address_sessions } = self.limits;
        let mut text = format!("[[listener]]\naddress = \"{GATEWAY}\"\n");
        if self.tls {
            text += certificate;
        }
        for SimulatedRoute { path, backends, .. } in &self.routes {
            let backends: Vec<String> =
                backends.iter().map(|address| format!("\"tcp://{address}\"")).collect();
            let failure = if self.close_on_failure { "close" } else { "status" };
            text += &format!(
                "[[route]]\nname = \"{}\"\npath = \"{path}\"\nbackend = [{}]\nmax_sessions = {backend_sessions}\n\
                 backend_failure = \"{failure}\"\n",
                &path[1..],
                backends.join(", "),
            );
        }
        text + &format!(
            "[limits]\nmax_sessions = {max_sessions}\nmax_handshakes = {max_handshakes}\n\
             [limits.per_ip]\nrate = 5\nburst = 20\nsessions = {address_sessions}\n\
             [timeouts]\ntls = \"{handshake}ms\"\nrequest = \"{handshake}ms\"\nconnect = \"{connect}ms\"\n\
             close = \"{close}ms\"\ndrain = \"{drain}ms\"\nstall = \"{stall}ms\"\nping = \"4s\"\npong = \"{pong}ms\"\n\
             idle = \"{idle}ms\"\nlifetime = \"{lifetime}ms\"\n"
        )
    }
}

fn moment(random: &mut Random) -> Duration {
    Duration::from_millis(random.below(ACTIVE))
}

fn conditions(random: &mut Random, calm: bool) -> Conditions {
    let least = random.between(1, 20);
    Conditions {
        delay: (least, least + random.between(0, 40)),
        loss: if calm { 0 } else { *random.one_of(&[0, 10, 50]) },
        segment: *random.one_of(&[100, 536, 1460, 9000]),
        window: *random.one_of(&[9000, 16_384, 65_536]),
        short: random.per_mille(500),
        holds_back: random.per_mille(300).then_some(GATEWAY.ip()),
    }
}

fn limits(random: &mut Random, calm: bool) -> Limits {
    if calm {
        return Limits {
            max_sessions: 100,
            max_handshakes: 100,
            backend_sessions: 100,
            address_sessions: 20,
        };
    }
    Limits {
        max_sessions: *random.one_of(&[2, 5, 100]),
        max_handshakes: *random.one_of(&[1, 2, 4, 100]),
        backend_sessions: *random.one_of(&[1, 3, 100]),
        address_sessions: *random.one_of(&[1, 2, 20]),
    }
}

fn routes(random: &mut Random) -> Vec<SimulatedRoute> {
    let servers = [
        ("/echo", Server::Echo),
        ("/sink", Server::Sink),
        ("/source", Server::Source(random.between(0, 150_000))),
        ("/closing", Server::Closing(random.between(0, 5000))),
        ("/deaf", Server::Deaf),
        ("/refusing", Server::Refusing),
        ("/dead", Server::Dead),
    ];
    let routes = servers.into_iter().enumerate().map(|(index, (path, server))| {
        let number = random.between(1, 2) as u8;
        let host = |number| IpAddr::from([10, 1, index as u8, number]);
        let backends = (1..=number).map(|number| SocketAddr::new(host(number), BACKEND_PORT)).collect();
        SimulatedRoute { path, server, backends }
    });
    routes.collect()
}

fn client(random: &mut Random, index: u64, routes: &[SimulatedRoute]) -> SimulatedClient {
    // Some addresses have several clients.
    let host = IpAddr::from([10, 2, 0, random.between(1, index + 1) as u8]);
    SimulatedClient {
        host,
        start: moment(random),
        connections: random.between(1, 3),
        plan: plan(random, routes),
    }
}

fn plan(random: &mut Random, routes: &[SimulatedRoute]) -> Plan {
    let upload = random.between(1, 60_000);
    let plan = Plan {
        name: "echo",
        path: "/echo",
        origin: "",
        head: 100,
        upload,
        frame: (*random.one_of(&[10, 200, 5000, 40_000])).max(upload / 50),
        pipelined: 0,
        pause: (*random.one_of(&[0, 0, 20, 200])).min(20_000 / (upload / 1000 + 1)),
        last: b"",
        closes: Closes::AfterEcho,
        reads: true,
        read_pause: 0,
        pings: 0,
    };
    // A source sends; what its clients send is not read until it has.
    let download = Plan { path: "/source", upload: 0, closes: Closes::InAnswer, ..plan.clone() };
    let sink = Plan { path: "/sink", closes: Closes::AfterUpload, ..plan.clone() };
    let any = routes[random.below(routes.len() as u64) as usize].path;
    let refused = Plan { upload: 0, closes: Closes::InAnswer, ..plan.clone() };
    match random.below(16) {
        0 | 1 => plan,
        // It reads nothing before it has sent its first frame: that and its echo must fit into the sockets.
        2 => {
            let upload = upload.min(8_000);
            Plan { name: "pipelined", upload, pipelined: random.between(1, upload), ..plan }
        }
        3 => Plan { name: "pings", pings: 3, ..plan },
        4 | 5 => Plan { name: "upload", ..sink },
        6 | 7 => Plan { name: "download", ..download },
        8 => Plan { name: "slow reader", read_pause: 50, ..download },
        9 => Plan { name: "silent", head: 0, ..refused },
        10 => Plan { name: "half a head", head: random.between(1, 90) as usize, ..refused },
        11 => Plan { name: "foreign origin", origin: "https://elsewhere.example", ..refused },
        12 => Plan { name: "unknown route", path: "/nowhere", ..refused },
        13 => Plan { name: "bad frame", last: b"\x83\x00", closes: Closes::InAnswer, ..sink },
        14 => {
            let after = Duration::from_millis(random.between(1, 3000));
            Plan { name: "abort", path: any, closes: Closes::Aborts(after), ..plan }
        }
        _ if random.per_mille(300) => Plan { name: "deaf", reads: false, closes: Closes::InAnswer, ..plan },
        _ => Plan { name: "any", path: any, closes: Closes::InAnswer, ..plan },
    }
}

fn faults(
    random: &mut Random,
    routes: &[SimulatedRoute],
    clients: &[SimulatedClient],
) -> Vec<(Duration, Fault)> {
    let backends: Vec<SocketAddr> = routes.iter().flat_map(|route| route.backends.clone()).collect();
    let mut faults: Vec<(Duration, Fault)> = Vec::new();
    for _ in 0..random.below(7) {
        let backend = random.below(backends.len() as u64) as usize;
        let client = random.below(clients.len() as u64) as usize;
        let host = if random.per_mille(500) { backends[backend].ip() } else { clients[client].host };
        let time = Duration::from_millis(random.between(50, 12_000));
        let fault = match random.below(7) {
            0 => Fault::Partition(host, time),
            1 => Fault::Hold(host, time),
            2 => Fault::CrashBackend(backend, time),
            3 => Fault::KillBackend(backend, time),
            4 => Fault::CrashClient(client),
            _ => Fault::KillSession(random.next()),
        };
        faults.push((moment(random), fault));
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}
