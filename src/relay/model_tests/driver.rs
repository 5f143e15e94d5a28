//! Runs the relay by hand, one step of a case at a time, and compares it with the model.
//!
//! Owns when the relay is polled, and what must hold after each poll and at the end. Knows nothing of how a case is
//! chosen. Invariant: the relay is polled only when it was woken, except to find a lost wake-up.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use atomic_waker::AtomicWaker;
use tokio::{task::Unconstrained, time::sleep};

use super::{
    CLOSE,
    case::{CLIENT_DATA, Case, Last, Step},
    frames::{Received, Sent},
    streams::{InputEnd, Side},
    *,
};

/// Both sides have done all they will ever do, and have not closed: the session ends by its own clocks within this
/// time. The silence (a Ping, then no Pong), a stall on each side, and the stages of the closing.
const ABANDONED: Duration = Duration::from_secs(30 + 20 + 2 * 30 + 4 * 2);

/// Wakes the driver, which polls the relay.
#[derive(Default)]
pub(super) struct Flag {
    pub(super) woken: AtomicBool,
    driver: AtomicWaker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.driver.wake();
    }
}

/// A relay that is being run, and what is known of it.
pub(super) struct Driver<'a, F> {
    pub(super) relay: Pin<Box<Unconstrained<F>>>,
    pub(super) flag: Arc<Flag>,
    pub(super) case: &'a Case,
    pub(super) sent: &'a Sent,
    pub(super) registry: &'a Registry,
    pub(super) client: Rc<RefCell<Side>>,
    pub(super) backend: Rc<RefCell<Side>>,
    pub(super) started: Instant,
    pub(super) end: Option<(SessionEnd, Instant)>,
    /// When an end was ordered, and how much of the client's payload had been read by then.
    pub(super) ordered: Option<(Instant, usize)>,
    /// Polls in a row that changed nothing.
    pub(super) futile: usize,
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
    pub(super) fn run(&mut self) {
        while self.end.is_none() && self.flag.woken.swap(false, Ordering::SeqCst) {
            self.poll();
        }
    }

    /// A poll without a reason changes nothing, or else something had happened that did not wake the relay.
    pub(super) fn find_lost_wake_up(&mut self) {
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

    pub(super) async fn step(&mut self, step: Step) {
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
    pub(super) fn check_prefixes(&self) -> Received {
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

    /// The end of the script, after which the session must end.
    pub(super) async fn finish(&mut self) {
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

    pub(super) fn check_end(&self) {
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
