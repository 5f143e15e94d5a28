//! The PROXY protocol, versions 1 and 2, on listeners that require it
//! (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>).
//!
//! Owns where a header ends, which peers may send one, and its deadline. The crate `proxy-header` parses the fields.
//! Knows nothing of what follows: TLS or a request.
//!
//! Invariants: nothing is read from a peer that is not trusted; a valid header is consumed completely and nothing
//! behind it, however the bytes arrive; a header that is not complete within [`DEADLINE`] is an error.

use std::{io, net::SocketAddr, time::Duration};

use ipnet::IpNet;
use proxy_header::{ParseConfig, Protocol, ProxyHeader as ParsedHeader};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

use super::peer::is_trusted;
use crate::admission::canonical;

/// How long a complete header may take. A proxy sends it with the first packet.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);

/// The signature of version 1 (§2.1).
const V1: &[u8] = b"PROXY ";
/// "PROXY UNKNOWN" with CRLF: no header is shorter.
const SHORTEST: usize = 15;
/// The longest header of version 1, with CRLF (§2.1).
const LONGEST_V1: usize = 107;
/// The signature of version 2 (§2.2).
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The fixed part of a header of version 2: signature, command, family and length.
const FIXED_V2: usize = 16;
/// Version 2 and the command LOCAL.
const LOCAL: u8 = 0x20;

/// The contents of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProxyHeader {
    /// The canonical address of the client, `::ffff:a.b.c.d` as `a.b.c.d`; that of the proxy unless the initiator is
    /// [`Initiator::Client`].
    pub client: SocketAddr,
    /// The canonical address that the client connected to, if the initiator is a client.
    pub destination: Option<SocketAddr>,
    /// Who initiated the connection.
    pub initiator: Initiator,
}

/// Who initiated a connection that begins with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Initiator {
    /// A client with an address.
    Client,
    /// The proxy itself, for a health check: LOCAL.
    Proxy,
    /// A client without a known IP address: UNKNOWN, UNSPEC or AF_UNIX. The connection comes from the proxy, but its
    /// requests do not: their forwarding headers are not trusted.
    Unknown,
}

/// Why a connection has no valid header. For each of these, it is closed without a response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyHeaderError {
    /// The peer is not a trusted proxy. Nothing was read.
    #[error("{0} is not in trusted_proxies, and may not send a PROXY header")]
    Untrusted(SocketAddr),
    /// The connection begins with something else.
    #[error(
        "the connection does not begin with a PROXY header; configure the proxy to send one (HAProxy: send-proxy-v2)"
    )]
    Absent,
    /// A header of version 1 has no CRLF within its limit.
    #[error("the PROXY v1 header is longer than {LONGEST_V1} bytes")]
    TooLong,
    /// The fields are invalid, or the addresses are not those of TCP.
    #[error("the PROXY header is malformed")]
    Malformed,
    /// The connection ended within the header.
    #[error("the connection ended within its PROXY header")]
    Cut,
    /// The header took longer than [`DEADLINE`].
    #[error("no complete PROXY header within {DEADLINE:?}")]
    Late,
    #[error("the connection broke before its PROXY header ended: {0}")]
    Broken(io::Error),
}

impl From<io::Error> for ProxyHeaderError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Whether a connection that begins with `bytes` begins with a header. Five bytes are enough to tell. A listener that
/// does not expect a header uses this to report what is wrong with a connection.
pub(crate) fn begins(bytes: &[u8]) -> bool {
    const ENOUGH: usize = 5;
    bytes.len() >= ENOUGH && [V1, V2].iter().any(|start| have_common_prefix(bytes, start))
}

