//! Routing: which route matches a host and a path.

use std::sync::Arc;

use crate::config::{Route, RoutePath};

/// A route and its upstream.
#[derive(Debug)]
pub struct Routed<U> {
    pub route: Route,
    /// The backends of the route. Opaque to this module.
    pub upstream: U,
}

/// The routes of a configuration, highest precedence first: a host beats any host, an exact path beats a prefix, a
/// longer prefix beats a shorter one.
#[derive(Debug, Clone)]
pub struct Routes<U> {
    sorted: Vec<Arc<Routed<U>>>,
}

impl<U> Routes<U> {
    /// Sorts `routes` by precedence.
    pub fn new(routes: impl IntoIterator<Item = Routed<U>>) -> Self {
        let mut sorted: Vec<Arc<Routed<U>>> = routes.into_iter().map(Arc::new).collect();
        sorted.sort_by_key(|routed| {
            let path = match &routed.route.path {
                RoutePath::Exact(_) => usize::MAX,
                RoutePath::Prefix(prefix) => prefix.len(),
            };
            std::cmp::Reverse((routed.route.host.is_some(), path))
        });
        Self { sorted }
    }

    /// The routes that match a host (lower-case, without port) and a path, highest precedence first. The path is compared
    /// as it was sent.
    pub(crate) fn matching<'r>(&'r self, host: &str, path: &str) -> impl Iterator<Item = &'r Arc<Routed<U>>> {
        self.sorted.iter().filter(move |routed| {
            routed.route.host.as_deref().is_none_or(|configured| configured == host)
                && match &routed.route.path {
                    RoutePath::Exact(exact) => exact == path,
                    RoutePath::Prefix(prefix) => path.starts_with(prefix.as_str()),
                }
        })
    }

    /// All routes, highest precedence first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Routed<U>>> {
        self.sorted.iter()
    }
}
