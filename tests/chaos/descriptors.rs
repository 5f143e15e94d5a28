//! Scenario: clients use up the gateway's descriptors, and then leave.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::Target;
use crate::ledger::Accepted;
use crate::load::{Load, Steady};
use crate::random::Random;
use crate::scenario::{Scenario, setup, turn};
use crate::support::Backend;

const DESCRIPTORS: usize = 260;
/// Two descriptors each.
const STEADY: usize = 20;
const CLIENTS: usize = 20;
/// Clients that hold what they get. Together they need far more than there is.
const HOLDERS: usize = 300;

/// Holds a session, or a silent connection, and tries again whenever it is lost.
async fn hold(target: Target, mut random: Random, stop: CancellationToken) -> usize {
    let mut held = 0;
    while !stop.is_cancelled() {
        let attempt = async {
            if random.below(4) == 0 {
                let mut socket = target.connect_with(|_| {}).await.ok()?;
                let _end = socket.read(&mut [0]).await;
            } else {
                let mut client = target.open(0).await.ok()?;
                held += 1;
                client.rest(Duration::from_secs(600)).await.ok();
            }
            Some(())
        };
        stop.run_until_cancelled(attempt).await;
        stop.run_until_cancelled(tokio::time::sleep(random.millis(500))).await;
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --only chaos"]
async fn descriptors_are_exhausted() {
    let _turn = turn().await;
    let backend = Backend::echo().await;
    let setup = setup(&backend).descriptors(DESCRIPTORS);
    let mut scenario = Scenario::start("descriptors", 80, setup).await;
    let targets = scenario.targets("/echo");
    while let Some(time) = scenario.next_round() {
        let steady = Steady::open(STEADY, &targets, &mut scenario.random).await;
        let load = Load::start(CLIENTS, &targets, &mut scenario.random);
        let stop = CancellationToken::new();
        let mut holders = JoinSet::new();
        for number in 0..HOLDERS {
            let source = IpAddr::V4(Ipv4Addr::new(127, 30, (number / 100) as u8, (1 + number % 100) as u8));
            let target = targets[number % 2].from(source);
            holders.spawn(hold(target, scenario.random.fork(), stop.clone()));
        }
        let (start, mut open) = (Instant::now(), 0);
        while start.elapsed() < time {
            tokio::time::sleep(Duration::from_millis(100)).await;
            open = open.max(scenario.gateway.open_descriptors());
        }
        assert!(open >= DESCRIPTORS - 5, "only {open} descriptors of {DESCRIPTORS} are open");
        let stats = load.stop().await;
        stop.cancel();
        let held: usize = holders.join_all().await.into_iter().sum();
        let echoed = steady.close().await;
        let errors = scenario.gateway.metric("portcullis_accept_errors_total").await.unwrap_or_default();
        assert!(errors > 0.0, "no accept has failed");
        let what = format!(
            "{open} open, {errors} accepts failed, {held} sessions held; {stats}; {echoed} bytes steady"
        );
        scenario.settle(Accepted::All, &what).await;
    }
    scenario.finish().await;
}
