//! The relay against a model, over scripted streams: any read size, any acceptance, errors and ends on either side, and
//! an ordered end at any step, on a paused clock.
//!
//! The model is the identity: what comes out of one side is a prefix of what went into the other, and all of it where
//! both sides closed in good order. The relay is polled by hand and only when it was woken, so a lost wake-up shows: a
//! poll that nothing asked for must change nothing.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
    time::SystemTime,
};

use atomic_waker::AtomicWaker;
use proptest::prelude::*;
use tokio::{
    io::ReadBuf,
    task::{Unconstrained, unconstrained},
    time::sleep,
};

use super::*;
use crate::{
    session::{Registry, SessionInfo},
    websocket::client::frame,
};

/// Whether the relay keeps the rule that nothing of the client reaches the backend after an ordered end, and that the
/// closing after it takes no longer than `RelaySettings::close`.
const ORDERED_END_STOPS_THE_CLIENT: bool = true;

const CLOSE: Duration = Duration::from_secs(2);
const STALL: Duration = Duration::from_secs(30);
/// Both sides have done all they will ever do, and have not closed: the session ends by its own clocks within this
/// time. The silence (a Ping, then no Pong), a stall on each side, and the stages of the closing.
const ABANDONED: Duration = Duration::from_secs(30 + 20 + 2 * 30 + 4 * 2);
/// No payload of a case is longer.
const LONGEST: usize = 400_000;

/// What the client sends: ASCII, so that it may be text.
static CLIENT_DATA: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(&['a', 'k', 'z', '0', '~']));
/// What the backend sends: code points of every length.
static BACKEND_DATA: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(&['b', 'é', '€', '😀', '\n']));

/// Text without a short period, so that a lost or repeated piece shows.
fn pattern(letters: &[char; 5]) -> Vec<u8> {
    let (mut text, mut state) = (String::new(), 1_u32);
    while text.len() < LONGEST {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push(letters[(state >> 24) as usize % letters.len()]);
    }
    text.into_bytes()
}

// --- the scripted streams --------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy)]
enum InputEnd {
    Eof,
    /// As after a reset: what was not read yet is lost.
    Error,
}

/// One side of the session, as the script and the relay see it.
#[derive(Debug, Default)]
struct Side {
    /// Everything that it will ever send, and how much of that it has sent so far.
    input: Vec<u8>,
    sent: usize,
    read: usize,
    input_end: Option<InputEnd>,
    end_was_read: bool,
    /// What has arrived there, and how much more it takes.
    output: Vec<u8>,
    window: usize,
    /// As in a TLS stream: accepted, but on its way only as far as the window allows, and complete only after a flush.
    buffer: Vec<u8>,
    buffer_size: usize,
    /// The most that one call reads or writes.
    max_read: usize,
    max_write: usize,
    write_fails: bool,
    shut: bool,
    dropped: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// How many calls have changed something.
    events: u64,
}

impl Side {
    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    fn send(&mut self, len: usize) {
        if self.input_end.is_none() {
            self.sent = self.input.len().min(self.sent + len);
            self.wake_reader();
        }
    }

    fn end_input(&mut self, end: InputEnd) {
        if self.input_end.is_none() {
            self.input_end = Some(end);
            self.wake_reader();
        }
    }

    fn take(&mut self, len: usize) {
        self.window = self.window.saturating_add(len);
        self.wake_writer();
    }

    fn fail_writes(&mut self) {
        self.write_fails = true;
        self.wake_writer();
    }

