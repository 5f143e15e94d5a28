//! A stalled reader of standard error does not block sessions.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::LoggingGateway;
use crate::support::{TIMEOUT, eventually, within};

const ALL: &str = "format = \"json\"\nlevel = \"debug\"\nrefused_per_second = 1000000";

#[tokio::test]
async fn sessions_continue_and_every_line_is_written_later() {
    let gateway = LoggingGateway::start(ALL).await;
    gateway.log.is_stopped.store(true, Ordering::Release);
    let mut session = gateway.session().await;
    // Each line has about 600 bytes, and a pipe holds 64 KiB.
    let origin = format!("https://evil.example/{}", "\u{202e}".repeat(250));
    let request = gateway.request().without("Origin").add("Origin", &origin).bytes();
    for _ in 0..400 {
        gateway.refused(&request).await;
    }
    within("an echo beside a stuck log", session.echo(b"hello")).await;
    within("a new session beside it", gateway.whole_session()).await;
    session.close(1000).await;
    gateway.log.is_stopped.store(false, Ordering::Release);
    assert_eq!(gateway.log.with("duration_ms", 402).await.len(), 402);
    let (status, _) = gateway.finish().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn the_gateway_exits_while_no_reader_drains_the_log() {
    let mut gateway = LoggingGateway::start(ALL).await;
    gateway.log.is_stopped.store(true, Ordering::Release);
    let origin = "x".repeat(2000);
    let request = gateway.request().without("Origin").add("Origin", &origin).bytes();
    for _ in 0..400 {
        gateway.refused(&request).await;
    }
    let start = Instant::now();
    gateway.signal(Signal::SIGTERM);
    let mut status = None;
    eventually("the gateway ends", TIMEOUT, || {
        status = gateway.child.try_wait().expect("a child");
        status.map(drop).ok_or_else(|| "it still runs".to_owned())
    })
    .await;
    assert!(status.expect("it has ended").success());
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(900), "it did not wait for its lines: {took:?}");
    gateway.log.is_stopped.store(false, Ordering::Release);
}

#[tokio::test]
async fn refused_clients_cannot_flood_the_log() {
    let gateway = LoggingGateway::start("level = \"debug\"\nrefused_per_second = 5").await;
    let start = Instant::now();
    let mut sent = 0;
    // Long enough to cover several seconds of the sampling clock.
    while sent < 200 || start.elapsed() < Duration::from_millis(1200) {
        gateway.refused(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        sent += 1;
    }
    gateway.whole_session().await;
    let left_out = |lines: &[String]| -> usize {
        let counts = lines.iter().filter_map(|line| line.split_once(" left_out="));
        counts.map(|(_, count)| count.parse::<usize>().expect("a number")).sum()
    };
    let written =
        |lines: &[String]| lines.iter().filter(|line| line.contains("reason=unknown_route d")).count();
    let all = gateway
        .log
        .until("each is written or counted", |lines| {
            (written(lines) + left_out(lines) >= sent).then(|| lines.to_vec())
        })
        .await;
    let seconds = start.elapsed().as_secs() as usize + 2;
    assert_eq!(written(&all) + left_out(&all), sent);
    assert!(written(&all) <= 5 * seconds, "{} lines in {seconds} s", written(&all));
    let (status, lines) = gateway.finish().await;
    assert!(status.success(), "{status}");
    assert_eq!(lines.iter().filter(|line| line.contains("session ended")).count(), 1);
}
