//! Scenario: the disk under the access log is full, and then it is not.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::ledger::{Accepted, sum};
use crate::load::{Load, Steady};
use crate::scenario::{Scenario, setup, turn};
use crate::support::{Backend, TIMEOUT, eventually};

const CLIENTS: usize = 30;
const STEADY: usize = 20;

/// Uses up a file system; returns the file that does.
fn fill(directory: &Path) -> PathBuf {
    let path = directory.join("filler");
    let mut file = File::create(&path).expect("a file in the gateway's file system");
    let mut size = 64 * 1024;
    // Down to the last byte.
    while size > 0 {
        if file.write_all(&vec![0; size]).is_err() {
            size /= 2;
        }
    }
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --only chaos"]
async fn the_disk_under_the_access_log_is_full() {
    let _turn = turn().await;
    let tried = Command::new("unshare").args(["--mount", "true"]).output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        let why = format!("no mount namespace: {tried:?}");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
        eprintln!("the_disk_under_the_access_log_is_full: skipped, {why}");
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let mounted = directory.path().to_str().expect("a path of text");
    let mount = "mount -t tmpfs -o size=16m tmpfs \"$0\" && exec \"$@\"";
    let backend = Backend::echo().await;
    let setup = setup(&backend)
        .through(&["unshare", "--mount", "sh", "-c", mount, mounted])
        .log(&format!("sessions = \"{mounted}/access.log\""));
    let mut scenario = Scenario::start("disk", 60, setup).await;
    scenario.loses_lines = true;
    // The same file system, as the gateway sees it.
    let here = PathBuf::from(format!("/proc/{}/root{mounted}", scenario.gateway.pid()));
    let targets = scenario.targets("/echo");
    let mut outages_so_far = 0;
    while let Some(time) = scenario.next_round() {
        let steady = Steady::open(STEADY, &targets, &mut scenario.random).await;
        let load = Load::start(CLIENTS, &targets, &mut scenario.random);
        let lost = async || -> usize {
            let metrics = scenario.gateway.request("GET", "/metrics", "").await.text().to_owned();
            sum(&metrics, "portcullis_log_lines_dropped_total", "")
        };
        let before = lost().await;
        let mut outages = 0;
        for _ in 0..2 {
            tokio::time::sleep(time / 6).await;
            let filler = fill(&here);
            tokio::time::sleep(time / 3).await;
            fs::remove_file(filler).expect("it is there");
            outages += 1;
        }
        let lost = lost().await - before;
        assert!(lost > 0, "no line was lost, so the disk was not full");
        let stats = load.stop().await;
        let echoed = steady.close().await;
        assert_eq!(stats.failed(), 0, "{stats}");
        outages_so_far += outages;
        let what = format!("{outages} times full, {lost} lines lost; {stats}; {echoed} bytes steady");
        let totals = scenario.settle(Accepted::All, &what).await;
        // Whole lines again, and each that is missing is counted.
        eventually("every line is in the file or counted as lost", TIMEOUT, || {
            let text = fs::read_to_string(here.join("access.log")).expect("the access log");
            let whole = text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count();
            let torn = text.lines().count() - whole;
            assert!(torn <= outages_so_far, "{torn} torn lines after {outages_so_far} outages");
            let (accounted, all) = (whole + totals.dropped, totals.connections);
            (accounted == all).then_some(()).ok_or_else(|| format!("{accounted} of {all}"))
        })
        .await;
    }
    scenario.finish().await;
}