/// Reads the header at the begin of `stream`, a connection from `peer`, and not a byte more.
///
/// # Errors
/// [`ProxyHeaderError`] has a variant for each cause. The connection cannot be used any more.
pub(crate) async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    peer: SocketAddr,
    trusted: &[IpNet],
) -> Result<ProxyHeader, ProxyHeaderError> {
    if !is_trusted(trusted, peer.ip()) {
        return Err(ProxyHeaderError::Untrusted(canonical_address(peer)));
    }
    let header = timeout(DEADLINE, read_complete(stream)).await.map_err(|_| ProxyHeaderError::Late)??;
    parse(&header, peer)
}

async fn read_complete<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, ProxyHeaderError> {
    let mut header = Vec::with_capacity(LONGEST_V1);
    loop {
        let missing = missing(&header)?;
        if missing == 0 {
            return Ok(header);
        }
        let read = (&mut *stream).take(missing as u64).read_buf(&mut header).await;
        if read.map_err(ProxyHeaderError::Broken)? == 0 {
            return Err(ProxyHeaderError::Cut);
        }
    }
}

/// How many bytes a header that begins like this lacks at least; 0 if it is complete. That many can be read without
/// reading beyond its end.
fn missing(header: &[u8]) -> Result<usize, ProxyHeaderError> {
    if !have_common_prefix(header, V1) && !have_common_prefix(header, V2) {
        return Err(ProxyHeaderError::Absent);
    }
    if header.len() < SHORTEST {
        return Ok(SHORTEST - header.len());
    }
    if header.starts_with(V2) {
        return Ok(match header.get(FIXED_V2 - 2..FIXED_V2) {
            Some(&[high, low]) => FIXED_V2 + usize::from(u16::from_be_bytes([high, low])) - header.len(),
            _ => FIXED_V2 - header.len(),
        });
    }
    match header.iter().position(|&byte| byte == b'\r').map(|at| &header[at..]) {
        None if header.len() + 2 > LONGEST_V1 => Err(ProxyHeaderError::TooLong),
        None => Ok(2),
        Some(b"\r") if header.len() + 1 > LONGEST_V1 => Err(ProxyHeaderError::TooLong),
        Some(b"\r") => Ok(1),
        Some(b"\r\n") => Ok(0),
        Some(_) => Err(ProxyHeaderError::Malformed),
    }
}

/// Whether one of the two is a prefix of the other.
fn have_common_prefix(one: &[u8], other: &[u8]) -> bool {
    one.iter().zip(other).all(|(one, other)| one == other)
}

fn parse(header: &[u8], peer: SocketAddr) -> Result<ProxyHeader, ProxyHeaderError> {
    let without_client =
        |initiator| ProxyHeader { client: canonical_address(peer), destination: None, initiator };
    // All other fields of such a header are to be ignored (§2.2), the family included.
    if header.starts_with(V2) && header[V2.len()] == LOCAL {
        return Ok(without_client(Initiator::Proxy));
    }
    // A port has no sign, but Rust's parser accepts "+80".
    if header.starts_with(V1) && !header[V1.len()..].starts_with(b"UNKNOWN") && header.contains(&b'+') {
        return Err(ProxyHeaderError::Malformed);
    }
    // The TLVs are not used, but must be complete.
    let config = ParseConfig { include_tlvs: true, ..ParseConfig::default() };
    match ParsedHeader::parse(header, config) {
        Ok((parsed, _)) if parsed.tlvs().any(|tlv| tlv.is_err()) => Err(ProxyHeaderError::Malformed),
        Ok((parsed, length)) if length == header.len() => match parsed.proxied_address() {
            Some(addresses) if addresses.protocol == Protocol::Stream => Ok(ProxyHeader {
                client: canonical_address(addresses.source),
                destination: Some(canonical_address(addresses.destination)),
                initiator: Initiator::Client,
            }),
            Some(_) => Err(ProxyHeaderError::Malformed),
            None => Ok(without_client(Initiator::Unknown)),
        },
        _ => Err(ProxyHeaderError::Malformed),
    }
}

