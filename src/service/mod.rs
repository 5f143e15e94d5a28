//! The process as a service: logging, access log, signals, systemd (notification and watchdog), resource limits.
//!
//! Owns the interfaces to the operating system and the service manager. Knows nothing of connections. Socket activation is
//! in [`transport::listener`](crate::transport::listener), with the other listening sockets.

pub(crate) mod limits;
pub(crate) mod logging;
pub(crate) mod signals;
pub(crate) mod systemd;
