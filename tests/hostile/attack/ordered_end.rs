//! Row 63: ends that the gateway orders: from then on the client's data does not reach the backend, and all is over in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::support::{
    BINARY, Backend, Gateway, ListenerIndex, PLAIN, Session, Setup, TLS, eventually, frame, within,
};

const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const TIMEOUTS: &str = "close = \"1s\"\nstall = \"60s\"";
/// How long after the last of its timeouts a session may still be there, on a busy machine.
const SLACK: Duration = Duration::from_secs(1);

/// A client that types: the number of the last command that it has begun to send.
struct Typing {
    sent: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

/// Sends a number every few milliseconds until the connection breaks, and reads if it `reads`.
fn type_on(session: Session, reads: bool) -> Typing {
    let sent = Arc::new(AtomicU64::new(0));
    let last = sent.clone();
    let task = tokio::spawn(async move {
        let Session { mut frames, mut writer, .. } = session;
        let reading = async {
            while reads && frames.next_without_deadline().await.is_some() {}
            // A client that answers no Close.
            std::future::pending::<()>().await;
        };
        let typing = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(5));
            loop {
                ticks.tick().await;
                let number = last.fetch_add(1, Ordering::SeqCst) + 1;
                let command = frame(true, BINARY, &number.to_be_bytes());
                if writer.write_all(&command).await.is_err() || writer.flush().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! { () = reading => {}, () = typing => {} }
    });
    Typing { sent, task }
}

/// Reads the numbers until the gateway closes the connection: the last one, and when the end came.
async fn last_command(mut commands: impl tokio::io::AsyncRead + Unpin, seen: Arc<AtomicU64>) -> Instant {
    let mut number = [0; 8];
    while commands.read_exact(&mut number).await.is_ok() {
        let number = u64::from_be_bytes(number);
        assert_eq!(number, seen.fetch_add(1, Ordering::SeqCst) + 1, "a command is missing");
    }
    Instant::now()
}

/// A session with a client that types, and a backend that records; the client of a backend that talks is blocked.
async fn open(
    gateway: &Gateway,
    backend: &Backend,
    listener: ListenerIndex,
    reads: bool,
) -> (std::net::SocketAddr, Typing, Arc<AtomicU64>, JoinHandle<Instant>) {
    let connection = gateway.connect_with_small_buffers(listener).await;
    let session = gateway.open(connection, &gateway.upgrade(listener, "/typed")).await;
    let peer = session.peer;
    let typing = type_on(session, reads);
    let (received, mut says) = backend.accept().await.into_split();
    tokio::spawn(async move { while says.write_all(&[0; 16 * 1024]).await.is_ok() {} });
    let seen = Arc::new(AtomicU64::new(0));
    let recording = tokio::spawn(last_command(received, seen.clone()));
    (peer, typing, seen, recording)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_63_nothing_of_a_killed_client_reaches_the_backend() {
    let backend = Backend::scripted_with_small_buffers().await;
    let gateway = Setup::new().route("typed", &backend).admin().timeouts(TIMEOUTS).start().await;
    for (listener, reads) in [(TLS, false), (PLAIN, false), (TLS, true), (PLAIN, true)] {
        let (peer, typing, seen, recording) = open(&gateway, &backend, listener, reads).await;
        eventually("commands arrive", Duration::from_secs(20), || {
            let count = seen.load(Ordering::SeqCst);
            if count > 50 { Ok(()) } else { Err(format!("{count} commands")) }
        })
        .await;
        let killed = gateway.request("POST", "/api/sessions/kill", "{\"route\":\"typed\"}").await;
        let (ordered, sent) = (Instant::now(), typing.sent.load(Ordering::SeqCst));
        assert_eq!(killed.status, 200, "{}", killed.text());
        let ended = within("the backend to be disconnected", recording).await.expect("the commands in order");
        let seen = seen.load(Ordering::SeqCst);
        assert!(
            seen <= sent,
            "listener {listener}, reads {reads}: {sent} commands until the kill, {seen} seen"
        );
        let took = ended.saturating_duration_since(ordered);
        assert!(
            took < CLOSE_TIMEOUT + SLACK,
            "listener {listener}, reads {reads}: {took:?} to the backend's end"
        );
        let end = gateway.access_log_line(peer).await;
        assert_eq!(end.reason(), "killed", "{end:?}");
        let took = ordered.elapsed();
        assert!(took < CLOSE_TIMEOUT + SLACK, "listener {listener}, reads {reads}: {took:?} in all");
        assert_eq!(end.number("bytes_in"), Some(seen * 8), "what was accepted arrives: {end:?}");
        within("the client to be disconnected", typing.task).await.expect("no panic");
    }
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_63_nothing_of_a_client_reaches_the_backend_after_its_lifetime() {
    const LIFETIME: Duration = Duration::from_millis(1500);
    let backend = Backend::scripted_with_small_buffers().await;
    let timeouts = format!("{TIMEOUTS}\nlifetime = \"1500ms\"");
    let gateway = Setup::new().route("typed", &backend).timeouts(&timeouts).start().await;
    for (listener, reads) in [(TLS, false), (PLAIN, true)] {
        let (peer, typing, seen, recording) = open(&gateway, &backend, listener, reads).await;
        let opened = Instant::now();
        // The session is older than `opened` says, so that its end has come by then.
        tokio::time::sleep_until((opened + LIFETIME + Duration::from_millis(250)).into()).await;
        let sent = typing.sent.load(Ordering::SeqCst);
        within("the backend to be disconnected", recording).await.expect("the commands in order");
        let seen = seen.load(Ordering::SeqCst);
        assert!(seen <= sent, "listener {listener}: {sent} commands in the lifetime, {seen} seen");
        let end = gateway.access_log_line(peer).await;
        let took = opened.elapsed();
        assert_eq!(end.reason(), "lifetime_reached", "{end:?}");
        assert!(took < LIFETIME + CLOSE_TIMEOUT + SLACK, "listener {listener}: {took:?}");
        within("the client to be disconnected", typing.task).await.expect("no panic");
    }
    gateway.finish().await;
}
