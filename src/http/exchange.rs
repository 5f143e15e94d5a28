//! HTTP/1.1 on one connection, one request at a time, by hyper.
//!
//! hyper calls a service for each request, but the code of a connection reads better if it pulls the next request and
//! responds to it. The service here only passes each request to the caller of [`Exchange::next`]. Invariant: the client
//! receives nothing before the first response of ours, no error response of hyper either.

mod output;
mod request_slot;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink},
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};
use tokio_io_timeout::TimeoutStream;

use self::{
    output::{Progress, SuppressedOutput, WatchedBody},
    request_slot::RequestSlot,
};
use super::{
    handshake::MAX_TARGET,
    response::{Body, Refusal},
};
use crate::outcome::Reason;

/// The largest request head, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The largest number of header fields.
const MAX_FIELDS: usize = 100;
/// How much hyper may read ahead, in bytes, frames behind the head included.
const MAX_READ_AHEAD: usize = 64 * 1024;
/// How much a lingering close reads from a refused client, in bytes.
const MAX_LINGER: u64 = 256 * 1024;
/// The rate, in bytes per second, below which a client that reads a response is stalled, on average since its beginning.
const MIN_RATE: u64 = 1024;
/// How long a response may take in any case.
const MIN_RATE_GRACE: Duration = Duration::from_secs(30);
/// How often the rate is checked.
const RATE_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Why there is no next request, or why its response was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The client disconnected, or its connection broke.
    #[error("the client disconnected")]
    Disconnected,
    /// No complete request head in time.
    #[error("no complete request head in time")]
    Timeout,
    #[error("not a valid request head")]
    Malformed,
    /// The head exceeds a limit.
    #[error("the request head is too large")]
    TooLarge,
    /// The target alone exceeds its limit.
    #[error("the request target is too long")]
    TargetTooLong,
    /// The client did not read a response in time.
    #[error("the client reads nothing")]
    Stalled,
    /// The body of a response failed, or ended early: its file cannot be read to its end.
    #[error("the file system of [web] root does not deliver the rest of a file")]
    BodyFailed,
}

impl ExchangeError {
    /// Why the connection ends.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Disconnected => Reason::ClientGone,
            Self::Timeout => Reason::RequestTimeout,
            Self::Malformed => Reason::BadRequest,
            Self::TooLarge => Reason::HeadTooLarge,
            Self::TargetTooLong => Reason::UriTooLong,
            Self::Stalled => Reason::ClientStalled,
            Self::BodyFailed => Reason::Overloaded,
        }
    }

    fn of(error: &hyper::Error) -> Self {
        if error.is_parse_too_large() {
            Self::TooLarge
        } else if error.is_parse() {
            Self::Malformed
        } else if error.is_user() {
            // What we gave to hyper: in an exchange, only the body can fail.
            Self::BodyFailed
        } else if is_timeout(error) {
            Self::Stalled
        } else {
            Self::Disconnected
        }
    }
}

/// Whether our write timeout is the source of a hyper error.
fn is_timeout(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut)
}

type Io<'a, S> = Pin<Box<TimeoutStream<SuppressedOutput<'a, S>>>>;

/// The HTTP/1.1 phase of a connection. It borrows the stream, which is free for the next phase once the exchange is over.
pub(crate) struct Exchange<'a, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    connection: http1::Connection<TokioIo<Io<'a, S>>, RequestSlot>,
    slot: RequestSlot,
    responder: Option<oneshot::Sender<Response<Body>>>,
    progress: Arc<Progress>,
}

