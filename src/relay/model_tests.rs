//! The relay against a model, over scripted streams: any read size, any acceptance, errors and ends on either side, and
//! an ordered end at any step, on a paused clock.
//!
//! The model is the identity: what comes out of one side is a prefix of what went into the other, and all of it where
//! both sides closed in good order. The relay is polled by hand and only when it was woken, so a lost wake-up shows: a
//! poll that nothing asked for must change nothing.

mod case;
mod frames;
mod streams;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
    time::SystemTime,
};

use atomic_waker::AtomicWaker;
use proptest::prelude::*;
use tokio::{
    task::{Unconstrained, unconstrained},
    time::sleep,
};

use self::{
    case::{BACKEND_DATA, CLIENT_DATA, Case, Last, Step, StreamBehaviour, case},
    frames::{Received, Sent},
    streams::{InputEnd, Near, Side},
};
use super::*;
use crate::session::{Registry, SessionInfo};

const CLOSE: Duration = Duration::from_secs(2);
const STALL: Duration = Duration::from_secs(30);
/// Both sides have done all they will ever do, and have not closed: the session ends by its own clocks within this
/// time. The silence (a Ping, then no Pong), a stall on each side, and the stages of the closing.
const ABANDONED: Duration = Duration::from_secs(30 + 20 + 2 * 30 + 4 * 2);

/// Wakes the driver, which polls the relay.
#[derive(Default)]
struct Flag {
    woken: AtomicBool,
    driver: AtomicWaker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.driver.wake();
    }
}

struct Driver<'a, F> {
    relay: Pin<Box<Unconstrained<F>>>,
    flag: Arc<Flag>,
    case: &'a Case,
    sent: &'a Sent,
    registry: &'a Registry,
    client: Rc<RefCell<Side>>,
    backend: Rc<RefCell<Side>>,
    started: Instant,
    end: Option<(SessionEnd, Instant)>,
    /// When an end was ordered, and how much of the client's payload had been read by then.
    ordered: Option<(Instant, usize)>,
    /// Polls in a row that changed nothing.
    futile: usize,
}

impl<F: Future<Output = SessionEnd>> Driver<'_, F> {
    fn events(&self) -> u64 {
        self.client.borrow().events + self.backend.borrow().events
    }

    fn read_payload(&self) -> usize {
        self.read_payload_of(&self.client.borrow())
    }

    fn read_payload_of(&self, client: &Side) -> usize {
        self.sent.payload_within(self.case.pipelined + client.read)
    }

    fn poll(&mut self) {
        let before = self.events();
        let waker = Waker::from(Arc::clone(&self.flag));
        if let Poll::Ready(end) = self.relay.as_mut().poll(&mut Context::from_waker(&waker)) {
            self.end = Some((end, Instant::now()));
        }
        self.futile = if self.events() == before { self.futile + 1 } else { 0 };
        assert!(self.futile < 20, "the relay is woken again and again and does nothing");
        let lifetime_is_over = self.case.lifetime.is_some_and(|lifetime| self.started.elapsed() >= lifetime);
        if lifetime_is_over && self.ordered.is_none() {
            self.ordered = Some((Instant::now(), self.read_payload()));
        }
        self.check_buffers();
    }

    /// Polls the relay for as long as it is woken.
    fn run(&mut self) {
        while self.end.is_none() && self.flag.woken.swap(false, Ordering::SeqCst) {
            self.poll();
        }
    }

    /// A poll without a reason changes nothing, or else something had happened that did not wake the relay.
    fn find_lost_wake_up(&mut self) {
        if self.end.is_some() {
            return;
        }
        let before = self.events();
        self.poll();
        assert!(self.events() == before && self.end.is_none(), "a wake-up was lost");
        self.run();
    }

    async fn wait(&mut self, duration: Duration) {
        let mut timer = pin!(sleep(duration));
        poll_fn(|cx| {
            self.flag.driver.register(cx.waker());
            self.futile = 0;
            self.run();
            if self.end.is_some() { Poll::Ready(()) } else { timer.as_mut().poll(cx) }
        })
        .await;
    }

    async fn step(&mut self, step: Step) {
        self.futile = 0;
        match step {
            Step::ClientSends(len) => self.client.borrow_mut().send(len),
            Step::BackendSends(len) => self.backend.borrow_mut().send(len),
            Step::ClientTakes(len) => self.client.borrow_mut().take(len),
            Step::BackendTakes(len) => self.backend.borrow_mut().take(len),
            Step::ClientEnds(end) => self.client.borrow_mut().end_input(end),
            Step::BackendEnds(end) => self.backend.borrow_mut().end_input(end),
            Step::ClientWritesFail => self.client.borrow_mut().fail_writes(),
            Step::BackendWritesFail => self.backend.borrow_mut().fail_writes(),
            Step::Kill if self.ordered.is_none() => {
                if self.registry.end(1, Reason::Killed) {
                    self.ordered = Some((Instant::now(), self.read_payload()));
                }
            }
            Step::Kill => {}
            Step::WaitMillis(millis) => self.wait(Duration::from_millis(millis)).await,
        }
        self.run();
    }

    /// Neither direction holds more than one read, and the registry reports no less than is held.
    fn check_buffers(&self) {
        let (client, backend) = (self.client.borrow(), self.backend.borrow());
        if let Some(session) = self.registry.get(1) {
            let limit = 2 * scratch::SIZE + self.case.pipelined;
            assert!(session.buffered as usize <= limit, "{} bytes are buffered", session.buffered);
        }
        // After its end in some other way than by a Close, a client is only drained.
        let drained =
            self.ordered.is_some() || self.case.idle.is_some() || client.shut || backend.write_fails;
        if !drained && !backend.dropped {
            let accepted = backend.output.len() + backend.buffer.len();
            let early = self.sent.payload_within(self.case.pipelined);
            let held = self.read_payload_of(&client).saturating_sub(early + accepted);
            assert!(held <= scratch::SIZE, "{held} bytes are held for the backend");
        }
        // A backend that is closed or fails is only drained.
        if !client.dropped && !client.write_fails && !backend.shut && !backend.write_fails {
            let held = backend.read.saturating_sub(client.output.len() + client.buffer.len());
            assert!(held <= scratch::SIZE, "{held} bytes are held for the client");
        }
    }

    /// What came out is a prefix of what went in.
    fn check_prefixes(&self) -> Received {
        let (client, backend) = (self.client.borrow(), self.backend.borrow());
        let payload = &CLIENT_DATA[..self.sent.payload_len];
        assert!(payload.starts_with(&backend.output), "the backend received other bytes than were sent");
        let received = Received::parse(&client.output, self.case.send_text);
        assert!(
            backend.input.starts_with(&received.payload),
            "the client received other bytes than were sent"
        );
        assert!(received.pongs.is_sorted_by(|one, next| one < next), "{:?}", received.pongs);
        assert!(received.pongs.iter().all(|pong| (*pong as usize) < self.sent.pings), "{:?}", received.pongs);
        received
    }
}

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
        let session = registry.open(SessionInfo { peer, route: "test", since: SystemTime::UNIX_EPOCH });
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

