//! What threads share state with: atomics, locks, a value that is set once, a waker.
//!
//! Owns no state. The feature `loom` replaces them by those of the model checker loom, which runs a test in every order that its threads can
//! have. Those tests are named `loom_tests`, and only they can run with the feature.

#[cfg(not(feature = "loom"))]
pub(crate) use {
    atomic_waker::AtomicWaker,
    parking_lot::Mutex,
    std::sync::{OnceLock, atomic},
};

#[cfg(feature = "loom")]
pub(crate) use self::model::{AtomicWaker, Mutex, OnceLock, atomic};

/// The same names and methods with loom's types. Its lock can be poisoned, and its waker takes its argument by value.
#[cfg(feature = "loom")]
mod model {
    use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
    }

    /// Loom has no such cell: this is the standard library's, with the ordering between the two threads that it promises.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        is_set: atomic::AtomicBool,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self { value: std::sync::OnceLock::new(), is_set: atomic::AtomicBool::new(false) }
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            self.value.set(value)?;
            self.is_set.store(true, atomic::Ordering::Release);
            Ok(())
        }

        pub(crate) fn get(&self) -> Option<&T> {
            self.is_set.load(atomic::Ordering::Acquire).then(|| self.value.get()).flatten()
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn register(&self, waker: &std::task::Waker) {
            self.0.register_by_ref(waker);
        }

        pub(crate) fn wake(&self) {
            self.0.wake();
        }
    }
}