    /// Moves as much of the buffer to the output as the window allows.
    fn drain_buffer(&mut self) {
        let len = self.buffer.len().min(self.window);
        if len > 0 {
            self.output.extend(self.buffer.drain(..len));
            self.window -= len;
            self.events += 1;
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.reader = None;
        let len = (self.sent - self.read).min(self.max_read).min(buf.remaining());
        match self.input_end {
            Some(InputEnd::Error) => {
                self.events += u64::from(!std::mem::replace(&mut self.end_was_read, true));
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
            _ if len > 0 => {
                buf.put_slice(&self.input[self.read..self.read + len]);
                self.read += len;
                self.events += 1;
                Poll::Ready(Ok(()))
            }
            Some(InputEnd::Eof) => {
                self.events += u64::from(!std::mem::replace(&mut self.end_was_read, true));
                Poll::Ready(Ok(()))
            }
            None => {
                self.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        assert!(!self.shut, "a write after the shutdown");
        assert!(!bytes.is_empty(), "an empty write");
        self.writer = None;
        if self.write_fails {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.drain_buffer();
        let room = if self.buffer_size > 0 { self.buffer_size - self.buffer.len() } else { self.window };
        let len = room.min(self.max_write).min(bytes.len());
        if len == 0 {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.events += 1;
        if self.buffer_size > 0 {
            self.buffer.extend(&bytes[..len]);
            self.drain_buffer();
        } else {
            self.output.extend(&bytes[..len]);
            self.window -= len;
        }
        Poll::Ready(Ok(len))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer = None;
        // A socket has nothing to flush, so a flush alone shows no failure.
        if self.write_fails && !self.buffer.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.drain_buffer();
        if self.buffer.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// The relay's end of a side.
struct Near(Rc<RefCell<Side>>);

impl AsyncRead for Near {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Near {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut side = self.0.borrow_mut();
        let flushed = side.poll_flush(cx);
        if let Poll::Ready(Ok(())) = flushed {
            side.events += u64::from(!std::mem::replace(&mut side.shut, true));
        }
        flushed
    }
}

impl RelayStream for Near {
    fn bytes_written(&self) -> u64 {
        self.0.borrow().output.len() as u64
    }

    /// Scripted streams report honestly when they accept bytes.
    fn force_write(&mut self) {}
}

impl Drop for Near {
    fn drop(&mut self) {
        let mut side = self.0.borrow_mut();
        side.dropped = true;
        side.events += 1;
    }
}

// --- a case ----------------------------------------------------------------------------------------------------------

/// What a client sends after its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Close,
    Violation,
    Nothing,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    ClientSends(usize),
    BackendSends(usize),
    ClientTakes(usize),
    BackendTakes(usize),
    ClientEnds(InputEnd),
    BackendEnds(InputEnd),
    ClientWritesFail,
    BackendWritesFail,
    Kill,
    WaitMillis(u64),
}

/// How a stream behaves throughout.
#[derive(Debug, Clone)]
struct Manner {
    max_read: usize,
    max_write: usize,
    buffer_size: usize,
}

#[derive(Debug, Clone)]
struct Case {
    /// The frames of the client: the length, whether it ends its message, and whether a Ping follows.
    frames: Vec<(usize, bool, bool)>,
    text: bool,
    last: Last,
    backend_len: usize,
    /// How much of the client's bytes comes with the request head.
    pipelined: usize,
    client: Manner,
    backend: Manner,
    send_text: bool,
    idle: Option<Duration>,
    lifetime: Option<Duration>,
    /// With each step: whether a lost wake-up is looked for after it.
    steps: Vec<(Step, bool)>,
    /// In the end both sides send all they have, take everything and close; otherwise they do nothing any more.
    finishes: bool,
}

/// The bytes of the client, and where its payload is in them.
struct Sent {
    bytes: Vec<u8>,
    /// The offset of each payload in `bytes`, and its length.
    payloads: Vec<(usize, usize)>,
    payload_len: usize,
    pings: usize,
    /// The end of the messages; the Close or the violation follows.
    messages_end: usize,
}

impl Sent {
    fn new(case: &Case) -> Self {
        let mut sent =
            Self { bytes: Vec::new(), payloads: Vec::new(), payload_len: 0, pings: 0, messages_end: 0 };
        let mut open = false;
        for &(len, last, ping) in &case.frames {
            let opcode = match (open, case.text) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => 2,
            };
            let payload = &CLIENT_DATA[sent.payload_len..sent.payload_len + len];
            sent.bytes.extend(frame((u8::from(last) << 7) | opcode, payload));
            sent.payloads.push((sent.bytes.len() - len, len));
            sent.payload_len += len;
            open = !last;
            if ping {
                sent.bytes.extend(frame(0x89, &(sent.pings as u32).to_be_bytes()));
                sent.pings += 1;
            }
        }
        sent.messages_end = sent.bytes.len();
        match case.last {
            Last::Close => sent.bytes.extend(frame(0x88, b"\x03\xe8")),
            Last::Violation => sent.bytes.extend([0x82, 0x01, 0x00]),
            Last::Nothing => {}
        }
        sent
    }

    /// How many bytes of payload the first `len` bytes contain.
    fn payload_within(&self, len: usize) -> usize {
        self.payloads.iter().map(|&(at, payload)| len.saturating_sub(at).min(payload)).sum()
    }
}

/// What the client has received.
#[derive(Debug, Default)]
struct Received {
    payload: Vec<u8>,
    pongs: Vec<u32>,
    close: Option<Option<u16>>,
    /// The last frame is not complete.
    is_cut: bool,
}

impl Received {
    /// Parses `bytes`; panics if they are not frames of a server, or if something follows a Close.
    fn parse(mut bytes: &[u8], text: bool) -> Self {
        let mut received = Self::default();
        while !bytes.is_empty() {
            assert!(received.close.is_none(), "{} bytes after the Close", bytes.len());
            let (header, len) = match *bytes {
                [_, len @ 0..126, ..] => (2, usize::from(len)),
                [_, 126, a, b, ..] => (4, usize::from(u16::from_be_bytes([a, b]))),
                [_, 127, 0, 0, 0, 0, a, b, c, d, ..] => (10, u32::from_be_bytes([a, b, c, d]) as usize),
                [_, 126 | 127, ..] | [_] => (bytes.len(), 0),
                _ => panic!("a masked frame or one of terabytes: {:02x?}", &bytes[..2]),
            };
            let end = bytes.len().min(header + len);
            received.is_cut = end < header + len || header == bytes.len() && (header, len) != (2, 0);
            let payload = &bytes[header.min(end)..end];
            match bytes[0] {
                0x81 | 0x82 => {
                    assert_eq!(bytes[0] == 0x81, text, "the opcode");
                    let is_whole_text = received.is_cut || !text || std::str::from_utf8(payload).is_ok();
                    assert!(is_whole_text, "a text message ends within a code point");
                    received.payload.extend(payload);
                }
                0x8a if !received.is_cut => {
                    received
                        .pongs
                        .push(u32::from_be_bytes(payload.try_into().expect("the payload of a Ping")));
                }
                0x88 if !received.is_cut => {
                    received.close = Some(payload.first_chunk().map(|code| u16::from_be_bytes(*code)));
                }
                0x88..=0x8a => {}
                other => panic!("a frame begins with {other:#x}"),
            }
            bytes = &bytes[end..];
        }
        received
    }
}

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

// --- the property ----------------------------------------------------------------------------------------------------

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
        let side = |manner: &Manner, input: &[u8]| {
            let &Manner { max_read, max_write, buffer_size } = manner;
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
            && ORDERED_END_STOPS_THE_CLIENT
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

fn manners() -> impl Strategy<Value = Manner> {
    let most = || prop_oneof![Just(1_usize), 2_usize..300, Just(4096), Just(usize::MAX), Just(usize::MAX)];
    let buffer_size = prop_oneof![Just(0_usize), Just(0), Just(7), Just(16 * 1024), Just(100_000)];
    (most(), most(), buffer_size).prop_map(|(max_read, max_write, buffer_size)| Manner {
        max_read,
        max_write,
        buffer_size,
    })
}

fn input_end() -> impl Strategy<Value = InputEnd> {
    prop_oneof![Just(InputEnd::Eof), Just(InputEnd::Error)]
}

/// A step; `rough` steps are failures, ends and long waits.
fn step(rough: bool) -> BoxedStrategy<Step> {
    let amount = || prop_oneof![1_usize..20, 20_usize..2000, 2000_usize..150_000];
    let smooth = prop_oneof![
        3 => amount().prop_map(Step::ClientSends),
        3 => amount().prop_map(Step::BackendSends),
        3 => amount().prop_map(Step::ClientTakes),
        3 => amount().prop_map(Step::BackendTakes),
        1 => (0_u64..100).prop_map(Step::WaitMillis),
    ];
    if !rough {
        return smooth.boxed();
    }
    prop_oneof![
        12 => smooth,
        1 => input_end().prop_map(Step::ClientEnds),
        1 => input_end().prop_map(Step::BackendEnds),
        1 => Just(Step::ClientWritesFail),
        1 => Just(Step::BackendWritesFail),
        1 => Just(Step::Kill),
        3 => (0_u64..40_000).prop_map(Step::WaitMillis),
    ]
    .boxed()
}

fn case() -> impl Strategy<Value = Case> {
    let len = || prop_oneof![6 => 0_usize..200, 3 => 0_usize..5000, 1 => 60_000_usize..90_000];
    let frames = prop::collection::vec((len(), any::<bool>(), prop::bool::weighted(0.3)), 0..4);
    let last = prop_oneof![3 => Just(Last::Close), 1 => Just(Last::Violation), 1 => Just(Last::Nothing)];
    let backend_len = prop_oneof![3 => 0_usize..3000, 1 => 60_000_usize..LONGEST / 2];
    let pipelined = prop_oneof![3 => Just(0_usize), 1 => 1_usize..30, 1 => Just(8192)];
    let clock =
        |most: u64| prop_oneof![3 => Just(None), 1 => (1..most).prop_map(|s| Some(Duration::from_secs(s)))];
    let steps = prop_oneof![Just(false), Just(true)].prop_flat_map(|rough| {
        (prop::collection::vec((step(rough), prop::bool::weighted(0.2)), 0..25), Just(rough))
    });
    let of_client = (frames, any::<bool>(), last, pipelined);
    (of_client, backend_len, manners(), manners(), any::<bool>(), clock(60), clock(60), steps, any::<bool>())
        .prop_map(
            |(
                (frames, text, last, pipelined),
                backend_len,
                client,
                backend,
                send_text,
                idle,
                lifetime,
                steps,
                finishes,
            )| {
                let (steps, rough) = steps;
                Case {
                    frames,
                    text,
                    last,
                    backend_len,
                    pipelined,
                    client,
                    backend,
                    send_text,
                    idle: idle.filter(|_| rough),
                    lifetime: lifetime.filter(|_| rough),
                    steps,
                    finishes: finishes || !rough,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn relay_behaves_as_its_model(case in case()) {
        case.run();
    }
}