impl<F: Future<Output = SessionEnd>> Driver<'_, F> {
    /// The end of the script, after which the session must end.
    async fn finish(&mut self) {
        let limit = if self.case.finishes { CLOSE } else { ABANDONED };
        if self.case.finishes {
            for step in [
                Step::ClientTakes(usize::MAX / 2),
                Step::BackendTakes(usize::MAX / 2),
                Step::ClientSends(usize::MAX / 2),
                Step::BackendSends(usize::MAX / 2),
                Step::BackendEnds(InputEnd::Eof),
                Step::ClientEnds(InputEnd::Eof),
            ] {
                self.step(step).await;
            }
        }
        self.find_lost_wake_up();
        self.wait(limit).await;
        assert!(self.end.is_some(), "the session has not ended after {limit:?}: {:?}", self.flag.woken);
    }

    fn check_end(&self) {
        let received = self.check_prefixes();
        let (client, backend) = (self.client.borrow(), self.backend.borrow());
        let (end, at) = self.end.expect("the session has ended");
        assert!(client.dropped && backend.dropped, "both sides are closed");
        assert!(
            self.sent.payload_len >= end.bytes_in as usize && end.bytes_in as usize >= backend.output.len()
        );
        assert!(backend.read >= end.bytes_out as usize && end.bytes_out as usize >= received.payload.len());
        if let Some(code) = received.close {
            assert_eq!(code, end.close_code, "the code of the Close is the reported one");
        }
        if let Some((ordered, accepted)) = self.ordered
            && matches!(end.reason, Reason::Killed | Reason::LifetimeReached)
        {
            let received = backend.output.len();
            assert!(received <= accepted, "{received} of {accepted} bytes after the end was ordered");
            assert!(at - ordered <= CLOSE, "{:?} from the order to the end", at - ordered);
        }
        // A code point that is incomplete at the end of what the backend sent is a failure.
        let fails = self.case.send_text && end.reason == Reason::BackendFailed;
        if !self.case.is_gentle() || fails {
            return;
        }
        // Nothing failed and there was time enough: all of it has arrived, and both sides were closed in good order.
        assert_eq!(backend.output.len(), self.sent.payload_len, "the backend has all ({end:?})");
        // A client that closes its connection without a Close is gone.
        assert!(client.shut || self.case.last == Last::Nothing, "{end:?}");
        assert!(backend.shut, "{end:?}");
        match end.reason {
            Reason::BackendClosed => {
                assert_eq!(received.payload.len(), backend.sent, "the client has all");
                assert_eq!(received.close, Some(Some(1000)));
            }
            Reason::ClientClosed => assert_eq!(received.close, Some(Some(1000))),
            Reason::ProtocolError => assert_eq!(received.close, Some(Some(1002))),
            other => assert_eq!((other, self.case.last), (Reason::ClientGone, Last::Nothing)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn relay_behaves_as_its_model(case in case()) {
        case.run();
    }
}
