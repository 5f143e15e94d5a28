//! Row 67: what the kernel holds for a session whose peers read nothing.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::support::{Backend, PLAIN, Session, Setup, TLS, header, within};

/// The default of `limits.socket_buffer`.
const SOCKET_BUFFER: u64 = 512 * 1024;
/// What the process buffers for one direction, TLS included, and what the peers of this test buffer themselves.
const BESIDE: u64 = 128 * 1024 + 128 * 1024;

/// Writes until nothing is accepted for a while: how many bytes were.
async fn fill(mut writer: impl tokio::io::AsyncWrite + Unpin) -> u64 {
    let mut accepted = 0;
    let part = [0; 16 * 1024];
    while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), writer.write(&part)).await {
        accepted += written.expect("the session is open") as u64;
    }
    accepted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_67_a_session_stuck_both_ways_holds_no_more_than_documented() {
    let backend = Backend::scripted_with_small_buffers().await;
    for (lines, limit) in [("", SOCKET_BUFFER), ("socket_buffer = 65536", 64 * 1024)] {
        let gateway =
            Setup::new().route("stuck", &backend).limits(lines).timeouts("stall = \"60s\"").start().await;
        for listener in [TLS, PLAIN] {
            let connection = gateway.connect_with_small_buffers(listener).await;
            let session = gateway.open(connection, &gateway.upgrade(listener, "/stuck")).await;
            let peer = session.peer;
            let Session { frames, mut writer, .. } = session;
            let (received, says) = backend.accept().await.into_split();
            writer.write_all(&header(0x82, 1 << 40)).await.expect("the session is open");
            let filled = async { tokio::join!(fill(&mut writer), fill(says)) };
            let (up, down) = within("both directions to stand still", filled).await;
            // One direction: the receive buffer of one socket, for which the kernel takes twice the size, and four times
            // the size that is not yet sent on the other. The kernel counts whole packets, so that it may hold one more
            // of each.
            let most = 6 * limit + BESIDE + 2 * 64 * 1024;
            assert!(
                up <= most && down <= most,
                "listener {listener}, {lines:?}: {up} up, {down} down, {most} at most"
            );
            drop((frames, writer, received));
            gateway.access_log_line(peer).await;
        }
        gateway.finish().await;
    }
}
