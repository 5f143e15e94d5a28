//! hyper, one request at a time.
//!
//! hyper wants to call a service; the life of a connection reads better if it asks for the next request and answers
//! it. The service here only passes each request to whoever asks.

use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, copy, sink},
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};
use tokio_io_timeout::TimeoutStream;

use super::response::{Body, Refusal};
use crate::outcome::Reason;

/// The largest request head, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The most header fields.
const MAX_FIELDS: usize = 100;
/// The most that hyper may read ahead, in bytes; frames behind the head included.
const MAX_READ_AHEAD: usize = 64 * 1024;
/// The most that is read from a client that has been refused, in bytes.
const MAX_LINGER: u64 = 256 * 1024;

/// Why there is no next request, or why its answer did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The client left, or its connection broke.
    #[error("the client left")]
    Gone,
    /// No whole head in time.
    #[error("no whole request head in time")]
    Timeout,
    /// Not HTTP/1.1.
    #[error("not a valid request head")]
    Malformed,
    /// Over a limit.
    #[error("the request head is too large")]
    TooLarge,
    /// The client did not take an answer in time.
    #[error("the client takes nothing")]
    Stalled,
}

impl ExchangeError {
    /// The end this leads to.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Gone => Reason::ClientGone,
            Self::Timeout => Reason::RequestTimeout,
            Self::Malformed => Reason::BadRequest,
            Self::TooLarge => Reason::HeadTooLarge,
            Self::Stalled => Reason::ClientStalled,
        }
    }

    fn of(error: &hyper::Error) -> Self {
        if error.is_parse_too_large() {
            Self::TooLarge
        } else if error.is_parse() {
            Self::Malformed
        } else if is_timeout(error) {
            Self::Stalled
        } else {
            Self::Gone
        }
    }
}

/// Whether a write deadline of ours is behind a hyper error.
fn is_timeout(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut)
}

type Io<'a, S> = Pin<Box<TimeoutStream<SuppressedOutput<'a, S>>>>;

/// An HTTP/1.1 connection that is asked for one request at a time. It borrows the stream, which is as good as new
/// once the exchange is over.
pub(crate) struct Exchange<'a, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    connection: http1::Connection<TokioIo<Io<'a, S>>, RequestSlot>,
    slot: RequestSlot,
    answer: Option<oneshot::Sender<Response<Body>>>,
    suppressed: Arc<AtomicBool>,
}

