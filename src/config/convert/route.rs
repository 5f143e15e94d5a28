//! The rules of `[[route]]`.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use toml::Spanned;

use super::upstream::upstream;
use super::values::{Result, bare, missing, parsed, value, word};
use crate::admission::{MissingOrigin, OriginPolicy};
use crate::config::error::{ConfigWarning, nearest};
use crate::config::explain::route_key;
use crate::config::raw::{self, Maybe, Texts};
use crate::config::{BackendFailure, Host, Receive, Route, Send};

/// A name stands in every log line.
const LONGEST_NAME: usize = 64;

pub(super) fn routes(
    written: Vec<Spanned<raw::Route>>,
    base: &Path,
    remarks: &mut Vec<ConfigWarning>,
) -> Result<Vec<Route>> {
    let mut routes: Vec<Route> = Vec::with_capacity(written.len());
    let mut names = HashSet::new();
    let mut places = HashMap::new();
    for (index, table) in written.into_iter().enumerate() {
        let (name_at, path_at) = (table.get_ref().name.clone(), table.get_ref().path.clone());
        let route = route(index, table, base, remarks)?;
        let key = |key| route_key(index, Some(&route.name), key);
        if let Some(text) = name_at.filter(|_| !names.insert(route.name.clone())) {
            return Err(value(key("name"), &text, "another route has this name already; choose a new one"));
        }
        let place = (route.host.clone(), route.path.clone());
        if let (Some(text), Some(owner)) = (path_at, places.insert(place, route.name.clone())) {
            let wrong = format!("route {owner:?} has this path on the same host already; change one of them");
            return Err(value(key("path"), &text, wrong));
        }
        routes.push(route);
    }
    Ok(routes)
}

fn route(
    index: usize,
    table: Spanned<raw::Route>,
    base: &Path,
    remarks: &mut Vec<ConfigWarning>,
) -> Result<Route> {
    let at = table.span();
    let mut written = table.into_inner();
    let name = name(index, &written, at.clone())?;
    let key = |key: &str| route_key(index, Some(&name), key);
    let Some(path) = written.path.take() else {
        return Err(missing(at, key("path"), "add path = \"/vnc\""));
    };
    let upstream = upstream(&key, at, &mut written, base, remarks)?;
    let missing_origins = [("refuse", MissingOrigin::Refuse), ("allow", MissingOrigin::Allow)];
    let missing_origin = word(&key("missing_origin"), written.missing_origin, &missing_origins)?;
    let receives = [("any", Receive::Any), ("binary", Receive::Binary)];
    let sends = [("binary", Send::Binary), ("text", Send::Text)];
    let failures = [("close", BackendFailure::Close), ("status", BackendFailure::Status)];
    Ok(Route {
        path: parsed(&key("path"), &path)?,
        host: written.host.map(|text| host(&key("host"), &text)).transpose()?,
        upstream,
        origins: origins(&key("origins"), written.origins, missing_origin.unwrap_or_default(), remarks)?,
        subprotocols: subprotocols(&key("subprotocols"), written.subprotocols)?,
        receive: word(&key("receive"), written.receive, &receives)?.unwrap_or_default(),
        send: word(&key("send"), written.send, &sends)?.unwrap_or_default(),
        backend_failure: word(&key("backend_failure"), written.backend_failure, &failures)?
            .unwrap_or_default(),
        name,
    })
}

fn name(index: usize, written: &raw::Route, at: Range<usize>) -> Result<String> {
    let key = route_key(index, None, "name");
    let Some(text) = &written.name else {
        return Err(missing(at, key, "add name = \"…\", a short name for log lines"));
    };
    let name = text.get_ref();
    if name.trim().is_empty() || name.chars().count() > LONGEST_NAME || name.chars().any(char::is_control) {
        let wrong =
            format!("a name has 1 to {LONGEST_NAME} visible characters; write a short name for log lines");
        return Err(value(key, text, wrong));
    }
    Ok(name.clone())
}

fn host(key: &str, text: &Spanned<String>) -> Result<String> {
    let host = text.get_ref().parse::<Host>().map_err(|wrong| {
        value(
            key,
            text,
            format!("{wrong}; write the host alone, such as \"desk.example.com\", without scheme and port"),
        )
    })?;
    Ok(host.to_string().trim_end_matches('.').to_owned())
}

fn origins(
    key: &str,
    written: Maybe<Texts>,
    missing_origin: MissingOrigin,
    remarks: &mut Vec<ConfigWarning>,
) -> Result<OriginPolicy> {
    let Some(list) = written else {
        let (any, null, listed) = (false, false, Vec::new());
        return Ok(OriginPolicy { any, same_origin: true, null, listed, missing: missing_origin });
    };
    if list.get_ref().is_empty() {
        let wrong = "an empty list would refuse every page; list some, such as [\"https://desk.example.com\"], \
                     or leave the key out for pages of this gateway itself";
        return Err(bare(key, list.span(), "[]", wrong));
    }
    let entries = list.get_ref();
    let texts: Vec<String> = entries.iter().map(|entry| entry.get_ref().clone()).collect();
    let policy = OriginPolicy::parse(&texts, missing_origin).map_err(|wrong| {
        let entry = &entries[wrong.index];
        let advice = match nearest(entry.get_ref(), ["same-origin", "null"]) {
            Some(near) => format!("did you mean {near:?}?"),
            None => "write the scheme and host of the page, such as \"https://desk.example.com\"".into(),
        };
        value(key, entry, format!("{}; {advice}", wrong.reason))
    })?;
    let place_of = |word: &str| entries.iter().find(|entry| entry.get_ref() == word).map(Spanned::span);
    if let Some(at) = place_of("*") {
        let sentence = format!(
            "{key} \"*\" lets every page that a visitor opens use this backend; list the pages that should, such as \
             \"https://desk.example.com\"."
        );
        remarks.push(ConfigWarning { at, sentence });
    }
    if let Some(at) = place_of("null") {
        let sentence = format!(
            "{key} \"null\" is what any page becomes in a sandboxed frame, so every page can use this backend; \
             list the pages that should."
        );
        remarks.push(ConfigWarning { at, sentence });
    }
    Ok(policy)
}

fn subprotocols(key: &str, written: Texts) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::with_capacity(written.len());
    for text in written {
        let name = text.get_ref();
        if !is_token(name) {
            let wrong = "a sub-protocol has only letters, digits and !#$%&'*+-.^_`|~ in it (RFC 9110 §5.6.2); \
                         write one per entry, such as \"binary\"";
            return Err(value(key, &text, wrong));
        }
        if names.contains(name) {
            return Err(value(key, &text, "listed twice; remove one of them"));
        }
        names.push(text.into_inner());
    }
    Ok(names)
}

/// Whether the text is a `token` (RFC 9110 §5.6.2).
fn is_token(text: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(token)
}
