//! Files that are read again when they change: certificates, token files, the resolver's configuration (hot reload).
//!
//! Owns when the files are read, and which result is installed or reported. Knows nothing of their contents: reading
//! and validating are arguments, and so are stamps and time. Only [`Stamp::read`] and [`poll`] do I/O.
//!
//! A file has changed when its [`Stamp`] has. Each change is read when it is seen, and once more at the next check:
//! timestamps are too coarse to tell two changes in quick succession apart, and what is invalid at first may be half of
//! what is still being written. Invariants: invalid contents never replace valid ones; a failure is reported once per
//! change, and not before the second read; recovery from a reported failure is reported once. Contents that were
//! rejected are read again at every check, because the cause may lie outside of the files: a clock that is wrong, a
//! certificate that is not valid yet, a lack of file descriptors.
//!
//! Files are polled by their metadata rather than watched through the kernel (inotify). Polling follows every link, so
//! that it sees one that is swapped anywhere in the path (`/etc/letsencrypt/live`, the `..data` of Kubernetes), and it
//! works for network and bind mounts, for which the kernel sends no events.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use tokio::{
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;

/// How often files are checked for a change.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    /// Device, inode and size.
    file: (u64, u64, u64),
    /// When the contents changed, in seconds and nanoseconds.
    modified: (i64, i64),
    /// When the contents, the owner or the permissions changed.
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn new(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino(), metadata.len()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The stamp of the file at `path`, links followed; `None` if there is none, or its metadata cannot be read.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self::new(&metadata))
    }
}

/// Valid contents of the watched files.
#[derive(Debug)]
pub(crate) struct LoadedFile<T> {
    pub(crate) value: T,
    /// Whether they equal those in use.
    pub(crate) is_current: bool,
    /// Whether they may be half-written although they are valid. Such contents are used after the second read only.
    pub(crate) is_partial: bool,
}

/// What to do after a check.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FileEvent<T, E> {
    /// Nothing: unchanged, reported before, or not settled yet.
    None,
    /// Install these contents and report them.
    Replaced(T),
    /// Report that the contents in use are valid again; the failure before was reported.
    Recovered(T),
    /// Report that the files are invalid and that the contents in use stay.
    Rejected(E),
}

/// Follows the changes of files whose versions `S` tells apart.
#[derive(Debug)]
pub(crate) struct ChangeTracker<S> {
    stamps: S,
    checked: Instant,
    state: TrackerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TrackerState {
    /// Read once since the last change.
    Unsettled,
    /// Read once since the last change; a failure before that was reported, and no recovery since.
    UnsettledAfterFailure,
    /// Read twice since the last change, and valid.
    Settled,
    /// Read at least twice since the last change, invalid, and reported.
    Rejected,
}

impl<S: PartialEq> ChangeTracker<S> {
    /// Follows files that were read once. `stamps` must be older than that read, so that a change meanwhile is seen.
    pub(crate) fn new(stamps: S, now: Instant) -> Self {
        Self { stamps, checked: now, state: TrackerState::Unsettled }
    }

    /// Whether [`CHECK_INTERVAL`] has passed since the last check, for callers that check on demand.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now.duration_since(self.checked) >= CHECK_INTERVAL
    }

    /// Compares `stamps` with those of the last check, and calls `load` if the files are to be read.
    pub(crate) fn check<T, E>(
        &mut self,
        stamps: S,
        now: Instant,
        load: impl FnOnce() -> Result<LoadedFile<T>, E>,
    ) -> FileEvent<T, E> {
        let is_changed = stamps != self.stamps;
        (self.stamps, self.checked) = (stamps, now);
        let before = self.state;
        // Set before `load` is called: contents that make it panic are not read at every check.
        self.state = match (before, is_changed) {
            (TrackerState::Settled, false) => return FileEvent::None,
            (TrackerState::Unsettled | TrackerState::Settled, true) => TrackerState::Unsettled,
            (TrackerState::UnsettledAfterFailure | TrackerState::Rejected, true) => {
                TrackerState::UnsettledAfterFailure
            }
            (
                TrackerState::Unsettled | TrackerState::UnsettledAfterFailure | TrackerState::Rejected,
                false,
            ) => TrackerState::Settled,
        };
        match load() {
            Ok(loaded) if is_changed && loaded.is_partial => FileEvent::None,
            Ok(LoadedFile { value, is_current, .. }) => {
                self.state = if is_changed { TrackerState::Unsettled } else { TrackerState::Settled };
                match before {
                    _ if !is_current => FileEvent::Replaced(value),
                    TrackerState::UnsettledAfterFailure | TrackerState::Rejected => {
                        FileEvent::Recovered(value)
                    }
                    TrackerState::Unsettled | TrackerState::Settled => FileEvent::None,
                }
            }
            Err(_) if is_changed => FileEvent::None,
            Err(error) => {
                self.state = TrackerState::Rejected;
                if before == TrackerState::Rejected { FileEvent::None } else { FileEvent::Rejected(error) }
            }
        }
    }

