//! The task that delivers events: one request at a time, the oldest events first.
//!
//! A request that fails is repeated, with its events, until it succeeds or they are too old. So an event can arrive twice, if only
//! the response was lost, but never out of order.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::SystemTime,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    queue::{Batch, EventQueue},
    receiver::DeliveryError,
    report::{Line, Report},
    retry::Retry,
};

/// Delivers events until `stop` is cancelled.
pub(crate) async fn deliver(queue: Arc<EventQueue>, stop: CancellationToken) {
    let delivery = async {
        let (mut retry, mut report) = (Retry::new(), Report::default());
        loop {
            let batch = queue.next(retry.batch()).await;
            let result = batch.settings.receiver.post(&batch.events, batch.dropped, SystemTime::now()).await;
            let pause = match result {
                Ok(()) => {
                    queue.accepted(batch);
                    retry.succeeded();
                    log_success(&queue, &mut report);
                    continue;
                }
                Err(error) => {
                    failed(&queue, batch, &error);
                    log_failure(&queue, &mut report, &error);
                    retry.failed(random())
                }
            };
            queue.pause(pause).await;
        }
    };
    stop.run_until_cancelled(delivery).await;
}

fn failed(queue: &EventQueue, batch: Batch, error: &DeliveryError) {
    // Among several events, which one is wrong is found out with the next request, which has one.
    if error.is_rejection() && batch.events.len() == 1 {
        queue.rejected(batch);
    } else {
        queue.put_back(batch);
    }
}

fn log_failure(queue: &EventQueue, report: &mut Report, error: &DeliveryError) {
    let stats = queue.stats();
    if report.failed(Instant::now(), stats.dropped) == Line::NotDelivered {
        let (queued, dropped) = (stats.queued, stats.dropped);
        tracing::warn!(queued, dropped, detail = %error, "events not delivered");
    }
}

fn log_success(queue: &EventQueue, report: &mut Report) {
    let stats = queue.stats();
    let (queued, dropped) = (stats.queued, stats.dropped);
    match report.succeeded(Instant::now(), dropped) {
        Line::Recovered => tracing::info!(queued, dropped, "events delivered again"),
        Line::TooSlow => {
            tracing::warn!(queued, dropped, "events dropped: the receiver accepts them too slowly");
        }
        Line::Nothing | Line::NotDelivered => {}
    }
}

/// A number from 0 to 1.
fn random() -> f64 {
    // RandomState takes its keys from the random numbers of the operating system.
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}
