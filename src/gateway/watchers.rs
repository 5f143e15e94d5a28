//! Background watchers of certificates, backends and methods of authentication.
//!
//! Owns one task for each certificate, each upstream and each method. Invariant: an upstream or a method that a reload carries
//! over keeps its task.

use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};

use super::listener::OpenListener;
use crate::{
    auth::Method,
    backend::Upstream,
    connection::ConfigSnapshot,
    session::{CredentialId, Registry},
    transport::tls::Tls,
    watched_file,
};

/// The tasks. They stop when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    upstreams: Vec<(Arc<Upstream>, DropGuard)>,
    methods: Vec<(Arc<Method>, DropGuard)>,
    _certificates: Vec<DropGuard>,
}

impl Watchers {
    /// The watchers of a configuration that replaces the one watched by `self`.
    pub(super) fn replace(
        mut self,
        snapshot: &ConfigSnapshot,
        listeners: &[OpenListener],
        sessions: &Arc<Registry>,
    ) -> Self {
        let upstreams = snapshot.routes.iter().map(|routed| {
            let name = routed.route.name.clone();
            let sessions = Arc::clone(sessions);
            keep_or_spawn(&mut self.upstreams, &routed.upstream, |upstream, stop| {
                upstream.watch(name, sessions, stop)
            })
        });
        let upstreams = upstreams.collect();
        let methods = snapshot.authenticators.watched();
        let methods = methods.map(|method| keep_or_spawn(&mut self.methods, method, Method::watch)).collect();
        let certificates = listeners.iter().filter_map(|listener| {
            let (tls, sessions) = (listener.settings().tls.clone()?, Arc::clone(sessions));
            let check = move || {
                tls.check();
                end_revoked(&tls, &sessions);
            };
            Some(spawn(|stop| watched_file::poll(check, stop)))
        });
        Self { upstreams, methods, _certificates: certificates.collect() }
    }
}

/// Ends the sessions whose client certificate is revoked. Called at every check and not only when a list has changed, so that
/// none escapes that was being opened meanwhile.
fn end_revoked(tls: &Tls, sessions: &Registry) {
    let Some(is_revoked) = tls.revoked() else { return };
    let ended = sessions.end_revoked(None, |credential| match credential {
        CredentialId::Certificate(id) => is_revoked(id),
        _ => false,
    });
    if ended > 0 {
        tracing::info!(sessions = ended, "sessions with revoked client certificates ended");
    }
}

/// The task that watches this already, or a new one.
fn keep_or_spawn<T, F>(
    previous: &mut Vec<(Arc<T>, DropGuard)>,
    watched: &Arc<T>,
    watch: impl FnOnce(Arc<T>, CancellationToken) -> F,
) -> (Arc<T>, DropGuard)
where
    F: Future<Output = ()> + Send + 'static,
{
    let kept = previous.iter().position(|(previous, _)| Arc::ptr_eq(previous, watched));
    match kept {
        Some(index) => previous.swap_remove(index),
        None => (Arc::clone(watched), spawn(|stop| watch(Arc::clone(watched), stop))),
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
