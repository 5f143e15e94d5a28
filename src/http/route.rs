//! Which route a request means.

use std::sync::Arc;

use crate::config::{Route, RoutePath};

/// The routes of a configuration, most particular first: a host beats any host, an exact path beats a prefix, a
/// longer prefix beats a shorter one.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    sorted: Vec<Arc<Route>>,
}

impl Routes {
    /// Sorts `routes`.
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Self {
        let mut sorted: Vec<Arc<Route>> = routes.into_iter().map(Arc::new).collect();
        sorted.sort_by_key(|route| {
            let path = match &route.path {
                RoutePath::Exact(_) => usize::MAX,
                RoutePath::Prefix(prefix) => prefix.len(),
            };
            std::cmp::Reverse((route.host.is_some(), path))
        });
        Self { sorted }
    }

    /// The route for a host (lower-case, without port) and a path, which is compared as it was sent.
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        self.sorted.iter().find(|route| {
            route.host.as_deref().is_none_or(|only| only == host)
                && match &route.path {
                    RoutePath::Exact(exact) => exact == path,
                    RoutePath::Prefix(prefix) => path.starts_with(prefix.as_str()),
                }
        })
    }
}
