//! Rows 28 to 32: rate limits and the address of a client.

use std::net::{IpAddr, Ipv4Addr};

use crate::support::{Backend, PLAIN, Session, Setup, TLS, eventually, read_to_end};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn row_30_more_sources_than_the_table_holds_cost_no_more_memory() {
    // More than the 65,536 rows of the table. A million are a test of the table itself.
    const SOURCES: u32 = 80_000;
    /// Successive sources are in different networks of 256 addresses, as those of a botnet are.
    const STRIDE: u32 = 199;
    let backend = Backend::echo().await;
    let gateway = Setup::echo(&backend)
        .per_ip("rate = 10\nburst = 20\nsessions = 1\nexempt = [\"127.0.0.0/24\"]")
        .level("info")
        .admin()
        .start()
        .await;
    let holder = IpAddr::V4(Ipv4Addr::new(127, 1, 2, 3));
    let connection = gateway.connect_from(Some(holder), TLS).await;
    let mut session: Session = gateway.open(connection, &gateway.upgrade(TLS, "/echo")).await;
    session.echo(b"hello").await;

    let before = gateway.memory();
    for n in 0..SOURCES {
        let [_, a, b, c] = (n * STRIDE).to_be_bytes();
        let source = IpAddr::V4(Ipv4Addr::new(127, 128 | a, b, c));
        let socket = gateway.untracked_socket(Some(source), PLAIN, |_| {}).await;
        socket.set_zero_linger().unwrap();
    }
    let idle = gateway.open_descriptors();
    eventually("the flood is over", std::time::Duration::from_secs(30), || {
        let open = gateway.open_descriptors();
        (open <= idle.min(64)).then_some(()).ok_or_else(|| format!("{open} descriptors are open"))
    })
    .await;
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown <= 16 * MIB, "{grown} bytes for {SOURCES} sources");

    // The source with a session is still counted.
    session.echo(b"still here").await;
    let mut second = gateway.untracked_socket(Some(holder), TLS, |_| {}).await;
    assert_eq!(read_to_end(&mut second).await.0, b"", "a second session of one source");
    drop(second);
    session.close(1000).await;
    let peer = session.peer;
    drop(session);
    gateway.ended(peer, "client_closed", Some(1000)).await;
    gateway.finish().await;
}
