//! What happened in a simulation: what the checks compare.
//!
//! Owns the data alone.

use super::{backends::Served, log::Line, packet::Event, plan::Seen};

/// A session that was killed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kill {
    pub(super) session: u64,
    /// The payload accepted of its client before.
    pub(super) bytes_in: u64,
    /// In milliseconds since the beginning.
    pub(super) at: u64,
}

/// What happened in a simulation.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) tls: bool,
    pub(super) lines: Vec<Line>,
    pub(super) seen: Vec<Seen>,
    pub(super) served: Vec<Served>,
    pub(super) kills: Vec<Kill>,
    /// When the drain began and ended, in milliseconds since the beginning.
    pub(super) drain: Option<(u64, u64)>,
    pub(super) events: Vec<Event>,
    /// What does not hold.
    pub(super) problems: Vec<String>,
}
