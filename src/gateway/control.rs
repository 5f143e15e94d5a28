//! How a running gateway is steered: reload, drain, and what it says of itself.
//!
//! Owns what changes while the process lives: the listeners, and the terms of new connections. Invariants: a reload
//! prepares everything, listening included, before it changes anything, and then changes all of it in one step that cannot
//! fail; a session goes on under the terms it was opened with; there is one drain, and no reload after it has begun.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tokio::{sync, task::spawn_blocking};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    goodbye::say_goodbye,
    prepared::{Prepared, StartError, sources},
    station::{Bound, Station, Tasks},
};
use crate::{
    admin::steering::{BackendStanding, BoxFuture, ListenerStanding, Standing, Steering},
    config::{Address, Config, ConfigError, Limits},
    connection::{Door, House, Terms},
    service::systemd,
    transport::listener::Inherited,
};

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Something that it names, or an address.
    #[error(transparent)]
    Start(#[from] StartError),
    /// There will be no new connections.
    #[error("the gateway is draining and takes no new connections; start it again instead")]
    Draining,
    /// A panic, whose own line stands in the log.
    #[error("loading the configuration failed unexpectedly; the log has a line that begins with \"panic\"")]
    Panicked,
}

/// The one who steers a running gateway. Clones steer the same gateway.
#[derive(Debug, Clone)]
pub struct Control {
    helm: Arc<Helm>,
}

#[derive(Debug)]
struct Helm {
    /// The configuration file, as it was named.
    file: PathBuf,
    house: Arc<House>,
    /// Kept open for the life of the process, whoever listens on them now.
    inherited: Inherited,
    tasks: Tasks,
    /// Held for the length of a reload: one at a time.
    reloading: sync::Mutex<()>,
    course: Mutex<Course>,
    /// Cancelled when a drain is over.
    drained: CancellationToken,
}

/// What the newest configuration has made of the gateway.
#[derive(Debug)]
struct Course {
    stations: Vec<Station>,
    terms: Arc<Terms>,
    /// Ends what looks after the servers of these terms.
    watching: Option<DropGuard>,
    loaded: SystemTime,
    reloads: (u64, u64),
    draining: bool,
}

impl Control {
    pub(super) fn new(
        file: PathBuf,
        house: Arc<House>,
        inherited: Inherited,
        doors: Vec<(Address, Option<Vec<Bound>>, Arc<Door>)>,
        terms: Arc<Terms>,
    ) -> Self {
        let tasks = Tasks::default();
        let bound = doors.into_iter().flat_map(|(_, bound, door)| {
            bound.unwrap_or_default().into_iter().map(move |bound| (bound, Arc::clone(&door)))
        });
        let course = Course {
            stations: bound.map(|(bound, door)| Station::open(bound, door, &house, &tasks)).collect(),
            watching: Some(watch(&terms)),
            terms,
            loaded: SystemTime::now(),
            reloads: (0, 0),
            draining: false,
        };
        let drained = CancellationToken::new();
        let helm = Helm {
            file,
            house,
            inherited,
            tasks,
            reloading: sync::Mutex::default(),
            course: Mutex::new(course),
            drained,
        };
        Self { helm: Arc::new(helm) }
    }

    /// What the connections of this gateway share.
    pub fn house(&self) -> &Arc<House> {
        &self.helm.house
    }

    /// The configuration file that a reload reads.
    pub fn file(&self) -> &Path {
        &self.helm.file
    }

    /// The addresses listened on, in the order of the configuration; with the port that was given for port 0.
    pub fn addresses(&self) -> Vec<Address> {
        self.course().stations.iter().map(|station| station.local.clone()).collect()
    }

    /// Ready when a drain is over: all sessions have ended, or its time has.
    pub async fn drained(&self) {
        self.helm.drained.cancelled().await;
    }

    /// Takes over a configuration as a reload does.
    ///
    /// # Errors
    /// Something is wrong, and nothing has changed.
    pub async fn apply(&self, config: Config) -> Result<String, ReloadError> {
        let _turn = self.helm.reloading.lock().await;
        self.take_over(move || Ok(config)).await
    }

    async fn take_over(
        &self,
        read: impl FnOnce() -> Result<Config, ConfigError> + Send + 'static,
    ) -> Result<String, ReloadError> {
        // Files can be far away.
        let loading = spawn_blocking(move || Ok::<_, ReloadError>(Prepared::load(read()?)?));
        let prepared = loading.await.map_err(|_| ReloadError::Panicked)??;
        // A socket that was handed over is opened anew: that takes nothing from those who wait at it.
        let stays = |station: &&Station| !matches!(station.configured, Address::Inherited(_));
        let kept =
            self.course().stations.iter().filter(stays).map(|station| station.configured.clone()).collect();
        let (doors, terms, limits) = prepared.bind_beside(kept, &self.helm.inherited)?;
        self.commit(doors, terms, limits)
    }

