//! Notifications to systemd: readiness, reload, status line, watchdog (sd_notify(3)). No-ops without a service manager.

use std::{convert::Infallible, future, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{self, MissedTickBehavior};

/// How often the line in `systemctl status` is updated.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// Reports that connections are accepted; also ends [`reloading`].
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Reports that a configuration reload has started. Call [`ready`] when it is over, successful or not.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot read the monotonic clock for the reload notification"),
    }
}

/// Reports that shutdown has started.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Until dropped, updates the status line and pings the watchdog.
pub(crate) async fn report_status(status: impl Fn() -> String) -> Infallible {
    let watchdog_limit = sd_notify::watchdog_enabled();
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return future::pending().await;
    }
    // At half the watchdog's limit at the latest, as sd_watchdog_enabled(3) recommends.
    let mut ticker =
        time::interval(watchdog_limit.map_or(STATUS_INTERVAL, |limit| STATUS_INTERVAL.min(limit / 2)));
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = String::new();
    loop {
        ticker.tick().await;
        if watchdog_limit.is_some() {
            notify(&[NotifyState::Watchdog]);
        }
        let line = status();
        if line != last {
            notify(&[NotifyState::Status(&line)]);
            last = line;
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager; check NotifyAccess= in the unit");
    }
}
