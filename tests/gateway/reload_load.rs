//! Configuration reloads and certificate renewals under load, without an effect on any session.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::support::{
    BINARY, Backend, Gateway, Identity, PLAIN, Session, Setup, TLS, client_config, eventually, frame, pattern,
};

/// Sessions that are open during the whole test.
const STEADY: usize = 500;
/// New sessions per second.
const NEW: u32 = 50;
/// The bytes that a steady session sends at a time, and the interval.
const MESSAGE: usize = 700;
const PAUSE: Duration = Duration::from_millis(400);

/// Sends now and then until `stop`, and checks that every byte is echoed. Returns how many
/// bytes it sent.
async fn talk(mut session: Session, start: u64, stop: Arc<AtomicBool>) -> u64 {
    let (mut sent, mut received) = (Context::new(&SHA256), Context::new(&SHA256));
    let mut at = start;
    // The sessions do not send at the same moment.
    tokio::time::sleep(PAUSE * (start % 97) as u32 / 97).await;
    let mut clock = interval(PAUSE);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.load(Ordering::Relaxed) {
        clock.tick().await;
        let message = pattern(at, MESSAGE);
        at += MESSAGE as u64;
        sent.update(&message);
        session.send(&frame(true, BINARY, &message)).await;
        received.update(&session.frames.payload(MESSAGE).await);
    }
    session.close(1000).await;
    assert_eq!(sent.finish().as_ref(), received.finish().as_ref(), "the echo differs from what was sent");
    at - start
}

/// The sessions that run while a test changes things.
struct Load {
    gateway: Arc<Gateway>,
    stop: Arc<AtomicBool>,
    steady: JoinSet<u64>,
    new_sessions: tokio::task::JoinHandle<usize>,
    /// Handshakes that have finished.
    shaken: Arc<AtomicUsize>,
}

impl Load {
    /// Opens the steady sessions, and then new ones continuously.
    async fn start(gateway: Arc<Gateway>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut opening = JoinSet::new();
        let mut steady = JoinSet::new();
        for number in 0..STEADY {
            let (gateway, listener) = (Arc::clone(&gateway), if number % 5 == 0 { PLAIN } else { TLS });
            opening.spawn(async move { (number, gateway.session_by(listener, "/echo").await) });
            if opening.len() == 25 || number == STEADY - 1 {
                while let Some(opened) = opening.join_next().await {
                    let (number, session) = opened.expect("a session");
                    steady.spawn(talk(session, number as u64 * 7919, Arc::clone(&stop)));
                }
            }
        }
        let shaken = Arc::new(AtomicUsize::new(0));
        let new_sessions = tokio::spawn({
            let (gateway, stop, shaken) = (Arc::clone(&gateway), Arc::clone(&stop), Arc::clone(&shaken));
            async move {
                let mut clock = interval(Duration::from_secs(1) / NEW);
                clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
                let (mut visits, mut number) = (JoinSet::new(), 0);
                while !stop.load(Ordering::Relaxed) {
                    clock.tick().await;
                    number += 1;
                    let (gateway, shaken) = (Arc::clone(&gateway), Arc::clone(&shaken));
                    visits.spawn(async move {
                        let listener = if number % 5 == 0 { PLAIN } else { TLS };
                        let mut session = gateway.session_by(listener, "/echo").await;
                        shaken.fetch_add(1, Ordering::Relaxed);
                        session.echo(&pattern(number as u64, 3000)).await;
                        session.close(1000).await;
                    });
                    while let Some(visited) = visits.try_join_next() {
                        visited.expect("a new session");
                    }
                }
                while let Some(visited) = visits.join_next().await {
                    visited.expect("a new session");
                }
                number
            }
        });
        Self { gateway, stop, steady, new_sessions, shaken }
    }

