//! The client's address behind reverse proxies, from forwarding headers.
//!
//! Owns the evaluation of `Forwarded` (RFC 7239) and `X-Forwarded-*`. Knows nothing of what the address is used for.
//! Pure: it reads headers, never a socket.
//!
//! Invariant: headers are trusted only as far as trusted proxies wrote them. Each proxy appends on the right, so
//! everything is parsed from the right, and what is left of the first untrusted, unknown or malformed hop is never
//! evaluated. No text from there, such as an unclosed quote, can change how the hops right of it are parsed.
//!
//! Which headers are used: `X-Forwarded-For`, `-Proto` and `-Host` if any of them is present, `Forwarded` only if
//! none is. nginx, HAProxy and most others write the former and forward the latter as the browser sent it. A proxy
//! that writes `Forwarded` must therefore delete `X-Forwarded-*` from requests; one that writes `X-Forwarded-For`
//! should set or delete `-Proto` and `-Host`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

use crate::admission::rate::{canonical, covers};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A client as the trusted proxies describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    /// The canonical address: `::ffff:a.b.c.d` is `a.b.c.d`. Port 0 if it comes from a header without a port.
    pub address: SocketAddr,
    /// Whether the browser used TLS; `None` if no trusted proxy reports it.
    pub https: Option<bool>,
    /// The host, with its port if any, that the browser requested; `None` if no trusted proxy reports it. Visible
    /// ASCII, but not validated further.
    pub host: Option<String>,
}

/// Whether `address` is in one of the `trusted` networks; canonical on both sides.
pub(crate) fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    covers(trusted, address)
}

/// The client that is connected through `socket`.
///
/// If the peer of the socket is not trusted, it is the client and all headers are ignored. Otherwise, the client is
/// the rightmost hop that is not trusted itself, or the leftmost if all are. A hop that is unknown, obfuscated (RFC
/// 7239 §6.3) or malformed ends the evaluation at the hop before it. `https` and `host` are the rightmost values,
/// those of the nearest proxy.
pub(crate) fn client(socket: SocketAddr, trusted: &[IpNet], headers: &HeaderMap) -> Client {
    let address = SocketAddr::new(canonical(socket.ip()), socket.port());
    if !is_trusted(trusted, address.ip()) {
        return Client { address, https: None, host: None };
    }
    if [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST].iter().any(|name| headers.contains_key(name)) {
        let nearest = |name| from_the_right(headers, name).next();
        return Client {
            address: walk(address, trusted, from_the_right(headers, &X_FORWARDED_FOR).map(node)),
            https: nearest(&X_FORWARDED_PROTO).and_then(https),
            host: nearest(&X_FORWARDED_HOST).and_then(host),
        };
    }
    let elements = || from_the_right(headers, &header::FORWARDED).map(ForwardedElement::parse);
    let nearest = elements().next().flatten().unwrap_or_default();
    Client {
        address: walk(address, trusted, elements().map(|element| node(&element?.node?))),
        https: nearest.proto.as_deref().and_then(https),
        host: nearest.host.as_deref().and_then(host),
    }
}

/// Follows the hops, nearest first, while they are known and the one that reports the next is trusted.
fn walk(socket: SocketAddr, trusted: &[IpNet], hops: impl Iterator<Item = Option<SocketAddr>>) -> SocketAddr {
    let mut client = socket;
    for hop in hops {
        let Some(hop) = hop else { break };
        client = hop;
        if !is_trusted(trusted, hop.ip()) {
            break;
        }
    }
    client
}

/// The elements of a list header over all of its lines, the last one first. Bytes, because a byte that is not ASCII,
/// sent by an untrusted client, must not hide what a proxy appended to the same line.
fn from_the_right<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().rev().flat_map(|line| Elements { rest: Some(line.as_bytes()) })
}

/// Splits one line at its commas, from the right; empty elements are skipped (RFC 9110 §5.6.1).
struct Elements<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let line = self.rest?;
            let comma = last_bare_comma(line);
            self.rest = comma.map(|comma| &line[..comma]);
            let element = line[comma.map_or(0, |comma| comma + 1)..].trim_ascii();
            if !element.is_empty() {
                return Some(element);
            }
        }
    }
}

