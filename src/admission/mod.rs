//! Admission control: the Origin check, the limits per address and network, the penalties for repeated refusals, the
//! concurrency limits, and which handshakes give way when there are too many.
//!
//! Every decision here is pure: no sockets, no clock (time is an argument), no globals. Knows nothing of HTTP statuses,
//! log lines or metrics: a check admits, or returns why not.

pub(crate) mod concurrency;
mod gcra;
pub(crate) mod handshakes;
mod limits;
#[cfg(all(test, feature = "loom"))]
mod loom_tests;
pub(crate) mod origin;
mod penalties;
pub(crate) mod rate;
mod source;
mod table;
mod users;

pub(crate) use concurrency::{ConcurrencyLimit, Permit};
pub(crate) use handshakes::{Admission, HandshakeLimits, HandshakePermit, Handshakes, Newcomer};
pub(crate) use limits::{LimitExceeded, PerIp, PerNetwork, TrackedSources};
pub(crate) use origin::{MissingOrigin, Origin, OriginPolicy, OriginRefused};
pub(crate) use penalties::Penalties;
pub(crate) use rate::{AddressPermit, RateLimiter, canonical};
pub(crate) use users::{UserPermit, UserSessions};
