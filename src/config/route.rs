//! `[[route]]`: names, paths, origins, subprotocols and message types.
//!
//! Owns the rules between routes (no two share a name, or a path on one host) and the keys about the client's side. The
//! keys about backends are converted by `upstream`.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use toml::Spanned;

use super::auth::{AuthMethod, required};
use super::error::{ConfigWarning, nearest, route_key};
use super::host::Host;
use super::path::RoutePath;
use super::raw::RawRoute;
use super::scalar::{OptionalKey, StringList};
use super::upstream::{UpstreamConfig, upstream};
use super::values::{Result, invalid, invalid_literal, keyword, missing, parsed};
use crate::admission::{MissingOrigin, OriginPolicy};
use crate::websocket::is_token;

/// A name is part of every log line.
const MAX_NAME: usize = 64;

/// A path and the backends for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The unique name in log lines and metrics.
    pub name: String,
    /// The only host it matches, in lower-case ASCII and without port or trailing dot (an IPv6 address in brackets);
    /// `None` matches every host.
    pub host: Option<String>,
    /// The paths it matches.
    pub path: RoutePath,
    /// The backends, and how they are reached.
    pub upstream: UpstreamConfig,
    /// Which pages may connect.
    pub origins: OriginPolicy,
    /// The methods that authenticate a user, all of them; if empty, users are not authenticated.
    pub auth: Vec<String>,
    /// The subprotocols it requires (RFC 6455 §1.9); if empty, the client's offer decides.
    pub subprotocols: Vec<String>,
    /// Which messages a client may send.
    pub receive: Receive,
    /// Which messages are sent to a client.
    pub send: Send,
    /// How a client learns that no backend can be reached.
    pub backend_failure: BackendFailure,
}

/// Which messages a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Receive {
    /// Binary and text; the payload bytes of both are forwarded.
    #[default]
    Any,
    /// Binary only; a text message is answered with Close 1003 (RFC 6455 §7.4.1).
    Binary,
}

/// Which messages are sent to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Send {
    /// Binary messages.
    #[default]
    Binary,
    /// Text messages, for backends whose protocol is UTF-8 text.
    Text,
}

/// How a client learns that no backend can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendFailure {
    /// Complete the upgrade, then close with a code and a reason, because browsers hide HTTP statuses from scripts.
    #[default]
    Close,
    /// Refuse the request with an HTTP status.
    Status,
}

