//! The deny list: JWTs that are refused although they have not expired, by their `jti` claim (RFC 7519 §4.1.7).
//!
//! Pure: the time is an argument. Invariant: the list has at most [`MAX_DENIED`] entries.

use std::{
    collections::{BTreeSet, HashMap},
    time::SystemTime,
};

use parking_lot::Mutex;

/// The longest `jti` claim, in bytes, of a token and of an entry.
pub(crate) const MAX_JTI: usize = 256;
/// The largest number of entries.
pub(crate) const MAX_DENIED: usize = 100_000;

/// The list is full of entries that have not expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_DENIED} ids are denied already; try again when some of them have expired")]
pub(crate) struct DenyListFull;

/// The denied ids, each until its token has expired.
#[derive(Debug, Default)]
pub(crate) struct DenyList(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    until: HashMap<Box<str>, SystemTime>,
    by_end: BTreeSet<(SystemTime, Box<str>)>,
}

impl DenyList {
    /// Denies an id until a time. An id that is denied already stays denied until the later time.
    ///
    /// # Errors
    /// The list is full.
    pub(crate) fn deny(&self, jti: &str, until: SystemTime, now: SystemTime) -> Result<(), DenyListFull> {
        let mut entries = self.0.lock();
        while entries.by_end.first().is_some_and(|(end, _)| *end <= now) {
            if let Some((_, jti)) = entries.by_end.pop_first() {
                entries.until.remove(&jti);
            }
        }
        let previous = entries.until.get(jti).copied();
        if previous.is_some_and(|previous| previous >= until) {
            return Ok(());
        }
        match previous {
            Some(previous) => _ = entries.by_end.remove(&(previous, jti.into())),
            None if entries.until.len() >= MAX_DENIED => return Err(DenyListFull),
            None => {}
        }
        entries.by_end.insert((until, jti.into()));
        entries.until.insert(jti.into(), until);
        Ok(())
    }

    /// Whether a token with this id is refused.
    pub(crate) fn is_denied(&self, jti: &str, now: SystemTime) -> bool {
        self.0.lock().until.get(jti).is_some_and(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn an_id_is_denied_until_its_time() {
        let list = DenyList::default();
        list.deny("a", at(10), at(0)).unwrap();
        assert!(list.is_denied("a", at(9)));
        assert!(!list.is_denied("a", at(10)));
        assert!(!list.is_denied("b", at(9)));
    }

    #[test]
    fn the_later_time_counts() {
        let list = DenyList::default();
        list.deny("a", at(10), at(0)).unwrap();
        list.deny("a", at(20), at(0)).unwrap();
        list.deny("a", at(5), at(0)).unwrap();
        assert!(list.is_denied("a", at(19)));
        list.deny("b", at(30), at(19)).unwrap();
        assert!(list.is_denied("a", at(19)), "the shorter entry was removed with the longer one");
        assert_eq!(list.0.lock().by_end.len(), 2);
    }

    #[test]
    fn the_list_is_bounded_and_expired_entries_make_place() {
        let list = DenyList::default();
        for number in 0..MAX_DENIED {
            list.deny(&number.to_string(), at(10 + number as u64 % 2), at(0)).unwrap();
        }
        assert_eq!(list.deny("one more", at(99), at(9)), Err(DenyListFull));
        list.deny("1", at(99), at(9)).unwrap();
        list.deny("one more", at(99), at(10)).unwrap();
        assert!(list.is_denied("1", at(12)) && list.is_denied("one more", at(12)));
        let entries = list.0.lock();
        assert_eq!((entries.until.len(), entries.by_end.len()), (MAX_DENIED / 2 + 1, MAX_DENIED / 2 + 1));
    }
}