impl<'a, S> Exchange<'a, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Begins to speak HTTP on `stream`. A client that takes nothing of an answer for `stall` is cut.
    pub(crate) fn new(stream: &'a mut S, stall: Option<Duration>) -> Self {
        let suppressed = Arc::new(AtomicBool::new(true));
        let mut io =
            Box::pin(TimeoutStream::new(SuppressedOutput { stream, suppressed: Arc::clone(&suppressed) }));
        io.as_mut().set_write_timeout_pinned(stall);
        let slot = RequestSlot::default();
        let connection = http1::Builder::new()
            // The deadline is ours: hyper's would start anew with every request, and say nothing.
            .header_read_timeout(None)
            .max_header_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            .max_buf_size(MAX_READ_AHEAD)
            .serve_connection(TokioIo::new(io), slot.clone());
        Self { connection, slot, answer: None, suppressed }
    }

    /// The next request. The one before must have been answered.
    ///
    /// # Errors
    /// There is none; see [`ExchangeError`]. Call [`Exchange::close`] then.
    pub(crate) async fn next(&mut self, deadline: Instant) -> Result<Request<()>, ExchangeError> {
        let next = poll_fn(|cx| self.poll_next(cx));
        match timeout_at(deadline, next).await {
            Ok(next) => next,
            Err(_) => Err(ExchangeError::Timeout),
        }
    }

    /// Answers the last request. The answer travels while the next request is asked for.
    pub(crate) fn answer(&mut self, response: Response<Body>) {
        self.suppressed.store(false, Ordering::Relaxed);
        if let Some(answer) = self.answer.take() {
            // Nobody takes it if the connection broke meanwhile, which the next call tells.
            let _ = answer.send(response);
        }
    }

    /// Answers the last request with a 101 and gives the stream back, with what the client sent behind its head.
    ///
    /// # Errors
    /// The client is gone or takes nothing.
    pub(crate) async fn upgrade(mut self, switching: Response<Body>) -> Result<Bytes, ExchangeError> {
        self.answer(switching);
        self.run().await?;
        // A copy, usually of nothing: hyper's buffer would keep its 8 KiB for as long as the session lives.
        Ok(Bytes::copy_from_slice(&self.connection.into_parts().read_buf))
    }

    /// Refuses the last request and closes the connection, listening on for at most `linger` so that the answer is
    /// not lost to a reset.
    pub(crate) async fn refuse(mut self, refusal: Refusal, linger: Duration) {
        self.answer(refusal.into_response());
        if self.run().await.is_ok() {
            close_lingering(self.connection.into_parts().io.into_inner(), linger).await;
        }
    }

    /// Closes the connection after a fault, with a word to the client where that makes sense.
    pub(crate) async fn close(self, error: ExchangeError, linger: Duration) {
        if error == ExchangeError::Stalled {
            return;
        }
        let parts = self.connection.into_parts();
        let mut io = parts.io.into_inner();
        // A browser opens connections before it needs them; only one that has begun to ask is told that it is late.
        let pending =
            error != ExchangeError::Gone && (error != ExchangeError::Timeout || !parts.read_buf.is_empty());
        // Behind an answer of ours, hyper has answered by itself.
        if pending && self.suppressed.swap(false, Ordering::Relaxed) {
            let answer = Refusal::new(error.reason()).into_bytes();
            let _ = timeout(linger, io.write_all(&answer)).await;
        }
        close_lingering(io, linger).await;
    }

    /// Lets hyper finish what it has to do.
    async fn run(&mut self) -> Result<(), ExchangeError> {
        poll_fn(|cx| self.connection.poll_without_shutdown(cx))
            .await
            .map_err(|error| ExchangeError::of(&error))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Request<()>, ExchangeError>> {
        let ended = self.connection.poll_without_shutdown(cx);
        if let Some((request, answer)) = self.slot.take() {
            self.answer = Some(answer);
            return Poll::Ready(Ok(request));
        }
        ended.map(|ended| Err(ended.map_or_else(|error| ExchangeError::of(&error), |()| ExchangeError::Gone)))
    }
}

/// Refuses a client that does not speak HTTP to us, in HTTP: most likely it speaks that to somebody else.
pub(crate) async fn refuse_without_request<S>(mut io: S, refusal: Refusal, linger: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _ = timeout(linger, io.write_all(&refusal.into_bytes())).await;
    close_lingering(io, linger).await;
}

/// Ends our direction and reads on: a socket closed with unread bytes is reset, and what was sent is lost.
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

/// A stream that swallows what is written before the first answer: hyper answers a head that it cannot read without a
/// word about why, or not at all.
struct SuppressedOutput<'a, S> {
    stream: &'a mut S,
    suppressed: Arc<AtomicBool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for SuppressedOutput<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SuppressedOutput<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.suppressed.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut *self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}

/// A request, and where its answer goes.
type PendingRequest = (Request<()>, oneshot::Sender<Response<Body>>);

/// Where hyper leaves a request and waits for its answer.
#[derive(Clone, Default)]
struct RequestSlot {
    pending: Arc<Mutex<Option<PendingRequest>>>,
}

impl RequestSlot {
    fn take(&self) -> Option<PendingRequest> {
        self.pending.lock().take()
    }
}

impl Service<Request<Incoming>> for RequestSlot {
    type Response = Response<Body>;
    type Error = NoResponse;
    type Future = PendingResponse;

    fn call(&self, request: Request<Incoming>) -> PendingResponse {
        let (answer, waiting) = oneshot::channel();
        // Nothing here wants a body: hyper reads past a short one and closes the connection behind a long one.
        let (head, _body) = request.into_parts();
        let request = Request::from_parts(head, ());
        *self.pending.lock() = Some((request, answer));
        PendingResponse(waiting)
    }
}

/// The answer to one request, once somebody gives it.
struct PendingResponse(oneshot::Receiver<Response<Body>>);

impl Future for PendingResponse {
    type Output = Result<Response<Body>, NoResponse>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(|_| NoResponse)
    }
}

/// Nobody answered: the connection is being dropped.
#[derive(Debug)]
struct NoResponse;

impl fmt::Display for NoResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody answered the request")
    }
}

impl std::error::Error for NoResponse {}
