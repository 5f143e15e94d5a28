//! Who a client is: Origin, forwarding headers and PROXY headers.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use url::Url;

use super::input::{Pieces, block_on};
use crate::{
    admission::{MissingOrigin, Origin, OriginPolicy},
    transport::{
        peer,
        proxy_protocol::{self, Initiator},
    },
};

const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const CLIENT: &str = "192.0.2.9";

fn trusted() -> [IpNet; 1] {
    [IpNet::from(PROXY)]
}

/// An Origin header: what is accepted is the origin that a browser understands.
pub fn origin(data: &[u8]) {
    let policy = OriginPolicy::parse(&["*".to_owned()], MissingOrigin::Refuse).expect("a valid policy");
    let admitted = policy.permit(&[data], None).is_ok();
    let Ok(text) = std::str::from_utf8(data) else { return assert!(!admitted) };
    let Ok(origin) = text.parse::<Origin>() else { return assert!(!admitted || text == "null") };
    assert!(admitted, "every origin passes \"*\"");
    let written = origin.to_string();
    assert!(written.bytes().all(|byte| byte.is_ascii_graphic()), "{written:?}");
    assert_eq!(written.parse::<Origin>().ok(), Some(origin), "{written} is another origin");
    if written.starts_with("http") {
        let url = Url::parse(&written).expect("an origin is a URL");
        if matches!(url.scheme(), "http" | "https") {
            assert_eq!(url.origin().ascii_serialization(), written, "a browser sends it differently");
        }
    }
    let policy = OriginPolicy::parse(&["https://gate.example".to_owned()], MissingOrigin::Refuse);
    let passes = policy.expect("a valid policy").permit(&[data], None).is_ok();
    assert_eq!(passes, written == "https://gate.example", "{text:?}");
}

/// The forwarding headers of a request, one a line: what the trusted proxy appends decides, whatever is left of it.
pub fn forwarded(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let client = |headers: &HeaderMap| peer::client((PROXY, 4711).into(), &trusted(), headers);
    client(&headers);
    let stranger: SocketAddr = ([192, 0, 2, 1], 1).into();
    let seen = peer::client(stranger, &trusted(), &headers);
    assert_eq!(
        (seen.address, seen.https, seen.host),
        (stranger, None, None),
        "a stranger's headers were used"
    );

    // The proxy appends to the last line, or sends a line of its own.
    for (name, element) in
        [("x-forwarded-for", CLIENT.to_owned()), ("forwarded", format!("for={CLIENT};proto=http"))]
    {
        let mut headers = headers.clone();
        if name == "forwarded" {
            for name in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"] {
                headers.remove(name);
            }
        }
        let last = headers.get_all(name).iter().next_back().cloned();
        let mut own_line = headers.clone();
        own_line.append(name, HeaderValue::from_str(&element).expect("ASCII"));
        assert_eq!(client(&own_line).address.ip().to_string(), CLIENT, "{own_line:?}");
        let Some(last) = last else { continue };
        let mut lines: Vec<HeaderValue> = headers.get_all(name).iter().cloned().collect();
        lines.pop();
        let appended = [last.as_bytes(), b", ", element.as_bytes()].concat();
        lines.push(HeaderValue::from_bytes(&appended).expect("both are valid"));
        headers.remove(name);
        for line in lines {
            headers.append(name, line);
        }
        assert_eq!(client(&headers).address.ip().to_string(), CLIENT, "{headers:?}");
    }
}

/// The begin of a connection on a listener that requires a PROXY header. The first byte chooses how it is split.
pub fn proxy_header(data: &[u8]) {
    let Some((&split, bytes)) = data.split_first() else { return };
    let read = |size| {
        block_on(async {
            let mut stream = Pieces::new(bytes, size);
            let header = proxy_protocol::read(&mut stream, (PROXY, 4711).into(), &trusted()).await;
            (header, stream.consumed())
        })
    };
    let (whole, consumed) = read(usize::MAX);
    let (pieces, _) = read(usize::from(split % 32) + 1);
    assert_eq!(format!("{whole:?}"), format!("{pieces:?}"), "the split changed the header");
    let Ok(header) = whole else { return };
    assert!(proxy_protocol::begins(bytes));
    let head = &bytes[..consumed];
    if head.starts_with(b"PROXY ") {
        assert!(consumed <= 107 && head.ends_with(b"\r\n"), "{consumed} bytes");
        assert_eq!(head.iter().filter(|byte| **byte == b'\r').count(), 1);
    } else {
        assert_eq!(consumed, 16 + usize::from(u16::from_be_bytes([head[14], head[15]])));
    }
    match header.initiator {
        Initiator::Client => assert!(header.destination.is_some()),
        Initiator::Proxy | Initiator::Unknown => {
            assert_eq!((header.client, header.destination), ((PROXY, 4711).into(), None));
        }
    }
}
