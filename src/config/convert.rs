//! Assembles a [`Config`] from the raw tables.
//!
//! Owns the rules between tables; those of one table are in the file of that table. Knows no TOML syntax: it gets values
//! with their positions. Invariant: what it returns needs no further check.

use std::ops::Range;
use std::path::Path;

use super::Config;
use super::admin::admin;
use super::auth::{AuthKind, AuthMethod, JwtKeys, methods};
use super::error::{ConfigWarning, listener_key};
use super::events::{Events, events};
use super::limits::limits;
use super::listener::{Identity, Listener, listeners, optional_certificates};
use super::log::log;
use super::raw::RawFile;
use super::route::{Route, routes};
use super::timeouts::timeouts;
use super::upstream::Destinations;
use super::values::{Result, base_of, conflict};
use super::web::{PrivateFile, web};

/// Converts a whole file. The warnings are returned with their positions; those of the [`Config`] are still empty.
pub(super) fn config(raw: RawFile, file: &Path) -> Result<(Config, Vec<ConfigWarning>)> {
    let base = base_of(file);
    let mut warnings = Vec::new();
    let optional = optional_certificates(&raw.listener);
    let listeners = listeners(raw.listener, base, &mut warnings)?;
    let auth = methods(raw.auth, &listeners, base, &mut warnings)?;
    warnings.extend(unused_certificates(optional, &auth));
    let routes = routes(raw.route, base, &auth, &mut warnings)?;
    let limits = limits(raw.limits, &mut warnings)?;
    let timeouts = timeouts(raw.timeouts)?;
    let admin = raw.admin.map(|table| admin(table, base)).transpose()?;
    let log = log(raw.log, base)?;
    let events = raw.events.map(|table| events(table, base)).transpose()?;
    let private: Vec<PrivateFile<'_>> = private_files(&listeners, &routes, &auth, events.as_ref()).collect();
    let access_log = log.sessions.as_deref();
    let web =
        raw.web.map(|table| web(table, file, &auth, &private, access_log, &mut warnings)).transpose()?;
    if routes.is_empty() && web.is_none() {
        let wrong = "there is no [[route]] and no [web], so nothing to serve; add a [[route]] with name, path and backend";
        return Err(conflict(0..0, wrong));
    }
    let file = file.to_path_buf();
    let config = Config {
        file,
        listeners,
        routes,
        auth,
        limits,
        timeouts,
        web,
        admin,
        log,
        events,
        warnings: Vec::new(),
    };
    Ok((config, warnings))
}

/// Warns of a listener that asks for a certificate that nothing checks.
fn unused_certificates(
    optional: Option<(usize, Range<usize>)>,
    auth: &[AuthMethod],
) -> Option<ConfigWarning> {
    let is_used = auth.iter().any(|method| matches!(method.kind, AuthKind::ClientCertificate(_)));
    let (index, at) = optional.filter(|_| !is_used)?;
    let sentence = format!(
        "{} \"optional\" admits every client, because there is no [auth.NAME] with kind = \"client-certificate\"; add one \
         for the routes that require a certificate.",
        listener_key(index, "client_certificate")
    );
    Some(ConfigWarning { at, sentence })
}

/// The files that no client may read.
fn private_files<'a>(
    listeners: &'a [Listener],
    routes: &'a [Route],
    auth: &'a [AuthMethod],
    events: Option<&'a Events>,
) -> impl Iterator<Item = PrivateFile<'a>> {
    let of_listener = |listener: &'a Listener| match &listener.identity {
        Some(Identity::Files { private_key, .. }) => Some(("private key", private_key.as_path())),
        _ => None,
    };
    let of_route = |route: &'a Route| {
        let tokens = match &route.upstream.destinations {
            Destinations::Tokens(tokens) => Some(("tokens in", tokens.path.as_path())),
            Destinations::Fixed(_) => None,
        };
        let client = route.upstream.tls.client.as_ref();
        client.map(|(_, private_key)| ("private key", private_key.as_path())).into_iter().chain(tokens)
    };
    let of_method = |method: &'a AuthMethod| match &method.kind {
        AuthKind::Jwt(jwt) => match &jwt.keys {
            JwtKeys::Secret(path) => Some(("secret", path.as_path())),
            _ => None,
        },
        AuthKind::Basic(basic) => Some(("passwords in", basic.file.as_path())),
        AuthKind::Any(_) | AuthKind::ClientCertificate(_) | AuthKind::Forward(_) | AuthKind::Ticket(_) => {
            None
        }
    };
    let of_methods = auth.iter().filter_map(of_method);
    let of_events = events.map(|events| ("secret", events.secret_file.as_path()));
    let of_methods = of_methods.chain(of_events);
    listeners.iter().filter_map(of_listener).chain(of_methods).chain(routes.iter().flat_map(of_route))
}