    /// Ends all sessions, and returns the gateway, how many sessions there were, and how many bytes they sent.
    async fn end(self) -> (Gateway, usize, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let visits = self.new_sessions.await.expect("the new sessions");
        let mut bytes = 0;
        for sent in self.steady.join_all().await {
            assert!(sent > 0, "a steady session sent nothing");
            bytes += sent;
        }
        let gateway = Arc::into_inner(self.gateway).expect("the last reference");
        (gateway, visits, bytes)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_under_load_disturb_no_session() {
    const RELOADS: u32 = 100;
    const EVERY: Duration = Duration::from_millis(200);
    let backend = Backend::echo().await;
    let setup = Setup::echo(&backend).level("info");
    let gateway = Arc::new(setup.start().await);
    let text = gateway.configuration();
    let extra = format!(
        "\n[[listener]]\naddress = \"127.0.0.1:0\"\n\n[[route]]\nname = \"extra\"\npath = \"/extra\"\nbackend = [\"tcp://{0}\", \"tcp://127.0.0.2:{1}\"]\nhealth = {{}}\n",
        backend.address,
        backend.address.port()
    );
    let good = [
        text.clone(),
        format!("{text}{extra}"),
        text.replace("[limits]", "[limits]\nmax_sessions = 5000"),
        format!("{text}\n[timeouts]\nping = \"5s\"\nidle = \"10m\"\n"),
        text.replace(
            "path = \"/echo\"",
            "path = \"/echo\"\nmax_sessions = 4000\nbalance = \"least-sessions\"",
        ),
    ];
    let bad = [
        format!("{text}\nnonsense"),
        text.replace("localhost.key", "nowhere.key"),
        text.replace("127.0.0.1:0", "192.0.2.1:1"),
        text.replace("[log]", "[log]\nsessions = \"nowhere/sessions.log\""),
    ];
    let load = Load::start(Arc::clone(&gateway)).await;

    let start = Instant::now();
    let mut clock = interval(EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut measured = None;
    for number in 0..RELOADS as usize {
        clock.tick().await;
        if number % 3 == 2 {
            gateway.reload(&bad[number / 3 % bad.len()]).await.expect_err("a bad file");
        } else {
            gateway.reload(&good[number % good.len()]).await.expect("a good file");
        }
        // After every step has happened once.
        if number == 29 {
            measured = Some((gateway.memory(), gateway.open_descriptors()));
        }
    }
    gateway.reload(&text).await.expect("a good file");
    let took = start.elapsed();
    let (memory, descriptors) = measured.expect("a measurement");
    let (memory_then, descriptors_then) = (gateway.memory(), gateway.open_descriptors());
    drop(gateway);
    let (gateway, visits, bytes) = load.end().await;

    let per_second = visits as f64 / took.as_secs_f64();
    println!(
        "{RELOADS} reloads in {took:?}; {STEADY} sessions said {bytes} bytes, {per_second:.0} new ones a second; \
         {memory} -> {memory_then} bytes, {descriptors} -> {descriptors_then} descriptors"
    );
    assert!(memory_then < memory + (6 << 20), "{memory} bytes became {memory_then}");
    // New sessions hold some at any moment; a reload that leaks one would leak sixty.
    assert!(descriptors_then < descriptors + 40, "{descriptors} descriptors became {descriptors_then}");
    eventually("every session is over", Duration::from_secs(5), || match backend.open() {
        0 => Ok(()),
        open => Err(format!("{open} are open")),
    })
    .await;
    let is_end = |line: &serde_json::Value| line["message"] == "session ended";
    let all = STEADY + visits;
    gateway
        .until("a line for every session", |lines| {
            (lines.iter().filter(|line| is_end(line)).count() >= all).then_some(())
        })
        .await;
    let ends = gateway.lines(|line| is_end(line).then(|| line["reason"].clone()));
    let others: Vec<_> = ends.iter().filter(|reason| *reason != "client_closed").collect();
    assert!(
        ends.len() == all && others.is_empty(),
        "{} of {all} sessions, {others:?} among them",
        ends.len()
    );
    // Down to the last descriptor.
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_renewed_under_load_match_their_keys_in_every_handshake() {
    const RENEWALS: usize = 8;
    let backend = Backend::echo().await;
    let gateway = Arc::new(Setup::echo(&backend).level("info").start().await);
    let load = Load::start(Arc::clone(&gateway)).await;
    // Each client checks that the gateway has the key of the certificate that it serves, or the handshake fails; so the
    // certificates that were seen belong to complete pairs.
    let config = client_config(rustls::ALL_VERSIONS, &["http/1.1"]);
    for number in 0..RENEWALS {
        let (certificate, key) = Identity::shared().renewed(|_| {});
        let der = {
            use rustls::pki_types::pem::PemObject;
            rustls::pki_types::CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")
        };
        // Half of it, then an interval with neither, and then the rest.
        let (head, tail) = certificate.split_at(certificate.len() / 2);
        fs::write(gateway.path("localhost.crt"), head).unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        fs::write(gateway.path("localhost.key"), &key).unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        fs::write(gateway.path("localhost.crt"), [head, tail].concat()).unwrap();
        let start = Instant::now();
        let shaken = load.shaken.load(Ordering::Relaxed);
        loop {
            let socket = gateway.untracked_socket(None, TLS, |_| {}).await;
            let stream = gateway
                .try_secure(socket, Arc::clone(&config))
                .await
                .expect("a handshake with a complete pair");
            let seen = &stream.get_ref().1.peer_certificates();
            if seen.is_none_or(|chain| chain[0] == der) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "renewal {number} is not served");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Other clients connected meanwhile, and some will be served this pair.
        eventually("new sessions", Duration::from_secs(20), || {
            let now = load.shaken.load(Ordering::Relaxed);
            (now >= shaken + 20).then_some(()).ok_or_else(|| format!("{} came", now - shaken))
        })
        .await;
    }
    drop(gateway);
    let (gateway, visits, bytes) = load.end().await;
    println!("{RENEWALS} renewals; {STEADY} sessions said {bytes} bytes, {visits} new ones");
    let seen = |message: &str| gateway.lines(|line| (line["message"] == message).then_some(())).len();
    assert_eq!(seen("certificate reloaded"), RENEWALS);
    assert_eq!(seen("certificate not reloaded: the previous one stays in use"), 0);
    gateway.finish().await;
}
