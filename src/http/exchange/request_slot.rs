//! The service that hyper calls, which passes each request to the exchange.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use hyper::{body::Incoming, service::Service};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::http::response::Body;

/// A request and the channel for its response.
pub(super) type PendingRequest = (Request<()>, oneshot::Sender<Response<Body>>);

/// The service that hyper calls: it stores the request and waits for the response.
#[derive(Clone, Default)]
pub(super) struct RequestSlot {
    pending: Arc<Mutex<Option<PendingRequest>>>,
}

impl RequestSlot {
    pub(super) fn take(&self) -> Option<PendingRequest> {
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

/// The response to one request, once [`Exchange::respond`](super::Exchange::respond) was called.
pub(super) struct PendingResponse(oneshot::Receiver<Response<Body>>);

impl Future for PendingResponse {
    type Output = Result<Response<Body>, NoResponse>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(|_| NoResponse)
    }
}

/// The exchange was dropped before it responded.
#[derive(Debug)]
pub(super) struct NoResponse;

impl fmt::Display for NoResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the exchange was dropped without a response")
    }
}

impl std::error::Error for NoResponse {}
