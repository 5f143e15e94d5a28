//! Who may enter.
//!
//! Every decision here is pure: no sockets, no clock (time is an argument), no globals. The room knows
//! nothing of statuses, log lines or metrics; it says yes, or why not.

pub mod concurrency;
pub mod origin;
pub mod rate;

pub use concurrency::{ConcurrencyLimit, Permit};
pub use origin::{InvalidOrigin, MissingOrigin, Origin, OriginError, OriginPolicy, OriginRefused};
pub use rate::{AddressPermit, LimitExceeded, PerIp, RateLimiter, canonical};
