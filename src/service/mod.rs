//! Living on a machine: logs, signals, the service manager, the limits of a process.
//!
//! Owns what the operating system and its service manager have to do with us. Refuses to know connections.

pub mod limits;
pub mod logging;
pub mod signals;
pub mod systemd;
