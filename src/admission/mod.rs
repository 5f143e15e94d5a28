//! Who may enter.
//!
//! Every decision here is pure: no sockets, no clock (time is an argument), no globals. The room knows
//! nothing of statuses, log lines or metrics; it says yes, or why not.

pub(crate) mod concurrency;
pub(crate) mod origin;
pub(crate) mod rate;

pub(crate) use concurrency::{ConcurrencyLimit, Permit};
pub(crate) use origin::{MissingOrigin, Origin, OriginPolicy, OriginRefused};
pub(crate) use rate::{AddressPermit, LimitExceeded, PerIp, RateLimiter, canonical};
