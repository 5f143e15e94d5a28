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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    /// Every order of the items.
    fn orders<'a>(items: &[&'a str]) -> Vec<Vec<&'a str>> {
        if items.is_empty() {
            return vec![Vec::new()];
        }
        let mut orders_of_all = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let others = [&items[..index], &items[index + 1..]].concat();
            orders_of_all.extend(orders(&others).into_iter().map(|others| [vec![*item], others].concat()));
        }
        orders_of_all
    }

    #[test]
    fn precedence_depends_on_host_and_path_and_not_on_the_order_of_the_file() {
        const ROUTES: [&str; 5] = [
            "name = \"host-prefix\"\npath = \"/*\"\nhost = \"desk.example\"",
            "name = \"exact\"\npath = \"/desk/one/two\"",
            "name = \"longer\"\npath = \"/desk/one/*\"",
            "name = \"shorter\"\npath = \"/desk/*\"",
            "name = \"shortest\"\npath = \"/*\"",
        ];
        for order in orders(&ROUTES) {
            let routes =
                order.iter().map(|lines| format!("[[route]]\n{lines}\nbackend = \"tcp://127.0.0.1:1\"\n"));
            let text = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{}", routes.collect::<String>());
            let config = Config::parse(&text, Path::new("gateway.toml")).unwrap();
            let routes = Routes::new(config.routes.into_iter().map(|route| Routed { route, upstream: () }));
            let matching = |host: &str, path: &str| -> Vec<String> {
                routes.matching(host, path).map(|routed| routed.route.name.clone()).collect()
            };
            let all = ["host-prefix", "exact", "longer", "shorter", "shortest"];
            assert_eq!(matching("desk.example", "/desk/one/two"), all, "{order:?}");
            assert_eq!(matching("a.example", "/desk/one/two"), all[1..], "{order:?}");
            assert_eq!(matching("a.example", "/desk/one/three"), all[2..], "{order:?}");
            assert_eq!(matching("a.example", "/desk/two"), all[3..], "{order:?}");
            assert_eq!(matching("a.example", "/desk"), all[4..], "{order:?}");
        }
    }
}
