//! Runs one simulation: the whole gateway, as it is configured, with clients and backends around it.

use std::{
    cell::Cell,
    net::SocketAddr,
    panic,
    path::Path,
    sync::{Arc, Once},
    time::Duration,
};

use tokio::{
    runtime::Builder,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    backends::{self, ServedLog, Server},
    certificate::certificate,
    checks,
    clients::{self, Client},
    link::LinkState,
    log::AccessLog,
    network::Network,
    outcome::{Kill, Outcome},
    plan::SeenLog,
    scenario::{Fault, GATEWAY, Scenario},
    world::World,
};
use crate::{
    admin::control::ProcessControl,
    config::Config,
    gateway::{Control, Gateway},
    outcome::Reason,
    random::Random,
};

/// How long the gateway may take for what its clients have left behind.
const REMAINING: Duration = Duration::from_secs(120);

thread_local! {
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// Runs the simulation of a seed.
pub(super) fn run(seed: u64) -> Outcome {
    count_panics();
    let panics = PANICS.get();
    let mut random = Random::new(seed);
    let scenario = Scenario::draw(&mut random);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let handle = runtime.handle().clone();
    let _entered = handle.enter();
    let network = Network::new(random.fork(), GATEWAY.ip(), scenario.conditions.clone());
    let _installed = network.install();
    let (log, _captured) = AccessLog::capture();
    let simulation = Simulation::new(scenario.clone(), network.clone(), random);
    let mut outcome = Outcome { tls: scenario.tls, ..Outcome::default() };
    let control = runtime.block_on(simulation.run(&mut outcome));
    let now = Instant::now().into_std();
    // Like the end of the process: what still runs is aborted.
    drop(runtime);
    outcome.lines = log.lines();
    let mut problems = checks::accounts(&control, &network, &outcome.lines);
    problems.extend(checks::released(&control, &network, &scenario, now));
    problems.extend(checks::payload(&scenario, &network, &outcome));
    problems.extend(checks::times(&scenario, &outcome));
    if scenario.calm {
        problems.extend(checks::expected_ends(&outcome));
    }
    if PANICS.get() > panics {
        problems.push(format!("{} panics", PANICS.get() - panics));
    }
    outcome.problems.extend(problems);
    outcome.events = std::mem::take(&mut network.world().events);
    outcome
}

/// Counts the panics of each thread, because those of a task are caught.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            previous(info);
        }));
    });
}

struct Simulation {
    scenario: Scenario,
    network: Network,
    random: Random,
    start: Instant,
    seen: SeenLog,
    served: ServedLog,
    /// Each backend with its address, and its task while it runs.
    backends: Vec<(SocketAddr, Server, Option<JoinHandle<()>>)>,
    clients: Vec<JoinHandle<()>>,
}

impl Simulation {
    fn new(scenario: Scenario, network: Network, random: Random) -> Self {
        let routes = scenario.routes.iter();
        let backends =
            routes.flat_map(|route| route.backends.iter().map(|address| (*address, route.server, None)));
        Self {
            backends: backends.collect(),
            scenario,
            network,
            random,
            start: Instant::now(),
            seen: SeenLog::default(),
            served: ServedLog::default(),
            clients: Vec::new(),
        }
    }

    /// Runs everything until all connections have ended, then stops the gateway.
    async fn run(mut self, outcome: &mut Outcome) -> Control {
        tokio::spawn(self.network.clone().run());
        let text = self.scenario.configuration(&certificate().lines);
        let config = Config::parse(&text, Path::new("gateway.toml")).unwrap();
        let gateway = Gateway::bind(config).await.unwrap();
        let control = gateway.control();
        for index in 0..self.backends.len() {
            self.start_backend(index);
        }
        self.start_clients();
        let drain = self.scenario.drain_at.map(|at| tokio::spawn(drain(control.clone(), self.start, at)));
        for (at, fault) in self.scenario.faults.clone() {
            sleep_until(self.start + at).await;
            if drain.as_ref().is_some_and(JoinHandle::is_finished) {
                break;
            }
            self.inject(fault, &control, outcome);
        }
        outcome.drain = match drain {
            // The process ends with the drain.
            Some(drain) => Some(drain.await.unwrap()),
            None => {
                for client in std::mem::take(&mut self.clients) {
                    // A client whose host has failed was aborted.
                    let _ = client.await;
                }
                if timeout(REMAINING, self.all_ended(&control)).await.is_err() {
                    outcome
                        .problems
                        .push(format!("connections remain: {:?}", control.shared().registry.snapshot()));
                }
                Some(drain_now(&control, self.start).await)
            }
        };
        outcome.seen = self.seen.lock().clone();
        outcome.served = self.served.lock().clone();
        drop(gateway);
        control
    }

