//! Configuration reload, also called hot reload: a running gateway changes to a new configuration.
//!
//! Invariant: a reload prepares everything, bound listeners included, before it changes anything. It then changes all of it
//! in one step that cannot fail, except when a drain has begun meanwhile.

use std::{sync::Arc, time::SystemTime};

use tokio::task::spawn_blocking;

use super::{
    carryover::Carryover,
    control::{Control, Inner, handshake_limits, own_addresses, tracked_sources},
    error::ReloadError,
    listener::OpenListener,
    prepared::{Loaded, Prepared, Ready, ReadyListener},
};
use crate::config::{Address, Config, ConfigError};

impl Control {
    /// Changes to `config` as a reload does.
    ///
    /// # Errors
    /// The configuration cannot be applied. Nothing has changed.
    pub async fn apply(&self, config: Config) -> Result<String, ReloadError> {
        let _turn = self.inner.reloading.lock().await;
        self.reload_from(move || Ok(config)).await
    }

    /// Loads the configuration that `read` returns and changes to it. The caller holds the reload lock.
    pub(super) async fn reload_from(
        &self,
        read: impl FnOnce() -> Result<Config, ConfigError> + Send + 'static,
    ) -> Result<String, ReloadError> {
        let carryover = self.carryover()?;
        // Files can be on a slow or remote file system.
        let loading = spawn_blocking(move || Ok::<_, ReloadError>(Prepared::load_after(read()?, carryover)?));
        let prepared = loading.await.map_err(|_| ReloadError::Panicked)??;
        let kept = self.state().listeners.iter().map(|listener| listener.configured.clone()).collect();
        let ready = prepared.bind_listeners(kept, &self.inner.inherited)?;
        let Loaded { file, log, warnings, .. } = &ready.loaded;
        if let Some(logging) = self.inner.logging.get() {
            logging
                .reconfigure(log)
                .map_err(|cause| ReloadError::Log { file: file.display().to_string(), cause })?;
        }
        let warnings = warnings.clone();
        let summary = self.commit(ready)?;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        Ok(match warnings.len() {
            0 => summary,
            count => format!("{summary}; {count} warning(s), see the log"),
        })
    }

    fn carryover(&self) -> Result<Carryover, ReloadError> {
        let state = self.state();
        if state.draining {
            return Err(ReloadError::Draining);
        }
        let listeners =
            state.listeners.iter().map(|listener| (listener.configured.clone(), listener.settings()));
        Ok(Carryover {
            context: state.context.for_reload(),
            listeners: listeners.collect(),
            snapshot: Some(Arc::clone(&state.snapshot)),
            admin: self.inner.admin.clone(),
            credentials: Arc::clone(&self.inner.shared.credentials),
        })
    }

    /// The one step that changes everything. It fails only if a drain has begun since the reload started.
    fn commit(&self, ready: Ready) -> Result<String, ReloadError> {
        let Inner { shared, tasks, admin_addresses, .. } = &*self.inner;
        let Ready { loaded: Loaded { snapshot, limits, events, context, .. }, listeners } = ready;
        let mut state = self.state();
        if state.draining {
            return Err(ReloadError::Draining);
        }
        shared.handshakes.set_limits(handshake_limits(&limits));
        shared.sessions.set_limit(limits.max_sessions);
        shared.users.set_limit(limits.sessions_per_user);
        shared.credentials.tickets.set_limit(limits.max_tickets);
        context.socket_buffer.set(limits.socket_buffer);
        let rows = tracked_sources(&limits);
        shared.limiter.set_limits(limits.per_ip, &limits.per_network, limits.penalties, rows);
        let mut previous = std::mem::take(&mut state.listeners);
        let (listener_count, route_count) = (listeners.len(), snapshot.routes.iter().count());
        for ReadyListener { configured, bound, settings } in listeners {
            if let Some(bound) = bound {
                let open = |bound| OpenListener::open(bound, Arc::clone(&settings), shared, tasks);
                state.listeners.extend(bound.into_iter().map(open));
                continue;
            }
            while let Some(index) = previous.iter().position(|listener| listener.configured == configured) {
                let listener = previous.remove(index);
                listener.update(Arc::clone(&settings));
                state.listeners.push(listener);
                // An address is that of one socket, but several inherited sockets can share a name.
                if !matches!(configured, Address::Inherited(_)) {
                    break;
                }
            }
        }
        for listener in previous {
            tracing::info!(address = %listener.local, "no longer listening");
        }
        context.own.replace(own_addresses(&state.listeners, admin_addresses));
        let watchers = std::mem::take(&mut state.watchers);
        state.watchers = watchers.replace(&snapshot, &state.listeners, &shared.registry);
        state.event_task =
            std::mem::take(&mut state.event_task).replace(snapshot.events.as_ref(), events.as_ref());
        (state.snapshot, state.context, state.loaded) = (snapshot, context, SystemTime::now());
        Ok(format!("reloaded: {listener_count} listener(s), {route_count} route(s)"))
    }
}
