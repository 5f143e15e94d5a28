//! How a running gateway is steered: reload, drain, and what it says of itself.
//!
//! Owns what changes while the process lives: the listeners, and the terms of new connections. Invariants: a reload
//! prepares everything, listening included, before it changes anything, and then changes all of it in one step that cannot
//! fail; a session goes on under the terms it was opened with; there is one drain, and no reload after it has begun.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::SystemTime,
};

use tokio::{sync, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{
    goodbye::say_goodbye,
    prepared::{Heritage, Prepared, Ready, StartError, house, sources},
    station::{Station, Tasks},
    watches::Watches,
};
use crate::{
    admin::steering::{BackendStanding, BoxFuture, ListenerStanding, Standing, Steering},
    backend::Tools,
    config::{Address, Admin, Config, ConfigError},
    connection::{House, Terms},
    service::{
        logging::{LogError, Logging},
        systemd,
    },
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
    /// Where the log is to go.
    #[error("{file}: {cause}")]
    Log {
        /// The configuration file.
        file: String,
        /// What is wrong.
        cause: LogError,
    },
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
    /// Where the operator comes in, since the start.
    admin: Option<Admin>,
    /// The log, if it is ours to change.
    logging: OnceLock<Logging>,
}

/// What the newest configuration has made of the gateway.
#[derive(Debug)]
struct Course {
    stations: Vec<Station>,
    terms: Arc<Terms>,
    tools: Tools,
    watches: Watches,
    loaded: SystemTime,
    reloads: (u64, u64),
    draining: bool,
}

impl Control {
    pub(super) fn new(ready: Ready, inherited: Inherited) -> Self {
        let Ready { file, stations, terms, limits, admin, tools, .. } = ready;
        let (house, tasks) = (Arc::new(house(&limits)), Tasks::default());
        let mut opened = Vec::with_capacity(stations.len());
        for (_, bound, door) in stations {
            for bound in bound.into_iter().flatten() {
                opened.push(Station::open(bound, Arc::clone(&door), &house, &tasks));
            }
        }
        let stations = opened;
        let watches = Watches::default().over(&terms, &stations);
        let (loaded, reloads) = (SystemTime::now(), (0, 0));
        let course = Course { stations, terms, tools, watches, loaded, reloads, draining: false };
        let (reloading, drained) = (sync::Mutex::default(), CancellationToken::new());
        let (course, logging) = (Mutex::new(course), OnceLock::new());
        let helm = Helm { file, house, inherited, tasks, reloading, course, drained, admin, logging };
        Self { helm: Arc::new(helm) }
    }

    /// From now on, this log follows what is steered. Only the first one does.
    pub fn log_by(&self, logging: Logging) {
        let _ = self.helm.logging.set(logging);
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
        let heritage = self.heritage()?;
        // Files can be far away.
        let loading = spawn_blocking(move || Ok::<_, ReloadError>(Prepared::load_after(read()?, heritage)?));
        let prepared = loading.await.map_err(|_| ReloadError::Panicked)??;
        let kept = self.course().stations.iter().map(|station| station.configured.clone()).collect();
        let ready = prepared.bind_beside(kept, &self.helm.inherited)?;
        if let Some(logging) = self.helm.logging.get() {
            logging
                .reconfigure(&ready.log)
                .map_err(|cause| ReloadError::Log { file: ready.file.display().to_string(), cause })?;
        }
        let warnings = ready.warnings.clone();
        let done = self.commit(ready)?;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        Ok(match warnings.len() {
            0 => done,
            number => format!("{done}; {number} warning(s), which the log has"),
        })
    }

    /// What the next configuration takes over from this one.
    fn heritage(&self) -> Result<Heritage, ReloadError> {
        let course = self.course();
        if course.draining {
            return Err(ReloadError::Draining);
        }
        let doors = course.stations.iter().map(|station| (station.configured.clone(), station.door()));
        Ok(Heritage {
            tools: course.tools.again(),
            doors: doors.collect(),
            terms: Some(Arc::clone(&course.terms)),
            admin: self.helm.admin.clone(),
        })
    }

    /// The one step. Nothing in here can fail but for a drain that has begun meanwhile.
    fn commit(&self, ready: Ready) -> Result<String, ReloadError> {
        let Helm { house, tasks, .. } = &*self.helm;
        let Ready { stations, terms, limits, tools, .. } = ready;
        let mut course = self.course();
        if course.draining {
            return Err(ReloadError::Draining);
        }
        house.handshakes.set_limit(limits.max_handshakes);
        house.sessions.set_limit(limits.max_sessions);
        let sources = sources(&limits);
        house.limiter.set_rules(limits.per_ip, sources);
        let mut before = std::mem::take(&mut course.stations);
        let (listeners, routes) = (stations.len(), terms.routes.iter().count());
        for (configured, bound, door) in stations {
            if let Some(bound) = bound {
                let open = |bound| Station::open(bound, Arc::clone(&door), house, tasks);
                course.stations.extend(bound.into_iter().map(open));
                continue;
            }
            while let Some(at) = before.iter().position(|station| station.configured == configured) {
                let station = before.remove(at);
                station.lead_through(Arc::clone(&door));
                course.stations.push(station);
                // The name of what was handed over can be that of several sockets; an address is that of one.
                if !matches!(configured, Address::Inherited(_)) {
                    break;
                }
            }
        }
        for station in before {
            tracing::info!(address = %station.local, "no longer listening");
        }
        course.watches = std::mem::take(&mut course.watches).over(&terms, &course.stations);
        (course.terms, course.tools, course.loaded) = (terms, tools, SystemTime::now());
        Ok(format!("reloaded: {listeners} listener(s), {routes} route(s)"))
    }

    /// Closes the listeners, and tells nobody.
    pub(super) fn close(&self) {
        let mut course = self.course();
        course.stations.clear();
        course.watches = Watches::default();
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
            course.watches = Watches::default();
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

    fn set_log_level(&self, level: tracing::Level) -> Result<(), String> {
        let foreign = "the log belongs to the program that this gateway is a part of; set its level there";
        let logging = self.helm.logging.get().ok_or(foreign)?;
        logging.set_level(level);
        tracing::info!(%level, "log level set");
        Ok(())
    }

    fn standing(&self) -> Standing {
        let house = self.house();
        let course = self.course();
        let listeners = course.stations.iter().map(|station| {
            let door = station.door();
            ListenerStanding {
                address: station.configured.to_string(),
                tls: door.tls.is_some(),
                certificate_expiry: door.tls.as_ref().and_then(|tls| tls.shown().expiry()),
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
            dropped_log_lines: self.helm.logging.get().map_or(0, Logging::dropped_lines),
        }
    }
}
