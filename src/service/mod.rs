//! Living on a machine: logs, signals, the service manager, the limits of a process.
//!
//! Owns what the operating system and its service manager have to do with us. Refuses to know connections.

pub(crate) mod limits;
pub(crate) mod logging;
pub(crate) mod signals;
pub(crate) mod systemd;
