//! Background watchers of certificates, backends and methods of authentication.
//!
//! Owns one task for each certificate, each upstream and each method. Invariant: an upstream or a method that a reload carries
//! over keeps its task.

use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};

use super::listener::OpenListener;
use crate::{auth::Method, backend::Upstream, connection::ConfigSnapshot};

/// The tasks. They stop when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    upstreams: Vec<(Arc<Upstream>, DropGuard)>,
    methods: Vec<(Arc<Method>, DropGuard)>,
    _certificates: Vec<DropGuard>,
}

impl Watchers {
    /// The watchers of a configuration that replaces the one watched by `self`.
    pub(super) fn replace(mut self, snapshot: &ConfigSnapshot, listeners: &[OpenListener]) -> Self {
        let upstreams = snapshot.routes.iter().map(|routed| {
            let upstream = Arc::clone(&routed.upstream);
            let kept = self.upstreams.iter().position(|(previous, _)| Arc::ptr_eq(previous, &upstream));
            let guard = match kept {
                Some(index) => self.upstreams.swap_remove(index).1,
                None => {
                    let name = routed.route.name.clone();
                    spawn(|stop| Arc::clone(&upstream).watch(name, stop))
                }
            };
            (upstream, guard)
        });
        let upstreams = upstreams.collect();
        let methods = snapshot.authenticators.watched().map(|method| {
            let kept = self.methods.iter().position(|(previous, _)| Arc::ptr_eq(previous, method));
            let guard = match kept {
                Some(index) => self.methods.swap_remove(index).1,
                None => spawn(|stop| Arc::clone(method).watch(stop)),
            };
            (Arc::clone(method), guard)
        });
        let methods = methods.collect();
        let certificates = listeners.iter().filter_map(|listener| {
            let tls = listener.settings().tls.clone()?;
            Some(spawn(|stop| tls.watch(stop)))
        });
        Self { upstreams, methods, _certificates: certificates.collect() }
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
