//! Rows 1 to 11: connections before the first byte of HTTP.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::{CipherSuite, ClientConfig, ClientConnection, ConnectionTrafficSecrets};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    BINARY, Backend, Setup, TLS, client_config, client_config_with, frame, read_response, read_to_end, within,
};

const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;
/// TLS 1.2 on the wire.
const VERSION: [u8; 2] = [3, 3];
/// The alert that refuses a renegotiation and lets the connection live (RFC 5246 §7.2.2).
const NO_RENEGOTIATION: [u8; 2] = [1, 100];

/// The client's first flight, as one record.
fn client_hello(config: Arc<ClientConfig>) -> Vec<u8> {
    let mut client =
        ClientConnection::new(config, "localhost".try_into().expect("a name")).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("a hello");
    hello
}

/// A hello whose records have `size` bytes each.
fn in_tiny_records(hello: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in hello[5..].chunks(size) {
        bytes.extend_from_slice(&hello[..3]);
        bytes.extend_from_slice(&(part.len() as u16).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

#[tokio::test]
async fn row_03_a_good_client_is_served_while_2000_silent_ones_hold_all_permits() {
    const PERMITS: u64 = 1024;
    let backend = Backend::echo().await;
    let limits = format!("max_handshakes = {PERMITS}");
    let gateway = Setup::echo(&backend).limits(&limits).admin().start().await;
    let mut silent = Vec::new();
    for n in 0..2_000_u32 {
        // From 200 addresses, each in a network of its own.
        let source = [127, 1, (n % 200) as u8, 1].into();
        silent.push(gateway.untracked_socket(Some(source), TLS, |_| {}).await);
    }
    for socket in &silent {
        gateway.expect_log_line(socket.local_addr().unwrap());
    }
    gateway.wait_for_handshakes(PERMITS).await;
    let mut took = Vec::new();
    for n in 1..=20 {
        took.push(gateway.time_to_session([127, 1, 250, n].into()).await);
        // Nearly all of them, so that what is compared with the limit is what the silent clients hold.
        let in_use = gateway.handshakes().await;
        assert!((PERMITS / 2..=PERMITS).contains(&in_use), "{in_use} of {PERMITS} permits are in use");
    }
    took.sort_unstable();
    assert!(took[18] <= Duration::from_secs(1), "{took:?}");
    drop(silent);
    gateway.finish().await;
}

#[tokio::test]
async fn row_06_half_a_hello_in_tiny_records_costs_no_processor_time() {
    const PAUSE: Duration = Duration::from_secs(2);
    let gateway = Setup::new().timeouts("tls = \"30s\"").start().await;
    let hello = in_tiny_records(&client_hello(client_config(rustls::ALL_VERSIONS, &["http/1.1"])), 1);
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut socket = gateway.tcp(TLS).await;
        socket.write_all(&hello[..hello.len() / 2]).await.unwrap();
        waiting.push(socket);
    }
    // What is measured is the time without any input, after the gateway has read the records.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = gateway.processor_time();
    tokio::time::sleep(PAUSE).await;
    let used = gateway.processor_time() - before;
    // One busy loop alone would use all of the pause.
    assert!(used <= PAUSE / 20, "{used:?} of processor time for {} silent clients", waiting.len());

    // A close_notify instead of the other half ends each at once.
    for mut socket in waiting {
        let peer = socket.local_addr().unwrap();
        socket.write_all(&[ALERT, 3, 3, 0, 2, 1, 0]).await.unwrap();
        socket.shutdown().await.unwrap();
        read_to_end(&mut socket).await.1.ok();
        gateway.refused(peer, "tls_failed").await;
    }
    gateway.finish().await;
}

/// One direction of a TLS 1.2 connection with ChaCha20-Poly1305 (RFC 7905), whose keys a test has taken over.
struct Records {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Records {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Self {
        let ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } = secrets else {
            panic!("another cipher")
        };
        let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).expect("a key");
        let iv = iv.as_ref().try_into().expect("12 bytes");
        Self { key: LessSafeKey::new(key), iv, sequence }
    }

    /// The nonce and the authenticated data of the next record.
    fn next(&mut self, kind: u8, length: usize) -> (Nonce, Aad<[u8; 13]>) {
        let sequence = self.sequence.to_be_bytes();
        self.sequence += 1;
        let mut nonce = self.iv;
        for (byte, part) in nonce[4..].iter_mut().zip(sequence) {
            *byte ^= part;
        }
        let mut data = [0; 13];
        data[..8].copy_from_slice(&sequence);
        data[8] = kind;
        data[9..11].copy_from_slice(&VERSION);
        data[11..].copy_from_slice(&(length as u16).to_be_bytes());
        (Nonce::assume_unique_for_key(nonce), Aad::from(data))
    }

    fn seal(&mut self, kind: u8, text: &[u8]) -> Vec<u8> {
        let (nonce, data) = self.next(kind, text.len());
        let mut sealed = text.to_vec();
        self.key.seal_in_place_append_tag(nonce, data, &mut sealed).expect("a record");
        let length = (sealed.len() as u16).to_be_bytes();
        [&[kind][..], &VERSION, &length, &sealed].concat()
    }

    /// The next record of the gateway; `None` at the end of the connection.
    async fn read(&mut self, socket: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
        let mut header = [0; 5];
        within("a record or the end", socket.read_exact(&mut header)).await.ok()?;
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let mut sealed = vec![0; length];
        within("the rest of a record", socket.read_exact(&mut sealed)).await.expect("a whole record");
        let (nonce, data) = self.next(header[0], length - CHACHA20_POLY1305.tag_len());
        let text = self.key.open_in_place(nonce, data, &mut sealed).expect("an authentic record");
        Some((header[0], text.to_vec()))
    }
}

#[tokio::test]
async fn row_07_a_renegotiation_is_refused() {
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend).start().await;
    let suite = CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;
    let mut config = client_config_with(&[&rustls::version::TLS12], &["http/1.1"], |provider| {
        provider.cipher_suites.retain(|known| known.suite() == suite);
    });
    config.enable_secret_extraction = true;
    let config = Arc::new(config);

    let socket = gateway.tcp(TLS).await;
    let peer = socket.local_addr().unwrap();
    let mut stream = gateway.try_secure(socket, config.clone()).await.expect("TLS 1.2");
    stream.write_all(&gateway.upgrade(TLS, "/echo").bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let response = read_response(&mut stream, true).await;
    assert_eq!((response.status, response.rest.len()), (101, 0), "{response:?}");
    let (mut socket, client) = stream.into_inner();
    let secrets = client.dangerous_extract_secrets().expect("the keys");
    let (mut write, mut read) = (Records::new(secrets.tx), Records::new(secrets.rx));

    // The first hello is refused with a warning, and the session lives.
    let hello = client_hello(config)[5..].to_vec();
    socket.write_all(&write.seal(HANDSHAKE, &hello)).await.unwrap();
    assert_eq!(read.read(&mut socket).await, Some((ALERT, NO_RENEGOTIATION.to_vec())));
    socket.write_all(&write.seal(APPLICATION_DATA, &frame(true, BINARY, b"hello"))).await.unwrap();
    assert_eq!(read.read(&mut socket).await, Some((APPLICATION_DATA, b"\x82\x05hello".to_vec())));

    // A client that insists is disconnected.
    for _ in 0..3 {
        // The socket may be closed already.
        let _ = socket.write_all(&write.seal(HANDSHAKE, &hello)).await;
    }
    while let Some((kind, text)) = read.read(&mut socket).await {
        assert_ne!(kind, HANDSHAKE, "the gateway negotiates: {text:02x?}");
    }
    drop(socket);
    gateway.ended(peer, "client_gone", None).await;
    gateway.finish().await;
}
