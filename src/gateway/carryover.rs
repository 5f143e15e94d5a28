//! What a reload carries over from the current configuration to the next one.

use std::sync::Arc;

use crate::{
    auth::Credentials,
    backend::{DialContext, Upstream},
    config::{Address, Admin, ClientCa, Destinations, Identity, Route},
    connection::{ConfigSnapshot, ListenerSettings},
    events::{EventQueue, EventSettings},
    transport::tls::{Tls, TlsError},
};

/// The state of the current configuration, for the load of the next one. Empty at the start.
#[derive(Debug, Default)]
pub(super) struct Carryover {
    pub(super) context: DialContext,
    pub(super) listeners: Vec<(Address, Arc<ListenerSettings>)>,
    pub(super) snapshot: Option<Arc<ConfigSnapshot>>,
    pub(super) admin: Option<Admin>,
    /// The issued tickets: those of the process, from the start.
    pub(super) credentials: Arc<Credentials>,
}

impl Carryover {
    /// The upstream of the route of the same name, if its configuration is the same and names no file that may have
    /// changed.
    pub(super) fn upstream(&self, route: &Route) -> Option<Arc<Upstream>> {
        let mut routes = self.snapshot.iter().flat_map(|snapshot| snapshot.routes.iter());
        let previous = routes.find(|previous| previous.route.name == route.name)?;
        let is_same = previous.route.upstream == route.upstream && Upstream::is_all_of(&route.upstream);
        is_same.then(|| Arc::clone(&previous.upstream))
    }

    /// The queue of events: the one that there is, with what waits in it, or a new one.
    pub(super) fn events(&self, settings: &Arc<EventSettings>) -> Arc<EventQueue> {
        let kept = self.snapshot.as_ref().and_then(|snapshot| snapshot.events.clone());
        kept.unwrap_or_else(|| Arc::new(EventQueue::new(Arc::clone(settings))))
    }

    /// A failure to load the token file of `route` is being reported: those that watch the same file do not report it.
    pub(super) fn mark_targets_rejected(&self, route: &Route) {
        for previous in self.snapshot.iter().flat_map(|snapshot| snapshot.routes.iter()) {
            if let (Destinations::Tokens(one), Destinations::Tokens(other)) =
                (&previous.route.upstream.destinations, &route.upstream.destinations)
                && one.path == other.path
            {
                previous.upstream.mark_rejected();
            }
        }
    }

    /// The failure to load a file of TLS is being reported: the listeners that watch the same files do not report it.
    pub(super) fn mark_tls_rejected(
        &self,
        error: &TlsError,
        identity: &Identity,
        client_ca: Option<&ClientCa>,
    ) {
        for tls in self.listeners.iter().filter_map(|(_, settings)| settings.tls.as_ref()) {
            tls.mark_rejected(error, identity, client_ca);
        }
    }

    /// The TLS state of the listener that had this address. Several listeners can have the same (inherited) address: each
    /// state is handed out once.
    pub(super) fn tls(&mut self, address: &Address) -> Option<Tls> {
        let index = self.listeners.iter().position(|(previous, _)| previous == address)?;
        self.listeners.remove(index).1.tls.clone()
    }
}
