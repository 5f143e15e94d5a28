//! Chaos: networks, backends, clocks, disks and limits fail under load, and afterwards nothing is left of it.
//!
//! `tests/run --only chaos` runs all scenarios one after the other, 15 minutes in all. One of them in a fifth of its time:
//!
//! ```sh
//! PORTCULLIS_CHAOS_MINUTES=3 cargo test --test chaos -- --ignored --nocapture backends
//! ```
//!
//! Each scenario starts a gateway of its own. While clients open, use and close sessions over `wss://` and `ws://`, and while
//! the configuration is reloaded again and again, valid or not, the scenario disturbs them, in several rounds. After each
//! round the gateway is as it was (see `Scenario::settle`). What a scenario does at random depends on a seed, which a failure
//! prints; `PORTCULLIS_CHAOS_SEED` repeats it, as far as the machine's own timing permits.

#[path = "../gateway/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests of tests/gateway use more of it")]
mod support;

#[path = "../../src/random.rs"]
#[allow(dead_code, reason = "the simulation uses more of it")]
mod random;

mod client;
mod echo_process;
mod ledger;
mod load;
mod reloads;
mod scenario;

mod backends;
mod clock;
mod descriptors;
mod disk;
mod herd;
mod memory;
mod packets;
mod proxy;
