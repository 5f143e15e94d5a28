//! What the service manager is told (sd_notify(3)). Without one, nothing happens.

use std::{convert::Infallible, future, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{self, MissedTickBehavior};

/// How often the line of `systemctl status` is looked at.
const STATUS: Duration = Duration::from_secs(2);

/// Connections are being accepted, under what was last read.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] ends it, whether anything came of it or not.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot read the clock that systemd wants to be told"),
    }
}

/// The end has begun.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Shows `status` in `systemctl status`, and shows the watchdog that the process moves, until dropped.
pub(crate) async fn keep_informed(status: impl Fn() -> String) -> Infallible {
    let watched = sd_notify::watchdog_enabled();
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return future::pending().await;
    }
    // Twice in the time after which it bites, as sd_watchdog_enabled(3) recommends.
    let mut ticker = time::interval(watched.map_or(STATUS, |limit| STATUS.min(limit / 2)));
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown = String::new();
    loop {
        ticker.tick().await;
        if watched.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        let now = status();
        if now != shown {
            tell(&[NotifyState::Status(&now)]);
            shown = now;
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell the service manager; check NotifyAccess= in the unit");
    }
}
