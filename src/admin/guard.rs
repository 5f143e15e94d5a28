//! Who may ask: the judgement of one request before it is looked at.
//!
//! Pure. A browser on this machine can be led here by any page of the world, by a name that resolves to a loopback address
//! (DNS rebinding) or by a form. What it cannot do is to lie about Host and Origin. Invariants: a request under a foreign
//! Host is refused; so is one with an Origin, but for one kind: a change asked for by the status page itself, which has our
//! own Origin and a field that no other page can send without asking first, and is told no.

use std::net::{IpAddr, SocketAddr};

use http::{
    HeaderMap, Method,
    header::{HOST, HeaderName, ORIGIN},
};

/// The field by which the status page makes itself known, and what it says.
pub(super) const OWN_PAGE: (HeaderName, &str) = (HeaderName::from_static("x-portcullis"), "status-page");
/// What browsers say of who asks (Fetch Metadata).
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Why a request is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum GuardRefusal {
    /// None, or several.
    #[error("one Host is needed")]
    NoHost,
    /// Not a name of this machine for itself.
    #[error("this Host is not served here: use localhost, a loopback address, or the address in [admin]")]
    ForeignHost,
    /// A page asks.
    #[error("pages may not ask here")]
    Page,
}

/// Judges a request by its method and head. `own`: the address that was configured, if it has a port.
pub(super) fn judge(
    method: &Method,
    headers: &HeaderMap,
    own: Option<SocketAddr>,
) -> Result<(), GuardRefusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(GuardRefusal::NoHost) };
    let host = host.to_str().map_err(|_| GuardRefusal::ForeignHost)?;
    if !is_own(host, own) {
        return Err(GuardRefusal::ForeignHost);
    }
    // A page of another site, whatever else it says. A link or a typed address is not a page that asks.
    let is_change = method == Method::POST || method == Method::DELETE;
    let site = headers.get(SITE).map(|site| site.as_bytes());
    if is_change && site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return Err(GuardRefusal::Page);
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (None, _) => Ok(()),
        (Some(origin), None) if is_change => {
            let (field, word) = OWN_PAGE;
            let ours = origin.as_bytes() == format!("http://{host}").as_bytes();
            let named = headers.get(field).is_some_and(|said| said.as_bytes() == word.as_bytes());
            if ours && named { Ok(()) } else { Err(GuardRefusal::Page) }
        }
        _ => Err(GuardRefusal::Page),
    }
}

/// Whether a Host names this machine by a name that nobody else can give out. Ports are not compared: a tunnel has one of
/// its own.
fn is_own(host: &str, own: Option<SocketAddr>) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, port),
        _ => (host, "0"),
    };
    if port.parse::<u16>().is_err() {
        return false;
    }
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let address = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse().map(IpAddr::V6),
        None => name.parse().map(IpAddr::V4),
    };
    address.is_ok_and(|address| address.is_loopback() || own.is_some_and(|own| own.ip() == address))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn judged(method: Method, fields: &[(HeaderName, &str)]) -> Result<(), GuardRefusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        judge(&method, &headers, Some(([127, 0, 0, 1], 9101).into()))
    }

    #[test]
    fn only_names_of_this_machine_for_itself_are_served() {
        for host in [
            "localhost",
            "LOCALHOST:9101",
            "localhost:80",
            "127.0.0.1",
            "127.0.0.1:9101",
            "127.9.9.9:1",
            "[::1]",
            "[::1]:9101",
        ] {
            assert_eq!(judged(Method::GET, &[(HOST, host)]), Ok(()), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9101",
            "localhost.evil.example",
            "localhost.",
            "localhost:",
            "localhost:http",
            "localhost:99999",
            "127.0.0.1.evil.example",
            "127.1",
            "0x7f000001",
            "2130706433",
            "0.0.0.0",
            "::1",
            "[::1",
            "[::]:9101",
            "192.0.2.7",
            "user@localhost",
            "localhost/",
            "localhost:1:2",
            "[::1%lo]",
        ] {
            assert_eq!(judged(Method::GET, &[(HOST, host)]), Err(GuardRefusal::ForeignHost), "{host}");
        }
        assert_eq!(judged(Method::GET, &[]), Err(GuardRefusal::NoHost));
        assert_eq!(
            judged(Method::GET, &[(HOST, "localhost"), (HOST, "localhost")]),
            Err(GuardRefusal::NoHost)
        );
    }

    #[test]
    fn no_page_may_ask_but_our_own_for_a_change() {
        let host = (HOST, "localhost:9101");
        let (field, word) = OWN_PAGE;
        let (own, named) = ((ORIGIN, "http://localhost:9101"), (field.clone(), word));
        for method in [Method::POST, Method::DELETE] {
            assert_eq!(judged(method.clone(), std::slice::from_ref(&host)), Ok(()));
            assert_eq!(judged(method.clone(), &[host.clone(), own.clone(), named.clone()]), Ok(()));
            // Each of the two alone is not enough, and neither is another's Origin with the field.
            assert_eq!(judged(method.clone(), &[host.clone(), own.clone()]), Err(GuardRefusal::Page));
            let other_word = (field.clone(), "yes");
            assert_eq!(
                judged(method.clone(), &[host.clone(), own.clone(), other_word]),
                Err(GuardRefusal::Page)
            );
            for origin in [
                "http://evil.example",
                "https://localhost:9101",
                "http://localhost",
                "http://localhost:3000",
                "http://127.0.0.1:9101",
                "http://localhost:9101/",
                "http://LOCALHOST:9101",
                "null",
                "",
            ] {
                let foreign = (ORIGIN, origin);
                let asked = judged(method.clone(), &[host.clone(), foreign, named.clone()]);
                assert_eq!(asked, Err(GuardRefusal::Page), "{origin}");
            }
            let twice = [host.clone(), own.clone(), own.clone(), named.clone()];
            assert_eq!(judged(method.clone(), &twice), Err(GuardRefusal::Page));
            for site in ["cross-site", "same-site", "anything"] {
                let asked = [host.clone(), own.clone(), named.clone(), (SITE, site)];
                assert_eq!(judged(method.clone(), &asked), Err(GuardRefusal::Page), "{site}");
                assert_eq!(judged(method.clone(), &[host.clone(), (SITE, site)]), Err(GuardRefusal::Page));
            }
        }
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT] {
            assert_eq!(judged(method, &[host.clone(), own.clone(), named.clone()]), Err(GuardRefusal::Page));
        }
        assert_eq!(judged(Method::GET, &[host, (SITE, "cross-site")]), Ok(()), "a link from anywhere");
    }
}