    /// The one step. Nothing in here can fail but for a drain that has begun meanwhile.
    fn commit(
        &self,
        doors: Vec<(Address, Option<Vec<Bound>>, Arc<Door>)>,
        terms: Arc<Terms>,
        limits: Limits,
    ) -> Result<String, ReloadError> {
        let Helm { house, tasks, .. } = &*self.helm;
        let mut course = self.course();
        if course.draining {
            return Err(ReloadError::Draining);
        }
        house.handshakes.set_limit(limits.max_handshakes);
        house.sessions.set_limit(limits.max_sessions);
        let sources = sources(&limits);
        house.limiter.set_rules(limits.per_ip, sources);
        let mut before = std::mem::take(&mut course.stations);
        for (configured, bound, door) in doors {
            let opened = match bound {
                Some(bound) => bound
                    .into_iter()
                    .map(|bound| Station::open(bound, Arc::clone(&door), house, tasks))
                    .collect(),
                None => {
                    let Some(at) = before.iter().position(|station| station.configured == configured) else {
                        continue;
                    };
                    let station = before.remove(at);
                    station.lead_through(door);
                    vec![station]
                }
            };
            course.stations.extend(opened);
        }
        for station in &before {
            tracing::info!(address = %station.local, "no longer listening");
        }
        course.watching = Some(watch(&terms));
        let routes = terms.routes.iter().count();
        course.terms = terms;
        course.loaded = SystemTime::now();
        Ok(format!("reloaded: {} listener(s), {routes} route(s)", course.stations.len()))
    }

    /// Closes the listeners, and tells nobody.
    pub(super) fn close(&self) {
        let mut course = self.course();
        course.stations.clear();
        course.watching = None;
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        // Whole between any two statements that could panic.
        self.helm.course.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Steering for Control {
    fn reload(&self) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(async {
            let _turn = self.helm.reloading.lock().await;
            let file = self.helm.file.clone();
            systemd::reloading();
            let done = self.take_over(move || Config::load(&file)).await;
            systemd::ready();
            match done {
                Ok(done) => {
                    self.course().reloads.0 += 1;
                    tracing::info!("{done}");
                    Ok(done)
                }
                Err(error) => {
                    self.course().reloads.1 += 1;
                    tracing::warn!(detail = %error, "not reloaded: everything is as it was");
                    Err(format!("not reloaded, everything is as it was: {error}"))
                }
            }
        })
    }

    fn drain(&self) {
        let (stations, drain) = {
            let mut course = self.course();
            if std::mem::replace(&mut course.draining, true) {
                return;
            }
            course.watching = None;
            (std::mem::take(&mut course.stations), course.terms.timeouts.drain)
        };
        drop(stations);
        let helm = Arc::clone(&self.helm);
        tokio::spawn(async move {
            let Helm { house, tasks, drained, .. } = &*helm;
            tracing::info!(sessions = house.registry.len(), "draining");
            tasks.loops.close();
            tasks.loops.wait().await;
            house.draining.cancel();
            tasks.connections.close();
            tokio::select! {
                () = tasks.connections.wait() => {}
                () = say_goodbye(&house.registry, drain) => {
                    tracing::warn!(connections = tasks.connections.len(), "drain time is over, cutting what is left");
                }
            }
            drained.cancel();
        });
    }

    fn set_log_level(&self, _level: tracing::Level) -> Result<(), String> {
        Err("the log belongs to the program that this gateway is a part of; set its level there".to_owned())
    }

    fn standing(&self) -> Standing {
        let house = self.house();
        let course = self.course();
        let listeners = course.stations.iter().map(|station| {
            let door = station.door();
            ListenerStanding {
                address: station.configured.to_string(),
                tls: door.tls.is_some(),
                certificate_expiry: door.tls.as_ref().and_then(|tls| tls.expiry()),
            }
        });
        let backends = course.terms.routes.iter().flat_map(|routed| {
            routed.upstream.standing().into_iter().map(|(backend, up, sessions)| BackendStanding {
                route: routed.route.name.clone(),
                backend: backend.to_string(),
                up,
                sessions,
            })
        });
        Standing {
            ready: !course.draining && !course.stations.is_empty(),
            draining: course.draining,
            loaded: course.loaded,
            reloads: course.reloads,
            sessions: (house.sessions.in_use(), house.sessions.limit()),
            handshakes: (house.handshakes.in_use(), house.handshakes.limit()),
            listeners: listeners.collect(),
            backends: backends.collect(),
        }
    }
}

/// Looks after the servers of `terms` until the guard is dropped.
fn watch(terms: &Terms) -> DropGuard {
    let stop = CancellationToken::new();
    for routed in terms.routes.iter() {
        let upstream = Arc::clone(&routed.upstream);
        tokio::spawn(upstream.watch(routed.route.name.clone(), stop.clone()));
    }
    stop.drop_guard()
}
