//! Scenario: packets are lost and delayed, in one direction or in both, in a network namespace.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::ledger::Accepted;
use crate::load::Load;
use crate::scenario::{Scenario, setup, turn};
use crate::support::{Backend, isolated};

const CLIENTS: usize = 30;
/// How long each kind of loss lasts.
const EACH: Duration = Duration::from_secs(2);

/// What is lost: a part of all packets to and from the gateway's clients and backends, in thousandths, or those of one
/// direction.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Nothing,
    Everything,
    Thousandths(u32),
    FromClients,
    ToClients,
}

const LOSSES: [Loss; 6] = [
    Loss::Thousandths(20),
    Loss::Thousandths(100),
    Loss::Nothing,
    Loss::FromClients,
    Loss::ToClients,
    Loss::Everything,
];

/// The filter's rules: those of one loss, but nothing of the admin address.
fn rules(loss: Loss, admin: u16, listeners: &str) -> String {
    let rule = match loss {
        Loss::Nothing => String::new(),
        Loss::Everything => "drop".to_owned(),
        Loss::Thousandths(part) => format!("numgen random mod 1000 < {part} drop"),
        Loss::FromClients => format!("tcp dport {{ {listeners} }} drop"),
        Loss::ToClients => format!("tcp sport {{ {listeners} }} drop"),
    };
    format!(
        "table inet chaos\ndelete table inet chaos\ntable inet chaos {{\nchain input {{\n\
         type filter hook input priority 0\ntcp dport {admin} accept\ntcp sport {admin} accept\n{rule}\n}}\n}}\n"
    )
}

fn filter(rules: &str) {
    let mut child = Command::new("/usr/sbin/nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("nft: {error}: tests/install chaos"));
    child.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("nft reads");
    assert!(child.wait().expect("a child").success(), "nft refuses {rules}");
}

/// Delays every packet, where the kernel can: not every one has netem.
fn delay(is_on: bool) -> bool {
    let verb = if is_on { "add" } else { "del" };
    let mut words: Vec<&str> = vec!["qdisc", verb, "dev", "lo", "root"];
    if is_on {
        words.extend(["netem", "delay", "10ms", "8ms"]);
    }
    let output = Command::new("/usr/sbin/tc").args(words).output();
    output.is_ok_and(|output| output.status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --only chaos"]
async fn packets_are_lost_and_delayed() {
    let _turn = turn().await;
    if !isolated("packets::packets_are_lost_and_delayed") {
        return;
    }
    let backend = Backend::echo().await;
    let mut scenario = Scenario::start("packets", 120, setup(&backend)).await;
    let targets = scenario.targets("/echo");
    let admin = scenario.gateway.admin().await;
    let (_, admin) = admin.rsplit_once(':').expect("a port");
    let admin: u16 = admin.parse().expect("a port");
    let listeners = targets.each_ref().map(|target| target.address.port().to_string()).join(", ");
    while let Some(time) = scenario.next_round() {
        let delayed = delay(true);
        let load = Load::start(CLIENTS, &targets, &mut scenario.random);
        let start = Instant::now();
        let mut count = 0;
        while start.elapsed() < time || count < 2 * LOSSES.len() {
            // Each of them once, and then at random.
            let loss = LOSSES.get(count).unwrap_or_else(|| scenario.random.one_of(&LOSSES));
            filter(&rules(*loss, admin, &listeners));
            tokio::time::sleep(EACH.min(time / LOSSES.len() as u32)).await;
            count += 1;
        }
        filter(&rules(Loss::Nothing, admin, &listeners));
        if delayed {
            assert!(delay(false), "tc cannot remove the delay");
        }
        let stats = load.stop().await;
        assert!(stats.completed() > 0 && stats.failed() > 0, "{stats}");
        let delays = if delayed { "with delays" } else { "no delays: the kernel has no netem" };
        scenario.settle(Accepted::Answered, &format!("{stats}; {count} kinds of loss, {delays}")).await;
    }
    scenario.finish().await;
}
