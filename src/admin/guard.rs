//! Who may use the admin address: a check of each request's method and head before it is handled.
//!
//! Pure. Any web page can make a browser on this machine send requests here: through a name that resolves to a loopback
//! address (DNS rebinding), or with a form. What a page cannot do is forge Host and Origin. Invariants: a request with a
//! foreign Host, or a target of another host, is refused; so is one with an Origin, except a change requested by the status
//! page itself: it has our own Origin and a header field that no page of another origin can send without a CORS preflight,
//! which is refused.

use std::net::{IpAddr, SocketAddr};

use http::{
    HeaderMap, Method, Uri,
    header::{HOST, HeaderName, ORIGIN},
};

/// The header field that the status page sends with every change.
const OWN_PAGE: (HeaderName, &str) = (HeaderName::from_static("x-portcullis"), "status-page");
/// The relation between the requesting page and this origin (Fetch Metadata).
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum GuardRefusal {
    /// None, or several.
    #[error("exactly one Host is required")]
    NoHost,
    #[error("invalid Host: use localhost, a loopback address, or the address in [admin]")]
    ForeignHost,
    /// An absolute-form target (RFC 9112 §3.2.2) of another host than the Host field.
    #[error("the host of the request target and the Host field differ")]
    OtherTarget,
    #[error("web pages other than the status page may not use this address")]
    Page,
}

/// Checks a request. `own`: the address listened on, if it has a port.
pub(super) fn check(
    method: &Method,
    target: &Uri,
    headers: &HeaderMap,
    own: Option<SocketAddr>,
) -> Result<(), GuardRefusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(GuardRefusal::NoHost) };
    let host = host.to_str().map_err(|_| GuardRefusal::ForeignHost)?;
    if !is_own(host, own) {
        return Err(GuardRefusal::ForeignHost);
    }
    if target.authority().is_some_and(|authority| !authority.as_str().eq_ignore_ascii_case(host)) {
        return Err(GuardRefusal::OtherTarget);
    }
    // A request from a page of another site. For a typed address or a bookmark browsers send "none".
    let is_change = method == Method::POST || method == Method::DELETE;
    let site = headers.get(SITE).map(|site| site.as_bytes());
    if is_change && site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return Err(GuardRefusal::Page);
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (None, _) => Ok(()),
        (Some(origin), None) if is_change => {
            let (field, expected) = OWN_PAGE;
            let is_own_origin = origin.as_bytes() == format!("http://{host}").as_bytes();
            let has_field = headers.get(field).is_some_and(|value| value.as_bytes() == expected.as_bytes());
            if is_own_origin && has_field { Ok(()) } else { Err(GuardRefusal::Page) }
        }
        _ => Err(GuardRefusal::Page),
    }
}

/// Whether a Host is a name of this machine that no DNS server controls. Ports are not compared: an ssh tunnel has its
/// own.
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

    fn checked(method: Method, fields: &[(HeaderName, &str)]) -> Result<(), GuardRefusal> {
        checked_for("/api/drain", method, fields)
    }

    fn checked_for(target: &str, method: Method, fields: &[(HeaderName, &str)]) -> Result<(), GuardRefusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        check(&method, &target.parse().unwrap(), &headers, Some(([127, 0, 0, 1], 9101).into()))
    }

    #[test]
    fn only_loopback_names_and_addresses_are_valid_hosts() {
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
            assert_eq!(checked(Method::GET, &[(HOST, host)]), Ok(()), "{host}");
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
            assert_eq!(checked(Method::GET, &[(HOST, host)]), Err(GuardRefusal::ForeignHost), "{host}");
        }
        assert_eq!(checked(Method::GET, &[]), Err(GuardRefusal::NoHost));
        assert_eq!(
            checked(Method::GET, &[(HOST, "localhost"), (HOST, "localhost")]),
            Err(GuardRefusal::NoHost)
        );
    }

    #[test]
    fn a_target_of_another_host_is_refused() {
        for (target, result) in [
            ("http://localhost:9101/api/drain", Ok(())),
            ("http://LOCALHOST:9101/api/drain", Ok(())),
            ("http://evil.example:9101/api/drain", Err(GuardRefusal::OtherTarget)),
            ("http://localhost:91/api/drain", Err(GuardRefusal::OtherTarget)),
            ("http://localhost/api/drain", Err(GuardRefusal::OtherTarget)),
            ("http://user@localhost:9101/api/drain", Err(GuardRefusal::OtherTarget)),
        ] {
            assert_eq!(checked_for(target, Method::POST, &[(HOST, "localhost:9101")]), result, "{target}");
        }
    }

    #[test]
    fn only_the_status_page_may_request_changes() {
        let host = (HOST, "localhost:9101");
        let (field, value) = OWN_PAGE;
        let (own, named) = ((ORIGIN, "http://localhost:9101"), (field.clone(), value));
        for method in [Method::POST, Method::DELETE] {
            assert_eq!(checked(method.clone(), std::slice::from_ref(&host)), Ok(()));
            assert_eq!(checked(method.clone(), &[host.clone(), own.clone(), named.clone()]), Ok(()));
            // Neither the Origin nor the field is enough alone, nor is a foreign Origin with the field.
            assert_eq!(checked(method.clone(), &[host.clone(), own.clone()]), Err(GuardRefusal::Page));
            let other_value = (field.clone(), "yes");
            assert_eq!(
                checked(method.clone(), &[host.clone(), own.clone(), other_value]),
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
                let result = checked(method.clone(), &[host.clone(), foreign, named.clone()]);
                assert_eq!(result, Err(GuardRefusal::Page), "{origin}");
            }
            let twice = [host.clone(), own.clone(), own.clone(), named.clone()];
            assert_eq!(checked(method.clone(), &twice), Err(GuardRefusal::Page));
            for site in ["same-origin", "none"] {
                let fields = [host.clone(), own.clone(), named.clone(), (SITE, site)];
                assert_eq!(checked(method.clone(), &fields), Ok(()), "{site}");
            }
            for site in ["cross-site", "same-site", "anything"] {
                let fields = [host.clone(), own.clone(), named.clone(), (SITE, site)];
                assert_eq!(checked(method.clone(), &fields), Err(GuardRefusal::Page), "{site}");
                assert_eq!(checked(method.clone(), &[host.clone(), (SITE, site)]), Err(GuardRefusal::Page));
            }
        }
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT] {
            assert_eq!(checked(method, &[host.clone(), own.clone(), named.clone()]), Err(GuardRefusal::Page));
        }
        assert_eq!(checked(Method::GET, &[host, (SITE, "cross-site")]), Ok(()), "a link from anywhere");
    }
}