/// The last comma outside of a quoted-string (RFC 9110 §5.6.4). Parsed from the right, where the well-formed elements
/// of the proxies are: the closing quote comes first, and the opening one is the next that no backslash escapes.
fn last_bare_comma(line: &[u8]) -> Option<usize> {
    let mut quoted = false;
    for (at, byte) in line.iter().enumerate().rev() {
        match byte {
            b'"' if !quoted => quoted = true,
            b'"' => quoted = line[..at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1,
            b',' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// One element of `Forwarded`, written by one proxy (RFC 7239 §4).
#[derive(Debug, Default)]
struct ForwardedElement {
    node: Option<Vec<u8>>,
    proto: Option<Vec<u8>>,
    host: Option<Vec<u8>>,
}

impl ForwardedElement {
    /// `None` if it is malformed or has a parameter twice.
    fn parse(element: &[u8]) -> Option<Self> {
        let mut parsed = Self::default();
        let mut rest = element;
        while !rest.is_empty() {
            let (pair, after) = split_pair(rest);
            rest = after;
            if pair.is_empty() {
                continue;
            }
            let equals = pair.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (&pair[..equals], unquote(&pair[equals + 1..])?);
            let field = match name.to_ascii_lowercase().as_slice() {
                b"for" => &mut parsed.node,
                b"proto" => &mut parsed.proto,
                b"host" => &mut parsed.host,
                _ => continue,
            };
            if field.replace(value).is_some() {
                return None;
            }
        }
        Some(parsed)
    }
}

/// The first of the pairs that semicolons separate, and the rest.
fn split_pair(element: &[u8]) -> (&[u8], &[u8]) {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in element.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b';' if !quoted => return (element[..at].trim_ascii(), &element[at + 1..]),
            _ => {}
        }
    }
    (element.trim_ascii(), &[])
}

/// The value of a token or a quoted-string (RFC 9110 §5.6). An address with its port is accepted as a token too,
/// because many proxies omit the quotes that it needs.
fn unquote(value: &[u8]) -> Option<Vec<u8>> {
    let Some(quoted) = value.strip_prefix(b"\"") else {
        return (!value.is_empty() && !value.contains(&b'"')).then(|| value.to_vec());
    };
    let mut bytes = quoted.strip_suffix(b"\"")?.iter();
    let mut unquoted = Vec::with_capacity(quoted.len());
    while let Some(&byte) = bytes.next() {
        match byte {
            b'"' => return None,
            b'\\' => unquoted.push(*bytes.next()?),
            _ => unquoted.push(byte),
        }
    }
    Some(unquoted)
}

/// A hop: an address, `v4:port`, `[v6]` or `[v6]:port`. `None` for `unknown`, obfuscated names and anything else.
fn node(node: &[u8]) -> Option<SocketAddr> {
    let node = std::str::from_utf8(node).ok()?;
    let (address, port) = if let Some(rest) = node.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        (address.parse::<Ipv6Addr>().ok()?.into(), rest)
    } else if let Ok(address) = node.parse::<IpAddr>() {
        (address, "")
    } else {
        let (address, _) = node.split_once(':')?;
        (IpAddr::V4(address.parse().ok()?), &node[address.len()..])
    };
    Some(SocketAddr::new(canonical(address), node_port(port)?))
}

/// The port: none, `:` and a number, or `:` and an obfuscated port (RFC 7239 §6.3), which counts as none.
fn node_port(port: &str) -> Option<u16> {
    if port.is_empty() || port.starts_with(":_") {
        return Some(0);
    }
    let digits = port.strip_prefix(':')?;
    // Digits only: parse() accepts a "+" too.
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// Some proxies report the WebSocket's scheme rather than the page's.
fn https(scheme: &[u8]) -> Option<bool> {
    match scheme.to_ascii_lowercase().as_slice() {
        b"https" | b"wss" => Some(true),
        b"http" | b"ws" => Some(false),
        _ => None,
    }
}

fn host(host: &[u8]) -> Option<String> {
    let is_visible = !host.is_empty() && host.iter().all(u8::is_ascii_graphic);
    if is_visible { String::from_utf8(host.to_vec()).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1:40000";

    fn trusted() -> Vec<IpNet> {
        ["10.0.0.0/8", "fd00::/8", "127.0.0.1/32"].iter().map(|net| net.parse().unwrap()).collect()
    }

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let value = http::HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
        }
        headers
    }

    fn from_proxy(lines: &[(&str, &str)]) -> Client {
        client(PROXY.parse().unwrap(), &trusted(), &headers(lines))
    }

    fn address(lines: &[(&str, &str)]) -> String {
        from_proxy(lines).address.to_string()
    }

    #[test]
    fn untrusted_peer_is_the_client_whatever_its_headers() {
        let lines = headers(&[
            ("X-Forwarded-For", "192.0.2.7"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "desk.example.com"),
            ("Forwarded", "for=192.0.2.7;proto=https;host=desk.example.com"),
        ]);
        let bare = |address: &str| Client { address: address.parse().unwrap(), https: None, host: None };
        let seen = |socket: &str, trusted: &[IpNet]| client(socket.parse().unwrap(), trusted, &lines);
        assert_eq!(seen("192.0.2.1:5555", &trusted()), bare("192.0.2.1:5555"));
        assert_eq!(seen("[::ffff:192.0.2.1]:5555", &trusted()), bare("192.0.2.1:5555"));
        assert_eq!(seen(PROXY, &[]), bare(PROXY));
    }

    #[test]
    fn trusted_peer_without_headers_is_the_client() {
        assert_eq!(address(&[]), PROXY);
        assert_eq!(from_proxy(&[("Host", "desk.example.com")]).host, None);
    }

    #[test]
    fn mapped_peer_is_trusted_by_its_ipv4_address() {
        let lines = headers(&[("X-Forwarded-For", "192.0.2.7")]);
        let seen = client("[::ffff:10.0.0.1]:1".parse().unwrap(), &trusted(), &lines);
        assert_eq!(seen.address.to_string(), "192.0.2.7:0");
        assert!(is_trusted(&["::ffff:10.0.0.0/104".parse().unwrap()], "10.2.3.4".parse().unwrap()));
    }

    #[test]
    fn client_is_the_rightmost_untrusted_hop_of_x_forwarded_for() {
        for (value, expected) in [
            ("192.0.2.7", "192.0.2.7:0"),
            ("192.0.2.7:5555", "192.0.2.7:5555"),
            ("2001:db8::7", "[2001:db8::7]:0"),
            ("[2001:db8::7]", "[2001:db8::7]:0"),
            ("[2001:db8::7]:5555", "[2001:db8::7]:5555"),
            ("::ffff:192.0.2.7", "192.0.2.7:0"),
            ("[::ffff:192.0.2.7]:5555", "192.0.2.7:5555"),
            ("203.0.113.66, 192.0.2.7", "192.0.2.7:0"),
            ("203.0.113.66,192.0.2.7,10.9.9.9", "192.0.2.7:0"),
            ("203.0.113.66, 192.0.2.7 ,\t::ffff:10.9.9.9, [fd00::1]:80, 127.0.0.1", "192.0.2.7:0"),
            ("garbage, 192.0.2.7", "192.0.2.7:0"),
            ("é, \", \\\", 192.0.2.7", "192.0.2.7:0"),
            ("\", 192.0.2.7", "192.0.2.7:0"),
            // All trusted: the leftmost.
            ("10.7.7.7", "10.7.7.7:0"),
            ("10.7.7.7:5555, fd00::2, 10.9.9.9", "10.7.7.7:5555"),
            // Empty elements are skipped.
            ("192.0.2.7,, ,10.9.9.9,", "192.0.2.7:0"),
            ("", PROXY),
            (" , ", PROXY),
        ] {
            assert_eq!(address(&[("X-Forwarded-For", value)]), expected, "{value:?}");
        }
    }

    #[test]
    fn malformed_hop_ends_the_evaluation_at_the_previous_one() {
        for malformed in [
            "unknown",
            "_hidden",
            "garbage",
            "unix:",
            "192.0.2",
            "192.0.2.256",
            "192.0.2.07",
            "192.0.2.7:",
            "192.0.2.7:65536",
            "192.0.2.7:+80",
            "192.0.2.7:80:80",
            "192.0.2.7 80",
            "192.0.2.7/32",
            "[192.0.2.7]",
            "[2001:db8::7",
            "2001:db8::7]",
            "[2001:db8::7]80",
            "[2001:db8::7]:",
            "[fe80::1%1]:80",
            "fe80::1%eth0",
            "desk.example.com",
            "\"192.0.2.7",
            "192.0.2.7é",
        ] {
            let after = format!("203.0.113.66, {malformed}, 10.9.9.9:7, 10.8.8.8");
            assert_eq!(address(&[("X-Forwarded-For", &after)]), "10.9.9.9:7", "{malformed:?}");
            assert_eq!(address(&[("X-Forwarded-For", malformed)]), PROXY, "{malformed:?}");
        }
    }

    #[test]
    fn several_lines_are_one_list() {
        let lines = [
            ("x-forwarded-for", "203.0.113.66"),
            ("X-FORWARDED-FOR", "192.0.2.7, 10.9.9.9"),
            ("X-Forwarded-For", "10.8.8.8"),
        ];
        assert_eq!(address(&lines), "192.0.2.7:0");
        let lines = [("Forwarded", "for=203.0.113.66"), ("forwarded", "for=192.0.2.7, for=10.9.9.9")];
        assert_eq!(address(&lines), "192.0.2.7:0");
    }

    #[test]
    fn client_is_the_rightmost_untrusted_hop_of_forwarded() {
        for (value, expected) in [
            ("for=192.0.2.7", "192.0.2.7:0"),
            ("For=\"192.0.2.7:5555\"", "192.0.2.7:5555"),
            ("FOR=\"[2001:db8::7]\"", "[2001:db8::7]:0"),
            ("for=\"[2001:db8::7]:5555\";by=10.0.0.1;proto=https", "[2001:db8::7]:5555"),
            ("for=\"[::ffff:192.0.2.7]:5555\"", "192.0.2.7:5555"),
            ("for=\"192.0.2.7:_port\"", "192.0.2.7:0"),
            ("for=192.0.2.7:5555", "192.0.2.7:5555"),
            ("for=\"192.\\0.2.7\"", "192.0.2.7:0"),
            ("proto=https ; for=192.0.2.7;", "192.0.2.7:0"),
            ("x=\"a;for=203.0.113.66\";for=192.0.2.7", "192.0.2.7:0"),
            ("x=\"a, for=203.0.113.66\";for=192.0.2.7", "192.0.2.7:0"),
            ("x=\"\\\", for=203.0.113.66\";for=192.0.2.7", "192.0.2.7:0"),
            // Outside of quotes a backslash escapes nothing.
            ("x=\\;for=192.0.2.7", "192.0.2.7:0"),
            ("for=203.0.113.66, for=192.0.2.7;x=\"a, \\\" b\"", "192.0.2.7:0"),
            ("for=203.0.113.66, for=192.0.2.7;x=\", \\\\\"", "192.0.2.7:0"),
            ("for=203.0.113.66, for=192.0.2.7, for=\"[fd00::1]:80\", for=10.9.9.9", "192.0.2.7:0"),
            ("for=10.7.7.7, for=10.9.9.9", "10.7.7.7:0"),
            // The evaluation ends at an unknown hop.
            ("for=unknown", PROXY),
            ("for=203.0.113.66, for=unknown, for=10.9.9.9", "10.9.9.9:0"),
            ("for=203.0.113.66, for=_hidden, for=10.9.9.9", "10.9.9.9:0"),
            ("for=203.0.113.66, proto=https, for=10.9.9.9", "10.9.9.9:0"),
            ("for=203.0.113.66, for=192.0.2.7;for=192.0.2.8, for=10.9.9.9", "10.9.9.9:0"),
            ("for=203.0.113.66, for, for=10.9.9.9", "10.9.9.9:0"),
            ("for=203.0.113.66, for=, for=10.9.9.9", "10.9.9.9:0"),
            ("for=203.0.113.66, for=\"\", for=10.9.9.9", "10.9.9.9:0"),
            ("for=203.0.113.66, for=\"192.0.2.7\"x, for=10.9.9.9", "10.9.9.9:0"),
            ("for=203.0.113.66, for=192.0.2.7;x=\"\\\", for=10.9.9.9", "10.9.9.9:0"),
            ("for=203.0.113.66, for=192.0.2.7;host=, for=10.9.9.9", "10.9.9.9:0"),
            ("for=203.0.113.66, for=192.0.2.7;host=a\"b, for=10.9.9.9", "10.9.9.9:0"),
            ("for=192.0.2.7;host=\"a\"b\"", PROXY),
            ("192.0.2.7", PROXY),
            ("", PROXY),
        ] {
            assert_eq!(address(&[("Forwarded", value)]), expected, "{value:?}");
        }
    }

    #[test]
    fn untrusted_text_cannot_hide_what_the_proxy_appended() {
        for untrusted in
            ["for=\"", "for=\"\\", "\"", "x=\"\\\"", "for=1.2.3.4;x=\"a", "é", ";", "=", "\\", "\"\""]
        {
            let appended = format!("{untrusted}, for=192.0.2.7;proto=https");
            let seen = from_proxy(&[("Forwarded", &appended)]);
            assert_eq!(
                (seen.address.to_string().as_str(), seen.https),
                ("192.0.2.7:0", Some(true)),
                "{appended}"
            );
        }
    }

    #[test]
    fn non_ascii_bytes_hide_nothing() {
        for name in [X_FORWARDED_FOR, header::FORWARDED] {
            let value: &[u8] =
                if name == X_FORWARDED_FOR { b"\xff, 192.0.2.7" } else { b"\xff, for=192.0.2.7" };
            let lines = HeaderMap::from_iter([(name, http::HeaderValue::from_bytes(value).unwrap())]);
            let seen = client(PROXY.parse().unwrap(), &trusted(), &lines);
            assert_eq!(seen.address.to_string(), "192.0.2.7:0");
        }
    }

    #[test]
    fn x_forwarded_headers_disable_forwarded() {
        let forged = ("Forwarded", "for=203.0.113.66;proto=http;host=evil.example");
        let seen = from_proxy(&[forged, ("X-Forwarded-For", "192.0.2.7")]);
        assert_eq!((seen.address.to_string().as_str(), seen.https, seen.host), ("192.0.2.7:0", None, None));
        let seen = from_proxy(&[forged, ("X-Forwarded-Proto", "https")]);
        assert_eq!((seen.address.to_string().as_str(), seen.https), (PROXY, Some(true)));
        let seen = from_proxy(&[forged, ("X-Forwarded-For", "unknown")]);
        assert_eq!(seen.address.to_string(), PROXY);
    }

    #[test]
    fn scheme_and_host_are_those_of_the_nearest_proxy() {
        let seen = |proto: &str, host: &str| {
            let x = from_proxy(&[("X-Forwarded-Proto", proto), ("X-Forwarded-Host", host)]);
            (x.https, x.host)
        };
        let desk = || Some("desk.example.com:8443".to_owned());
        assert_eq!(seen("https", "desk.example.com:8443"), (Some(true), desk()));
        assert_eq!(seen("http, HTTPS", "evil.example, desk.example.com:8443 "), (Some(true), desk()));
        assert_eq!(seen("wss", "a"), (Some(true), Some("a".to_owned())));
        assert_eq!(seen("ws", ""), (Some(false), None));
        assert_eq!(seen("https, http", "a b"), (Some(false), None));
        assert_eq!(seen("https, gopher", "desk.example.com, é"), (None, None));

        let forwarded = |value: &str| {
            let f = from_proxy(&[("Forwarded", value)]);
            (f.https, f.host)
        };
        assert_eq!(
            forwarded("for=192.0.2.7;Proto=HTTPS;Host=\"desk.example.com:8443\""),
            (Some(true), desk())
        );
        assert_eq!(
            forwarded("for=1.2.3.4;proto=http;host=evil.example, for=192.0.2.7;proto=https").0,
            Some(true)
        );
        assert_eq!(forwarded("for=1.2.3.4;proto=https;host=evil.example, for=192.0.2.7"), (None, None));
        assert_eq!(forwarded("proto=https;host=evil.example, proto=https;proto=http"), (None, None));
    }

    fn a_trusted_hop() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<[u8; 3]>().prop_map(|[a, b, c]| format!("10.{a}.{b}.{c}")),
            any::<u16>().prop_map(|port| format!("10.9.9.9:{port}")),
            any::<u16>().prop_map(|group| format!("[fd00::{group:x}]")),
            Just("::ffff:10.1.1.1".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn text_left_of_the_client_is_ignored(
            left in "[\\x20-\\x7e\\u{80}-\\u{ff}]{0,60}",
            other_line in "[\\x20-\\x7e]{0,30}",
            hops in prop::collection::vec(a_trusted_hop(), 0..5),
            quote: bool,
        ) {
            let mut x = vec![left.clone(), "192.0.2.7".to_owned()];
            x.extend(hops.iter().cloned());
            let seen = address(&[("X-Forwarded-For", &other_line), ("X-Forwarded-For", &x.join(", "))]);
            prop_assert_eq!(seen, "192.0.2.7:0");

            let pair = |hop: &str| {
                if quote || hop.contains(':') { format!("for=\"{hop}\"") } else { format!("for={hop}") }
            };
            let mut forwarded = vec![left, pair("192.0.2.7")];
            forwarded.extend(hops.iter().map(|hop| pair(hop)));
            let seen = address(&[("Forwarded", &other_line), ("Forwarded", &forwarded.join(", "))]);
            prop_assert_eq!(seen, "192.0.2.7:0");
        }

        #[test]
        fn no_input_panics_and_addresses_are_canonical(
            x: bool, bytes in "[\\x20-\\x7e\\u{80}-\\u{ff}]{0,40}|([for=\"\\[\\]:0-9.;,\\\\]|::ffff:10\\.0\\.0\\.1){0,30}",
        ) {
            let name = if x { "X-Forwarded-For" } else { "Forwarded" };
            let seen = from_proxy(&[(name, &bytes)]).address.ip();
            prop_assert_eq!(seen, canonical(seen));
        }
    }
}
