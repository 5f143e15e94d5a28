//! Admission control: the Origin check, the rate limit per address and the concurrency limits.
//!
//! Every decision here is pure: no sockets, no clock (time is an argument), no globals. Knows nothing of HTTP statuses,
//! log lines or metrics: a check admits, or returns why not.

pub(crate) mod concurrency;
pub(crate) mod origin;
pub(crate) mod rate;

pub(crate) use concurrency::{ConcurrencyLimit, Permit};
pub(crate) use origin::{MissingOrigin, Origin, OriginPolicy, OriginRefused};
pub(crate) use rate::{AddressPermit, LimitExceeded, PerIp, RateLimiter, canonical};
