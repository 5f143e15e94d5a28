//! Rows 48 to 51: a session whose peers are slow, silent or gone.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use crate::support::{Backend, Setup};

#[tokio::test]
async fn row_50_half_of_all_banners_arrive_within_10_ms() {
    const BANNER: &[u8] = b"RFB 003.008\n";
    let backend = Backend::scripted().await;
    let gateway = Setup::new().route("echo", &backend).start().await;
    let mut took = Vec::new();
    for _ in 0..41 {
        let mut session = gateway.session("/echo").await;
        let mut served = backend.accept().await;
        let start = Instant::now();
        served.write_all(BANNER).await.unwrap();
        assert_eq!(session.frames.payload(BANNER.len()).await, BANNER);
        took.push(start.elapsed());
        session.close(1000).await;
    }
    took.sort();
    let median = took[took.len() / 2];
    assert!(median < Duration::from_millis(10), "the median banner took {median:?}: {took:?}");
    gateway.finish().await;
}
