//! The process: listeners, accept loops, reload, and the way out.
//!
//! Owns what is shared by all connections and the tasks they run in. Refuses to know what a connection does. Invariants:
//! nothing is bound before everything that can be wrong with the configuration has been looked at, and nothing changes
//! before everything new is ready; no accept error ends a loop; after a stop, every session is told and the end comes
//! within `timeouts.drain`.

mod control;
mod drain;
mod listener;
mod prepared;
mod watchers;

pub use self::{
    control::{Control, ReloadError},
    prepared::{Prepared, StartError},
};
use crate::{
    admin::{control::ProcessControl, server::AdminServer},
    config::{Address, AdminAddress, Config},
    transport::listener::InheritedSockets,
};

/// A gateway that listens and accepts.
#[derive(Debug)]
pub struct Gateway {
    control: Control,
    /// Answers until the last session has ended.
    admin: Option<AdminServer>,
}

impl Gateway {
    /// Loads what `config` names and listens on its addresses.
    ///
    /// # Errors
    /// See [`Prepared::load`] and [`Prepared::bind`].
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        Prepared::load(config)?.bind(InheritedSockets::default()).await
    }

    /// The addresses listened on, in the order of the configuration; with the port that was given for port 0.
    pub fn addresses(&self) -> Vec<Address> {
        self.control.addresses()
    }

    /// Where the operator is listened for, if anywhere; with the port that was given for port 0.
    pub fn admin_address(&self) -> Option<&AdminAddress> {
        self.admin.as_ref().map(AdminServer::address)
    }

    /// How it is steered while it runs.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Lets connections in until `stop`, then tells every session that the gateway goes away and waits for them, for
    /// at most `timeouts.drain`. Dropping the future instead closes the listeners at once, and tells nobody.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        stop.await;
        self.control.drain();
        self.control.drained().await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.control.close();
    }
}
