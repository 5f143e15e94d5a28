//! Grants that count again for the same credential, for a short time.
//!
//! Pure: the time is an argument. Invariants: a credential is kept as a keyed digest only, and the key is in no other place; a
//! cache has at most [`MAX_ENTRIES`] grants; none counts longer than the lifetime, whether it is used or not, nor longer than
//! the grant itself.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, SystemTime},
};

use aws_lc_rs::{hmac, rand::SystemRandom};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Grant;

/// The largest number of grants.
const MAX_ENTRIES: usize = 4096;

/// Names a credential, as far as this cache is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CacheKey([u8; 32]);

/// Grants, by digests of what they were granted for.
#[derive(Debug)]
pub(super) struct GrantCache {
    key: hmac::Key,
    lifetime: Duration,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    grants: HashMap<CacheKey, (Instant, Grant)>,
    /// When which entry ends. The lifetime is the same for all, so this is their order too.
    ends: VecDeque<(Instant, CacheKey)>,
}

impl GrantCache {
    /// An empty cache.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn new(lifetime: Duration) -> Result<Self, String> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| "the system has no random numbers".to_owned())?;
        Ok(Self { key, lifetime, entries: Mutex::default() })
    }

    /// The key of these parts, in this order.
    pub(super) fn key<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> CacheKey {
        let mut context = hmac::Context::with_key(&self.key);
        for part in parts {
            // With its length, so that the end of one part is not the beginning of the next.
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        CacheKey(digest)
    }

    /// What was granted for this key, if it still counts.
    pub(super) fn get(&self, key: CacheKey, now: Instant, time: SystemTime) -> Option<Grant> {
        let entries = self.entries.lock();
        let (end, grant) = entries.grants.get(&key)?;
        let is_valid = now < *end && grant.expires.is_none_or(|expires| time < expires);
        is_valid.then(|| grant.clone())
    }

    /// Keeps a grant. The oldest gives way if there are too many.
    pub(super) fn insert(&self, key: CacheKey, grant: Grant, now: Instant) {
        let mut entries = self.entries.lock();
        let Entries { grants, ends } = &mut *entries;
        while ends.len() >= MAX_ENTRIES || ends.front().is_some_and(|(end, _)| *end <= now) {
            let Some((end, oldest)) = ends.pop_front() else { break };
            // The same key can have been inserted again since.
            if grants.get(&oldest).is_some_and(|(current, _)| *current == end) {
                grants.remove(&oldest);
            }
        }
        let end = now + self.lifetime;
        grants.insert(key, (end, grant));
        ends.push_back((end, key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn grant(user: &str) -> Grant {
        Grant::of_user(user).unwrap()
    }

    #[test]
    fn a_grant_counts_for_its_lifetime_however_often_it_is_used() {
        let cache = GrantCache::new(SECOND * 10).unwrap();
        let (now, time) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let key = cache.key([&b"ann"[..], b"secret"]);
        assert_eq!(cache.get(key, now, time), None);
        cache.insert(key, grant("ann"), now);
        for seconds in 0..10 {
            assert_eq!(cache.get(key, now + SECOND * seconds, time), Some(grant("ann")));
        }
        assert_eq!(cache.get(key, now + SECOND * 10, time), None);
        cache.insert(key, grant("bob"), now + SECOND * 5);
        assert_eq!(cache.get(key, now + SECOND * 14, time), Some(grant("bob")));
        // What was inserted first ends, and does not take the second with it.
        cache.insert(cache.key([&b"other"[..]]), grant("x"), now + SECOND * 11);
        assert_eq!(cache.get(key, now + SECOND * 14, time), Some(grant("bob")));
    }

    #[test]
    fn a_grant_does_not_outlive_itself() {
        let cache = GrantCache::new(SECOND * 10).unwrap();
        let (now, time) = (Instant::now(), SystemTime::UNIX_EPOCH + SECOND * 1000);
        let key = cache.key([&b"ann"[..]]);
        cache.insert(key, Grant { expires: Some(time + SECOND * 2), ..grant("ann") }, now);
        assert!(cache.get(key, now, time + SECOND).is_some());
        assert_eq!(cache.get(key, now, time + SECOND * 2), None);
    }

    #[test]
    fn every_part_and_its_place_is_part_of_the_key() {
        let cache = GrantCache::new(SECOND).unwrap();
        let key = |parts: &[&str]| cache.key(parts.iter().map(|part| part.as_bytes()));
        let all = [
            key(&["ann", "secret"]),
            key(&["annsecret"]),
            key(&["ann", "", "secret"]),
            key(&["secret", "ann"]),
            key(&["anns", "ecret"]),
            key(&[]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "{index}");
        }
        assert_eq!(key(&["ann", "secret"]), all[0]);
        let other = GrantCache::new(SECOND).unwrap();
        assert_ne!(other.key([&b"ann"[..], b"secret"]), all[0], "each cache has its own key");
    }

    #[test]
    fn the_number_of_grants_is_bounded() {
        let cache = GrantCache::new(SECOND * 10).unwrap();
        let (now, time) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let key = |number: usize| cache.key([&number.to_le_bytes()[..]]);
        for number in 0..MAX_ENTRIES * 3 {
            cache.insert(key(number), grant("ann"), now);
            cache.insert(key(number), grant("ann"), now);
        }
        let entries = cache.entries.lock();
        assert!(entries.grants.len() <= MAX_ENTRIES && entries.ends.len() <= MAX_ENTRIES);
        drop(entries);
        assert!(cache.get(key(MAX_ENTRIES * 3 - 1), now, time).is_some());
        assert!(cache.get(key(0), now, time).is_none());
        cache.insert(key(0), grant("ann"), now + SECOND * 20);
        let entries = cache.entries.lock();
        assert_eq!((entries.grants.len(), entries.ends.len()), (1, 1), "what has expired is removed");
    }
}
