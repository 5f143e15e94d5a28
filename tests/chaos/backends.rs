//! Scenario: a backend gets kill -9 every 5 seconds and is started again.

use std::time::{Duration, Instant};

use crate::echo_process::{self, EchoProcess};
use crate::ledger::{Accepted, sum};
use crate::load::{Load, Steady};
use crate::scenario::{Scenario, setup, turn};
use crate::support::Backend;

const TEST: &str = "backends::a_backend_is_killed_every_five_seconds";
const CLIENTS: usize = 40;
const STEADY: usize = 10;
const INTERVAL: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --only chaos"]
async fn a_backend_is_killed_every_five_seconds() {
    if echo_process::serves().await {
        return;
    }
    let _turn = turn().await;
    // Addresses that no client uses, so that their ports are free again after each kill.
    let mut servers = [9, 10].map(|last| EchoProcess::start(TEST, ([127, 0, 0, last], 0).into()));
    let undisturbed = Backend::echo().await;
    let urls = servers.each_ref().map(|server| format!("tcp://{}", server.address));
    let setup = setup(&undisturbed)
        .route_to("alone", "/alone", &urls[0], "")
        .tables(&format!("[[route]]\nname = \"pair\"\npath = \"/pair\"\nbackend = {urls:?}"));
    let mut scenario = Scenario::start("backends", 100, setup).await;
    let undisturbed = scenario.targets("/echo");
    let targets = [scenario.targets("/alone"), scenario.targets("/pair")].concat();
    while let Some(time) = scenario.next_round() {
        let steady = Steady::open(STEADY, &undisturbed, &mut scenario.random).await;
        let load = Load::start(CLIENTS, &targets, &mut scenario.random);
        let start = Instant::now();
        let mut kills = 0;
        while start.elapsed() < time || kills < 2 {
            tokio::time::sleep(INTERVAL.min(time / 2)).await;
            // Never both at once: a route with two always has one.
            tokio::task::block_in_place(|| servers[kills % 2].restart());
            kills += 1;
        }
        let stats = load.stop().await;
        let echoed = steady.close().await;
        assert!(stats.completed() > 0 && stats.failed() > 0, "{stats}");
        let metrics = scenario.gateway.request("GET", "/metrics", "").await.text().to_owned();
        for reason in ["backend_refused", "backend_timeout", "no_healthy_backend"] {
            let series = format!("route=\"pair\",reason=\"{reason}\"");
            let count = sum(&metrics, "portcullis_connections_ended_total", &series);
            assert_eq!(count, 0, "{reason}, while one of the two backends runs:\n{metrics}");
        }
        scenario
            .settle(Accepted::All, &format!("{kills} kills; {stats}; {echoed} bytes to another backend"))
            .await;
    }
    scenario.finish().await;
}
