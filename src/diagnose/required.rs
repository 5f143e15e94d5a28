//! What a route or the files require of a client, and what of it cannot be predicted.

use crate::config::{AuthKind, AuthMethod, Config};

/// The lines about these methods.
pub(super) fn required(names: &[String], config: &Config) -> Vec<String> {
    let mut lines = vec![format!("required: {}", names.join(" and "))];
    let find = |name: &String| config.auth.iter().find(|method| method.name == *name);
    for method in names.iter().filter_map(find) {
        match &method.kind {
            AuthKind::Any(others) => {
                lines.push(format!("{}: one of {}", method.name, others.join(", ")));
                lines.extend(others.iter().filter_map(find).filter_map(unpredictable));
            }
            _ => lines.extend(unpredictable(method)),
        }
    }
    lines
}

/// What a method looks at that no question to `explain` can tell.
fn unpredictable(method: &AuthMethod) -> Option<String> {
    let name = &method.name;
    match &method.kind {
        AuthKind::Basic(basic) => {
            Some(format!("{name}: a user and a password of {}; not checked here", basic.file.display()))
        }
        AuthKind::Forward(forward) => {
            let authority = forward.url.authority().map_or("", |authority| authority.as_str());
            Some(format!("{name}: asks {authority}, whose answer cannot be predicted; not asked here"))
        }
        AuthKind::Any(_) | AuthKind::ClientCertificate(_) | AuthKind::Jwt(_) | AuthKind::Ticket(_) => None,
    }
}
