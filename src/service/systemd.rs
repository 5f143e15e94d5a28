//! What the service manager is told (sd_notify). Without one, nothing happens.

use sd_notify::NotifyState;

/// Connections are being accepted.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// The end has begun.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell the service manager; check NotifyAccess= in the unit");
    }
}
