//! What looks after certificates and servers while the gateway runs.
//!
//! Owns one task for each. Invariant: whoever is looked after by one configuration and by the next is looked after by the
//! same task all the time.

use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};

use super::listener::OpenListener;
use crate::{backend::Upstream, connection::ConfigSnapshot};

/// The tasks, which end when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    upstreams: Vec<(Arc<Upstream>, DropGuard)>,
    _certificates: Vec<DropGuard>,
}

impl Watchers {
    /// Those of a configuration that takes the place of this one.
    pub(super) fn over(mut self, snapshot: &ConfigSnapshot, listeners: &[OpenListener]) -> Self {
        let upstreams = snapshot.routes.iter().map(|routed| {
            let upstream = Arc::clone(&routed.upstream);
            let kept = self.upstreams.iter().position(|(before, _)| Arc::ptr_eq(before, &upstream));
            let guard = match kept {
                Some(at) => self.upstreams.swap_remove(at).1,
                None => {
                    let name = routed.route.name.clone();
                    spawn(|stop| Arc::clone(&upstream).watch(name, stop))
                }
            };
            (upstream, guard)
        });
        let upstreams = upstreams.collect();
        let certificates = listeners.iter().filter_map(|listener| {
            let tls = listener.settings().tls.clone()?;
            Some(spawn(|stop| tls.watch(stop)))
        });
        Self { upstreams, _certificates: certificates.collect() }
    }
}

fn spawn<F>(watch: impl FnOnce(CancellationToken) -> F) -> DropGuard
where
    F: Future<Output = ()> + Send + 'static,
{
    let stop = CancellationToken::new();
    tokio::spawn(watch(stop.clone()));
    stop.drop_guard()
}
