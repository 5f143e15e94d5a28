//! HTTP/1.1 on one connection, one request at a time, by hyper.
//!
//! hyper calls a service for each request, but the code of a connection reads better if it pulls the next request and
//! responds to it. The service here only passes each request to the caller of [`Exchange::next`]. Invariant: the client
//! receives nothing before the first response of ours, no error response of hyper either.

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
/// The largest number of header fields.
const MAX_FIELDS: usize = 100;
/// How much hyper may read ahead, in bytes, frames behind the head included.
const MAX_READ_AHEAD: usize = 64 * 1024;
/// How much a lingering close reads from a refused client, in bytes.
const MAX_LINGER: u64 = 256 * 1024;

/// Why there is no next request, or why its response was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The client disconnected, or its connection broke.
    #[error("the client disconnected")]
    Disconnected,
    /// No complete request head in time.
    #[error("no complete request head in time")]
    Timeout,
    /// Not HTTP/1.1.
    #[error("not a valid request head")]
    Malformed,
    /// The head exceeds a limit.
    #[error("the request head is too large")]
    TooLarge,
    /// The client did not read a response in time.
    #[error("the client reads nothing")]
    Stalled,
}

impl ExchangeError {
    /// Why the connection ends.
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Disconnected => Reason::ClientGone,
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
    suppressed: Arc<AtomicBool>,
}

impl<'a, S> Exchange<'a, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Starts HTTP on `stream`. The connection fails if the client reads nothing of a response for `stall`.
    pub(crate) fn new(stream: &'a mut S, stall: Option<Duration>) -> Self {
        let suppressed = Arc::new(AtomicBool::new(true));
        let mut io =
            Box::pin(TimeoutStream::new(SuppressedOutput { stream, suppressed: Arc::clone(&suppressed) }));
        io.as_mut().set_write_timeout_pinned(stall);
        let slot = RequestSlot::default();
        let connection = http1::Builder::new()
            // `next` has its own deadline: hyper's restarts with every request and does not report that it passed.
            .header_read_timeout(None)
            .max_header_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            .max_buf_size(MAX_READ_AHEAD)
            .serve_connection(TokioIo::new(io), slot.clone());
        Self { connection, slot, responder: None, suppressed }
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

    /// Responds to the last request. The response is sent while [`Exchange::next`] waits for the next request.
    pub(crate) fn respond(&mut self, response: Response<Body>) {
        self.suppressed.store(false, Ordering::Relaxed);
        if let Some(responder) = self.responder.take() {
            // The receiver is gone if the connection has broken meanwhile. The next call reports that.
            let _ = responder.send(response);
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

    /// Closes the connection after an error. Sends an error response if the client has begun a request.
    pub(crate) async fn close_on_error(self, error: ExchangeError, linger: Duration) {
        if error == ExchangeError::Stalled {
            return;
        }
        let parts = self.connection.into_parts();
        let mut io = parts.io.into_inner();
        // Browsers open connections before they need them. A timeout is reported only where a request has begun.
        let has_begun = error != ExchangeError::Disconnected
            && (error != ExchangeError::Timeout || !parts.read_buf.is_empty());
        // Once a response of ours was sent, hyper's own error response is no longer suppressed and has been sent.
        if has_begun && self.suppressed.swap(false, Ordering::Relaxed) {
            let response = Refusal::new(error.reason()).into_bytes();
            let _ = timeout(linger, io.write_all(&response)).await;
        }
        close_lingering(io, linger).await;
    }

    /// Drives hyper until it has sent the response and released the connection.
    async fn run(&mut self) -> Result<(), ExchangeError> {
        poll_fn(|cx| self.connection.poll_without_shutdown(cx))
            .await
            .map_err(|error| ExchangeError::of(&error))
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

/// A stream that discards what is written before the first response of ours: hyper responds to an invalid head without an
/// explanation, or not at all.
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

/// A request and the channel for its response.
type PendingRequest = (Request<()>, oneshot::Sender<Response<Body>>);

/// The service that hyper calls: it stores the request and waits for the response.
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
        let (responder, response) = oneshot::channel();
        // No request body is used: hyper reads past a short one and closes the connection behind a long one.
        let (head, _body) = request.into_parts();
        let request = Request::from_parts(head, ());
        *self.pending.lock() = Some((request, responder));
        PendingResponse(response)
    }
}

/// The response to one request, once [`Exchange::respond`] was called.
struct PendingResponse(oneshot::Receiver<Response<Body>>);

impl Future for PendingResponse {
    type Output = Result<Response<Body>, NoResponse>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(|_| NoResponse)
    }
}

/// The exchange was dropped before it responded.
#[derive(Debug)]
struct NoResponse;

impl fmt::Display for NoResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the exchange was dropped without a response")
    }
}

impl std::error::Error for NoResponse {}