    /// Waits until every accepted connection has ended.
    async fn all_ended(&self, control: &Control) {
        let metrics = &control.shared().metrics;
        loop {
            let ended: u64 = Reason::ALL.iter().map(|&reason| metrics.ended(reason)).sum();
            let (accepted, waiting) = {
                let world = self.network.world();
                let waiting = world.listeners.get(&GATEWAY).map_or(0, |backlog| backlog.waiting.len());
                (world.accepted.get(&GATEWAY).copied().unwrap_or(0), waiting)
            };
            if ended == accepted && waiting == 0 {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn start_backend(&mut self, index: usize) {
        let (address, server, ref mut task) = self.backends[index];
        match server {
            Server::Refusing => {}
            Server::Dead => self.network.world().crash(address.ip()),
            _ => {
                let (network, served) = (self.network.clone(), Arc::clone(&self.served));
                *task =
                    Some(tokio::spawn(backends::serve(network, address, server, served, self.random.fork())));
            }
        }
    }

    fn start_clients(&mut self) {
        let gateway = clients::Gateway {
            address: GATEWAY,
            tls: self.scenario.tls.then(|| certificate().connector.clone()),
        };
        for client in self.scenario.clients.clone() {
            let mut random = self.random.fork();
            let (network, seen, gateway) = (self.network.clone(), Arc::clone(&self.seen), gateway.clone());
            let (at, patience) = (self.start + client.start, self.scenario.patience);
            self.clients.push(tokio::spawn(async move {
                sleep_until(at).await;
                for _ in 0..client.connections {
                    let one = Client {
                        network: network.clone(),
                        host: client.host,
                        gateway: gateway.clone(),
                        plan: client.plan.clone(),
                        seen: Arc::clone(&seen),
                        random: random.fork(),
                        patience,
                    };
                    one.run().await;
                    sleep(random.millis(300)).await;
                }
            }));
        }
    }

    fn inject(&mut self, fault: Fault, control: &Control, outcome: &mut Outcome) {
        let network = self.network.clone();
        let later = move |after, change: Box<dyn FnOnce(&mut World) + Send>| {
            tokio::spawn(async move {
                sleep(after).await;
                network.change(|world| change(world));
            });
        };
        match fault {
            Fault::Partition(host, time) | Fault::Hold(host, time) => {
                let is_partition = matches!(fault, Fault::Partition(..));
                let state = if is_partition { LinkState::Partitioned } else { LinkState::Held };
                self.network.change(|world| world.set_link(GATEWAY.ip(), host, Some(state)));
                later(time, Box::new(move |world| world.set_link(GATEWAY.ip(), host, None)));
            }
            Fault::CrashClient(client) => {
                let host = self.scenario.clients[client].host;
                self.network.change(|world| world.crash(host));
                for (client, task) in self.scenario.clients.iter().zip(&self.clients) {
                    if client.host == host {
                        task.abort();
                    }
                }
            }
            Fault::CrashBackend(index, time) | Fault::KillBackend(index, time) => {
                if let Some(task) = self.backends[index].2.take() {
                    let host = self.backends[index].0.ip();
                    if matches!(fault, Fault::CrashBackend(..)) {
                        self.network.change(|world| world.crash(host));
                        later(time, Box::new(move |world| world.restart(host)));
                    }
                    task.abort();
                    self.restart_backend(index, time);
                }
            }
            Fault::KillSession(choice) => {
                let sessions = control.shared().registry.snapshot();
                let Some(count) = (sessions.len() as u64).checked_sub(1) else { return };
                let session = &sessions[(choice % (count + 1)) as usize];
                control.shared().registry.end(session.id, Reason::Killed);
                let at = self.start.elapsed().as_millis() as u64;
                outcome.kills.push(Kill { session: session.id, bytes_in: session.payload.bytes_in, at });
            }
        }
    }

    /// Starts a backend again. It is not killed a second time.
    fn restart_backend(&mut self, index: usize, after: Duration) {
        let (address, server, _) = self.backends[index];
        let (network, served, random) = (self.network.clone(), Arc::clone(&self.served), self.random.fork());
        tokio::spawn(async move {
            sleep(after + Duration::from_millis(1)).await;
            backends::serve(network, address, server, served, random).await;
        });
    }
}

/// Drains the gateway at `at`. Returns when that began and ended.
async fn drain(control: Control, start: Instant, at: Duration) -> (u64, u64) {
    sleep_until(start + at).await;
    drain_now(&control, start).await
}

async fn drain_now(control: &Control, start: Instant) -> (u64, u64) {
    let begin = start.elapsed();
    control.drain();
    control.drained().await;
    (begin.as_millis() as u64, start.elapsed().as_millis() as u64)
}