impl<'a, S> Exchange<'a, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Starts HTTP on `stream`. The connection fails if the client reads nothing of a response for `stall`.
    pub(crate) fn new(stream: &'a mut S, stall: Option<Duration>) -> Self {
        let progress = Arc::new(Progress::default());
        progress.suppressed.store(true, Ordering::Relaxed);
        let output = SuppressedOutput { stream, progress: Arc::clone(&progress) };
        let mut io = Box::pin(TimeoutStream::new(output));
        io.as_mut().set_write_timeout_pinned(stall);
        let slot = RequestSlot::default();
        let connection = http1::Builder::new()
            // `next` has its own deadline: hyper's restarts with every request and does not report that it passed.
            .header_read_timeout(None)
            .max_header_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            .max_buf_size(MAX_READ_AHEAD)
            .serve_connection(TokioIo::new(io), slot.clone());
        Self { connection, slot, responder: None, progress }
    }

    /// The next request. The previous one must have been responded to.
    ///
    /// # Errors
    /// There is no next request. Call [`Exchange::close_on_error`] then.
    pub(crate) async fn next(&mut self, deadline: Instant) -> Result<Request<()>, ExchangeError> {
        let next = poll_fn(|cx| self.poll_next(cx));
        match timeout_at(deadline, next).await {
            Ok(next) => next,
            Err(_) => Err(ExchangeError::Timeout),
        }
    }

    /// Responds to the last request. The response is sent while [`Exchange::sent`] or [`Exchange::next`] is awaited.
    pub(crate) fn respond(&mut self, response: Response<Body>) {
        self.progress.suppressed.store(false, Ordering::Relaxed);
        self.progress.sent.store(false, Ordering::Relaxed);
        self.progress.body_read.store(false, Ordering::Relaxed);
        let progress = Arc::clone(&self.progress);
        let response = response.map(|body| WatchedBody { body, progress }.boxed_unsync());
        if let Some(responder) = self.responder.take() {
            // The receiver is gone if the connection has broken meanwhile. The next call reports that.
            let _ = responder.send(response);
        }
    }

    /// Waits until the last response is sent, as far as this side of the connection can tell.
    ///
    /// # Errors
    /// The client has disconnected, or reads more slowly than [`MIN_RATE`]. Call [`Exchange::close_on_error`] then.
    pub(crate) async fn sent(&mut self) -> Result<(), ExchangeError> {
        let start = Instant::now();
        let written_before = self.progress.written.load(Ordering::Relaxed);
        let mut check = start + MIN_RATE_GRACE;
        loop {
            if let Ok(sent) = timeout_at(check, poll_fn(|cx| self.poll_sent(cx))).await {
                return sent;
            }
            let written = self.progress.written.load(Ordering::Relaxed) - written_before;
            let expected = MIN_RATE * (start.elapsed().saturating_sub(MIN_RATE_GRACE)).as_secs();
            if written <= expected {
                return Err(ExchangeError::Stalled);
            }
            check += RATE_CHECK_INTERVAL;
        }
    }

    /// Responds to the last request with a 101 and releases the stream. Returns what the client has sent behind its head.
    ///
    /// # Errors
    /// The client has disconnected or reads nothing.
    pub(crate) async fn upgrade(mut self, switching: Response<Body>) -> Result<Bytes, ExchangeError> {
        self.respond(switching);
        self.run().await?;
        // A copy, usually empty: hyper's buffer would keep its 8 KiB as long as the session is open.
        Ok(Bytes::copy_from_slice(&self.connection.into_parts().read_buf))
    }

    /// Refuses the last request and closes the connection with a lingering close of at most `linger`.
    pub(crate) async fn respond_and_close(mut self, refusal: Refusal, linger: Duration) {
        self.respond(refusal.into_response());
        if self.run().await.is_ok() {
            close_lingering(self.connection.into_parts().io.into_inner(), linger).await;
        }
    }

    /// Closes the connection after an error. Sends an error response if the client has begun a request. Returns the error,
    /// more precisely if that is possible, and whether a request has begun.
    pub(crate) async fn close_on_error(
        self,
        mut error: ExchangeError,
        linger: Duration,
    ) -> (ExchangeError, bool) {
        if error == ExchangeError::Stalled {
            return (error, true);
        }
        let parts = self.connection.into_parts();
        let mut io = parts.io.into_inner();
        if error == ExchangeError::TooLarge && is_target_too_long(&parts.read_buf) {
            error = ExchangeError::TargetTooLong;
        }
        // Browsers open connections before they need them. A timeout is reported only where a request has begun.
        let has_begun = error != ExchangeError::Disconnected
            && (error != ExchangeError::Timeout || !parts.read_buf.is_empty());
        // Once a response of ours was sent, hyper's own error response is no longer suppressed and has been sent. It has none
        // for a timeout.
        let answered =
            !self.progress.suppressed.swap(false, Ordering::Relaxed) && error != ExchangeError::Timeout;
        if has_begun && !answered {
            let response = Refusal::new(error.reason()).into_bytes();
            let _ = timeout(linger, io.write_all(&response)).await;
        }
        close_lingering(io, linger).await;
        (error, has_begun)
    }

    /// Drives hyper until it has sent the response and released the connection.
    async fn run(&mut self) -> Result<(), ExchangeError> {
        poll_fn(|cx| self.connection.poll_without_shutdown(cx))
            .await
            .map_err(|error| ExchangeError::of(&error))
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ExchangeError>> {
        match self.connection.poll_without_shutdown(cx) {
            Poll::Ready(ended) => Poll::Ready(Err(
                ended.map_or_else(|error| ExchangeError::of(&error), |()| ExchangeError::Disconnected)
            )),
            Poll::Pending if self.progress.sent.load(Ordering::Relaxed) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Request<()>, ExchangeError>> {
        let ended = self.connection.poll_without_shutdown(cx);
        if let Some((request, responder)) = self.slot.take() {
            self.responder = Some(responder);
            return Poll::Ready(Ok(request));
        }
        ended.map(|ended| {
            Err(ended.map_or_else(|error| ExchangeError::of(&error), |()| ExchangeError::Disconnected))
        })
    }
}

/// Whether the target of a request of which only a part was read is longer than any that is accepted.
fn is_target_too_long(head: &[u8]) -> bool {
    let mut words = head.split(|byte| byte.is_ascii_whitespace());
    words.nth(1).is_some_and(|target| target.len() > MAX_TARGET)
}

/// Refuses, in HTTP, a client that has sent no request that could be read, such as plain HTTP on a TLS listener.
pub(crate) async fn refuse_without_request<S>(mut io: S, refusal: Refusal, linger: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _ = timeout(linger, io.write_all(&refusal.into_bytes())).await;
    close_lingering(io, linger).await;
}

/// Lingering close: shuts down the write side and keeps reading. Closing a socket with unread bytes resets the connection,
/// and the client can lose what was sent.
async fn close_lingering<S>(mut io: S, linger: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _ = timeout(linger, async {
        io.shutdown().await?;
        copy(&mut io.take(MAX_LINGER), &mut sink()).await
    })
    .await;
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};
    use http::{HeaderValue, header::CONTENT_LENGTH};
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;
    use tokio::{
        io::{DuplexStream, duplex},
        task::yield_now,
        time::sleep,
    };

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    fn response(length: usize) -> Response<Body> {
        let body = Full::new(Bytes::from(vec![b'a'; length])).map_err(|never| match never {});
        Response::new(body.boxed_unsync())
    }

    /// Reads `rate` bytes a second until the connection ends or `length` bytes are read.
    async fn read_slowly(mut client: DuplexStream, rate: usize, length: usize) -> usize {
        let mut read = 0;
        let mut buffer = vec![0; rate];
        while read < length {
            let mut second = 0;
            while second < rate {
                match client.read(&mut buffer[second..]).await {
                    Ok(0) | Err(_) => return read + second,
                    Ok(more) => second += more,
                }
                if read + second >= length {
                    return read + second;
                }
            }
            read += second;
            sleep(Duration::from_secs(1)).await;
        }
        read
    }

    /// How sending `length` bytes to a client that reads `rate` bytes a second ends, and after how many seconds.
    async fn send(length: usize, rate: usize) -> (Result<(), ExchangeError>, u64) {
        let (mut client, mut server) = duplex(4096);
        client.write_all(REQUEST).await.unwrap();
        let reader = tokio::spawn(read_slowly(client, rate, length));
        let start = Instant::now();
        let mut exchange = Exchange::new(&mut server, None);
        exchange.next(start + Duration::from_secs(1)).await.unwrap();
        exchange.respond(response(length));
        let sent = exchange.sent().await;
        let took = start.elapsed().as_secs();
        drop(exchange);
        drop(server);
        reader.await.unwrap();
        (sent, took)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_receives_the_whole_response() {
        let (sent, took) = send(200_000, 2048).await;
        assert_eq!(sent, Ok(()));
        assert!(took > 60, "{took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_below_the_least_rate_is_stalled() {
        for rate in [1, 100, 900] {
            let (sent, took) = send(2_000_000, rate).await;
            assert_eq!(sent, Err(ExchangeError::Stalled), "{rate} bytes per second");
            assert!((30..=400).contains(&took), "{rate} bytes per second: {took} s");
        }
    }

    #[tokio::test]
    async fn a_body_that_cannot_be_read_to_its_end_is_no_fault_of_the_client() {
        let part = || Ok(Frame::data(Bytes::from_static(b"the first part")));
        let failed = vec![part(), Err(io::Error::other("the file system does not answer"))];
        for (what, parts) in [("a failure", failed), ("an early end", vec![part()])] {
            let (mut client, mut server) = duplex(4096);
            client.write_all(REQUEST).await.unwrap();
            let mut exchange = Exchange::new(&mut server, None);
            exchange.next(Instant::now() + Duration::from_secs(5)).await.unwrap();
            // As files are read: each part takes a while.
            let parts = stream::iter(parts).then(|part| async {
                yield_now().await;
                part
            });
            let mut response = Response::new(StreamBody::new(parts).boxed_unsync());
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("1000"));
            exchange.respond(response);
            let error = exchange.sent().await.unwrap_err();
            assert_eq!((error, error.reason()), (ExchangeError::BodyFailed, Reason::Overloaded), "{what}");
            let closing = exchange.close_on_error(error, Duration::from_secs(5));
            let mut received = String::new();
            let client_reads = async {
                client.read_to_string(&mut received).await.unwrap();
                drop(client);
            };
            // No second response: the client sees that the body is shorter than announced.
            tokio::join!(closing, client_reads);
            assert!(received.starts_with("HTTP/1.1 200 OK\r\n"), "{what}: {received:?}");
            assert_eq!(received.matches("HTTP/1.1").count(), 1, "{what}: {received:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipelined_request_is_kept_until_the_response_is_sent() {
        let (mut client, mut server) = duplex(4096);
        let writer = tokio::spawn(async move {
            client.write_all(&REQUEST.repeat(2)).await.unwrap();
            read_slowly(client, 4096, usize::MAX).await
        });
        let mut exchange = Exchange::new(&mut server, None);
        for _ in 0..2 {
            exchange.next(Instant::now() + Duration::from_secs(1)).await.unwrap();
            exchange.respond(response(10_000));
            exchange.sent().await.unwrap();
        }
        assert_eq!(
            exchange.next(Instant::now() + Duration::from_secs(1)).await.err(),
            Some(ExchangeError::Timeout)
        );
        drop(exchange);
        drop(server);
        assert!(writer.await.unwrap() > 20_000);
    }

    #[test]
    fn a_target_that_is_accepted_is_not_too_long() {
        let head = |length: usize| [b"GET ", &vec![b'a'; length][..], b" HTTP/1.1\r\n"].concat();
        assert!(!is_target_too_long(&head(MAX_TARGET)));
        assert!(is_target_too_long(&head(MAX_TARGET + 1)));
        // The other words of a head may be longer.
        let long_field = [b"GET / HTTP/1.1\r\na: ", &vec![b'a'; MAX_TARGET + 1][..]].concat();
        assert!(!is_target_too_long(&long_field) && !is_target_too_long(b"") && !is_target_too_long(b"GET"));
    }
}
