//! What a reload carries over from the current configuration to the next one.

use std::sync::Arc;

use crate::{
    backend::{DialContext, Upstream},
    config::{Address, Admin, Route},
    connection::{ConfigSnapshot, ListenerSettings},
    transport::tls::Tls,
};

/// The state of the current configuration, for the load of the next one. Empty at the start.
#[derive(Debug, Default)]
pub(super) struct Carryover {
    pub(super) context: DialContext,
    pub(super) listeners: Vec<(Address, Arc<ListenerSettings>)>,
    pub(super) snapshot: Option<Arc<ConfigSnapshot>>,
    pub(super) admin: Option<Admin>,
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

    /// The TLS state of the listener that had this address. Several listeners can have the same (inherited) address: each
    /// state is handed out once.
    pub(super) fn tls(&mut self, address: &Address) -> Option<Tls> {
        let index = self.listeners.iter().position(|(previous, _)| previous == address)?;
        self.listeners.remove(index).1.tls.clone()
    }
}
