//! Core dumps, which would contain the private keys.

use std::fs;

use crate::support::{Gateway, Setup};

#[tokio::test]
async fn no_core_dump_of_the_keys_is_written_unless_configured() {
    let core = |gateway: &Gateway| {
        let limits = fs::read_to_string(format!("/proc/{}/limits", gateway.pid())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().to_owned();
        line.split_whitespace().nth(4).unwrap().to_owned()
    };
    let gateway = Setup::new().start().await;
    assert_eq!(core(&gateway), "0");
    gateway.finish().await;
    let own = fs::read_to_string("/proc/self/limits").unwrap();
    let own = own.lines().find(|line| line.starts_with("Max core file size")).unwrap().to_owned();
    let gateway = Setup::new().limits("core_dumps = true").start().await;
    assert_eq!(Some(core(&gateway).as_str()), own.split_whitespace().nth(4));
    gateway.finish().await;
}
