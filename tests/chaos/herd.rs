//! Scenario: 9,000 sessions from 400 addresses are opened at the same moment, held, and dropped at the same moment.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::Target;
use crate::echo_process::{self, EchoProcess};
use crate::ledger::Accepted;
use crate::load::{Load, Steady};
use crate::scenario::{Scenario, turn};
use crate::support::Setup;

const TEST: &str = "herd::nine_thousand_sessions_are_opened_held_and_dropped";
const HERD: usize = 9_000;
const CLIENTS: usize = 10;
const STEADY: usize = 10;
/// How long one of them may wait until its session is open.
const OPEN_LIMIT: Duration = Duration::from_secs(180);

/// Client `number` has one of 400 addresses in 40 networks: the default limits of an address and of a network admit them.
fn source(number: usize) -> IpAddr {
    let address = number % 400;
    IpAddr::V4(Ipv4Addr::new(127, 20, (address % 40) as u8, (1 + address / 40) as u8))
}

/// Opens a session with all others, reports that, holds it until `drop_all`, and leaves without a word.
async fn one(
    target: Target,
    number: usize,
    opened: UnboundedSender<Result<(), String>>,
    drop_all: CancellationToken,
) -> Result<(), String> {
    let client = async {
        let mut client = target.open(number as u64).await?;
        client.echo(64).await?;
        Ok::<_, String>(client)
    };
    let client = client.await;
    // The test has ended if no one receives this.
    let _ = opened.send(client.as_ref().map(drop).map_err(String::clone));
    let mut client = client?;
    match drop_all.run_until_cancelled(client.rest(Duration::from_secs(600))).await {
        Some(ended) => Err(format!("it ended early: {ended:?}")),
        None if number.is_multiple_of(2) => Ok(()),
        None => {
            client.abandon(1).await;
            Ok(())
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --only chaos"]
async fn nine_thousand_sessions_are_opened_held_and_dropped() {
    if echo_process::serves().await {
        return;
    }
    let _turn = turn().await;
    let server = EchoProcess::start(TEST, ([127, 0, 0, 1], 0).into());
    let setup = Setup::new()
        .route_to("echo", "/echo", &format!("tcp://{}", server.address), "")
        // All limits have their defaults, but the other clients of this scenario come from one address, and on top.
        .per_ip("exempt = [\"127.0.0.0/24\"]")
        .limits("max_sessions = 9200")
        // What is slow here are the clients, which share two threads. `cargo bench --bench herd` has the defaults.
        .timeouts("tls = \"300s\"\nrequest = \"300s\"\nconnect = \"60s\"\nping = \"60s\"\npong = \"60s\"");
    let mut scenario = Scenario::start("herd", 160, setup).await;
    let targets = scenario.targets("/echo");
    while let Some(time) = scenario.next_round() {
        let steady = Steady::open(STEADY, &targets, &mut scenario.random).await;
        let load = Load::start(CLIENTS, &targets, &mut scenario.random);
        let ((opened, mut results), drop_all) = (unbounded_channel(), CancellationToken::new());
        let mut herd = JoinSet::new();
        let start = Instant::now();
        for number in 0..HERD {
            let target = targets[usize::from(number % 5 == 0)].from(source(number)).with_limit(OPEN_LIMIT);
            herd.spawn(one(target, number, opened.clone(), drop_all.clone()));
        }
        let mut refused: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..HERD {
            if let Err(why) = results.recv().await.expect("a sender is left") {
                *refused.entry(why).or_default() += 1;
            }
        }
        assert!(refused.is_empty(), "not all of {HERD} get in: {refused:#?}");
        let opened = start.elapsed();
        tokio::time::sleep(time.saturating_sub(opened).max(Duration::from_secs(3))).await;
        drop_all.cancel();
        for held in herd.join_all().await {
            held.unwrap_or_else(|why| panic!("a client of the herd: {why}"));
        }
        let stats = load.stop().await;
        let echoed = steady.close().await;
        let what = format!("{HERD} sessions in {opened:.1?}; {stats}; {echoed} bytes steady");
        scenario.settle(Accepted::Answered, &what).await;
    }
    scenario.finish().await;
}
