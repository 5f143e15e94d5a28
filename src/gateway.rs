//! The gateway process: listeners, accept loops, configuration reload, graceful shutdown.
//!
//! Owns what all connections share and the tasks they run in. Knows nothing of what a connection does. Invariants: no
//! address is bound before the whole configuration has been validated; a reload changes nothing before everything new is
//! ready; no accept error ends an accept loop; a stop notifies every session and finishes within `timeouts.drain`.

mod carryover;
mod control;
mod drain;
mod error;
mod event_task;
mod listener;
mod prepared;
mod reload;
mod watchers;

use std::sync::Arc;

pub use self::{
    control::Control,
    error::{ReloadError, StartError},
    prepared::Prepared,
};
use crate::{
    admin::{
        control::ProcessControl,
        server::{AdminContext, AdminScope, AdminServer, AdminSocket},
    },
    config::{Address, AdminAddress, Config, SocketAccess, TicketAddress},
    connection::Shared,
    transport::listener::{InheritedSockets, OWNER_ONLY},
};

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    control: Control,
    /// Answers until the last session has ended.
    admin: Option<AdminServer>,
    /// Issues tickets, and answers as long.
    tickets: Option<AdminServer>,
}

impl Prepared {
    /// Binds every configured address and the inherited sockets that the configuration names (socket activation).
    ///
    /// # Errors
    /// An address is in use, not local or not permitted, or its socket was not inherited. Everything bound before it is
    /// closed again.
    pub async fn bind(self, inherited: InheritedSockets) -> Result<Gateway, StartError> {
        let ready = self.bind_listeners(Vec::new(), &inherited)?;
        let bind = |key, address: &AdminAddress, access: &SocketAccess| {
            AdminSocket::bind(address, access).map_err(|cause| StartError::Admin {
                file: ready.loaded.file.display().to_string(),
                key,
                address: address.clone(),
                cause,
            })
        };
        let configured = ready.loaded.admin.as_ref();
        let admin = configured.map(|admin| bind("admin.address", &admin.address, &OWNER_ONLY)).transpose()?;
        let tickets = configured.and_then(|admin| admin.tickets.as_ref());
        let tickets = tickets
            .map(|TicketAddress { address, access }| bind("admin.tickets.address", address, access))
            .transpose()?;
        let addresses = admin.iter().chain(&tickets).map(|socket| socket.address().clone()).collect();
        let control = Control::new(ready, inherited, addresses);
        let Shared { registry, metrics, credentials, .. } = &**control.shared();
        let context = AdminContext {
            control: Arc::new(control.clone()),
            registry: Arc::clone(registry),
            metrics: Arc::clone(metrics),
            credentials: Arc::clone(credentials),
        };
        let admin = admin.map(|socket| socket.serve(context.clone(), AdminScope::Everything));
        let tickets = tickets.map(|socket| socket.serve(context, AdminScope::Tickets));
        Ok(Gateway { control, admin, tickets })
    }
}

impl Gateway {
    /// Loads what `config` names and binds its addresses.
    ///
    /// # Errors
    /// See [`Prepared::load`] and [`Prepared::bind`].
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        Prepared::load(config)?.bind(InheritedSockets::default()).await
    }

    /// The addresses of the listeners, in the order of the configuration, with the port that the system chose for port 0.
    pub fn addresses(&self) -> Vec<Address> {
        self.control.addresses()
    }

    /// The admin address, if there is one, with the port that the system chose for port 0.
    pub fn admin_address(&self) -> Option<&AdminAddress> {
        self.admin.as_ref().map(AdminServer::address)
    }

    /// The address for tickets alone, if there is one, with the port that the system chose for port 0.
    pub fn ticket_address(&self) -> Option<&AdminAddress> {
        self.tickets.as_ref().map(AdminServer::address)
    }

    /// A handle to the gateway while it runs.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Accepts connections until `stop` is ready. Then drains: notifies every session that the gateway goes away, and waits
    /// for them to end, for at most `timeouts.drain`. Dropping the future instead closes the listeners at once and notifies
    /// no session.
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