pub(super) fn routes(
    raw: Vec<Spanned<RawRoute>>,
    base: &Path,
    methods: &[AuthMethod],
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Vec<Route>> {
    let mut routes: Vec<Route> = Vec::with_capacity(raw.len());
    let mut names = HashSet::new();
    let mut paths = HashMap::new();
    for (index, table) in raw.into_iter().enumerate() {
        let (name_at, path_at) = (table.get_ref().name.clone(), table.get_ref().path.clone());
        let route = route(index, table, base, methods, warnings)?;
        let key = |key| route_key(index, Some(&route.name), key);
        if let Some(text) = name_at.filter(|_| !names.insert(route.name.clone())) {
            return Err(invalid(key("name"), &text, "another route already has this name; choose a new one"));
        }
        let path = (route.host.clone(), route.path.clone());
        if let (Some(text), Some(owner)) = (path_at, paths.insert(path, route.name.clone())) {
            let wrong = format!("route {owner:?} already has this path on the same host; change one of them");
            return Err(invalid(key("path"), &text, wrong));
        }
        routes.push(route);
    }
    Ok(routes)
}

fn route(
    index: usize,
    table: Spanned<RawRoute>,
    base: &Path,
    methods: &[AuthMethod],
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Route> {
    let at = table.span();
    let mut written = table.into_inner();
    let name = name(index, &written, at.clone())?;
    let key = |key: &str| route_key(index, Some(&name), key);
    let Some(path) = written.path.take() else {
        return Err(missing(at, key("path"), "add path = \"/vnc\""));
    };
    let upstream = upstream(&key, at, &mut written, base, warnings)?;
    let missing_origins = [("refuse", MissingOrigin::Refuse), ("allow", MissingOrigin::Allow)];
    let missing_origin = keyword(&key("missing_origin"), written.missing_origin, &missing_origins)?;
    let receives = [("any", Receive::Any), ("binary", Receive::Binary)];
    let sends = [("binary", Send::Binary), ("text", Send::Text)];
    let failures = [("close", BackendFailure::Close), ("status", BackendFailure::Status)];
    Ok(Route {
        path: parsed(&key("path"), &path)?,
        host: written.host.map(|text| host(&key("host"), &text)).transpose()?,
        upstream,
        origins: origins(&key("origins"), written.origins, missing_origin.unwrap_or_default(), warnings)?,
        auth: required(&key("auth"), written.auth, methods)?.into_iter().map(Spanned::into_inner).collect(),
        subprotocols: subprotocols(&key("subprotocols"), written.subprotocols)?,
        receive: keyword(&key("receive"), written.receive, &receives)?.unwrap_or_default(),
        send: keyword(&key("send"), written.send, &sends)?.unwrap_or_default(),
        backend_failure: keyword(&key("backend_failure"), written.backend_failure, &failures)?
            .unwrap_or_default(),
        name,
    })
}

fn name(index: usize, written: &RawRoute, at: Range<usize>) -> Result<String> {
    let key = route_key(index, None, "name");
    let Some(text) = &written.name else {
        return Err(missing(at, key, "add name = \"…\", a short name for log lines"));
    };
    let name = text.get_ref();
    if name.trim().is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        let wrong =
            format!("a name has 1 to {MAX_NAME} visible characters; write a short name for log lines");
        return Err(invalid(key, text, wrong));
    }
    Ok(name.clone())
}

fn host(key: &str, text: &Spanned<String>) -> Result<String> {
    let host = text.get_ref().parse::<Host>().map_err(|wrong| {
        invalid(
            key,
            text,
            format!("{wrong}; write the host alone, such as \"desk.example.com\", without scheme and port"),
        )
    })?;
    Ok(host.to_string().trim_end_matches('.').to_owned())
}

fn origins(
    key: &str,
    written: OptionalKey<StringList>,
    missing_origin: MissingOrigin,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<OriginPolicy> {
    let Some(list) = written else {
        let (any, null, listed) = (false, false, Vec::new());
        return Ok(OriginPolicy { any, same_origin: true, null, listed, missing: missing_origin });
    };
    if list.get_ref().is_empty() {
        let wrong = "an empty list would refuse every page; list some, such as [\"https://desk.example.com\"], \
                     or remove the key to allow pages of this gateway itself";
        return Err(invalid_literal(key, list.span(), "[]", wrong));
    }
    let entries = list.get_ref();
    let texts: Vec<String> = entries.iter().map(|entry| entry.get_ref().clone()).collect();
    let policy = OriginPolicy::parse(&texts, missing_origin).map_err(|wrong| {
        let entry = &entries[wrong.index];
        let advice = match nearest(entry.get_ref(), ["same-origin", "null"]) {
            Some(near) => format!("did you mean {near:?}?"),
            None => "write the scheme and host of the page, such as \"https://desk.example.com\"".into(),
        };
        invalid(key, entry, format!("{}; {advice}", wrong.reason))
    })?;
    let position_of = |text: &str| entries.iter().find(|entry| entry.get_ref() == text).map(Spanned::span);
    if let Some(at) = position_of("*") {
        let sentence = format!(
            "{key} \"*\" allows every web page to connect; list the pages that may, such as \
             \"https://desk.example.com\"."
        );
        warnings.push(ConfigWarning { at, sentence });
    }
    if let Some(at) = position_of("null") {
        let sentence = format!(
            "{key} \"null\" is the origin of any page in a sandboxed frame, so every page can connect; list the pages \
             that may."
        );
        warnings.push(ConfigWarning { at, sentence });
    }
    Ok(policy)
}

fn subprotocols(key: &str, written: StringList) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::with_capacity(written.len());
    for text in written {
        let name = text.get_ref();
        if !is_token(name) {
            let wrong = "a subprotocol may contain only letters, digits and !#$%&'*+-.^_`|~ (RFC 9110 §5.6.2); \
                         write one per entry, such as \"binary\"";
            return Err(invalid(key, &text, wrong));
        }
        if names.contains(name) {
            return Err(invalid(key, &text, "listed twice; remove one of them"));
        }
        names.push(text.into_inner());
    }
    Ok(names)
}
