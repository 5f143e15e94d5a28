//! The relay against a model, over scripted streams: any read size, any acceptance, errors and ends on either side, and
//! an ordered end at any step, on a paused clock.
//!
//! The model is the identity: what comes out of one side is a prefix of what went into the other, and all of it where
//! both sides closed in good order. The relay is polled by hand and only when it was woken, so a lost wake-up shows: a
//! poll that nothing asked for must change nothing.

mod case;
mod driver;
mod frames;
mod streams;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use proptest::prelude::*;
use tokio::task::unconstrained;

use self::{
    case::{BACKEND_DATA, Case, Step, StreamBehaviour, case},
    driver::{Driver, Flag},
    frames::Sent,
    streams::{InputEnd, Near, Side},
};
use super::*;
use crate::session::{Registry, SessionInfo};

const CLOSE: Duration = Duration::from_secs(2);
const STALL: Duration = Duration::from_secs(30);
impl Case {
    fn settings(&self) -> RelaySettings {
        RelaySettings {
            accept_text: true,
            send_text: self.send_text,
            close: CLOSE,
            stall: Some(STALL),
            ping: Some(Duration::from_secs(30)),
            pong: Some(Duration::from_secs(20)),
            idle: self.idle,
            lifetime: self.lifetime,
            expires: None,
        }
    }

    /// Whether nothing fails, and no clock of the relay can ring before both sides have finished.
    fn is_gentle(&self) -> bool {
        let waited: u64 = self
            .steps
            .iter()
            .map(|(step, _)| match step {
                Step::WaitMillis(millis) => *millis,
                Step::ClientEnds(_)
                | Step::BackendEnds(InputEnd::Error)
                | Step::ClientWritesFail
                | Step::BackendWritesFail
                | Step::Kill => u64::MAX / 1000,
                _ => 0,
            })
            .sum();
        let limit = [self.idle, self.lifetime, Some(CLOSE)].into_iter().flatten().min().unwrap_or(CLOSE);
        self.finishes && Duration::from_millis(waited) < limit
    }

    fn run(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(self.check());
    }

    async fn check(&self) {
        let mut sent = Sent::new(self);
        // The payload of the first bytes is the same wherever they are read.
        let pipelined =
            Bytes::from(sent.bytes.drain(..self.pipelined.min(sent.bytes.len())).collect::<Vec<u8>>());
        let side = |behaviour: &StreamBehaviour, input: &[u8]| {
            let &StreamBehaviour { max_read, max_write, buffer_size } = behaviour;
            let input = input.to_vec();
            Rc::new(RefCell::new(Side { input, max_read, max_write, buffer_size, ..Side::default() }))
        };
        let client = side(&self.client, &sent.bytes);
        let backend = side(&self.backend, &BACKEND_DATA[..self.backend_len]);
        let registry = Arc::new(Registry::default());
        let peer = ([192, 0, 2, 7], 4711).into();
        let session =
            registry.open(SessionInfo { peer, route: "test", since: SystemTime::UNIX_EPOCH, identity: None });
        let settings = self.settings();
        let (near_client, near_backend) = (Near(Rc::clone(&client)), Near(Rc::clone(&backend)));
        let flag = Arc::new(Flag::default());
        flag.woken.store(true, Ordering::SeqCst);
        let mut driver = Driver {
            relay: Box::pin(unconstrained(relay(near_client, pipelined, near_backend, &settings, &session))),
            flag,
            case: self,
            sent: &sent,
            registry: &registry,
            client,
            backend,
            started: Instant::now(),
            end: None,
            ordered: None,
            futile: 0,
        };
        driver.run();
        for &(step, look) in &self.steps {
            driver.step(step).await;
            if look {
                driver.find_lost_wake_up();
            }
        }
        driver.check_prefixes();
        driver.finish().await;
        driver.check_end();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn relay_behaves_as_its_model(case in case()) {
        case.run();
    }
}
