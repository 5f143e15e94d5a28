//! Who may enter.
//!
//! Every decision here is pure: no sockets, no clock (time is an argument), no globals. The room knows
//! nothing of statuses, log lines or metrics; it says yes, or why not.

pub mod capacity;
pub mod origin;
pub mod rate;

pub use capacity::{Capacity, Slot};
pub use origin::{InvalidOrigin, MissingOrigin, Origin, OriginError, OriginPolicy, OriginRefused};
pub use rate::{Limiter, PerIp, Place, Refused, canonical};