    /// The files were found invalid by another reader, which has reported it: report their recovery only.
    pub(crate) fn mark_rejected(&mut self, stamps: S) {
        (self.stamps, self.state) = (stamps, TrackerState::Rejected);
    }

    /// Makes the next check compare with `stamps`, as if the files had had them at the last one.
    #[cfg(test)]
    pub(crate) fn set_stamps(&mut self, stamps: S) {
        self.stamps = stamps;
    }
}

/// Calls `check` every [`CHECK_INTERVAL`] until `stop` is cancelled. It runs on a thread for blocking calls, because
/// files may be on a slow network file system.
pub(crate) async fn poll(check: impl Fn() + Clone + Send + 'static, stop: CancellationToken) {
    let mut clock = interval_at(Instant::now() + CHECK_INTERVAL, CHECK_INTERVAL);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let checks = async {
        loop {
            clock.tick().await;
            // The panic hook has reported a panic; the next check is independent of this one.
            let _ = spawn_blocking(check.clone()).await;
        }
    };
    stop.run_until_cancelled(checks).await;
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// What the files hold at a check.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Found {
        /// What is in use.
        Current,
        New,
        Partial,
        Invalid,
    }
    use Found::{Current, Invalid, New, Partial};

    /// A tracker and whether its next check reads the files.
    struct FakeFiles {
        tracker: ChangeTracker<u32>,
        stamp: u32,
    }

    type Result = FileEvent<Found, ()>;
    const NONE: Result = FileEvent::None;
    const REJECTED: Result = FileEvent::Rejected(());
    const RECOVERED: Result = FileEvent::Recovered(Current);
    const REPLACED: Result = FileEvent::Replaced(New);

    impl FakeFiles {
        fn new() -> Self {
            Self { tracker: ChangeTracker::new(0, Instant::now()), stamp: 0 }
        }

        fn settled() -> Self {
            let mut files = Self::new();
            assert_eq!(files.check(Current), (NONE, true));
            files
        }

        /// The event, and whether the files were read.
        fn check(&mut self, found: Found) -> (Result, bool) {
            let mut is_read = false;
            let event = self.tracker.check(self.stamp, Instant::now(), || {
                is_read = true;
                let loaded =
                    LoadedFile { value: found, is_current: found == Current, is_partial: found == Partial };
                if found == Invalid { Err(()) } else { Ok(loaded) }
            });
            (event, is_read)
        }

        fn change(&mut self, found: Found) -> (Result, bool) {
            self.stamp += 1;
            self.check(found)
        }
    }

    #[test]
    fn each_change_is_read_twice() {
        let mut files = FakeFiles::new();
        assert_eq!(files.check(Current), (NONE, true), "the first read was before");
        assert_eq!(files.check(Current), (NONE, false));
        assert_eq!(files.change(New), (REPLACED, true));
        assert_eq!(files.check(Current), (NONE, true));
        assert_eq!(files.check(New), (NONE, false), "not read any more");
    }

    #[test]
    fn second_change_within_one_timestamp_is_seen_by_the_second_read() {
        let mut files = FakeFiles::settled();
        assert_eq!(files.change(New), (REPLACED, true));
        assert_eq!(files.check(New), (REPLACED, true));
    }

    #[test]
    fn half_written_files_are_not_reported() {
        let mut files = FakeFiles::settled();
        for found in [Invalid, Partial, Invalid, New] {
            let expected = if found == New { REPLACED } else { NONE };
            assert_eq!(files.change(found), (expected, true));
        }
        assert_eq!(files.check(Current), (NONE, true));
    }

    #[test]
    fn contents_that_look_partial_are_used_after_the_second_read() {
        let mut files = FakeFiles::settled();
        assert_eq!(files.change(Partial), (NONE, true));
        assert_eq!(files.check(Partial), (FileEvent::Replaced(Partial), true));
        assert_eq!(files.check(Partial), (NONE, false));
    }

    #[test]
    fn failure_is_reported_once_per_change_and_recovery_once() {
        let mut files = FakeFiles::settled();
        for _ in 0..2 {
            assert_eq!(files.change(Invalid), (NONE, true));
            assert_eq!(files.check(Invalid), (REJECTED, true));
            assert_eq!(files.check(Invalid), (NONE, true));
        }
        assert_eq!(files.change(Current), (RECOVERED, true));
        assert_eq!(files.check(Current), (NONE, true));
        assert_eq!(files.check(Current), (NONE, false));
    }

    #[test]
    fn rejected_contents_are_used_once_they_are_valid_without_a_change() {
        for (found, event) in [(Current, RECOVERED), (New, REPLACED)] {
            let mut files = FakeFiles::settled();
            files.change(Invalid);
            assert_eq!(files.check(Invalid).0, REJECTED);
            assert_eq!(files.check(found), (event, true));
            assert_eq!(files.check(Current), (NONE, false));
        }
    }

    #[test]
    fn rejection_by_another_reader_is_not_reported_but_its_recovery_is() {
        let mut files = FakeFiles::settled();
        files.stamp += 1;
        files.tracker.mark_rejected(files.stamp);
        assert_eq!(files.check(Invalid), (NONE, true));
        assert_eq!(files.check(Current), (RECOVERED, true));
    }

    /// Every sequence of five checks, from every state, against what may be reported at all.
    #[test]
    fn no_sequence_of_checks_reports_too_much_or_too_little() {
        const CHECKS: u32 = 5;
        let steps: Vec<(bool, Found)> = [false, true]
            .into_iter()
            .flat_map(|is_changed| [Current, New, Partial, Invalid].map(|found| (is_changed, found)))
            .collect();
        for sequence in 0..steps.len().pow(CHECKS) {
            let mut files = FakeFiles::new();
            // How often the files were read since the last change, whether that was reported as invalid, and whether
            // a failure was reported that no success has followed.
            let (mut reads, mut is_reported, mut is_failing) = (1, false, false);
            for position in 0..CHECKS {
                let (is_changed, found) = steps[sequence / steps.len().pow(position) % steps.len()];
                if is_changed {
                    (reads, is_reported) = (0, false);
                }
                let (event, is_read) = if is_changed { files.change(found) } else { files.check(found) };
                let context = format!("step {position} of {sequence}: {found:?} {event:?}");
                assert_eq!(is_read, reads < 2 || is_reported, "{context}");
                if !is_read {
                    assert_eq!(event, NONE, "{context}");
                    continue;
                }
                reads += 1;
                let expected = match found {
                    Invalid | Partial if reads == 1 => NONE,
                    Invalid if is_reported => NONE,
                    Invalid => REJECTED,
                    Current if is_failing => RECOVERED,
                    Current => NONE,
                    New | Partial => FileEvent::Replaced(found),
                };
                assert_eq!(event, expected, "{context}");
                if event == REJECTED {
                    (is_reported, is_failing) = (true, true);
                } else if found != Invalid && !(found == Partial && reads == 1) {
                    (is_reported, is_failing) = (false, false);
                }
            }
        }
    }

    #[test]
    fn check_on_demand_is_due_after_the_interval() {
        let start = Instant::now();
        let mut tracker = ChangeTracker::new(0, start);
        assert!(!tracker.is_due(start + CHECK_INTERVAL / 2));
        assert!(tracker.is_due(start + CHECK_INTERVAL));
        let loaded = || Ok::<_, ()>(LoadedFile { value: (), is_current: true, is_partial: false });
        tracker.check(0, start + CHECK_INTERVAL, loaded);
        assert!(!tracker.is_due(start + CHECK_INTERVAL));
    }

    #[test]
    fn stamp_changes_with_contents_permissions_and_links() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        assert_eq!(Stamp::read(&at("link")), None);
        for version in ["one", "two"] {
            fs::write(at(version), "text").unwrap();
        }
        std::os::unix::fs::symlink("one", at("link")).unwrap();
        let first = Stamp::read(&at("link"));
        assert_eq!(first, Stamp::read(&at("one")));
        std::os::unix::fs::symlink("two", at("next")).unwrap();
        fs::rename(at("next"), at("link")).unwrap();
        let second = Stamp::read(&at("link"));
        assert_ne!(first, second, "another file of the same size");
        fs::write(at("two"), "longer text").unwrap();
        assert_ne!(second, Stamp::read(&at("link")));
    }

    #[tokio::test(start_paused = true)]
    async fn poll_checks_every_interval_and_survives_a_panic() {
        let checks = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let count = Arc::clone(&checks);
        let check = move || assert_ne!(count.fetch_add(1, Ordering::SeqCst), 0, "the first check panics");
        let polling = tokio::spawn(poll(check, stop.clone()));
        tokio::time::sleep(CHECK_INTERVAL * 7 / 2).await;
        assert_eq!(checks.load(Ordering::SeqCst), 3);
        stop.cancel();
        polling.await.unwrap();
        assert_eq!(Arc::strong_count(&checks), 1);
    }
}
