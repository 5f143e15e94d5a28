//! How many sessions each user has, and how many one may have.
//!
//! Knows nothing of credentials: a name is a user, whatever proved it. Invariants: only users with sessions are in the table; a user
//! has at most as many permits as the limit says at the moment of the last one, however many are asked for at once.

use std::{collections::HashMap, num::NonZeroU32, sync::Arc};

use crate::sync::Mutex;

/// A table that is larger than this becomes smaller again when its users leave.
const KEPT_CAPACITY: usize = 64;

/// The sessions of each user.
#[derive(Debug)]
pub struct UserSessions {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` for no limit. Sessions are counted all the same, so that a limit that a reload sets applies to them.
    limit: Option<NonZeroU32>,
    users: HashMap<Arc<str>, u32>,
}

impl UserSessions {
    pub(crate) fn new(limit: Option<NonZeroU32>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { limit, users: HashMap::new() }) })
    }

    /// A permit for one session of this user, or `None` if the user has as many as the limit allows.
    #[must_use = "dropping the permit releases it"]
    pub(crate) fn try_acquire(self: &Arc<Self>, user: &str) -> Option<UserPermit> {
        let mut state = self.state.lock();
        let limit = state.limit.map_or(u32::MAX, NonZeroU32::get);
        let (user, sessions) = match state.users.get_key_value(user) {
            Some((user, sessions)) => (Arc::clone(user), *sessions),
            None => (Arc::from(user), 0),
        };
        if sessions >= limit {
            return None;
        }
        state.users.insert(Arc::clone(&user), sessions + 1);
        drop(state);
        Some(UserPermit { users: Arc::clone(self), user })
    }

    /// Changes the limit. Permits stay valid: a user with more gets no further one until enough of them are released.
    pub(crate) fn set_limit(&self, limit: Option<NonZeroU32>) {
        self.state.lock().limit = limit;
    }
}

/// One session of a user; dropping it releases it.
#[derive(Debug)]
pub(crate) struct UserPermit {
    users: Arc<UserSessions>,
    user: Arc<str>,
}

impl Drop for UserPermit {
    fn drop(&mut self) {
        let mut state = self.users.state.lock();
        if let Some(sessions) = state.users.get_mut(&self.user) {
            *sessions -= 1;
            if *sessions > 0 {
                return;
            }
        }
        let users = &mut state.users;
        users.remove(&self.user);
        if users.capacity() > KEPT_CAPACITY && users.len() < users.capacity() / 4 {
            users.shrink_to(2 * users.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    use super::*;

    fn tracked(users: &UserSessions) -> usize {
        users.state.lock().users.len()
    }

    #[test]
    fn a_user_has_as_many_sessions_as_the_limit_allows() {
        let users = UserSessions::new(NonZeroU32::new(2));
        let (first, _second) = (users.try_acquire("ann").unwrap(), users.try_acquire("ann").unwrap());
        assert!(users.try_acquire("ann").is_none());
        let _other = users.try_acquire("bob").unwrap();
        drop(first);
        assert!(users.try_acquire("ann").is_some());
    }

    #[test]
    fn sessions_count_before_there_is_a_limit() {
        let users = UserSessions::new(None);
        let held: Vec<_> = (0..3).map(|_| users.try_acquire("ann").unwrap()).collect();
        users.set_limit(NonZeroU32::new(3));
        assert!(users.try_acquire("ann").is_none());
        drop(held);
        let held: Vec<_> = (0..3).map_while(|_| users.try_acquire("ann")).collect();
        assert_eq!(held.len(), 3);
        users.set_limit(None);
        assert!(users.try_acquire("ann").is_some());
    }

    #[test]
    fn only_users_with_sessions_use_memory() {
        let users = UserSessions::new(NonZeroU32::new(1));
        let held: Vec<_> =
            (0..10_000).map(|number| users.try_acquire(&number.to_string()).unwrap()).collect();
        assert_eq!(tracked(&users), 10_000);
        drop(held);
        assert_eq!(tracked(&users), 0);
        assert!(users.state.lock().users.capacity() <= 4 * KEPT_CAPACITY);
    }

    #[test]
    fn a_hundred_at_once_get_as_many_permits_as_the_limit_allows() {
        const THREADS: usize = 10;
        let users = UserSessions::new(NonZeroU32::new(5));
        for _ in 0..100 {
            let (start, granted) = (Barrier::new(THREADS), AtomicUsize::new(0));
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        start.wait();
                        let held: Vec<_> = (0..10).filter_map(|_| users.try_acquire("ann")).collect();
                        granted.fetch_add(held.len(), Ordering::SeqCst);
                        // Held until all have tried.
                        start.wait();
                    });
                }
            });
            assert_eq!(granted.into_inner(), 5);
            assert_eq!(tracked(&users), 0);
        }
    }
}
