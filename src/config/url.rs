//! URLs of servers that the gateway itself sends requests to.

use http::Uri;
use toml::Spanned;
use url::{Host, Url};

use super::values::{Result, invalid};

/// The URL of a server, and whether it uses TLS. `example` is one, for messages.
pub(super) fn server_url(key: &str, written: &Spanned<String>, example: &str) -> Result<(Uri, bool)> {
    let wrong = |wrong: &str| invalid(key, written, format!("{wrong}; write one such as {example:?}"));
    let url = Url::parse(written.get_ref()).map_err(|error| wrong(&format!("not a URL ({error})")))?;
    let is_loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        _ => false,
    };
    match url.scheme() {
        "https" => {}
        "http" if is_loopback => {}
        "http" => return Err(wrong("http is for loopback addresses such as 127.0.0.1 only")),
        _ => return Err(wrong("the scheme is not https")),
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(wrong("a user, a password or a fragment cannot be part of it"));
    }
    let uri = url.as_str().parse::<Uri>().map_err(|error| wrong(&error.to_string()))?;
    Ok((uri, url.scheme() == "https"))
}
