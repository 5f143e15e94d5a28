//! One buffer for every session of a thread.
//!
//! A poll borrows it, and nothing of a session stays in it when the poll returns: that is why an idle session owns
//! no buffer.

use std::cell::RefCell;

/// The size of the buffer in bytes: what one poll of one direction can move, and so what a stalled direction can
/// be left with.
pub(super) const SIZE: usize = 64 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SIZE].into_boxed_slice());
}

/// Lends the thread's buffer to `work`, which must not call this again.
pub(super) fn with<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| work(scratch))
}
