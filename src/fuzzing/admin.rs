//! Requests to the admin address: nothing changes unless a request asks for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use super::input::{Pieces, block_on};
use crate::{
    admin::{
        control::{BoxFuture, GatewayStatus, ProcessControl, TicketRoute},
        fuzzing::AdminService,
    },
    session::{Registry, SessionInfo},
};

thread_local! {
    static ADMIN: Admin = Admin::new();
}

struct Admin {
    service: AdminService,
    control: Arc<Control>,
    registry: Arc<Registry>,
}

impl Admin {
    fn new() -> Self {
        let (control, registry) = (Arc::<Control>::default(), Arc::<Registry>::default());
        let service = AdminService::new(Arc::<Control>::clone(&control), Arc::clone(&registry));
        Self { service, control, registry }
    }
}

/// Counts the requests for a change.
#[derive(Debug, Default)]
struct Control {
    changes: AtomicUsize,
}

impl Control {
    fn count(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }
}

impl ProcessControl for Control {
    fn reload(&self) -> BoxFuture<'_, Result<String, String>> {
        self.count();
        Box::pin(async { Ok("reloaded".to_owned()) })
    }

    fn drain(&self) {
        self.count();
    }

    fn set_log_level(&self, _: tracing::Level) -> Result<(), String> {
        self.count();
        Ok(())
    }

    fn ticket_route(&self, _: &str, _: Option<&str>) -> Result<TicketRoute, String> {
        self.count();
        Ok(TicketRoute { path: "/desk".to_owned(), parameter: Some("ticket".to_owned()), base: None })
    }

    fn status(&self) -> GatewayStatus {
        GatewayStatus::empty()
    }
}

/// The bytes of a connection to the admin address.
pub fn admin_request(data: &[u8]) {
    ADMIN.with(|Admin { service, control, registry }| {
        let peer = ([192, 0, 2, 7], 4711).into();
        let session =
            registry.open(SessionInfo { peer, route: "chat", since: SystemTime::UNIX_EPOCH, identity: None });
        let before = control.changes.load(Ordering::Relaxed);
        block_on(service.serve(Pieces::new(data, usize::MAX)));
        let is_killed = block_on(std::future::poll_fn(|cx| session.poll_end(cx).is_ready().into()));
        if is_killed || control.changes.load(Ordering::Relaxed) != before {
            assert!(asks_for_a_change(data), "something changed");
        }
    });
}

/// Whether a request line asks for a change, by its path or by an absolute target whose host occurs elsewhere too.
fn asks_for_a_change(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let is_change = |target: &str| {
        let Some((_, absolute)) = target.split_once("://").filter(|_| !target.starts_with('/')) else {
            return target.starts_with("/api/");
        };
        let Some((authority, _)) = absolute.split_once("/api/") else { return false };
        let hosts = text.to_ascii_lowercase().matches(&authority.to_ascii_lowercase()).count();
        !authority.contains(char::is_whitespace) && hosts > 1
    };
    ["POST ", "DELETE "].iter().any(|method| text.split(method).skip(1).any(is_change))
}
