//! The read buffer that all sessions of a thread share.
//!
//! Invariant: a session borrows the buffer during a poll and leaves nothing in it when the poll returns. This is why an
//! idle session owns no buffer.

use std::cell::RefCell;

/// The size of the buffer in bytes: the most that one read can return, and so the most that a stalled direction
/// buffers.
pub(super) const SIZE: usize = 1 << 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SIZE].into_boxed_slice());
}

/// Calls `work` with the thread's buffer. `work` must not call this function.
pub(super) fn with<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| work(scratch))
}