fn canonical_address(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(canonical(address.ip()), address.port())
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use proptest::prelude::*;
    use tokio::{
        io::{AsyncWriteExt, ReadBuf, duplex},
        time::{Instant, sleep},
    };

    use super::*;

    const PROXY: &str = "10.0.0.1:40000";
    const PAYLOAD: &[u8] = b"\x16\x03\x01PROXY \r\n\r\n\0\r\nQUIT\n";

    fn trusted() -> Vec<IpNet> {
        vec!["10.0.0.0/8".parse().unwrap()]
    }

    fn proxy() -> SocketAddr {
        PROXY.parse().unwrap()
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &length, block].concat()
    }

    const FOUR: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0xd4, 0x31, 0x01, 0xbb];

    /// Reads a header that arrives one byte at a time, and then the rest of the stream.
    async fn dripped(header: &[u8]) -> (Result<ProxyHeader, ProxyHeaderError>, Vec<u8>) {
        let (mut near, mut far) = duplex(1);
        let sent = [header, PAYLOAD].concat();
        tokio::spawn(async move { far.write_all(&sent).await });
        let read = read(&mut near, proxy(), &trusted()).await;
        let mut rest = Vec::new();
        if read.is_ok() {
            near.read_to_end(&mut rest).await.unwrap();
        }
        (read, rest)
    }

    async fn read_proxy_header(header: &[u8]) -> ProxyHeader {
        let (read, rest) = dripped(header).await;
        assert_eq!(rest, PAYLOAD, "what follows {:?}", header.escape_ascii().to_string());
        read.unwrap()
    }

    async fn refused(header: &[u8]) -> ProxyHeaderError {
        dripped(header).await.0.expect_err(&header.escape_ascii().to_string())
    }

    fn client(client: &str, destination: &str) -> ProxyHeader {
        let destination = Some(destination.parse().unwrap());
        ProxyHeader { client: client.parse().unwrap(), destination, initiator: Initiator::Client }
    }

    fn own(initiator: Initiator) -> ProxyHeader {
        ProxyHeader { client: proxy(), destination: None, initiator }
    }

    #[tokio::test]
    async fn both_versions_and_families_are_read_byte_by_byte() {
        for (header, expected) in [
            (
                b"PROXY TCP4 192.0.2.7 198.51.100.1 54321 443\r\n".to_vec(),
                client("192.0.2.7:54321", "198.51.100.1:443"),
            ),
            (b"PROXY TCP4 1.1.1.1 1.1.1.1 0 0\r\n".to_vec(), client("1.1.1.1:0", "1.1.1.1:0")),
            (
                b"PROXY TCP6 2001:db8::7 2001:DB8::1 54321 443\r\n".to_vec(),
                client("[2001:db8::7]:54321", "[2001:db8::1]:443"),
            ),
            (
                b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 54321 443\r\n".to_vec(),
                client("192.0.2.7:54321", "198.51.100.1:443"),
            ),
            (v2(0x21, 0x11, FOUR), client("192.0.2.7:54321", "198.51.100.1:443")),
            (
                // An authority and a checksum, which are ignored.
                v2(0x21, 0x11, &[FOUR, b"\x02\0\x04desk\x03\0\x04\x01\x02\x03\x04"].concat()),
                client("192.0.2.7:54321", "198.51.100.1:443"),
            ),
            (
                v2(
                    0x21,
                    0x21,
                    &[&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7][..], &[0; 16], &[0, 1, 0, 2]]
                        .concat(),
                ),
                client("[2001:db8::7]:1", "[::]:2"),
            ),
        ] {
            assert_eq!(read_proxy_header(&header).await, expected, "{}", header.escape_ascii());
        }
    }

    #[tokio::test]
    async fn longest_header_of_each_version_is_accepted() {
        let address = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let longest_known = format!("PROXY TCP6 {address} {address} 65535 65535\r\n");
        assert_eq!(read_proxy_header(longest_known.as_bytes()).await.client.port(), 65535);
        // The longest one in the specification: 107 bytes.
        let longest = format!("PROXY UNKNOWN {address} {address} 65535 65535\r\n");
        assert_eq!(longest.len(), LONGEST_V1);
        assert_eq!(read_proxy_header(longest.as_bytes()).await, own(Initiator::Unknown));
        let padded = [FOUR, &[0xea, 0xff, 0xf0][..], &[0; 0xfff0][..]].concat();
        assert_eq!(padded.len(), 65535);
        assert_eq!(read_proxy_header(&v2(0x21, 0x11, &padded)).await.client.to_string(), "192.0.2.7:54321");
    }

    #[tokio::test]
    async fn header_without_a_client_has_the_address_of_the_proxy() {
        for (header, initiator) in [
            (v2(0x20, 0x00, &[]), Initiator::Proxy),
            (v2(0x20, 0x11, FOUR), Initiator::Proxy),
            (v2(0x20, 0xff, b"whatever"), Initiator::Proxy),
            (v2(0x21, 0x00, &[]), Initiator::Unknown),
            (v2(0x21, 0x31, &[0; 216]), Initiator::Unknown),
            (b"PROXY UNKNOWN\r\n".to_vec(), Initiator::Unknown),
            (b"PROXY UNKNOWN 192.0.2.7 198.51.100.1 +1 443\r\n".to_vec(), Initiator::Unknown),
        ] {
            assert_eq!(read_proxy_header(&header).await, own(initiator), "{}", header.escape_ascii());
        }
    }

    #[tokio::test]
    async fn malformed_headers_are_refused() {
        for header in [
            b"PROXY TCP4 2001:db8::7 2001:db8::1 54321 443\r\n".to_vec(),
            b"PROXY TCP6 192.0.2.7 198.51.100.1 54321 443\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 2001:db8::1 54321 443\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.7 198.51.100.1 54321 443\r\n".to_vec(),
            b"PROXY tcp4 192.0.2.7 198.51.100.1 54321 443\r\n".to_vec(),
            b"PROXY  TCP4 192.0.2.7 198.51.100.1 54321 443\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 54321 65536\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 +54321 443\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 54321\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 54321 443 \r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 54321 443\r\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 54321 443\n \r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7\r198.51.100.1 54321 443\r\n".to_vec(),
            b"PROXY TCP4\r\n".to_vec(),
            v2(0x11, 0x11, FOUR),
            v2(0x22, 0x11, FOUR),
            v2(0x21, 0x12, FOUR),
            v2(0x21, 0x10, FOUR),
            v2(0x21, 0x41, FOUR),
            v2(0x21, 0x11, &FOUR[..11]),
            v2(0x21, 0x11, &[]),
            // An authority that is longer than the header.
            v2(0x21, 0x11, &[FOUR, b"\x02\0\x05desk"].concat()),
            v2(0x21, 0x21, FOUR),
            v2(0x21, 0x31, &[0; 215]),
        ] {
            let error = refused(&header).await;
            assert!(matches!(error, ProxyHeaderError::Malformed), "{}: {error}", header.escape_ascii());
        }
    }

    #[tokio::test]
    async fn other_protocols_are_refused_at_their_first_byte() {
        for header in
            [&b"\x16\x03\x01\x02\0"[..], b"GET / HTTP/1.1\r\n", b"PROXYTCP4 ", b"proxy TCP4 ", b"\r\nQUIT\n"]
        {
            let error = refused(header).await;
            assert!(matches!(error, ProxyHeaderError::Absent), "{}: {error}", header.escape_ascii());
        }
        // Without waiting for more.
        let (mut near, mut far) = duplex(64);
        far.write_all(b"G").await.unwrap();
        assert!(matches!(read(&mut near, proxy(), &trusted()).await, Err(ProxyHeaderError::Absent)));
    }

    #[test]
    fn line_without_crlf_is_refused_after_107_bytes() {
        for length in [LONGEST_V1 - 1, LONGEST_V1, LONGEST_V1 + 1, 100_000] {
            let mut header = b"PROXY UNKNOWN ".to_vec();
            header.resize(length - 1, b'x');
            header.extend(b"\r\n");
            let fits = header.len() <= LONGEST_V1;
            let (read, _) = read_chunks(&header, &[1]);
            assert_eq!(read.is_ok(), fits, "{} bytes: {read:?}", header.len());
            assert!(
                fits || matches!(read, Err(ProxyHeaderError::TooLong)),
                "{} bytes: {read:?}",
                header.len()
            );
            // All of it has arrived.
            let (at_once, consumed) = read_chunks(&header, &[header.len()]);
            assert_eq!(at_once.is_ok(), fits, "{} bytes: {at_once:?}", header.len());
            assert!(consumed <= LONGEST_V1, "{consumed} bytes were read");
        }
    }

    #[tokio::test]
    async fn end_of_stream_within_the_header_is_an_error() {
        for header in [&b""[..], b"PROXY TCP4 192.0.2.7", b"PROXY UNKNOWN\r", &v2(0x21, 0x11, FOUR)[..27]] {
            let (mut near, mut far) = duplex(64);
            far.write_all(header).await.unwrap();
            drop(far);
            let read = read(&mut near, proxy(), &trusted()).await;
            assert!(matches!(read, Err(ProxyHeaderError::Cut)), "{}: {read:?}", header.escape_ascii());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_is_total() {
        let (mut near, mut far) = duplex(1);
        tokio::spawn(async move {
            for byte in b"PROXY TCP4 192.0.2.7 198.51.100.1 54321 443\r\n" {
                sleep(Duration::from_millis(100)).await;
                far.write_all(&[*byte]).await.unwrap();
            }
        });
        let start = Instant::now();
        assert!(matches!(read(&mut near, proxy(), &trusted()).await, Err(ProxyHeaderError::Late)));
        assert_eq!(start.elapsed(), DEADLINE);
    }

    #[tokio::test]
    async fn nothing_is_read_from_an_untrusted_peer() {
        let (mut near, mut far) = duplex(64);
        far.write_all(b"PROXY UNKNOWN\r\n").await.unwrap();
        drop(far);
        let error = read(&mut near, "192.0.2.1:1".parse().unwrap(), &trusted()).await.unwrap_err();
        assert!(matches!(error, ProxyHeaderError::Untrusted(_)), "{error}");
        assert!(error.to_string().contains("192.0.2.1:1 is not in trusted_proxies"), "{error}");
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"PROXY UNKNOWN\r\n");
    }

    #[tokio::test]
    async fn mapped_peer_is_trusted_by_its_ipv4_address() {
        let (mut near, mut far) = duplex(64);
        far.write_all(b"PROXY UNKNOWN\r\n").await.unwrap();
        let read = read(&mut near, "[::ffff:10.0.0.1]:40000".parse().unwrap(), &trusted()).await;
        assert_eq!(read.unwrap(), own(Initiator::Unknown));
    }

    #[test]
    fn headers_are_recognised_by_their_first_bytes() {
        for bytes in [&b"PROXY"[..], b"PROXY TCP4 1.1.1.1", b"\r\n\r\n\0", V2, &v2(0x21, 0x11, FOUR)] {
            assert!(begins(bytes), "{}", bytes.escape_ascii());
        }
        for bytes in [
            &b""[..],
            b"P",
            b"PROX",
            b"\r\n\r\n",
            b"PROXYX",
            b"POST /",
            b"\r\n\r\nGET /",
            b"\x16\x03\x01\x02\0",
        ] {
            assert!(!begins(bytes), "{}", bytes.escape_ascii());
        }
    }

    /// A stream that returns its bytes in chunks, and counts them.
    struct Chunks<'a> {
        bytes: &'a [u8],
        sizes: std::iter::Cycle<std::slice::Iter<'a, usize>>,
        consumed: usize,
    }

    impl AsyncRead for Chunks<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let size = *self.sizes.next().unwrap_or(&1);
            let rest = &self.bytes[self.consumed..];
            let chunk = &rest[..rest.len().min(size).min(buf.remaining())];
            buf.put_slice(chunk);
            self.consumed += chunk.len();
            Poll::Ready(Ok(()))
        }
    }

    fn read_chunks(bytes: &[u8], sizes: &[usize]) -> (Result<ProxyHeader, ProxyHeaderError>, usize) {
        let mut chunks = Chunks { bytes, sizes: sizes.iter().cycle(), consumed: 0 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let read = runtime.block_on(read(&mut chunks, proxy(), &trusted()));
        (read, chunks.consumed)
    }

    /// Where the header ends, found independently of the code under test; `None` if it has no end.
    fn end(bytes: &[u8]) -> Option<usize> {
        if bytes.starts_with(V2) {
            let length = bytes.get(14..16)?;
            return Some(16 + usize::from(length[0]) * 256 + usize::from(length[1]));
        }
        bytes.windows(2).position(|pair| pair == b"\r\n").map(|at| at + 2)
    }

    fn a_header() -> impl Strategy<Value = Vec<u8>> {
        let v1 = (any::<(std::net::Ipv6Addr, std::net::Ipv6Addr)>(), any::<(u16, u16)>()).prop_map(
            |((from, to), (here, there))| format!("PROXY TCP6 {from} {to} {here} {there}\r\n").into_bytes(),
        );
        // Of the types for custom use (§2.2.7).
        let tlv = (0xe0..=0xef_u8, prop::collection::vec(any::<u8>(), 0..100))
            .prop_map(|(kind, value)| [&[kind][..], &(value.len() as u16).to_be_bytes(), &value].concat());
        let tlvs = prop::collection::vec(tlv, 0..4).prop_map(|tlvs| tlvs.concat());
        let v2 =
            (any::<[u8; 36]>(), tlvs).prop_map(|(block, tlvs)| v2(0x21, 0x21, &[&block[..], &tlvs].concat()));
        let unknown = "[ -~]{0,92}".prop_map(|text| format!("PROXY UNKNOWN{text}\r\n").into_bytes());
        prop_oneof![v1, v2, unknown]
    }

    fn sizes() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(1..50_usize, 1..5)
    }

    proptest! {
        #[test]
        fn header_is_read_to_its_end_and_no_further(
            header in a_header(), payload in prop::collection::vec(any::<u8>(), 0..50), sizes in sizes(),
        ) {
            let (read, consumed) = read_chunks(&[&header[..], &payload].concat(), &sizes);
            prop_assert!(read.is_ok(), "{}: {read:?}", header.escape_ascii());
            prop_assert_eq!(consumed, header.len());
        }

        #[test]
        fn no_input_panics_and_nothing_behind_the_end_is_read(
            mut bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                "PROXY (TCP4|TCP6|UNKNOWN)?[ 0-9a-f:.+\r\n]{0,120}".prop_map(String::into_bytes),
                a_header(),
            ],
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            payload in prop::collection::vec(any::<u8>(), 0..50),
            sizes in sizes(),
        ) {
            for (at, byte) in changes {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            bytes.extend(payload);
            let (read, consumed) = read_chunks(&bytes, &sizes);
            let end = end(&bytes);
            match read {
                Ok(header) => {
                    prop_assert_eq!(Some(consumed), end, "{:?} of {}", header, bytes.escape_ascii());
                    prop_assert_eq!(header.client, canonical_address(header.client));
                }
                Err(_) if bytes.starts_with(V2) => prop_assert!(end.is_none_or(|end| consumed <= end)),
                Err(_) => prop_assert!(consumed <= end.unwrap_or(LONGEST_V1).clamp(SHORTEST, LONGEST_V1)),
            }
        }
    }
}
